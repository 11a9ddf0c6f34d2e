"""How far long work is, said now and then."""

import logging
import time
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

EVERY = 10.0
"""Seconds from one line to the next; shorter work says nothing."""


@dataclass
class Progress:
    """Counts what is done of a known amount."""

    total: int
    what: str
    """Of what, in the plural."""
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    said: float = field(default_factory=time.monotonic)

    def add(self, count: int) -> None:
        """Counts `count` more as done, and says so if nothing was said for a while."""
        self.done += count
        now = time.monotonic()
        if now - self.said < EVERY or self.done >= self.total:
            return
        self.said = now
        left = (now - self.began) * (self.total - self.done) / max(1, self.done)
        shown = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
        logger.info("%s of %s %s, %s left", f"{self.done:,}", f"{self.total:,}", self.what, shown)
