"""N-gram models of a corpus's tokens: what a language model's scores are compared with.

    Shards --corpus_tokens--> tokens, starts --KneserNey.count--> log p(token | the four before it)

An n-gram is known by a number: its place among the sorted keys of its length, where

    key = (number of the n-gram without its last token) * V + last token.

So counting is sorting and looking up is a binary search, for all positions of a text at once.
"""

from dataclasses import dataclass

import numpy as np

from firth.text.languages import JoinedLanguages
from firth.text.shards import SAMPLE_TOKENS, Shards

_FALLBACK = (0.0, 0.5, 1.0, 1.5)
"""Discounts where a text is too small to estimate them: those of KenLM's `--discount_fallback`."""


def corpus_tokens(
    shards: Shards | JoinedLanguages, max_tokens: int = SAMPLE_TOKENS
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a corpus, of a large one about `max_tokens` in 256 stretches spread evenly.

    Returns:
        (N) int64 ids, and (B+1) int64 where each document (or its part in a stretch) begins.
    """
    stretches = 256 if shards.num_tokens > max_tokens else 1
    length = min(shards.num_tokens, max_tokens) // stretches
    begins = np.linspace(0, shards.num_tokens - length, stretches).astype(int)
    documents = shards.document_starts
    tokens, starts = [], []
    for i, begin in enumerate(begins.tolist()):
        tokens.append(shards.tokens(begin, begin + length))
        inside = documents[(documents > begin) & (documents < begin + length)]
        starts.append(np.concatenate([[begin], inside]) - begin + i * length)
    return np.concatenate(tokens), np.concatenate([*starts, [stretches * length]])


def unigram_log_probabilities(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    r"""Logs of add-one smoothed frequencies, $\ln \frac{c(v) + 1}{N + V}$: (V) float64, in nats."""
    counts = np.bincount(tokens, minlength=vocab_size) + 1
    return np.log(counts / counts.sum())


@dataclass(frozen=True)
class _Grams:
    """The n-grams of one length."""

    keys: np.ndarray
    """(n-grams) int64, ascending."""
    discounted: np.ndarray
    """(n-grams): (c - D(c)) / sum of c over the n-grams with the same context."""
    left: np.ndarray
    """(contexts): the share of the context's probability that the discounts leave to shorter ones;
    1 where nothing follows the context."""


@dataclass(frozen=True)
class KneserNey:
    r"""Interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999, section 3).

    $$p(w \mid h) = \frac{c(hw) - D(c(hw))}{\sum_v c(hv)}
      + \frac{\sum_{i=1}^{3} D_i N_i(h \cdot)}{\sum_v c(hv)} \, p(w \mid h')$$

    where $h'$ is $h$ without its first token, $N_i(h \cdot)$ the number of tokens that follow $h$
    $i$ times ($N_3$: three times or more), and $p(w)$ is interpolated with $1/V$. For the longest
    n-grams $c$ counts occurrences; for shorter ones the different tokens that stand before them.
    The discounts of each length come from $n_i$, the number of its n-grams with $c = i$:

    $$Y = \frac{n_1}{n_1 + 2 n_2}, \quad D_i = i - (i + 1) \, Y \, \frac{n_{i+1}}{n_i}$$

    Every sequence is opened by `order - 1` opening tokens, and no n-gram crosses into another one.
    """

    vocab_size: int
    first: int
    """The opening token."""
    grams: tuple[_Grams, ...]
    """By length, the shortest first."""

    @staticmethod
    def count(
        tokens: np.ndarray, starts: np.ndarray, *, vocab_size: int, first: int, order: int = 5
    ) -> "KneserNey":
        """Estimates the model.

        Args:
            tokens: (N) int64 ids, sequences end to end, without special tokens.
            starts: (B+1) int64, where each sequence begins.
            vocab_size: V.
            first: the id that opens sequences.
            order: length of the longest n-grams.
        """
        tokens, place = _opened(tokens, starts, first, order - 1)
        ids = np.zeros(len(tokens), np.int64)
        before, num_contexts = np.zeros(1, np.int64), 1  # the empty n-gram
        found: list[_Grams] = []
        for length in range(1, order + 1):
            at = np.flatnonzero(place >= length - 1)
            keys, numbers = np.unique(ids[at - 1] * vocab_size + tokens[at], return_inverse=True)
            occurs_at = np.empty(len(keys), np.int64)
            occurs_at[numbers] = at
            # The opening tokens are context: they are given, not predicted.
            occurs_at = occurs_at[place[occurs_at] >= order - 1]
            if length > 1:
                different = np.bincount(ids[occurs_at], minlength=len(before))
                found.append(_smoothed(before, different, num_contexts, vocab_size))
            before, num_contexts = keys, len(before)
            ids = np.full(len(tokens), -1)
            ids[at] = numbers
        found.append(
            _smoothed(before, np.bincount(ids[place >= order - 1]), num_contexts, vocab_size)
        )
        return KneserNey(vocab_size, first, tuple(found))

    def log_probabilities(self, tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Log probability of each token given those before it in its sequence.

        Args:
            tokens: (N) int64 ids, sequences end to end, without special tokens.
            starts: (B+1) int64, where each sequence begins.

        Returns:
            (N) float64, in nats.
        """
        context = len(self.grams) - 1
        tokens, place = _opened(tokens, starts, self.first, context)
        ids = np.zeros(len(tokens), np.int64)
        probabilities = np.full(len(tokens), 1 / self.vocab_size)
        for grams in self.grams:
            before = np.roll(ids, 1)  # -1, and so no key, where the context was never seen
            keys = before * self.vocab_size + tokens
            at = np.minimum(np.searchsorted(grams.keys, keys), len(grams.keys) - 1)
            seen = grams.keys[at] == keys
            probabilities *= np.where(before >= 0, grams.left[before], 1.0)
            probabilities += np.where(seen, grams.discounted[at], 0.0)
            ids = np.where(seen, at, -1)
        return np.log(probabilities[place >= context])


def _opened(
    tokens: np.ndarray, starts: np.ndarray, first: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences with `count` opening tokens before each, and each token's place in its sequence."""
    lengths = np.diff(starts) + count
    ends = np.cumsum(lengths)
    place = np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)
    opened = np.full(len(place), first, np.int64)
    opened[place >= count] = tokens
    return opened, place


def _smoothed(keys: np.ndarray, counts: np.ndarray, num_contexts: int, vocab_size: int) -> _Grams:
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    contexts = keys // vocab_size
    totals = np.bincount(contexts, counts, num_contexts)
    kept = np.bincount(contexts, discounts, num_contexts)
    some = np.maximum(totals, 1)
    return _Grams(
        keys, (counts - discounts) / some[contexts], np.where(totals > 0, kept / some, 1.0)
    )


def _discounts(counts: np.ndarray) -> np.ndarray:
    """(4) the discounts of n-grams counted 0, 1, 2, and 3 times or more."""
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    if not n[1:5].all():
        return np.array(_FALLBACK)
    i = np.arange(1, 4)
    found = i - (i + 1) * n[1] / (n[1] + 2 * n[2]) * n[2:5] / n[1:4]
    return np.array([0.0, *found]) if ((found >= 0) & (found <= i)).all() else np.array(_FALLBACK)
