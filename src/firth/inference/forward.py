"""Running a model over many texts: windows, length order, small batches."""

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from firth.device import Precision, compute_dtype, computing
from firth.errors import DivergedError
from firth.inference.progress import Progress
from firth.models.heads import HEADS
from firth.protocols import Batch, Context, Encoding
from firth.text.batches import collate, length_batches

T = TypeVar("T")

BUDGET = {"cpu": 2048, "cuda": 65536}
"""Tokens a batch: on the CPU its activations should stay in the cache."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Has dropout off, and gives the model back in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def up_to_date(owner: object, name: str, model: nn.Module, make: Callable[[], T]) -> T:
    """What was made of a model's weights and is kept with `owner`; anew once they have changed.

    Every change in place counts, such as an optimizer's step (not one behind autograd's back, by
    `.data`), and every other parameter in the place of one.
    """
    weights = list(model.parameters())
    versions = [0 if p.is_inference() else p._version for p in weights]
    known, since, made = vars(owner).get(name, ([], [], None))
    same = len(known) == len(weights) and all(map(operator.is_, known, weights))
    if made is None or not same or since != versions:
        made = make()
        vars(owner)[name] = (weights, versions, made)
    return made


@dataclass(frozen=True)
class Engine:
    """A model ready for inference: dropout off, its matrices already in the compute dtype."""

    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    max_length: int

    @staticmethod
    def of(model: nn.Module, precision: Precision, max_length: int) -> "Engine":
        """Makes the engine; a low-precision one has a copy of the linear layers, but for heads."""
        device = next(model.parameters()).device
        dtype = compute_dtype(precision, device)
        if dtype != torch.float32:
            model = copy.deepcopy(model).requires_grad_(False)
            heads = [m for m in model.modules() if isinstance(m, HEADS)]
            heads += [head] if (head := getattr(model, "head", None)) is not None else []
            exact = {id(module) for head in heads for module in head.modules()}
            for module in model.modules():
                if isinstance(module, nn.Linear) and id(module) not in exact:
                    module.to(dtype)
        return Engine(model, device, dtype, max_length)

    @property
    def context(self) -> Context:
        """Where the model looks when it reads a token: on both sides, before it or behind it."""
        model: Any = getattr(self.model, "body", self.model)  # of an adapted network
        return model.context

    def logits(self, hidden: Tensor, **how: Any) -> Tensor:
        """(M, D) states to (M, V) scores, in float32: bfloat16 has steps of 0.06 at 8 to 16."""
        with torch.autocast(self.device.type, enabled=False):
            return self.model.logits(hidden.float(), **how)  # type: ignore[operator]

    def run(
        self,
        ids: Sequence[np.ndarray],
        compute: Callable[[np.ndarray, Batch], T],
        *,
        segments: Sequence[np.ndarray] | None = None,
        causal: bool = False,
    ) -> Iterator[tuple[np.ndarray, Batch, T]]:
        """Runs sequences in batches of like length.

        Args:
            ids: the sequences.
            compute: calls the model; gets the indexes of a batch's sequences and the batch, and
                runs in the compute dtype without gradients.
            segments: of each sequence, for pairs.
            causal: have a decoder read from left to right, even one that could read both ways.

        Yields:
            The indexes of the batch's sequences, the batch, and what `compute` gave.
        """

        def lay(chosen: np.ndarray) -> Batch:
            batch = collate(
                [ids[i] for i in chosen],
                None if segments is None else [segments[i] for i in chosen],
            )
            if causal:
                batch = replace(batch, prefix=torch.zeros(len(chosen), dtype=torch.int64))
            return batch

        yield from self.run_batches(np.array([len(one) for one in ids]), lay, compute)

    def run_batches(
        self,
        lengths: np.ndarray,
        lay: Callable[[np.ndarray], Batch],
        compute: Callable[[np.ndarray, Batch], T],
    ) -> Iterator[tuple[np.ndarray, Batch, T]]:
        """Runs texts in batches of like length, as `run` does; `lay` makes the batch of some."""
        progress = Progress(int(lengths.sum()), "tokens read")
        for longest_first in length_batches(lengths, BUDGET[self.device.type]):
            chosen = longest_first[::-1]  # ascending, as attention groups them
            batch = lay(chosen).to(self.device)
            fast = computing(self.dtype, self.device)
            with evaluating(self.model), torch.inference_mode(), fast:
                kept = compute(chosen, batch)
            progress.add(int(lengths[chosen].sum()))
            yield chosen, batch, kept


def check_numbers(values: Tensor) -> None:
    """Refuses what a diverged model gives.

    Raises:
        DivergedError: if there is a NaN.
    """
    if values.isnan().any():
        raise DivergedError(
            "the model gives scores that are no numbers: its training diverged, or its weights are "
            "damaged; train again with a lower learning rate, or load another copy"
        )


@dataclass(frozen=True)
class Window:
    """A stretch of an encoded text that fits the model, special tokens added at its ends."""

    text: int
    """Index of the text."""
    ids: np.ndarray
    begin: int
    """First token of the text (special tokens counted) that this window answers for."""
    end: int
    offset: int
    """Token `t` of the text stands at `t - offset` in the window."""


def windows(
    encodings: Sequence[Encoding], max_length: int, *, context: Context = "both"
) -> list[Window]:
    """Cuts encoded texts into overlapping windows of at most `max_length` tokens.

    A text that fits is one window. A longer one is cut at half-window steps, and each token belongs
    to the window where it has most context; no token is dropped and none counts twice.

    Args:
        encodings: the texts.
        max_length: of the model, special tokens counted.
        context: where the model looks. With "both" a token belongs to the window where it is
            farthest from an edge, with "left" to the one where most tokens stand before it, with
            "right" behind it: half a window at least, but in the window that begins, or ends, the
            text.
    """
    found = []
    for which, encoding in enumerate(encodings):
        ids, outside = encoding.ids, encoding.words < 0
        if len(ids) <= max_length:
            found.append(Window(which, ids, 0, len(ids), 0))
            continue
        opened, closed = int(outside[0]), int(outside[-1])  # with special tokens, or not
        inner = ids[opened : len(ids) - closed]
        first, last = ids[:opened], ids[len(ids) - closed :]
        room = max_length - opened - closed
        last_start = len(inner) - room
        starts = [*range(0, last_start, max(1, room // 2)), last_start]
        if context == "right":  # laid out from the end, where such a model begins to read
            starts = [last_start - start for start in reversed(starts)]
        # Between two windows the border lies where they overlap.
        overlaps = [(b, a + room) for a, b in pairwise(starts)]
        borders = {
            "both": [(low + high) // 2 for low, high in overlaps],
            "left": [high for _, high in overlaps],
            "right": [low for low, _ in overlaps],
        }[context]
        edges = [0, *borders, len(inner)]
        for i, start in enumerate(starts):
            piece = np.concatenate([first, inner[start : start + room], last])
            begin = 0 if i == 0 else edges[i] + opened
            end = len(ids) if i == len(starts) - 1 else edges[i + 1] + opened
            found.append(Window(which, piece, begin, end, start))
    return found
