"""Which words have similar vectors: neighbours and analogies, by cosine."""

from collections.abc import Collection, Sequence

import numpy as np

from firth.errors import ConfigError

Nearest = list[tuple[str, float]]
"""Words and cosines, the nearest first."""


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """(n, D) rows of length 1, float32; rows of zeros stay."""
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def nearest_words(
    words: Sequence[str],
    vectors: np.ndarray,
    query: str | np.ndarray,
    top_k: int = 10,
    *,
    without: Collection[str] = (),
) -> Nearest:
    """The words whose vectors have the largest cosine with a word's vector, or with a vector.

    Args:
        words: (n) which word each row is of.
        vectors: (n, D) float.
        query: one of the words, which is left out itself, or (D) a vector.
        top_k: how many.
        without: words to leave out.

    Raises:
        ConfigError: for a word that has no vector, or a `top_k` below 1.
    """
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; expected at least 1")
    left_out = {*without, *([query] if isinstance(query, str) else [])}
    if isinstance(query, str):
        query = vectors[_row(words, query)]
    query = np.asarray(query, np.float32)
    if query.shape != vectors.shape[1:] or not np.linalg.norm(query) > 0:
        raise ConfigError(
            f"the query is a vector of shape {query.shape} and norm {np.linalg.norm(query):.3g}; "
            f"expected {vectors.shape[1:]} and more than 0 (a word that is known)"
        )
    cosines = unit_rows(vectors) @ (query / np.linalg.norm(query))
    known = vectors.any(1)
    cosines[~known] = -np.inf
    most = min(int(known.sum()), top_k + len(left_out))
    best = np.argpartition(-cosines, most - 1)[:most]
    ordered = best[np.argsort(-cosines[best], kind="stable")].tolist()
    found: Nearest = [
        (str(words[i]), float(cosines[i])) for i in ordered if words[i] not in left_out
    ]
    return found[:top_k]


def analogy(
    words: Sequence[str], vectors: np.ndarray, a: str, b: str, c: str, top_k: int = 10
) -> Nearest:
    """What is to c as b is to a: the words d with the largest cos(d, b - a + c).

    3CosAdd (Mikolov et al. 2013c; Levy and Goldberg 2014, eq. 3): all vectors have length 1, and
    the three words themselves are left out.

    Raises:
        ConfigError: for a word that has no vector.
    """
    rows = [_row(words, word) for word in (a, b, c)]
    for row in rows:
        if not vectors[row].any():
            raise ConfigError(
                f"{words[row]!r} has no vector: the text that they were learned from lacks it"
            )
    first, second, third = unit_rows(vectors[rows])
    return nearest_words(words, vectors, second - first + third, top_k, without=(a, b, c))


def _row(words: Sequence[str], word: str) -> int:
    try:
        return words.index(word)
    except ValueError as error:
        raise ConfigError(
            f"{word!r} has no vector: it is not among the {len(words):,} words; check spelling and "
            "case"
        ) from error
