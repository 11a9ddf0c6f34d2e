"""Shapes that recipes share."""

from typing import Any

from firth.config import suggest
from firth.errors import ConfigError
from firth.models import SIZES


def shape_of(size: str) -> dict[str, Any]:
    """Layers, hidden size, heads and intermediate size.

    Raises:
        ConfigError: if no size has this name.
    """
    if size not in SIZES:
        raise ConfigError(f"unknown size {size!r}; {suggest(size, SIZES)}")
    return SIZES[size]


def gated_shape_of(size: str) -> dict[str, Any]:
    """The same with an intermediate size for gated feed-forward layers."""
    shape = shape_of(size)
    return {**shape, "intermediate_size": gated_size(shape["intermediate_size"])}


def gated_size(intermediate_size: int) -> int:
    """With as many weights in three matrices as in two, rounded up to a multiple of 64."""
    return -(-intermediate_size * 2 // 3 // 64) * 64
