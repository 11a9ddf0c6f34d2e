"""How recurrent networks walk packed sequences: steps, states, and what is handed on.

Sequences lie end to end. A step takes the tokens of one place of all sequences that are so long,
longest sequences first, so nothing is padded.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """How N packed tokens of B sequences become steps."""

    order: Tensor
    """(N) the token of each row, step by step; within a step longest sequences first."""
    back: Tensor
    """(N) the row of each token."""
    sizes: tuple[int, ...]
    """Sequences that take part in each step, never rising."""
    slots: Tensor
    """(B) the sequence of each place in a step."""

    @property
    def even(self) -> bool:
        """Whether all sequences are of one length, of more than one token."""
        return self.full and len(self.sizes) > 1 and self.sizes[0] == self.sizes[-1]

    @property
    def full(self) -> bool:
        """Whether every sequence has a token."""
        return bool(self.sizes) and self.sizes[0] == len(self.slots)

    @staticmethod
    def of(starts: Tensor, device: torch.device, *, reverse: bool = False) -> "Steps":
        """The steps of sequences that `starts` (B+1, on the CPU) delimits.

        Args:
            starts: where each begins.
            device: of the tokens.
            reverse: begin at the last token of each.
        """
        lengths = starts.diff()
        slots = torch.argsort(lengths, descending=True, stable=True)
        longest = int(lengths.max()) if len(lengths) else 0
        place = torch.arange(longest)[:, None]  # (T, 1)
        inside = place < lengths[slots]  # (T, B)
        first = starts[:-1][slots]
        token = starts[1:][slots] - 1 - place if reverse else first + place
        order = token[inside]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        sizes = tuple(inside.sum(1).tolist())
        return Steps(order.to(device), back.to(device), sizes, slots.to(device))


class State(NamedTuple):
    """What an LSTM layer carries from one step to the next, a row for each sequence."""

    hidden: Tensor
    """(B, P)."""
    cell: Tensor
    """(B, H)."""


@dataclass
class RecurrentCache:
    """The state behind the tokens that were read, so that the next one costs one step."""

    backward: bool = False
    """Whether tokens come from right to left, each in front of those before."""
    states: list[State] | None = None
    """Of each layer; None before the first token."""

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences, in this order; a beam may repeat one."""
        if self.states is not None:
            self.states = [State(one.hidden[rows], one.cell[rows]) for one in self.states]


def handed_on(states: list[State]) -> dict[str, Tensor]:
    """Layers' states by name, cut off from what led to them (truncated BPTT)."""
    return {
        f"{i}.{name}": value.detach().float()
        for i, state in enumerate(states)
        for name, value in state._asdict().items()
    }


def taken_up(carried: dict[str, Tensor]) -> list[State] | None:
    """The states that `handed_on` named; None where there are none."""
    count = len(carried) // len(State._fields)
    found = [State(carried[f"{i}.hidden"], carried[f"{i}.cell"]) for i in range(count)]
    return found or None
