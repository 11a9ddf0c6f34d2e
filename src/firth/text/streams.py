"""The corpus as parallel streams that are read on and on: truncated back-propagation through time.

The text is cut into B equal streams; a step takes the next stretch of each, and a recurrent model
goes on from the state in which the step before left it.
"""

from functools import lru_cache

import numpy as np

from firth.errors import ConfigError, DataError
from firth.protocols import Sequences, Vocabulary
from firth.text.batches import TokenSource, random_stream

_LENGTHS, _PHASE, _RESTART = 4, 5, 6


class StreamedSequences:
    """batch(step) of B parallel streams, as a pure function of the step.

    With `vary`, the length of a stretch is drawn anew in each step (Merity et al. 2018, section
    4.1): normal with deviation 5 around `length`, or around half of it with probability 0.05; the
    step's learning rate is scaled by its share of `length`. The lengths of an epoch are scaled to
    fill it, so that all epochs have as many steps. Each epoch begins at another place of the text.

    With `restart` a share of the steps, drawn at random, begins afresh instead of going on. A
    network whose state is never reset learns within one trajectory, and from the zero state in
    which every text that it is used on begins it may take another one.
    """

    def __init__(
        self,
        source: TokenSource,
        vocabulary: Vocabulary,
        *,
        streams: int,
        length: int,
        seed: int,
        vary: bool = False,
        restart: float = 0.0,
        shift: bool = True,
        backward: bool = False,
    ) -> None:
        """Cuts a text into streams.

        Args:
            source: of one document (see `firth.text.joined.JoinedDocuments`).
            vocabulary: of its tokens.
            streams: B; fewer where the text has not so many stretches.
            length: tokens of each stream in a step.
            seed: of lengths and places.
            vary: draw the lengths.
            restart: share of the steps that do not go on from the state before.
            shift: begin each epoch at another place.
            backward: read each stream from its end to its beginning.

        Raises:
            ConfigError: if a stretch or the number of streams is less than one.
            DataError: if there is less text than one step takes.
        """
        total = int(source.document_starts[-1])
        if total < 2:
            raise DataError(f"tokens: {total}, expected 2 at least, of which one is predicted")
        if streams < 1 or length < 1:
            raise ConfigError(f"{streams} streams of {length} tokens a step; expected at least 1")
        self.source, self.vocabulary = source, vocabulary
        streams = min(streams, max(1, (total - 1) // length))
        self.streams, self.length, self.seed = streams, length, seed
        self.vary, self.shift, self.backward, self.restart = vary, shift, backward, restart
        self.total, self.span = total, (total - 1) // streams
        """The last token of a stream is only predicted, never read."""
        if self.span < length:
            raise DataError(
                f"{total:,} tokens are too few for one step of {length}; give more text, or lower "
                "data.max_length"
            )
        self.tokens_per_epoch = self.span * streams
        steps = round(self.span / (length * (0.975 if vary else 1.0)))
        self.steps_per_epoch = min(self.span, max(1, steps))
        # Two epochs: loader threads may look past the end of the current one.
        self._borders = lru_cache(maxsize=2)(self._draw_borders)

    def sequences(self, step: int, progress: float = 0.0) -> Sequences:
        """The stretches of one step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        borders = self._borders(epoch)
        low, high = int(borders[place]), int(borders[place + 1])
        phase = 0
        if self.shift:
            phase = int(random_stream(self.seed, _PHASE, epoch).integers(self.total))
        begins = [phase + stream * self.span for stream in range(self.streams)]
        if self.backward:
            low, high = self.span - high + 1, self.span - low + 1
        ids = [self._tokens(begin + low, begin + high) for begin in begins]
        outer = low - 1 if self.backward else high
        beyond = np.concatenate([self._tokens(b + outer, b + outer + 1) for b in begins])
        size = high - low
        return Sequences(
            ids=np.concatenate(ids).astype(np.int64),
            starts=np.arange(self.streams + 1) * size,
            opens_word=np.ones(self.streams * size, dtype=bool),
            vocabulary=self.vocabulary,
            beyond=beyond.astype(np.int64),
            continues=place > 0 and not self._restarts(step),
            rate=size / self.length if self.vary else 1.0,
            progress=progress,
        )

    def _restarts(self, step: int) -> bool:
        return random_stream(self.seed, _RESTART, step).random() < self.restart

    def _tokens(self, begin: int, end: int) -> np.ndarray:
        """Tokens of the text, which begins anew at its end."""
        begin, end = begin % self.total, (end - 1) % self.total + 1
        if begin < end:
            return np.asarray(self.source.tokens(begin, end))
        return np.concatenate([self.source.tokens(begin, self.total), self.source.tokens(0, end)])

    def _draw_borders(self, epoch: int) -> np.ndarray:
        """(steps + 1) where the stretches of an epoch begin and end, in tokens of a stream."""
        count = self.steps_per_epoch
        lengths = np.full(count, float(self.length))
        if self.vary:
            rng = random_stream(self.seed, _LENGTHS, epoch)
            base = np.where(rng.random(count) < 0.95, self.length, self.length / 2)
            lengths = np.maximum(5.0, rng.normal(base, 5.0))
        ends = np.round(np.cumsum(lengths) * (self.span / lengths.sum())).astype(np.int64)
        place = np.arange(1, count + 1)  # no stretch is empty, however short they are
        ends = np.maximum.accumulate(np.maximum(ends - place, 0)) + place
        ends = np.minimum(ends, self.span - count + place)
        return np.concatenate([[0], ends])
