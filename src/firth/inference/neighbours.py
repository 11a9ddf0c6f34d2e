"""The nearest occurrences of words in a corpus, and the words nearest to a word, by cosine."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from firth.errors import ConfigError
from firth.inference.index_facts import CHUNK
from firth.inference.isotropy import Isotropy, Remove, number_to_remove
from firth.inference.word_index import WordIndex
from firth.inference.word_similarity import Nearest, nearest_words
from firth.text.words import folded

FEWEST = 10
"""Vectors that it takes to estimate their mean, and again for each direction."""

_NOTHING = 1e-4
"""A vector of which the correction leaves a smaller share is rounding alone: its cosines are 0."""

Among = Literal["all", "same", "other"]
"""Which words are looked at: all, occurrences of the word itself, or those of other words."""


@dataclass(frozen=True, kw_only=True)
class Occurrence:
    """A word at its place in the corpus."""

    cosine: float
    """With the vector asked for."""
    word: str
    sentence: str
    start: int
    """Of the word in the sentence, in characters."""
    end: int
    word_index: int
    """In the sentence, counted from 0."""
    document: int
    """In the corpus, counted from 0."""
    document_start: int
    """Of the word in its document, in characters."""


def nearest_occurrences(
    index: WordIndex,
    query: np.ndarray,
    *,
    top_k: int = 10,
    word: str | None = None,
    among: Among = "all",
    directions: Remove = "auto",
    one_a_sentence: bool = True,
) -> list[Occurrence]:
    """The occurrences whose vectors have the largest cosine with a vector, the nearest first.

    The search is exact: every row is compared, in chunks read through the memory map.

    Args:
        index: of the corpus.
        query: (D) the vector, from the same model and layers.
        top_k: how many.
        word: the word that the vector is of; needed where not all are looked at.
        among: "same" looks at occurrences of `word` only, "other" at those of other words. Case
            does not count.
        directions: principal directions that the correction removes besides the mean; "off" for
            plain cosines.
        one_a_sentence: of each sentence (by its text: corpora repeat themselves) only the nearest
            word.

    Raises:
        ConfigError: if a setting cannot be used, or the word is not in the index.
    """
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; expected at least 1")
    if among not in get_args(Among):
        raise ConfigError(f"among is {among!r}; expected all, same or other")
    scores = cosines(index, query, directions=directions)
    if among != "all":
        if word is None:
            raise ConfigError(f"among={among!r} needs to know the word; give word=")
        scores[_others(index, word, among)] = -np.inf
    found: list[Occurrence] = []
    seen: set[str] = set()
    for row in _descending(scores, top_k):
        one = _occurrence(index, row, float(scores[row]))
        if not one_a_sentence or one.sentence not in seen:
            seen.add(one.sentence)
            found.append(one)
        if len(found) == top_k:
            break
    return found


def cosines(index: WordIndex, query: np.ndarray, *, directions: Remove = "auto") -> np.ndarray:
    """(rows) float32 cosine of every row with a (D) vector, both corrected.

    With P = I - sum_i u_i u_i^T and m the mean, the corrected row v' = P (v - m) has the product
    v' . q' = (v - m) . q' with a corrected query q', because P q' = q'. So the rows are read as
    they are, and need only their lengths, which are kept for the default correction. Where there
    are too few rows to estimate mean and directions (`FEWEST`), the cosines are plain.
    """
    isotropy = index.isotropy
    if len(query) != index.dimensions:
        raise ConfigError(
            f"{index.path}: the vector has {len(query)} numbers, and those of the index have "
            f"{index.dimensions}; it is from another model"
        )
    remove = number_to_remove(directions, index.automatic, len(isotropy.directions))
    if remove is not None and index.num_rows < FEWEST * (1 + remove):
        remove = None
    wanted = torch.from_numpy(np.asarray(query, np.float32).copy())
    shift = 0.0
    if remove is not None:
        corrected = isotropy.correct(wanted[None], remove)[0]
        if corrected.norm() < _NOTHING * wanted.norm():
            return np.zeros(index.num_rows, np.float32)
        wanted = corrected
    wanted = torch.nn.functional.normalize(wanted, dim=0)
    if remove is not None:
        shift = float(isotropy.mean @ wanted)
    products = torch.empty(index.num_rows)
    norms = _known_norms(index, remove)
    computed = torch.empty(index.num_rows) if norms is None else norms
    for begin in range(0, index.num_rows, CHUNK):
        chunk = index.chunk(begin, CHUNK)
        products[begin : begin + CHUNK] = chunk @ wanted
        if norms is None and remove is not None:
            computed[begin : begin + CHUNK] = isotropy.correct(chunk, remove).norm(dim=1)
    found = (products - shift) / computed.clamp(min=1e-12)
    return found.masked_fill(computed < _NOTHING * torch.from_numpy(index.norms[0]), 0.0).numpy()


def _known_norms(index: WordIndex, remove: int | None) -> Tensor | None:
    if remove is None:
        return torch.from_numpy(index.norms[0])
    return torch.from_numpy(index.norms[1]) if remove == index.automatic else None


def _others(index: WordIndex, word: str, among: Among) -> np.ndarray:
    """(rows) bool: the rows that are not looked at."""
    name = folded(word)
    if name not in index.words:
        if among == "other":
            return np.zeros(index.num_rows, bool)
        raise ConfigError(
            f"{word!r} does not occur in the indexed words of the corpus; leave out the "
            "restriction to the same word, or index it"
        )
    same = index.types == index.words.index(name)
    return same if among == "other" else ~same


def _descending(scores: np.ndarray, at_first: int) -> Iterator[int]:
    """Rows by falling score, as many as are asked for; those of -inf never come."""
    given: set[int] = set()
    wanted = 0
    while wanted < len(scores):
        wanted = min(len(scores), max(4 * at_first, 8 * wanted))
        top = np.argpartition(-scores, wanted - 1)[:wanted]
        for row in top[np.lexsort((top, -scores[top]))].tolist():
            if scores[row] == -np.inf:
                return
            if row not in given:
                given.add(row)
                yield row


def _occurrence(index: WordIndex, row: int, cosine: float) -> Occurrence:
    sentence, word, begin, end = index.places[row].tolist()
    text, document, offset = index.sentence(sentence)
    return Occurrence(
        cosine=cosine,
        word=text[begin:end],
        sentence=text,
        start=begin,
        end=end,
        word_index=word,
        document=document,
        document_start=offset + begin,
    )


def static_neighbours(
    index: WordIndex, word: str, *, top_k: int = 10, directions: Remove = "auto"
) -> Nearest:
    """The words whose mean vectors over the corpus are nearest to that of a word.

    A word's static vector is the mean of its vectors in context (Bommasani et al. 2020, section
    3.2, "aggregated, mean"). They are corrected by mean and directions of their own, unless there
    are too few (`FEWEST`).

    Returns:
        Words and cosines; empty where the word is too rare or not indexed.
    """
    words, vectors = index.static
    name = folded(word)
    if name not in words:
        return []
    rows = torch.from_numpy(np.array(vectors))
    own = Isotropy.of([rows])
    remove = number_to_remove(directions, index.automatic, len(own.directions))
    if remove is not None and len(rows) >= FEWEST * (1 + remove):
        rows = own.correct(rows, remove)
    return nearest_words(words, rows.numpy(), name, top_k)
