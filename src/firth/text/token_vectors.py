"""Vectors of a vocabulary's tokens from vectors of words, which come from elsewhere."""

from collections.abc import Sequence

import numpy as np

from firth.text.tokenizers import Tokenizer

_MOST = 100_000
"""Words that are looked at; rarer ones would hardly move a token's vector."""


def token_vectors(
    tokenizer: Tokenizer, words: Sequence[str], vectors: np.ndarray, *, lowercase: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A vector for each token that is a word with a vector, or a piece of one.

    A token that is a whole word has the vector of that word. A piece has the mean over the words
    that it is part of, as Gee et al. 2022 give a new token the mean over the old ones that it is
    made of, the other way round. Words count as 1 / rank (Zipf's law): the files of word vectors
    begin with the most frequent one, and do not say how frequent it is. The first 100,000 count.

    Args:
        tokenizer: whose tokens.
        words: the most frequent first.
        vectors: (n, W) theirs; a word whose vector is all zeros has none.
        lowercase: whether the words have lost their case, so that a capitalised form has the
            vector, too.

    Returns:
        (t) ids in ascending order, and their (t, W) float32 vectors.
    """
    known = np.array([i for i in range(len(words)) if vectors[i].any()][:_MOST], np.int64)
    ids, owners, whole = _occurrences(
        tokenizer, [words[int(i)] for i in known], lowercase=lowercase
    )
    special = np.array(sorted(tokenizer.vocabulary.special), np.int64)
    kept = ~np.isin(ids, special)
    ids, owners, whole = ids[kept], known[owners[kept]], whole[kept]
    order = np.argsort(ids, kind="stable")
    found, begins = np.unique(ids[order], return_index=True)
    rows = np.zeros((len(found), vectors.shape[1]), np.float32)
    for row, own in zip(rows, np.split(order, begins)[1:], strict=True):
        own = own[whole[own]] if whole[own].any() else own
        weights = 1 / (1 + owners[own])
        row[:] = weights @ vectors[owners[own]] / weights.sum()
    return found, rows


def centred_directions(vectors: np.ndarray, most: int) -> np.ndarray:
    """The directions of vectors from their mean, in at most so many dimensions.

    Word vectors share a large component that tells none from another (Mu and Viswanath 2018). Of
    more than `most` dimensions the principal ones are kept.

    Args:
        vectors: (n, W).
        most: dimensions.

    Returns:
        (n, min(W, most)) float32 rows of length 1; a vector that is the mean has zeros.
    """
    around = vectors - vectors.mean(0)
    if most < around.shape[1]:
        around = around @ np.linalg.svd(around, full_matrices=False)[2][:most].T
    lengths = np.linalg.norm(around, axis=1, keepdims=True)
    return (around / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _occurrences(
    tokenizer: Tokenizer, words: Sequence[str], *, lowercase: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tokens of all words end to end, the word of each, and whether it is all of the word."""
    forms = list(enumerate(words))
    if lowercase and tokenizer.normalize("A") == "A":
        for change in (str.capitalize, str.upper):
            forms += [(i, one) for i, word in enumerate(words) if (one := change(word)) != word]
    texts = [[word] for _, word in forms]
    # The first word of a text lacks the space that many tokens begin with: each stands second, too.
    before = len(tokenizer.encode_ids([["a"]], special_tokens=False)[0])
    second = tokenizer.encode_ids([["a", *text] for text in texts], special_tokens=False)
    found = tokenizer.encode_ids(texts, special_tokens=False) + [ids[before:] for ids in second]
    lengths = np.array([len(ids) for ids in found], np.int64)
    owners = np.tile(np.array([i for i, _ in forms], np.int64), 2)
    ids = np.concatenate([np.zeros(0, np.int64), *found])
    return ids, np.repeat(owners, lengths), np.repeat(lengths == 1, lengths)
