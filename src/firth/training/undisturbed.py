"""What training leaves as the caller had it."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Has gradients on and torch's random numbers to itself, and gives both back as they were.

    Training sets seeds; a caller who draws numbers between two runs is to have different ones.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        yield
