"""What an index of words holds beside its rows, computed in passes over the memory map."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firth.inference.isotropy import Isotropy, cosine_of_random_pairs, directions_for
from firth.text.batches import random_stream

CHUNK = 1 << 14
"""Rows held as float32 at a time: at 256 dimensions these fit the processor's cache."""
SAMPLE = 1 << 18
"""Rows from which mean and directions are estimated, evenly spaced."""
PAIRS = 20_000
"""Random pairs whose cosines are averaged."""
STATIC_COUNT = 5
"""Occurrences that a word needs for a static vector."""


def write_facts(directory: Path, dimensions: int, *, given_words: bool) -> dict[str, Any]:
    """Writes norms, directions and static vectors of the rows of an index.

    Args:
        directory: with the files of `ROW_FILES`.
        dimensions: D.
        given_words: the index is of a few words alone. Then the correction takes the mean alone:
            among occurrences of one word the principal directions are those of its senses; and
            there are no static vectors.

    Returns:
        Entries of the manifest.
    """
    vectors = np.memmap(directory / "vectors.f16", "<f2", mode="c").reshape(-1, dimensions)
    types = np.fromfile(directory / "types.u32", "<u4").astype(np.int64)
    remove = 0 if given_words else directions_for(dimensions)
    isotropy = Isotropy.of(_sample(vectors))
    rows = torch.cat([isotropy.mean[None], isotropy.directions])
    rows.numpy().astype("<f4").tofile(directory / "directions.f32")

    counts = np.bincount(types)
    frequent = np.flatnonzero((counts >= STATIC_COUNT) & (not given_words))
    slot = np.full(len(counts), len(frequent))  # the last one is for all other words
    slot[frequent] = np.arange(len(frequent))
    sums = torch.zeros(len(frequent) + 1, dimensions)
    norms = np.empty((2, len(vectors)), "<f4")
    for begin in range(0, len(vectors), CHUNK):
        part = slice(begin, begin + CHUNK)
        chunk = torch.from_numpy(vectors[part]).float()
        norms[0, part] = chunk.norm(dim=1)
        norms[1, part] = isotropy.correct(chunk, remove).norm(dim=1)
        sums.index_add_(0, torch.from_numpy(slot[types[part]]), chunk)
    norms.tofile(directory / "norms.f32")
    means = sums[:-1].numpy() / counts[frequent, None]
    means.astype("<f4").tofile(directory / "static.f32")
    frequent.astype("<u4").tofile(directory / "static_words.u32")

    pairs = _random_rows(vectors)
    return {
        "directions_removed": remove,
        "random_cosine": cosine_of_random_pairs(pairs),
        "random_cosine_corrected": cosine_of_random_pairs(isotropy.correct(pairs, remove)),
    }


def _sample(vectors: np.ndarray) -> Iterator[Tensor]:
    step = -(-len(vectors) // SAMPLE)
    for begin in range(0, len(vectors), CHUNK * step):
        yield torch.from_numpy(vectors[begin : begin + CHUNK * step : step]).float()


def _random_rows(vectors: np.ndarray) -> Tensor:
    """(2n, D): rows drawn without replacement where there are enough."""
    rng = random_stream(0, 0, 0)
    wanted = min(2 * PAIRS, len(vectors))
    places = np.sort(rng.choice(len(vectors), wanted, replace=False))
    return torch.from_numpy(vectors[places]).float()[torch.from_numpy(rng.permutation(wanted))]
