"""Data parallel training from outside the model: who takes which part, and how gradients add up."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from firth.errors import ConfigError

_BUCKET_ELEMENTS = 1 << 22

_PATIENCE = timedelta(days=2)
"""How long processes wait for the first one, which trains the tokenizer and encodes the text."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together (`torchrun` sets the environment)."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0


def join(device: torch.device) -> tuple[Ranks, torch.device]:
    """Joins the process group that `torchrun` describes, if there is one.

    Returns:
        This process's rank, and its own device.

    Raises:
        ConfigError: if the environment speaks of several processes and not of this one's rank.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks(), device
    if "RANK" not in os.environ:
        raise ConfigError(
            f"the environment has WORLD_SIZE={world} and no RANK; start all processes with "
            "torchrun, or unset WORLD_SIZE to train in one"
        )
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    return Ranks(rank, world), device


def leave() -> None:
    """Leaves the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait(ranks: Ranks) -> None:
    """Waits for all processes."""
    if ranks.world > 1:
        dist.barrier()


def add_up(tensors: Iterable[Tensor], ranks: Ranks) -> None:
    """Replaces each tensor by its sum over all processes, a few megabytes at a time."""
    if ranks.world == 1:
        return
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel()
        if size >= _BUCKET_ELEMENTS:
            _reduce(bucket)
            bucket, size = [], 0
    if bucket:
        _reduce(bucket)


def _reduce(bucket: list[Tensor]) -> None:
    flat = torch.cat([tensor.flatten() for tensor in bucket])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in bucket])
    for tensor, part in zip(bucket, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def add_up_gradients(model: nn.Module, ranks: Ranks) -> None:
    """Sums the gradients over all processes; each holds the gradient of its part of the batch."""
    if ranks.world > 1:
        for p in model.parameters():  # every process must bring the same tensors
            if p.requires_grad and p.grad is None:
                p.grad = torch.zeros_like(p)
    add_up((p.grad for p in model.parameters() if p.grad is not None), ranks)


def of_first(value: float, ranks: Ranks, device: torch.device) -> float:
    """The number that the first process has, where rounding may have given others another."""
    if ranks.world == 1:
        return value
    number = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(number, 0)
    return float(number)


def agree(flag: bool, ranks: Ranks, device: torch.device) -> bool:
    """Whether any process raised `flag`."""
    if ranks.world == 1:
        return flag
    count = torch.tensor(int(flag), device=device)
    dist.all_reduce(count)
    return bool(count.item())
