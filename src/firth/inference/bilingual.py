"""Word vectors of two languages in one space: a seed dictionary, a rotation, and translations.

parallel text --build_dictionary--> pairs of words
vectors of both languages + pairs --rotation--> W;  vectors W --translate--> words
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from firth.errors import DataError
from firth.inference.word_similarity import unit_rows

Sentences = Sequence[Sequence[str]]

_ROWS = 1024
"""Words whose similarities with all others are in memory at a time."""


def rotation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    r"""The orthogonal map that brings vectors closest to their translations (Procrustes).

    $W = \arg\min \|X W - Y\|_F$ over orthogonal W is $U V^\top$, where $U \Sigma V^\top$ is the
    singular value decomposition of $X^\top Y$ (Smith et al. 2017, section 2.3; Conneau et al. 2018,
    eq. 2). All vectors are brought to length 1 first.

    Args:
        source: (n, D) vectors of words, X.
        target: (n, D) those of their translations, Y.

    Returns:
        (D, D) float32.

    Raises:
        DataError: if the two are not of the same shape.
    """
    if source.shape != target.shape:
        raise DataError(
            f"vectors of shapes {source.shape} and {target.shape}; expected as many of each, of "
            "one width: train both languages with the same size"
        )
    x, y = unit_rows(source).astype(np.float64), unit_rows(target).astype(np.float64)
    left, _, right = np.linalg.svd(x.T @ y)
    return (left @ right).astype(np.float32)


def translate(
    source: np.ndarray, target: np.ndarray, *, rows: np.ndarray | None = None, csls: int = 10
) -> np.ndarray:
    r"""For each source word the target word that is most like it.

    By CSLS (Conneau et al. 2018, eq. 3): $2\cos(x, y) - r_T(x) - r_S(y)$, where $r_T(x)$ is the
    mean cosine of x with its k nearest target words and $r_S(y)$ that of y with its k nearest
    source words. It keeps words that are near everything from being every word's translation.

    Args:
        source: (m, D), mapped by `rotation`.
        target: (n, D).
        rows: of `source` to translate; None for all.
        csls: k; 0 for the plain cosine.

    Returns:
        (len(rows)) int64 rows of `target`, never one of zeros, which no word has.

    Raises:
        DataError: if there are no others.
    """
    known = np.flatnonzero(target.any(1))
    if not len(known):
        raise DataError("no target word has a vector: all rows of `target` are zeros")
    source, target = unit_rows(source), unit_rows(target[known])
    asked = source if rows is None else source[rows]
    crowd = _crowding(target, source, csls) if csls else np.zeros(len(target), np.float32)
    # r_T(x) is the same for all candidates of one x: it changes no order.
    best = [
        np.argmax(2 * asked[i : i + _ROWS] @ target.T - crowd, axis=1)
        for i in range(0, len(asked), _ROWS)
    ]
    return known[np.concatenate(best)] if best else np.zeros(0, np.int64)


def _crowding(vectors: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    """(n) mean cosine of each vector with the k nearest of the others."""
    k = min(k, len(others))
    means = []
    for i in range(0, len(vectors), _ROWS):
        cosines = vectors[i : i + _ROWS] @ others.T
        means.append(np.partition(cosines, -k, axis=1)[:, -k:].mean(1))
    return np.concatenate(means)


@dataclass(frozen=True)
class Precision:
    """How often the first translation is right."""

    share: float
    """Of the source words asked for."""
    num_words: int
    num_missing: int
    """Pairs left out, because a word has no vector."""


def precision_at_1(
    source_words: Sequence[str],
    source: np.ndarray,
    target_words: Sequence[str],
    target: np.ndarray,
    pairs: Sequence[tuple[str, str]],
    *,
    csls: int = 10,
) -> Precision:
    """The share of source words of which the first translation is among those of a dictionary.

    Args:
        source_words: (m).
        source: (m, D) vectors, mapped by `rotation`.
        target_words: (n), all of which are candidates.
        target: (n, D).
        pairs: a source word and a translation of it; a word may have several.
        csls: as in `translate`.

    Raises:
        DataError: if no pair has both its words among those with vectors.
    """
    rows, columns = _places(source_words, source), _places(target_words, target)
    right: dict[int, set[int]] = {}
    missing = 0
    for first, second in pairs:
        if first in rows and second in columns:
            right.setdefault(rows[first], set()).add(columns[second])
        else:
            missing += 1
    if not right:
        raise DataError(
            "no pair of the dictionary has vectors for both words; check case and order"
        )
    found = translate(source, target, rows=np.array(list(right)), csls=csls)
    hits = [answer in allowed for answer, allowed in zip(found, right.values(), strict=True)]
    return Precision(float(np.mean(hits)), len(right), missing)


def pairs_with_vectors(
    pairs: Sequence[tuple[str, str]],
    source_words: Sequence[str],
    source: np.ndarray,
    target_words: Sequence[str],
    target: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors of those pairs of a dictionary of which both words have one.

    Returns:
        Two arrays (n, D), for `rotation`.

    Raises:
        DataError: if there is none.
    """
    rows, columns = _places(source_words, source), _places(target_words, target)
    both = [(rows[a], columns[b]) for a, b in pairs if a in rows and b in columns]
    if not both:
        raise DataError(
            "no pair of the dictionary has vectors for both words; check case and order"
        )
    first, second = np.array(both).T
    return source[first], target[second]


def _places(words: Sequence[str], vectors: np.ndarray) -> dict[str, int]:
    """The rows of the words that have a vector: zeros are of words that the text lacked."""
    return {words[row]: row for row in np.flatnonzero(np.any(vectors, axis=1)).tolist()}


def build_dictionary(
    source: Sentences, target: Sentences, *, iterations: int = 5, min_count: int = 5
) -> list[tuple[str, str]]:
    """Pairs of words that are each other's most likely translation in parallel text.

    IBM model 1 is trained in both directions; a pair is kept if t(f|e) is largest for f given e,
    and t(e|f) for e given f (the intersection of both alignments, of words instead of places).

    Args:
        source: sentences as words.
        target: their translations, in the same order.
        iterations: of EM.
        min_count: how often both words must occur.

    Returns:
        Source and target words, the most frequent source word first.

    Raises:
        DataError: if there are not as many targets as sources, no sentence, no word on one side,
            or a sentence that is a string.
    """
    if len(source) != len(target) or not len(source):
        raise DataError(
            f"{len(source):,} sentences and {len(target):,} translations; expected as many of "
            "each, and at least one"
        )
    source_counts, target_counts = _counts(source), _counts(target)
    if not (source_counts and target_counts):
        raise DataError(f"no word in the {'translations' if source_counts else 'sentences'}")
    source_ids = {word: i for i, word in enumerate(source_counts)}
    target_ids = {word: i for i, word in enumerate(target_counts)}
    left = [np.array([source_ids[word] for word in one], np.int64) for one in source]
    right = [np.array([target_ids[word] for word in one], np.int64) for one in target]
    forward = _best(ibm_model_1(left, right, iterations=iterations))
    backward = _best(ibm_model_1(right, left, iterations=iterations))
    sources, targets = list(source_counts), list(target_counts)
    return [
        (sources[e], targets[f])
        for e, f in sorted(forward.items())
        if backward.get(f) == e
        and min(source_counts[sources[e]], target_counts[targets[f]]) >= min_count
    ]


def _counts(sentences: Sentences) -> dict[str, int]:
    """Words with their counts, the most frequent first."""
    whole = next((one for one in sentences if isinstance(one, str)), None)
    if whole is not None:
        raise DataError(f"the sentence {whole[:50]!r} is a string; expected a list of its words")
    return dict(Counter(word for one in sentences for word in one).most_common())


@dataclass(frozen=True)
class TranslationTable:
    """t(f|e) for all pairs that occur in one pair of sentences."""

    given: np.ndarray
    """(P) int64, e; -1 for the empty word."""
    words: np.ndarray
    """(P) int64, f."""
    probabilities: np.ndarray
    """(P) float64; those of one e add up to 1."""


def ibm_model_1(
    source: Sequence[np.ndarray], target: Sequence[np.ndarray], *, iterations: int = 5
) -> TranslationTable:
    r"""Word translation probabilities by EM (Brown et al. 1993, section 4.1, model 1).

    Every target word f stands for one source word e of its sentence, or for the empty word, all
    equally likely beforehand: $c(f|e) = \sum t(f|e) / \sum_{e'} t(f|e')$ over all places, and
    t(f|e) is c(f|e) brought to a sum of 1 for each e. It begins with equal probabilities.

    Args:
        source: sentences as (n) int64 ids.
        target: as many, as (m) int64 ids.
        iterations: of EM.
    """
    keys, sizes, num_targets = [], [], 1 + max(int(one.max(initial=0)) for one in target)
    for one, other in zip(source, target, strict=True):
        given = np.concatenate([one, [-1]])
        keys.append(((given[None] + 1) * num_targets + other[:, None]).ravel())
        sizes.append(np.full(len(other), len(given)))
    pairs, links = np.unique(np.concatenate(keys), return_inverse=True)
    given, words = np.divmod(pairs, num_targets)
    ends = np.cumsum(np.concatenate(sizes))
    starts = ends - np.concatenate(sizes)
    probabilities = np.ones(len(pairs))
    for _ in range(iterations):
        shares = probabilities[links]
        shares /= np.repeat(np.add.reduceat(shares, starts), ends - starts)
        counts = np.bincount(links, shares, len(pairs))
        probabilities = counts / np.bincount(given, counts)[given]
    return TranslationTable(given - 1, words, probabilities)


def _best(table: TranslationTable) -> dict[int, int]:
    """The most likely f of each e, the empty word left out."""
    order = np.lexsort((-table.words, table.probabilities, table.given))
    given = table.given[order]
    last = order[np.append(given[1:] != given[:-1], True)]
    pairs = zip(table.given[last].tolist(), table.words[last].tolist(), strict=True)
    return {e: f for e, f in pairs if e >= 0}
