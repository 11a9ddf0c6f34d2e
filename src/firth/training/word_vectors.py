"""Training word vectors: stretches of text in turn, each by a compiled loop, on several threads.

    text --cut--> pieces --stretch(step)--> kernel --> weights, changed in place

A step is a stretch of the text (for GloVe: of the counted pairs). Which one it is, its learning
rate and what is drawn for it follow from the seed and its number alone. With one thread the same
seed gives the same weights; several threads write to the same weights without locks (Recht et al.
2011), so that the last digits differ from run to run.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np

from firth.errors import DataError, UnsupportedError
from firth.models.static import Static, StaticConfig, input_rows
from firth.objectives.word_context import (
    CBOW,
    GloVe,
    SkipGram,
    WordContext,
    alias_table,
    keep_probabilities,
)
from firth.text.batches import TokenSource, cut_documents, random_stream
from firth.training.hogwild import Arrays, Done, added_up

_ORDER, _DRAW, _BEGIN, _SHUFFLE = 11, 12, 13, 14
"""What a derived random stream is for."""
_REPORT = 16
"""In training the loss is measured at every so-many-th word."""
_LOWEST = 1e-4
"""Of the learning rate at the start: as low as it gets (program word2vec)."""
_READ = 1 << 22
"""Tokens read at a time where the whole text is gone through."""


def kernels(name: str) -> ModuleType:
    """A module of compiled loops.

    Raises:
        UnsupportedError: if numba is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"firth.objectives.{name}")
    except ImportError as error:
        raise UnsupportedError(
            f"training word vectors needs numba ({error}): pip install 'firth[static]'"
        ) from error


@dataclass(frozen=True)
class Stretches:
    """A text cut into pieces, and these into stretches of about equal numbers of tokens."""

    source: TokenSource
    begins: np.ndarray
    """(pieces) first token of each piece, in order and without gaps."""
    ends: np.ndarray
    cuts: np.ndarray
    """(stretches + 1) pieces."""

    @staticmethod
    def of(source: TokenSource, *, longest: int, tokens: int) -> "Stretches":
        """Pieces of documents of at most `longest` tokens, in stretches of about `tokens`."""
        begins, ends = cut_documents(source.document_starts, longest)
        goals = np.arange(0, ends[-1], tokens)
        cuts = np.unique(np.append(np.searchsorted(begins, goals), len(begins)))
        return Stretches(source, begins, ends, cuts)

    def __len__(self) -> int:
        return len(self.cuts) - 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(n) int32 tokens of a stretch, and where its pieces start."""
        first, last = self.cuts[index], self.cuts[index + 1]
        begin = int(self.begins[first])
        starts = np.append(self.begins[first:last], self.ends[last - 1]) - begin
        tokens = self.source.tokens(begin, int(self.ends[last - 1]))
        return tokens.astype(np.int32), starts


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the stretches in an epoch."""
    return random_stream(seed, _ORDER, epoch).permutation(count)


def count_tokens(source: TokenSource, vocab_size: int) -> np.ndarray:
    """(V) int64: how often each id occurs in the whole text."""
    counts, total = np.zeros(vocab_size, np.int64), int(source.document_starts[-1])
    for begin in range(0, total, _READ):
        some = source.tokens(begin, min(begin + _READ, total))
        counts += np.bincount(some, minlength=vocab_size)
    return counts


class NegativeSampling:
    """Skip-gram or CBOW over a text.

    Args:
        objective: which, with its hyper-parameters.
        config: the model; with buckets, words are composed of n-grams.
        words: (V) the words by id; None for special tokens, which are left out of the text.
        source: the text.
        longest: tokens of a piece; no window reaches beyond one.
        stretch: tokens of a step.
        seed: of initial weights, order and draws.
    """

    def __init__(
        self,
        objective: SkipGram | CBOW,
        config: StaticConfig,
        words: Sequence[str | None],
        source: TokenSource,
        *,
        longest: int,
        stretch: int,
        seed: int,
    ) -> None:
        self._compiled = kernels("word_context_kernels")
        self.objective, self.seed, self.stretch, self.longest = objective, seed, stretch, longest
        self.text = Stretches.of(source, longest=longest, tokens=stretch)
        self.steps_per_epoch = len(self.text)
        counts = count_tokens(source, config.vocab_size)
        counts[[index for index, word in enumerate(words) if word is None]] = 0
        if not counts.any():
            raise DataError("no word of the vocabulary is in the text; check both")
        self.counts = counts
        odds, alias = alias_table(np.where(counts > 0, counts, 1) ** objective.power * (counts > 0))
        self._row_starts, self._rows = input_rows(words, config)
        keep = keep_probabilities(counts, objective.subsample)
        self._sampling = (keep, odds, alias, self._compiled.SIGMOID_TABLE)
        size, rng = config.hidden_size, random_stream(seed, _BEGIN, 0)
        rows = config.vocab_size + config.buckets
        inputs = rng.random((rows, size), np.float32)
        inputs -= 0.5
        inputs /= size if not config.buckets else size / 2
        outputs = np.zeros((config.vocab_size, size), np.float32)
        self.arrays: Arrays = {"inputs": inputs, "outputs": outputs}

    def learn(self, step: int, progress: float | None) -> Done:
        """Learns the stretch of a step; each epoch goes through all of them in its own order."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _order(self.seed, epoch, self.steps_per_epoch)
        rate = 0.0 if progress is None else self.objective.lr * max(_LOWEST, 1 - progress)
        draw = int(random_stream(self.seed, _DRAW, step).integers(1, 1 << 62))
        return self._run(self.text[int(order[place])], rate, draw, _REPORT)

    def held_out(self, source: TokenSource, most: int) -> float | None:
        """Mean loss of a prediction in other text, of about `most` tokens; None without any."""
        text = Stretches.of(source, longest=self.longest, tokens=self.stretch)
        count = min(len(text), -(-most // self.stretch))
        return added_up([self._run(text[i], 0.0, 1 + i, 1) for i in range(count)]).mean

    @property
    def learned(self) -> bool:
        """Whether a word was ever predicted: output vectors begin as zeros."""
        return bool(self.arrays["outputs"].any())

    def fill(self, model: Static) -> None:
        """Composed input vectors, without the own rows of words that are not in the text."""
        import torch

        vectors = model.embeddings.tokens.weight.detach().numpy()
        inputs = self.arrays["inputs"]
        self._compiled.compose(inputs, self._rows, self._row_starts, vectors)
        for word in np.flatnonzero(self.counts == 0):
            ngrams = self._rows[self._row_starts[word] + 1 : self._row_starts[word + 1]]
            vectors[word] = inputs[ngrams].mean(0) if len(ngrams) else 0.0
        with torch.no_grad():
            if model.embeddings.ngrams is not None:
                ngrams = torch.from_numpy(inputs[len(vectors) :])
                model.embeddings.ngrams.weight.copy_(ngrams)
            if model.outputs is not None:
                model.outputs.weight.copy_(torch.from_numpy(self.arrays["outputs"]))

    def _run(
        self, text: tuple[np.ndarray, np.ndarray], rate: float, draw: int, report: int
    ) -> Done:
        begin, compiled = time.perf_counter(), self._compiled
        inputs, outputs = self.arrays["inputs"], self.arrays["outputs"]
        how = (self.objective.window, self.objective.negatives, np.float32(rate), draw, report)
        if isinstance(self.objective, CBOW):
            loss, count = compiled.cbow(*text, inputs, outputs, self._sampling, how)
        else:
            rows = (self._row_starts, self._rows)
            loss, count = compiled.skip_gram(*text, inputs, outputs, *rows, self._sampling, how)
        return Done(loss, count, len(text[0]), time.perf_counter() - begin)


class CoOccurrences:
    """GloVe over the counted pairs of a text; arguments as of `NegativeSampling`.

    Here `stretch` is the number of pairs of a step.
    """

    def __init__(
        self,
        objective: GloVe,
        config: StaticConfig,
        words: Sequence[str | None],
        source: TokenSource,
        *,
        longest: int,
        stretch: int,
        seed: int,
    ) -> None:
        self._compiled = kernels("glove_kernels")
        self.objective, self.seed, self.stretch = objective, seed, stretch
        known = np.array([word is not None for word in words])
        pairs, counts = count_pairs(source, known, objective.window, longest=longest)
        order = random_stream(seed, _SHUFFLE, 0).permutation(len(pairs))
        pairs = pairs[order]
        self.pairs = tuple((side.astype(np.int32)) for side in np.divmod(pairs, len(words)))
        self.pair_counts = counts[order].astype(np.float32)
        self.steps_per_epoch = -(-len(pairs) // stretch)
        shape, rng = (2, len(words), config.hidden_size), random_stream(seed, _BEGIN, 0)
        weights = rng.random(shape, np.float32)
        weights -= 0.5
        weights /= config.hidden_size
        biases = (rng.random(shape[:2], np.float32) - 0.5) / config.hidden_size
        self._seen = np.zeros(len(words), bool)
        for side in self.pairs:
            self._seen[side] = True
        self.arrays: Arrays = {
            "weights": weights,
            "squares": np.ones(shape, np.float32),
            "biases": biases.astype(np.float32),
            "bias_squares": np.ones(shape[:2], np.float32),
        }

    def learn(self, step: int, progress: float | None) -> Done:
        """Learns a stretch of the pairs; AdaGrad has no schedule."""
        begin = time.perf_counter()
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _order(self.seed, epoch, self.steps_per_epoch)
        first = int(order[place]) * self.stretch
        chosen = slice(first, first + self.stretch)
        objective = self.objective
        rate = np.float32(0.0 if progress is None else objective.lr)
        counts = self.pair_counts[chosen]
        loss = self._compiled.glove(
            *(side[chosen] for side in self.pairs),
            counts,
            *(self.arrays[name] for name in ("weights", "squares", "biases", "bias_squares")),
            np.float32(objective.x_max),
            np.float32(objective.alpha),
            rate,
        )
        first, second = (side[chosen] for side in self.pairs)
        cells = 2 * len(counts) - int((first == second).sum())
        return Done(loss, cells, len(counts), time.perf_counter() - begin)

    def fill(self, model: Static) -> None:
        """The sums of both vectors of each word; zeros for what stands in no pair."""
        import torch

        vectors = torch.from_numpy(self.arrays["weights"].sum(0) * self._seen[:, None])
        with torch.no_grad():
            model.embeddings.tokens.weight.copy_(vectors)


def count_pairs(
    source: TokenSource, known: np.ndarray, window: int, *, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """X of all pairs of words that occur together: i <= j, as i V + j in ascending order.

    A cell X_ii, which both sides of a window add to, has its two halves.

    Returns:
        (P) int64 pairs and (P) float64 counts.
    """
    compiled = kernels("glove_kernels")
    vocab_size = len(known)
    pairs, counts = np.zeros(0, np.int64), np.zeros(0)
    text = Stretches.of(source, longest=longest, tokens=max(longest, (1 << 24) // window))
    for index in range(len(text)):
        tokens, starts = text[index]
        keys = np.empty(len(tokens) * window, np.int64)
        keys = keys[: compiled.pair_keys(tokens, starts, known, window, vocab_size, keys)]
        keys.sort()
        some, some_counts = np.empty(len(keys), np.int64), np.empty(len(keys))
        found = compiled.add_up_keys(keys, window, some, some_counts)
        merged = np.empty(len(pairs) + found, np.int64)
        merged_counts = np.empty(len(merged))
        parts = (pairs, counts, some[:found], some_counts[:found])
        size = compiled.merge_pairs(*parts, merged, merged_counts)
        pairs, counts = merged[:size].copy(), merged_counts[:size].copy()
    if not len(pairs):
        raise DataError("no two words of the vocabulary stand together in the text; check both")
    first, second = np.divmod(pairs, vocab_size)
    counts[first == second] *= 2
    return pairs, counts


def learner(
    objective: WordContext,
    config: StaticConfig,
    words: Sequence[str | None],
    source: TokenSource,
    **how: Any,
) -> NegativeSampling | CoOccurrences:
    """What trains an objective's vectors on a text."""
    if isinstance(objective, GloVe):
        return CoOccurrences(objective, config, words, source, **how)
    return NegativeSampling(objective, config, words, source, **how)
