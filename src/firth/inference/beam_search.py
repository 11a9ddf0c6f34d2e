"""Beam search: the most probable text of those that a few hypotheses at a time lead to."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from firth.inference.forward import Engine
from firth.inference.generation import (
    Continuation,
    Decoding,
    Ended,
    Reader,
    Stop,
    penalised,
    tokens_of_text,
)


@dataclass(frozen=True)
class _Hypothesis:
    total: float
    """log P, with the repetition penalty."""
    ids: tuple[int, ...] = ()
    logs: tuple[float, ...] = ()
    ended: Ended = "length"

    def score(self, how: Decoding) -> float:
        """Log P / length^penalty, the closing token counted."""
        length = len(self.ids) + (self.ended == "end")
        return self.total / max(1, length) ** how.length_penalty


@dataclass
class _Search:
    """The hypotheses of one text, best first."""

    prompt: np.ndarray
    room: int
    stop: Stop
    open: list[_Hypothesis] = field(default_factory=lambda: [_Hypothesis(0.0)])
    closed: list[_Hypothesis] = field(default_factory=list)

    def advance(self, logs: Tensor, how: Decoding, ends: Collection[int]) -> list[tuple[int, int]]:
        """Adds a token to each open hypothesis in the best ways.

        Args:
            logs: (hypotheses, V) log probabilities of the next token.
            how: the settings.
            ends: tokens that close a text.

        Returns:
            The row that each open hypothesis goes on from, and its new token; none at the end.
        """
        history = (tokens_of_text(self.prompt, one.ids, ends) for one in self.open)
        ranked = penalised(logs, history, how.repetition_penalty).cpu().double()
        totals = torch.tensor([one.total for one in self.open], dtype=torch.float64)
        sums = (totals[:, None] + ranked).flatten()
        best, where = sums.topk(min((1 + max(1, len(ends))) * how.beams, len(sums)))
        now: list[_Hypothesis] = []
        went: list[tuple[int, int]] = []
        for rank, (total, place) in enumerate(zip(best.tolist(), where.tolist(), strict=True)):
            row, token = divmod(place, ranked.shape[1])
            before = self.open[row]
            values = (*before.logs, float(logs[row, token]))
            if token in ends:
                if rank < how.beams:
                    self.closed.append(_Hypothesis(total, before.ids, values, ended="end"))
                continue
            ids = (*before.ids, token)
            if ended := self._end_of(ids):
                if rank < how.beams:
                    self.closed.append(_Hypothesis(total, ids, values, ended=ended))
            elif len(now) < how.beams:
                now.append(_Hypothesis(total, ids, values))
                went.append((row, token))
        self.open = now
        self.closed = sorted(self.closed, key=lambda one: -one.score(how))[: how.beams]
        return [] if self._ended(how) else went

    def _end_of(self, ids: tuple[int, ...]) -> Ended | None:
        if self.stop(self.prompt, ids):
            return "stop"
        return "length" if len(ids) >= self.room else None

    def _ended(self, how: Decoding) -> bool:
        if not self.open:
            return True
        full = len(self.closed) == how.beams
        return full and self.closed[-1].score(how) >= self.open[0].score(how)

    def found(self) -> list[Continuation]:
        """The closed hypotheses."""
        return [Continuation(list(one.ids), list(one.logs), one.ended) for one in self.closed]


def beam_search(
    engine: Engine,
    prompts: Sequence[np.ndarray],
    how: Decoding,
    *,
    ends: Collection[int],
    stop: Stop = lambda _prompt, _ids: False,
    size: int | None = None,
    never: Sequence[int] = (),
    sources: Sequence[np.ndarray] | None = None,
) -> list[list[Continuation]]:
    """The best continuations of each prompt, best first (Sutskever et al. 2014, section 3.2).

    A hypothesis that closes, or has no more room, is set aside with its score log P /
    length^penalty, the closing token counted. A search ends when `beams` are closed and no open
    one, at its present length, scores better than the worst of them.

    Args:
        engine: with a decoder.
        prompts: token ids, at least one each.
        how: the number of beams, and the penalties.
        ends: tokens that close a text.
        stop: closes a hypothesis early.
        size: of the tokenizer's vocabulary, where the model may have rows that no token has.
        never: tokens that are not written.
        sources: token ids of what an encoder reads, one for each prompt.
    """
    room = min(engine.max_length, max(map(len, prompts)) + how.max_tokens)
    reader = Reader(engine, prompts, room, sources, size=size, never=never, backward=how.backward)
    searches = [
        _Search(prompt, min(how.max_tokens, engine.max_length - len(prompt)), stop)
        for prompt in prompts
    ]
    alive = searches
    while alive:
        borders = np.cumsum([len(one.open) for one in alive])
        rows, tokens, going = [], [], []
        for one, end in zip(alive, borders.tolist(), strict=True):
            begin = end - len(one.open)
            went = one.advance(reader.logs[begin:end], how, ends)
            rows += [begin + row for row, _ in went]
            tokens += [token for _, token in went]
            going += [one] if went else []
        alive = going
        if alive:
            reader.read(rows, torch.tensor(tokens, device=engine.device))
    return [one.found() for one in searches]
