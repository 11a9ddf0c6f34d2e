"""Generating text, greedily and by sampling, many prompts at a time."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from firth.config import check_types
from firth.device import computing
from firth.errors import ConfigError
from firth.inference.forward import Engine, check_numbers, evaluating
from firth.inference.steps import decoder_step
from firth.models.cache import Cache
from firth.protocols import ABSENT, Batch
from firth.text.batches import collate
from firth.text.tokenizers import Tokenizer

Ended = Literal["end", "stop", "length"]
"""Why a text ends: its closing token, a stop string, or no room for more tokens."""


_COLD = 1e-6
"""Below it, scores divided by the temperature may be too large for a number."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the next token is chosen from the model's scores, and when to stop."""

    max_tokens: int = 64
    """Most tokens to add to a prompt."""
    temperature: float = 0.0
    """0: the most probable token (greedy). Else the scores are divided by it, then sampled from."""
    top_k: int = 0
    """Sample from the k most probable tokens alone (Fan et al. 2018, section 5.1); 0 for all."""
    top_p: float = 1.0
    """Sample from the fewest tokens that have this probability together (Holtzman et al. 2020)."""
    repetition_penalty: float = 1.0
    """Divides positive scores, and multiplies negative ones, of tokens that stand in the text
    already (Keskar et al. 2019, section 4.1). A token that opens the text and may close it, as
    GPT-2's does, does not count as standing there."""
    beams: int = 1
    """Hypotheses kept at each step; more than one is beam search, without sampling."""
    length_penalty: float = 1.0
    """Beam search ranks by log P / length^penalty (Wu et al. 2016, eq. 14, simplified)."""
    backward: bool = False
    """Write what comes before the text instead, from right to left (a biLM, or a model trained
    backward)."""
    seed: int = 0
    """Of what is sampled; a text's own place is part of it."""

    def __post_init__(self) -> None:
        check_types(self)
        least = {"max_tokens": 1, "temperature": 0, "top_k": 0, "beams": 1, "seed": 0}
        for name, low in least.items():
            if not low <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least {low}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}, expected more than 0 and at most 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ConfigError(f"repetition_penalty is {self.repetition_penalty}, expected over 0")
        if self.beams > 1 and (self.temperature or self.top_k or self.top_p < 1):
            raise ConfigError(
                "beam search does not sample: leave temperature, top_k and top_p out, or beams at 1"
            )
        if self.temperature == 0 and (self.top_k or self.top_p < 1):
            raise ConfigError(
                "top_k and top_p choose what is sampled from, and without a temperature nothing "
                "is: set it, for instance to 1.0, or leave them out"
            )
        if 0 < self.temperature < _COLD:
            raise ConfigError(
                f"temperature is {self.temperature}, expected 0 (greedy) or at least {_COLD}"
            )
        if not math.isfinite(self.length_penalty):
            raise ConfigError(f"length_penalty is {self.length_penalty}, expected a finite number")
        if self.length_penalty != 1 and self.beams == 1:
            raise ConfigError("length_penalty is about beam search: set beams, or leave it out")


@dataclass
class Continuation:
    """What was generated after one prompt."""

    ids: list[int] = field(default_factory=list)
    """The new tokens, the closing one left out."""
    log_probabilities: list[float] = field(default_factory=list)
    """Of the new tokens under the model (before temperature and the like), in nats."""
    ended: Ended | None = None


def never_written(tokenizer: Tokenizer) -> list[int]:
    """The unknown token of a vocabulary of whole words: one class for all rare words, which is the
    likeliest word of all.
    """
    unknown = tokenizer.vocabulary.unknown
    return [unknown] if tokenizer.whole_words and unknown != ABSENT else []


Stop = Callable[[np.ndarray, Sequence[int]], bool]
"""Whether the tokens after a prompt end with something to stop at."""


def continuations(
    engine: Engine,
    prompts: Sequence[np.ndarray],
    how: Decoding,
    *,
    ends: Collection[int],
    stop: Stop,
    size: int | None = None,
    never: Sequence[int] = (),
    sources: Sequence[np.ndarray] | None = None,
    places: Sequence[int] | None = None,
) -> Iterator[list[Continuation]]:
    """Reads the prompts at once, then adds a token to each in every step.

    Each text draws random numbers of its own, made of the seed and its place in the list: it does
    not depend on the texts beside it.

    Args:
        engine: with a decoder.
        prompts: token ids, at least one each.
        how: the choice of tokens.
        ends: tokens that close a text.
        stop: ends a text early.
        size: of the tokenizer's vocabulary, where the model may have rows that no token has.
        never: tokens that are not written (see `never_written`).
        sources: token ids of what an encoder reads, one for each prompt.
        places: of the prompts in the list they were given in; by default they are that list.

    Yields:
        The continuations after each step, the same objects each time.
    """
    room = min(engine.max_length, max(map(len, prompts)) + how.max_tokens)
    found = [Continuation() for _ in prompts]
    randoms = [np.random.default_rng((how.seed, i)) for i in places or range(len(prompts))]
    reader = Reader(engine, prompts, room, sources, size=size, never=never, backward=how.backward)
    alive = list(range(len(prompts)))
    while alive:
        history = (tokens_of_text(prompts[i], found[i].ids, ends) for i in alive)
        uniforms = np.array([randoms[i].random() if how.temperature else 0.0 for i in alive])
        chosen = choose(reader.scores, history, uniforms, how)
        taken = reader.logs.gather(1, chosen[:, None]).squeeze(1).tolist()
        for i, token, log in zip(alive, chosen.tolist(), taken, strict=True):
            stops = token not in ends and stop(prompts[i], [*found[i].ids, token])
            _extend(found[i], token, log, token in ends, stops, how, room - len(prompts[i]))
        yield found
        kept = [row for row, i in enumerate(alive) if found[i].ended is None]
        alive = [alive[row] for row in kept]
        if alive:
            reader.read(kept, chosen if len(kept) == len(chosen) else chosen[kept])


def _extend(
    text: Continuation, token: int, log: float, ends: bool, stops: bool, how: Decoding, room: int
) -> None:
    text.log_probabilities.append(log)
    if ends:
        text.ended = "end"
        return
    text.ids.append(token)
    if stops:
        text.ended = "stop"
    elif len(text.ids) >= min(how.max_tokens, room):
        text.ended = "length"


def choose(
    scores: Tensor, history: Iterable[np.ndarray], uniforms: np.ndarray, how: Decoding
) -> Tensor:
    """(B) tokens from (B, V) scores.

    Args:
        scores: of the next token.
        history: the tokens of each text so far, for the repetition penalty.
        uniforms: (B) one random number a text, from 0 to 1.
        how: the settings.
    """
    scores = penalised(scores, history, how.repetition_penalty)
    if how.temperature == 0:
        if scores.is_cpu:  # numpy looks through a row some thirty times as fast
            return torch.from_numpy(scores.numpy().argmax(axis=-1))
        return scores.argmax(dim=-1)
    values, order = torch.sort(scores / how.temperature, dim=-1, descending=True)
    if how.top_k:
        values[:, how.top_k :] = -torch.inf
    shares = torch.softmax(values, dim=-1)
    before = shares.cumsum(dim=-1) - shares  # the probability of all better tokens
    shares = shares.masked_fill(before >= how.top_p, 0.0).double()
    totals = shares.cumsum(dim=-1)
    goals = torch.from_numpy(uniforms).to(totals)[:, None] * totals[:, -1:]
    place = torch.searchsorted(totals, goals, right=True).clamp_max_(scores.shape[1] - 1)
    return order.gather(1, place).squeeze(1)


def tokens_of_text(prompt: np.ndarray, ids: Sequence[int], ends: Collection[int]) -> np.ndarray:
    """A prompt with what follows, for the repetition penalty.

    An opening token that also closes texts is left out: it would put off the end.
    """
    begin = int(prompt[0] in ends)
    return np.array([*prompt[begin:], *ids], np.int64)


def penalised(scores: Tensor, history: Iterable[np.ndarray], penalty: float) -> Tensor:
    """Scores with those of tokens in `history` lowered."""
    if penalty == 1.0:
        return scores
    scores = scores.clone()
    for row, ids in enumerate(history):
        known = np.unique(ids)
        known = known[known < scores.shape[1]]  # a prompt may hold words that are not predicted
        seen = torch.from_numpy(known).to(scores.device)
        own = scores[row, seen]
        scores[row, seen] = torch.where(own > 0, own / penalty, own * penalty)
    return scores


_STEPS_ALIKE = 3
"""Steps of as many rows before weights are laid out for them, which costs as much as one."""


class Reader:
    """The scores of the next token of several texts, kept up to date token by token.

    `scores` and `logs` are (B, size): of rows that no token has only the log probabilities know.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[np.ndarray],
        room: int,
        sources: Sequence[np.ndarray] | None = None,
        *,
        size: int | None = None,
        never: Sequence[int] = (),
        backward: bool = False,
    ) -> None:
        """Reads the prompts; `backward` ones come in that order."""
        self.engine, self.size, self.never = engine, size, list(never)
        self.room, self.steps = room, 0
        self.plain = self.step = decoder_step(engine.model, room)
        self.how = {"backward": True} if backward else {}
        self.cache: Cache = engine.model.new_cache(room, **self.how)  # type: ignore[operator]
        batch = collate([prompt.astype(np.int64) for prompt in prompts])
        if getattr(engine.model.config, "whole_prompts", False):
            batch = replace(batch, prefix=batch.starts.diff())
        if sources is not None:
            batch = replace(batch, source=collate([one.astype(np.int64) for one in sources]))
        self._take(self._modules, batch, (batch.starts[1:] - 1).to(engine.device))

    def read(self, rows: Sequence[int], tokens: Tensor) -> None:
        """Goes on with these texts, each with one more token."""
        before = len(self.scores)
        if list(rows) != list(range(before)):
            self.cache.keep(torch.tensor(rows, device=self.engine.device))
        if len(rows) != before:
            self.step, self.steps = self.plain, 0
        elif self.steps == _STEPS_ALIKE and self.plain is not None:
            self.step = decoder_step(self.engine.model, self.room, before)
        self.steps += 1
        if self.step is not None:
            self._take(self.step, tokens, self.cache)
        else:
            batch = Batch(input_ids=tokens, starts=torch.arange(len(rows) + 1))
            self._take(self._modules, batch, slice(None))

    def _modules(self, batch: Batch, at: Tensor | slice) -> Tensor:
        """The scores after the tokens at `at`."""
        engine = self.engine
        states = engine.model(batch.to(engine.device), cache=self.cache).last[at]
        return engine.logits(states, **self.how)

    def _take(self, compute: Callable[..., Tensor], *given: Any) -> None:
        """Takes the scores that are computed.

        Raises:
            DivergedError: if they are no numbers.
        """
        engine, fast = self.engine, computing(self.engine.dtype, self.engine.device)
        mode = evaluating(engine.model) if engine.model.training else nullcontext()  # else it costs
        with mode, torch.inference_mode(), fast:
            scores = compute(*given)
            logs = torch.log_softmax(scores, dim=-1)
            check_numbers(logs[:, 0])
            self.scores, self.logs = scores[:, : self.size], logs[:, : self.size]
            if self.never:
                self.scores[:, self.never] = self.logs[:, self.never] = -torch.inf
