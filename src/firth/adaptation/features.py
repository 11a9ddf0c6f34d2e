"""What a frozen model says of each text, computed once and kept for training on it."""

import os
import tempfile
from dataclasses import dataclass

import numpy as np
import torch

from firth.adaptation.network import AdaptedNetwork, EncodedExamples, in_order, lay_targets
from firth.device import Precision
from firth.errors import ResourceError
from firth.inference.forward import BUDGET, Engine
from firth.models.mix import SequenceHead
from firth.protocols import Batch, Scores, Targets
from firth.text.batches import length_batches

IN_MEMORY = 1 << 30
"""Bytes of features above which they lie in a temporary file, mapped into memory."""


@dataclass(frozen=True)
class Features:
    """States of texts, end to end: one of each text, or one of each of its words or tokens."""

    states: np.ndarray
    """(U, layers, D)."""
    starts: np.ndarray
    """(E+1) int64: text e is states[starts[e]:starts[e+1]]."""

    @property
    def lengths(self) -> np.ndarray:
        """(E) states of each text."""
        return np.diff(self.starts)

    def batch(self, chosen: np.ndarray, targets: Targets | None = None) -> Batch:
        """Some texts end to end, with their targets; the states stand in `input_ids`."""
        pieces = [self.states[self.starts[e] : self.starts[e + 1]] for e in chosen]
        lengths = self.lengths[chosen]
        return Batch(
            input_ids=torch.from_numpy(np.concatenate(pieces)),
            starts=torch.from_numpy(np.concatenate(([0], np.cumsum(lengths)))),
            targets=None if targets is None else lay_targets(targets, chosen),
        )


def extract(network: AdaptedNetwork, data: EncodedExamples, precision: Precision) -> Features:
    """The features of a frozen network.

    They are kept in float32, those of words and tokens in float16 where the model computes in
    bfloat16, which has fewer digits.

    Raises:
        ResourceError: if there is no room for them.
    """
    engine = Engine.of(network, precision, data.longest)
    pooled = isinstance(network.head, SequenceHead)
    counts = data.counts if pooled or data.words is not None else data.lengths
    starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    half = not pooled and engine.dtype == torch.bfloat16
    dtype = np.dtype(np.float16 if half else np.float32)
    states = np.empty((0, 1, 1), dtype)

    def compute(_chosen: np.ndarray, batch: Batch) -> np.ndarray:
        model = engine.model
        assert isinstance(model, AdaptedNetwork)
        found, _ = model.features(batch)
        limit = torch.finfo(torch.float16).max
        return (found.clamp(-limit, limit) if half else found.float()).cpu().numpy()

    for chosen, _, some in engine.run_batches(data.lengths, data.batch, compute):
        if not len(states):
            states = _room((int(starts[-1]), *some.shape[1:]), dtype)
        for e, own in zip(chosen, np.split(some, np.cumsum(counts[chosen])[:-1]), strict=True):
            states[starts[e] : starts[e + 1]] = own
    return Features(states, starts)


def score_features(network: AdaptedNetwork, features: Features) -> Scores:
    """Scores of all texts from their features, as `score_examples` gives them."""
    device = next(network.parameters()).device
    parts = []
    network.eval()
    with torch.inference_mode():
        for chosen in length_batches(features.lengths, BUDGET[device.type]):
            batch = features.batch(chosen).to(device)
            parts.append((chosen, network.score(batch.input_ids.float(), batch.starts)))
    word = network.head.unit == "word"
    counts = features.lengths if word else np.ones(len(features.lengths), np.int64)
    return in_order(((c, rows.cpu().numpy()) for c, rows in parts), counts, network.head)


def _room(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array in memory, or in a temporary file that goes when the array does."""
    size = int(np.prod(shape)) * dtype.itemsize
    if size <= IN_MEMORY:
        return np.empty(shape, dtype)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # a full disk would end the process later
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "w+", shape=shape)  # type: ignore[arg-type]
    except OSError as error:
        raise ResourceError(
            f"no room for {size / 1e9:.1f} GB of features in {tempfile.gettempdir()} ({error}); "
            "free some, set TMPDIR to a larger disk, or mix fewer layers (layers='last')"
        ) from error
