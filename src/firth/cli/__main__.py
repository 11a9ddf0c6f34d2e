"""`python -m firth.cli`."""

import sys

from firth.cli import main

sys.exit(main())
