"""Vectors for sentences, words and tokens, from any layers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from firth.errors import ConfigError
from firth.inference.forward import Engine, Window, windows
from firth.models.mix import Pooling, pool
from firth.models.static import Static
from firth.protocols import Batch, Encoding

Layers = int | Sequence[int] | Literal["all"]


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """One text's vectors with what they stand for."""

    units: list[str]
    """The words or tokens."""
    offsets: np.ndarray
    """(n, 2) start and end of each in the text, in characters."""
    vectors: np.ndarray
    """(n, D), or (n, layers, D) where several layers were asked for; float32."""


def chosen_layers(layers: Layers, num_layers: int) -> tuple[int, ...] | None:
    """The wanted entries of `hidden_states` (0 is the embedding output), or None for just the last.

    Raises:
        ConfigError: if a layer does not exist, or none is chosen.
    """
    if layers == "all":
        return tuple(range(num_layers + 1))
    one = isinstance(layers, Integral)  # numpy's too
    wanted = (int(layers),) if one else tuple(layers)  # type: ignore[arg-type]
    if not wanted:
        raise ConfigError("no layer was chosen; give at least one, for instance -1 for the last")
    if wanted in ((-1,), (num_layers,)):
        return None
    for layer in wanted:
        if not -num_layers - 1 <= layer <= num_layers:
            raise ConfigError(
                f"layer {layer} does not exist: this model has the embedding output (0) and layers "
                f"1 to {num_layers}"
            )
    return tuple(layer % (num_layers + 1) for layer in wanted)


def _states(engine: Engine, batch: Batch, wanted: tuple[int, ...] | None) -> Tensor:
    """(N, layers, D)."""
    if wanted is None:
        return engine.model(batch).last[:, None]
    states = engine.model(batch, hidden_states=True).hidden_states
    return torch.stack([states[i] for i in wanted], dim=1)


def embed_sentences(
    engine: Engine,
    encodings: Sequence[Encoding],
    *,
    layers: tuple[int, ...] | None = None,
    pooling: Pooling = "mean",
) -> np.ndarray:
    """One vector a text: the pooled states of its tokens, special tokens included.

    Static models have no states for special tokens: there they are left out.

    A text longer than the model's window is pooled over its windows, each weighted by the tokens
    it answers for ("max" takes the maximum, "first" and "last" the outer windows). A text without
    any token, which a tokenizer that adds none may give, has the vector zero.

    Returns:
        (texts, layers, D) float32.
    """
    if isinstance(engine.model, Static):
        encodings = [_without_special_tokens(encoding) for encoding in encodings]
    pieces = [w for w in windows(encodings, engine.max_length) if len(w.ids)]
    pooled: list[np.ndarray] = [np.empty(0)] * len(pieces)

    def compute(chosen: np.ndarray, batch: Batch) -> np.ndarray:
        states = _states(engine, batch, layers)
        flat = pool(states.flatten(1), batch.starts, pooling).float()
        return flat.view(len(chosen), *states.shape[1:]).cpu().numpy()

    for chosen, _, vectors in engine.run([w.ids for w in pieces], compute):
        for i, vector in zip(chosen, vectors, strict=True):
            pooled[i] = vector
    borders = np.searchsorted([w.text for w in pieces], np.arange(len(encodings) + 1))
    found = np.zeros((len(encodings), *_shape(engine, layers)), np.float32)
    for text, (low, high) in enumerate(pairwise(borders.tolist())):
        if low < high:
            found[text] = _join(pieces[low:high], pooled[low:high], pooling)
    return found


def _without_special_tokens(encoding: Encoding) -> Encoding:
    inside = encoding.words >= 0
    tokens = [token for token, keep in zip(encoding.tokens, inside, strict=True) if keep]
    return Encoding(
        text=encoding.text,
        ids=encoding.ids[inside],
        tokens=tokens,
        offsets=encoding.offsets[inside],
        words=encoding.words[inside],
    )


def _shape(engine: Engine, layers: tuple[int, ...] | None) -> tuple[int, int]:
    return 1 if layers is None else len(layers), engine.model.config.hidden_size  # type: ignore[union-attr]


def _join(pieces: list[Window], pooled: list[np.ndarray], how: Pooling) -> np.ndarray:
    """The vector of a text from those of its windows."""
    values = np.stack(pooled)
    if how == "mean":
        return np.average(values, axis=0, weights=[w.end - w.begin for w in pieces])
    return {"max": values.max(0), "first": values[0], "last": values[-1]}[how]


def token_states(
    engine: Engine,
    encodings: Sequence[Encoding],
    *,
    layers: tuple[int, ...] | None = None,
    causal: bool = False,
) -> list[np.ndarray]:
    """Hidden states of every token of every text, special tokens included.

    Returns:
        One (tokens, layers, D) float32 array a text.
    """
    pieces = [w for w in windows(encodings, engine.max_length) if len(w.ids)]
    states: list[np.ndarray | None] = [None] * len(encodings)

    def compute(_chosen: np.ndarray, batch: Batch) -> np.ndarray:
        return _states(engine, batch, layers).float().cpu().numpy()

    for chosen, batch, stacked in engine.run([w.ids for w in pieces], compute, causal=causal):
        for i, part in zip(chosen, np.split(stacked, batch.starts[1:-1].numpy()), strict=True):
            window = pieces[i]
            whole = states[window.text]
            if whole is None:
                shape = (len(encodings[window.text].ids), *part.shape[1:])
                whole = states[window.text] = np.empty(shape, dtype=np.float32)
            own = slice(window.begin - window.offset, window.end - window.offset)
            whole[window.begin : window.end] = part[own]
    nothing = np.empty((0, *_shape(engine, layers)), np.float32)
    return [nothing if one is None else one for one in states]


def word_vectors(encoding: Encoding, states: np.ndarray, words: Sequence[str] | None) -> Vectors:
    """One vector a word: the mean of its tokens' states.

    Args:
        encoding: the text.
        states: (tokens, layers, D) of the encoding.
        words: the user's own words, or None for those of the pre-tokenizer. A word without any
            token (an empty string) gets zeros.
    """
    inside = encoding.words >= 0
    owner = encoding.words[inside]
    count = len(words) if words is not None else int(owner.max(initial=-1)) + 1
    sums = np.zeros((count, *states.shape[1:]), dtype=np.float32)
    np.add.at(sums, owner, states[inside])
    tokens = np.bincount(owner, minlength=count)
    vectors = sums / np.maximum(1, tokens).astype(np.float32)[:, None, None]
    if words is not None:
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        ends = np.cumsum(lengths + 1) - 1
        offsets = np.stack([ends - lengths, ends], axis=1)
    else:
        low = np.full(count, len(encoding.text), dtype=np.int64)
        high = np.zeros(count, dtype=np.int64)
        np.minimum.at(low, owner, encoding.offsets[inside, 0])
        np.maximum.at(high, owner, encoding.offsets[inside, 1])
        offsets, visible = _without_white_space(encoding.text, np.stack([low, high], axis=1))
        vectors = vectors[visible]
    units = [encoding.text[a:b] for a, b in offsets]
    return Vectors(units=units, offsets=offsets, vectors=vectors)


def _without_white_space(text: str, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words trimmed, and which are more than blanks (byte-level vocabularies keep those)."""
    parts = [text[a:b] for a, b in offsets]
    leading = np.array([len(part) - len(part.lstrip()) for part in parts], np.int64)
    lengths = np.array([len(part.strip()) for part in parts], np.int64)
    begins = offsets[:, 0] + leading
    visible = lengths > 0
    return np.stack([begins, begins + lengths], axis=1)[visible], visible


def token_vectors(encoding: Encoding, states: np.ndarray) -> Vectors:
    """The states of each ordinary token of a text, from (tokens, layers, D)."""
    inside = encoding.words >= 0
    units = [token for token, keep in zip(encoding.tokens, inside, strict=True) if keep]
    return Vectors(units=units, offsets=encoding.offsets[inside], vectors=states[inside])
