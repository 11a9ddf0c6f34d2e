"""Vectors for sentences, words and tokens, from any layers."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from firth.errors import ConfigError
from firth.inference.forward import Engine, Window, windows
from firth.models.mix import Pooling, pool
from firth.models.static import Static
from firth.protocols import Batch, Encoding

Layers = int | Sequence[int] | Literal["all"]


@dataclass(frozen=True, kw_only=True, eq=False)
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
        ConfigError: if a layer does not exist or is no whole number, or none is chosen.
    """
    if isinstance(layers, str) and layers == "all":  # an array would be compared by its elements
        return tuple(range(num_layers + 1))
    several: Any = (layers,) if isinstance(layers, Integral) else layers
    try:
        wanted = tuple(map(operator.index, several))  # numpy's numbers, too
    except TypeError as error:
        raise ConfigError(
            f"layers is {layers!r}; expected a whole number, several, or all"
        ) from error
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


def check_unit(unit: str, pooling: Pooling) -> None:
    """Refuses what is neither word nor token, and a pooling where there is no sentence to pool.

    Raises:
        ConfigError: for either.
    """
    if unit not in ("word", "token"):
        raise ConfigError(f"unit {unit!r}; expected sentence, word or token")
    if pooling != "mean":
        raise ConfigError(f"pooling {pooling!r} is of sentences; leave it out, or take that unit")


def _states(engine: Engine, batch: Batch, wanted: tuple[int, ...] | None) -> Tensor:
    """(N, layers, D)."""
    if wanted is None:
        return engine.model(batch).last[:, None]
    states = engine.model(batch, hidden_states=True).hidden_states
    return torch.stack([states[i] for i in wanted], dim=1)


def _pieces(engine: Engine, encodings: Sequence[Encoding]) -> list[Window]:
    """What the model reads of texts that have a token."""
    found = windows(encodings, engine.max_length, context=engine.context)
    return [window for window in found if len(window.ids)]


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
    pieces = _pieces(engine, encodings)
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
    pieces = _pieces(engine, encodings)
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
    if words is not None:
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        ends = np.cumsum(lengths + 1) - 1
        offsets = np.stack([ends - lengths, ends], axis=1)
    else:
        offsets, owner = _words_of_tokens(encoding.text, encoding.offsets[inside], owner)
    sums = np.zeros((len(offsets), *states.shape[1:]), dtype=np.float32)
    np.add.at(sums, owner, states[inside])
    tokens = np.bincount(owner, minlength=len(offsets))
    vectors = sums / np.maximum(1, tokens).astype(np.float32)[:, None, None]
    if words is None:  # byte-level vocabularies have words of white space
        visible = offsets[:, 0] < offsets[:, 1]
        offsets, vectors = offsets[visible], vectors[visible]
    units = [encoding.text[a:b] for a, b in offsets]
    return Vectors(units=units, offsets=offsets, vectors=vectors)


def _words_of_tokens(
    text: str, offsets: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The (n, 2) places of words without white space around them, and the word of each token.

    What the pre-tokenizer cuts within one place is one word: Unigram cuts the space before a
    character that it does not know from that character, and gives both the place of both.
    """
    count = int(owner.max(initial=-1)) + 1
    low, high = np.full(count, len(text), np.int64), np.zeros(count, np.int64)
    np.minimum.at(low, owner, offsets[:, 0])
    np.maximum.at(high, owner, offsets[:, 1])
    parts = [text[a:b] for a, b in zip(low, high, strict=True)]
    begins = low + np.array([len(part) - len(part.lstrip()) for part in parts], np.int64)
    lengths = np.array([len(part.strip()) for part in parts], np.int64)
    places = np.stack([begins, begins + lengths], axis=1)
    new = np.ones(count, bool)
    new[1:] = (places[1:] != places[:-1]).any(axis=1)
    return places[new], (np.cumsum(new) - 1)[owner]


def token_vectors(encoding: Encoding, states: np.ndarray) -> Vectors:
    """The states of each ordinary token of a text, from (tokens, layers, D)."""
    inside = encoding.words >= 0
    units = [token for token, keep in zip(encoding.tokens, inside, strict=True) if keep]
    return Vectors(units=units, offsets=encoding.offsets[inside], vectors=states[inside])
