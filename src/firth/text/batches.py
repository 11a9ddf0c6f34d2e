"""Batches as pure functions of (data, seed, step): no loader state, nothing to restore.

`PackedSequences` serves pre-training: pieces of documents, shuffled anew each epoch, up to a token
budget. `BucketedBatches` serves tasks: examples of nearly one length together.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from firth.errors import ConfigError, DataError
from firth.protocols import Batch, Objective, Sequences, Vocabulary

_ORDER, _DRAW, _PHASE = 1, 2, 3
"""What a derived random stream is for."""


class TokenSource(Protocol):
    """Tokens of documents, end to end. `firth.text.shards.Shards` is the implementation."""

    @property
    def document_starts(self) -> np.ndarray: ...

    def tokens(self, begin: int, end: int) -> np.ndarray: ...

    def opens_word(self, begin: int, end: int) -> np.ndarray: ...


def random_stream(seed: int, purpose: int, index: int) -> np.random.Generator:
    """The generator of one purpose at one step or epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, purpose, index))))


def cut_documents(starts: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents into pieces of at most `longest` tokens; no piece spans two documents.

    Args:
        starts: (documents + 1) offsets.
        longest: tokens.

    Returns:
        begin and end of each piece, in tokens.
    """
    pieces = -(-np.diff(starts) // longest)
    document = np.repeat(np.arange(len(pieces)), pieces)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = starts[document] + nth * longest
    return begin, np.minimum(begin + longest, starts[document + 1])


def steps_in(total: int, budget: int, longest: int) -> int:
    """Stretches of `budget` tokens that `total` is cut into; in each a sequence begins.

    No sequence is longer than `longest`. The last stretch goes to the end: it is shorter, or longer
    where what is left over might lie inside one sequence.
    """
    steps = -(-total // budget)
    return steps - 1 if steps > 1 and total - (steps - 1) * budget < longest else steps


class PackedSequences:
    """Document pieces with their special tokens, drawn up to a token budget.

    The batches of an epoch partition the corpus: its shuffled order is cut into stretches of a
    budget, and batch b holds the pieces that begin in stretch b. So every epoch
    has the same number of batches, no token is lost and none is seen twice. Inside a batch
    sequences are sorted by length, which lets attention work on contiguous groups.

    Where pieces have `visits` other than one, an epoch shows each so many times: v = 1.3 is shown
    once, and every third epoch or so twice, in epochs that differ from piece to piece.
    """

    def __init__(
        self,
        source: TokenSource,
        vocabulary: Vocabulary,
        *,
        max_length: int,
        batch_tokens: int,
        seed: int,
        shuffle: bool = True,
        spare: int = 0,
        visits: np.ndarray | None = None,
        marks: np.ndarray | None = None,
    ) -> None:
        """Cuts the documents of `source`.

        Args:
            source: the tokens.
            vocabulary: for the special tokens that open and close a sequence.
            max_length: longest sequence in tokens, its two special tokens included.
            batch_tokens: the budget of a batch.
            seed: of the order.
            shuffle: anew each epoch; False keeps the order of the corpus.
            spare: tokens that the objective adds to each sequence.
            visits: (documents) how often an epoch shows each, on average; None for once.
            marks: of each token of `source` (see `firth.text.annotations`).

        Raises:
            ConfigError: if a batch could not hold one full sequence.
            DataError: if there are no tokens.
        """
        if batch_tokens < max_length:
            raise ConfigError(
                f"batch_tokens {batch_tokens} is less than max_length {max_length}; "
                "a batch must hold at least one full sequence"
            )
        starts = source.document_starts
        self.begin, self.end = cut_documents(starts, max_length - 2 - spare)
        if not len(self.begin):
            raise DataError("the corpus holds no tokens")
        self.begins_document = np.isin(self.begin, starts[:-1])
        self.ends_document = np.isin(self.end, starts[1:])
        self.documents = np.searchsorted(starts, self.begin, side="right") - 1
        self.source, self.vocabulary, self.marks = source, vocabulary, marks
        self.batch_tokens, self.seed, self.shuffle = batch_tokens, seed, shuffle
        self.added = 2 + spare
        self.lengths = self.end - self.begin + self.added
        self.visits = None if visits is None else visits[self.documents]
        if self.visits is None:
            self.tokens_per_epoch = int(self.lengths.sum())
            longest = int(self.lengths.max())
            self.steps_per_epoch = steps_in(self.tokens_per_epoch, batch_tokens, longest)
        else:
            self.tokens_per_epoch = round(float((self.lengths * self.visits).sum()))
            # In every stretch a sequence begins: none is longer than half of one, however long
            # the pieces that an epoch happens to show.
            stretch = max(batch_tokens, 2 * int(self.lengths.max()))
            self.steps_per_epoch = max(1, self.tokens_per_epoch // stretch)
        # Two epochs: loader threads may look past the end of the current one.
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def sequences(self, step: int, progress: float = 0.0) -> Sequences:
        """The sequences of one step."""
        pieces = self._pieces(step)
        begin, end = self.begin[pieces], self.end[pieces]
        starts = np.concatenate(([0], np.cumsum(end - begin + 2)))
        ids = np.empty(starts[-1], dtype=np.int64)
        opens = np.ones(starts[-1], dtype=bool)
        marks = None if self.marks is None else np.zeros(starts[-1], dtype=np.uint8)
        ids[starts[:-1]] = self.vocabulary.first
        ids[starts[1:] - 1] = self.vocabulary.last
        for b, e, at in zip(begin.tolist(), end.tolist(), (starts[:-1] + 1).tolist(), strict=True):
            ids[at : at + e - b] = self.source.tokens(b, e)
            opens[at : at + e - b] = self.source.opens_word(b, e)
            if marks is not None and self.marks is not None:
                marks[at : at + e - b] = self.marks[b:e]
        return Sequences(
            ids=ids,
            starts=starts,
            opens_word=opens,
            vocabulary=self.vocabulary,
            ends_document=self.ends_document[pieces],
            begins_document=self.begins_document[pieces],
            documents=self.documents[pieces],
            marks=marks,
            progress=progress,
        )

    def _pieces(self, step: int) -> np.ndarray:
        """Which pieces a step holds, the shortest first."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, first = self._order(epoch if self.shuffle else 0)
        budget: float = self.batch_tokens
        if self.visits is not None:  # epochs differ in length, not in their number of batches
            budget = (first[-1] + self.lengths[order[-1]]) / self.steps_per_epoch
        low, high = np.searchsorted(first, [place * budget, (place + 1) * budget])
        if place == self.steps_per_epoch - 1:
            high = len(order)
        pieces = order[low:high]
        return pieces[np.argsort(self.lengths[pieces], kind="stable")]

    def _draw_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The pieces in the order of an epoch, and the tokens that stand before each."""
        order = np.repeat(np.arange(len(self.begin)), self._visits_in(epoch))
        if self.shuffle:
            order = random_stream(self.seed, _ORDER, epoch).permutation(order)
        lengths = self.lengths[order]
        return order, np.cumsum(lengths) - lengths

    def _visits_in(self, epoch: int) -> np.ndarray | int:
        """(pieces) how often an epoch shows each: over epochs the counts stay within one of v."""
        if self.visits is None:
            return 1
        phase = random_stream(self.seed, _PHASE, 0).random(len(self.begin))
        before, after = self.visits * epoch + phase, self.visits * (epoch + 1) + phase
        return (np.floor(after) - np.floor(before)).astype(np.int64)


class SequencesAt(Protocol):
    """Sequences as a pure function of the step."""

    seed: int
    steps_per_epoch: int

    def sequences(self, step: int, progress: float = 0.0) -> Sequences: ...


class ObjectiveBatches:
    """batch(step): the step's sequences, prepared by an objective with the step's own generator."""

    def __init__(
        self, packed: SequencesAt, objective: Objective, *, total_steps: int | None = None
    ) -> None:
        """`total_steps` gives the objective's schedules their end."""
        self.packed, self.objective, self.total_steps = packed, objective, total_steps
        self.steps_per_epoch = packed.steps_per_epoch

    def __call__(self, step: int) -> Batch:
        progress = 0.0 if self.total_steps is None else min(1.0, step / self.total_steps)
        sequences = self.packed.sequences(step, progress)
        return self.objective.prepare(sequences, random_stream(self.packed.seed, _DRAW, step))


def collate(
    ids: Sequence[np.ndarray],
    segments: Sequence[np.ndarray] | None = None,
    targets: np.ndarray | None = None,
) -> Batch:
    """Lays encoded sequences end to end; of none the batch is empty."""
    none = [np.empty(0, np.int64)]
    starts = np.concatenate(([0], np.cumsum([len(one) for one in ids], dtype=np.int64)))
    return Batch(
        input_ids=torch.from_numpy(np.concatenate(ids or none)),
        starts=torch.from_numpy(starts),
        segments=None if segments is None else torch.from_numpy(np.concatenate(segments or none)),
        targets=None if targets is None else torch.from_numpy(targets),
    )


def length_batches(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Groups sequences by length, each group up to `budget` tokens: the order for inference.

    Args:
        lengths: (B) tokens of each sequence.
        budget: tokens a group may hold; a longer sequence stands alone.

    Returns:
        Index arrays that partition 0..B-1, longest sequences first (so that a lack of memory shows
        at once).
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    groups, held = [], 0
    begin = 0
    for i, length in enumerate(np.asarray(lengths)[order].tolist()):
        if i > begin and held + length > budget:
            groups.append(order[begin:i])
            begin, held = i, 0
        held += length
    return [*groups, order[begin:]] if len(order) else []


class BucketedBatches:
    """batch(step) of examples: up to `batch_size` of nearly one length together.

    Each epoch shuffles, sorts windows of fifty batches by length, and shuffles the batches: lengths
    mix across steps but not within one (the `group_by_length` of other tools). Batches are as even
    as can be: what is left over for the last one would be the longest examples in every epoch, and
    in a small batch each would count for many.
    """

    window = 50

    def __init__(
        self,
        lengths: np.ndarray,
        lay: Callable[[np.ndarray], Batch],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        """Buckets examples.

        Args:
            lengths: of each example.
            lay: lays the examples of some indexes end to end.
            batch_size: examples in a batch.
            seed: of the order.

        Raises:
            DataError: if there are no examples.
        """
        if not len(lengths):
            raise DataError("there are no labelled examples to draw from")
        self.lengths, self.lay = lengths, lay
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = -(-len(lengths) // batch_size)
        # Two epochs: loader threads may look past the end of the current one.
        self._batches = lru_cache(maxsize=2)(self._draw_batches)

    def __call__(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_per_epoch)
        return self.lay(self._batches(epoch)[place])

    def _draw_batches(self, epoch: int) -> list[np.ndarray]:
        rng = random_stream(self.seed, _ORDER, epoch)
        order = rng.permutation(len(self.lengths))
        steps = self.steps_per_epoch
        borders = np.arange(1, steps) * len(order) // steps
        windows = np.split(order, borders[self.window - 1 :: self.window])
        order = np.concatenate([w[np.argsort(self.lengths[w], kind="stable")] for w in windows])
        batches = np.split(order, borders)
        return [batches[i] for i in rng.permutation(len(batches))]
