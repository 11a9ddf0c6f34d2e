"""Pairs of texts, a source and its target: read line by line, drawn in batches of like length."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from firth.errors import ConfigError, DataError
from firth.protocols import Sequences, Vocabulary
from firth.text.batches import TokenSource, random_stream, steps_in
from firth.text.encoding import utf8_size
from firth.text.files import Statistics, read_text

logger = logging.getLogger(__name__)

_ORDER = 1
_WINDOW = 50
"""Batches whose pairs are sorted by length together."""


@dataclass(frozen=True)
class Lines:
    """One side of a parallel corpus as documents, for tokenizers and shards."""

    texts: tuple[str, ...]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def fingerprint(self) -> str:
        """A hash of all texts.

        Raises:
            DataError: if one of them holds half of a surrogate pair, which UTF-8 cannot hold.
        """
        digest = hashlib.blake2b(digest_size=16)
        for index, text in enumerate(self.texts):
            utf8_size(text, index)
            whole = text.encode()
            digest.update(b"%d " % len(whole) + whole)
        return digest.hexdigest()


@dataclass(frozen=True)
class ParallelCorpus:
    """Texts and what they are to become, line by line."""

    source: Lines
    target: Lines

    @staticmethod
    def from_files(
        source: str | Path, target: str | Path, *, errors: Literal["strict", "replace"] = "strict"
    ) -> "ParallelCorpus":
        """Two text files (also .gz, .zst) whose lines correspond; pairs with an empty side go.

        Args:
            source: the texts.
            target: what they become.
            errors: "replace" to put U+FFFD for bytes that are not UTF-8.

        Raises:
            DataError: if a file is missing or not UTF-8, or they have unequal numbers of lines.
        """
        sides = [_lines(Path(path), errors) for path in (source, target)]
        if len(sides[0]) != len(sides[1]):
            raise DataError(
                f"{source} has {len(sides[0]):,} lines and {target} has {len(sides[1]):,}; "
                "expected one line of each for every pair"
            )
        return ParallelCorpus.of(zip(*sides, strict=True))

    @staticmethod
    def of(pairs: Iterable[tuple[str, str]]) -> "ParallelCorpus":
        """Pairs that are in memory; those with an empty side go.

        Raises:
            DataError: if there are none.
        """
        stripped = [(source.strip(), target.strip()) for source, target in pairs]
        kept = [pair for pair in stripped if all(pair)]
        if len(kept) < len(stripped):
            logger.warning("%d pairs with an empty side left out", len(stripped) - len(kept))
        if not kept:
            raise DataError("there are no pairs of texts; expected a source and a target each")
        sources, targets = zip(*kept, strict=True)
        return ParallelCorpus(Lines(sources), Lines(targets))

    def fingerprint(self) -> str:
        """A hash of all pairs; raises as that of `Lines` does."""
        return Lines((self.source.fingerprint(), self.target.fingerprint())).fingerprint()

    def split(self, *, valid: float, seed: int) -> tuple["ParallelCorpus", "ParallelCorpus"]:
        """Sets a share of the sources aside, at random, each with all its targets.

        Raises:
            ConfigError: if one of the parts would be empty.
        """
        pairs = list(zip(self.source.texts, self.target.texts, strict=True))
        distinct = list(dict.fromkeys(self.source.texts))
        order = np.random.default_rng(seed).permutation(len(distinct))
        count = max(1, round(valid * len(distinct)))
        if not 0 < valid < 1 or count >= len(distinct):
            raise ConfigError(
                f"a share of {valid} of {len(distinct)} sources leaves a part empty; give "
                "validation files, or another share"
            )
        chosen = {distinct[i] for i in order[:count]}
        parts = ([pair for pair in pairs if (pair[0] in chosen) == held] for held in (False, True))
        train, held_out = map(ParallelCorpus.of, parts)
        return train, held_out


def _lines(path: Path, errors: str) -> list[str]:
    if path.is_dir():
        raise DataError(f"{path}: a folder, expected a file with a text a line")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    statistics = Statistics()
    text = "".join(read_text(path, errors, statistics))
    if statistics.replaced:
        logger.warning("%s: %d invalid bytes replaced by U+FFFD", path, statistics.replaced)
    return text.removesuffix("\n").split("\n")


class PairedSequences:
    """Pairs of tokenised texts up to a token budget, of like length together.

    The batches of an epoch partition the pairs: each epoch shuffles, sorts windows of fifty budgets
    by length, and cuts the order into stretches of a budget, as `PackedSequences` does.
    """

    def __init__(
        self,
        source: TokenSource,
        target: TokenSource,
        vocabulary: Vocabulary,
        *,
        max_length: int,
        batch_tokens: int,
        seed: int,
    ) -> None:
        """Pairs the documents of two sources of tokens.

        Args:
            source: the texts.
            target: what they become, in the same order.
            vocabulary: for the special tokens that open and close a sequence.
            max_length: longest sequence of either side, special tokens included; longer pairs are
                left out.
            batch_tokens: the budget of a batch, both sides together.
            seed: of the order.

        Raises:
            ConfigError: if a batch could not hold the longest pair.
            DataError: if no pair is short enough, or the sides differ in number.
        """
        if batch_tokens < 2 * max_length:
            raise ConfigError(
                f"batch_tokens {batch_tokens} is less than twice max_length {max_length}; a batch "
                "must hold at least one pair"
            )
        self.sides = (source, target)
        starts = [side.document_starts for side in self.sides]
        if len(starts[0]) != len(starts[1]):
            raise DataError(
                f"{len(starts[0]) - 1} sources and {len(starts[1]) - 1} targets; expected as many"
            )
        self.starts = starts
        lengths = np.stack([np.diff(one) + 2 for one in starts])  # (2, pairs)
        self.kept = np.flatnonzero(lengths.max(axis=0) <= max_length)
        if not len(self.kept):
            raise DataError(f"all pairs are longer than {max_length} tokens (data.max_length)")
        if left_out := lengths.shape[1] - len(self.kept):
            logger.warning("%d pairs of more than %d tokens left out", left_out, max_length)
        self.lengths = lengths
        self.vocabulary, self.batch_tokens, self.seed = vocabulary, batch_tokens, seed
        self.tokens_per_epoch = int(lengths[:, self.kept].sum())
        longest = int(lengths[:, self.kept].sum(axis=0).max())
        self.steps_per_epoch = steps_in(self.tokens_per_epoch, batch_tokens, longest)
        # Two epochs: loader threads may look past the end of the current one.
        self._batches = lru_cache(maxsize=2)(self._draw_batches)

    def sequences(self, step: int, progress: float = 0.0) -> Sequences:
        """The targets of one step, and their sources."""
        epoch, place = divmod(step, self.steps_per_epoch)
        chosen = self._batches(epoch)[place]
        source = self._side(0, chosen, progress, None)
        return self._side(1, chosen, progress, source)

    def _side(
        self, side: int, chosen: np.ndarray, progress: float, source: Sequences | None
    ) -> Sequences:
        tokens, at = self.sides[side], self.starts[side]
        parts, opens = [], []
        first, last = self.vocabulary.first, self.vocabulary.last
        for pair in chosen.tolist():
            begin, end = int(at[pair]), int(at[pair + 1])
            parts.append(np.concatenate([[first], tokens.tokens(begin, end), [last]]))
            opens.append(np.concatenate([[True], tokens.opens_word(begin, end), [True]]))
        return Sequences(
            ids=np.concatenate(parts).astype(np.int64),
            starts=np.concatenate([[0], np.cumsum(self.lengths[side, chosen])]),
            opens_word=np.concatenate(opens),
            vocabulary=self.vocabulary,
            progress=progress,
            source=source,
        )

    def _draw_batches(self, epoch: int) -> Sequence[np.ndarray]:
        """The pairs of each step of an epoch."""
        rng = random_stream(self.seed, _ORDER, epoch)
        order = self._sorted_in_windows(rng.permutation(self.kept))
        sizes = self.lengths[:, order].sum(axis=0)
        cuts = np.arange(1, self.steps_per_epoch) * self.batch_tokens
        batches = np.split(order, np.searchsorted(np.cumsum(sizes) - sizes, cuts))
        return [batches[i] for i in rng.permutation(len(batches))]

    def _sorted_in_windows(self, order: np.ndarray) -> np.ndarray:
        sizes = self.lengths[:, order].sum(axis=0)
        window = (np.cumsum(sizes) - sizes) // (_WINDOW * self.batch_tokens)
        source, target = self.lengths[:, order]
        return order[np.lexsort((source, target, window))]
