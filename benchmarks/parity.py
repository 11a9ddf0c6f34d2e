"""Largest absolute difference from `transformers`, by family and direction, in float32.

    python benchmarks/parity.py

Tiny random models (5 layers of 24, three heads, every bias and norm perturbed) on six sequences of
1 to 30 tokens: padded with a mask for them, end to end for us. "read" loads a directory of theirs
here; "written" loads a directory of ours there. No network, a few seconds.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.reference import FAMILIES, measure, transformers


def main() -> None:
    torch.set_num_threads(2)
    transformers.utils.logging.set_verbosity_error()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, float32, CPU\n")
    print("| family     | what          | direction | max error |")
    print("| ---------- | ------------- | --------- | --------- |")
    for family in FAMILIES:
        for (what, direction), error in measure(family).items():
            print(f"| {family:10} | {what:13} | {direction:9} | {error:9.1e} |")


if __name__ == "__main__":
    main()
