"""Texts continued by a decoder, or written by an encoder-decoder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from firth.config import from_dict
from firth.errors import ConfigError, UnsupportedError
from firth.inference.beam_search import beam_search
from firth.inference.generation import (
    Continuation,
    Decoding,
    Ended,
    Stop,
    continuations,
    never_written,
)
from firth.interop.generators import END_TOKENS
from firth.models import AWDLSTM, Elmo, SourceToTarget
from firth.protocols import Text
from firth.text.words import check_texts

if TYPE_CHECKING:
    from firth.api.language_model import LanguageModel

_TOGETHER = 64
"""Texts that are generated at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Generated:
    """A text and how the model went on; an encoder-decoder begins afresh from its source."""

    prompt: str
    """Empty where there is a source."""
    continuation: str
    tokens: list[str]
    """Those of the continuation, in its order. Where a stop string was cut off, the last one is the
    token of the last character shown, white space aside (backward, the first one likewise); it may
    hold the beginning of the stop string, too."""
    log_probabilities: np.ndarray
    """Of the tokens and, where there is one, of the closing token, in nats."""
    ended: Ended
    source: str = ""
    """What the encoder of an encoder-decoder read."""
    backward: bool = False
    """Whether the continuation stands before the prompt."""

    @property
    def text(self) -> str:
        """The prompt and its continuation, as they are read."""
        if self.backward:
            return f"{self.continuation} {self.prompt}".strip()
        return self.prompt + self.continuation


@dataclass(frozen=True)
class _Prompts:
    """What texts are generated from: token ids that open a text, and sources where there are."""

    ids: list[np.ndarray]
    sources: list[np.ndarray] | None

    def part(self, places: Sequence[int]) -> _Prompts:
        sources = None if self.sources is None else [self.sources[i] for i in places]
        return _Prompts([self.ids[i] for i in places], sources)


def decoding(settings: Mapping[str, Any]) -> Decoding:
    """The settings of `generate` by name.

    Raises:
        ConfigError: for a name that is none, with the likeliest one.
    """
    return from_dict(Decoding, settings)


def generate_texts(
    lm: LanguageModel, given: str | Iterable[Text], how: Decoding, stop: Iterable[str] | None
) -> list[Generated]:
    """A continuation of each text, or what an encoder-decoder writes for it; see `generate`."""
    texts = [given] if isinstance(given, str) else given
    check_texts(texts, once=True)
    texts, stop = list(texts), _checked_stop(stop)
    prompts = _prompts(lm, texts, how)
    order = np.argsort([len(one) for one in prompts.sources or prompts.ids], kind="stable")
    found: list[Continuation] = [Continuation() for _ in texts]
    for places in np.split(order, range(_TOGETHER, len(order), _TOGETHER)):
        for i, one in zip(places, _generate(lm, prompts, places.tolist(), how, stop), strict=True):
            found[i] = one
    return [_generated(lm, *one, stop, how) for one in zip(texts, found, strict=True)]


def _generate(
    lm: LanguageModel, prompts: _Prompts, places: list[int], how: Decoding, stop: Sequence[str]
) -> list[Continuation]:
    """The continuations of some of the prompts, of like length."""
    if not places:
        return []
    part = prompts.part(places)
    ends: dict[str, Any] = {
        "ends": _closing(lm, how),
        "stop": _stops(lm, stop, how),
        "size": lm.tokenizer.vocabulary.size,
        "never": never_written(lm.tokenizer),
        "sources": part.sources,
    }
    if how.beams > 1:
        return [best[0] for best in beam_search(lm.writer, part.ids, how, **ends)]
    *_, found = continuations(lm.writer, part.ids, how, **ends, places=places)
    return found


def stream_text(
    lm: LanguageModel, text: str, how: Decoding, stop: Iterable[str] | None
) -> Iterator[str]:
    """What is generated from one text, piece by piece as it comes."""
    stop = _checked_stop(stop)
    if how.beams > 1:
        raise ConfigError("a text that comes piece by piece has one beam; leave beams at 1")
    if how.backward:
        raise ConfigError("a text that is written from its end cannot come piece by piece")
    prompts, shown = _prompts(lm, [text], how), ""
    for (one,) in continuations(
        lm.writer,
        prompts.ids,
        how,
        ends=_closing(lm, how),
        stop=_stops(lm, stop, how),
        size=lm.tokenizer.vocabulary.size,
        never=never_written(lm.tokenizer),
        sources=prompts.sources,
    ):
        now = _generated(lm, text, one, stop, how).continuation
        # Half a character, bytes that the next may spoil, and what may become a stop string wait.
        half = now.endswith("\ufffd") or _is_byte(lm, one.ids[-1:])
        if (
            (one.ended or not half)
            and now.startswith(shown)
            and (one.ended or not _may_stop(now, stop))
        ):
            yield now[len(shown) :]
            shown = now


def _checked_stop(stop: Iterable[str] | None) -> tuple[str, ...]:
    """The strings that end a text.

    Raises:
        ConfigError: for a string in place of a list, or an empty one.
    """
    if stop is None:
        return ()
    several = isinstance(stop, Iterable) and not isinstance(stop, str)
    known = tuple(stop) if several else ("",)
    if not all(isinstance(one, str) and one for one in known):
        raise ConfigError(f"stop is {stop!r}; expected a list of strings of at least one character")
    return known


def _stops(lm: LanguageModel, stop: Sequence[str], how: Decoding) -> Stop:
    """Looks for the strings in what is added to the text."""

    def stops(prompt: np.ndarray, ids: Sequence[int]) -> bool:
        if not stop:
            return False
        added = _written(lm, prompt, ids, how)
        return any(word in added for word in stop)

    return stops


def _written(
    lm: LanguageModel, prompt: Sequence[int] | np.ndarray, ids: Sequence[int], how: Decoding
) -> str:
    """What the tokens add behind a prompt, a space between them included, or before it."""
    decode = lm.tokenizer.decode
    if how.backward:
        return decode(ids[::-1])
    before, whole = decode([*prompt]), decode([*prompt, *ids])
    if not whole.startswith(before):
        # Bytes that are no character yet spoil those before them: a token that is none holds the
        # place of the prompt.
        anchor = list(itertools.islice((i for i in reversed(prompt) if not _is_byte(lm, [i])), 1))
        before, whole = decode(anchor), decode([*anchor, *ids])
    return whole.removeprefix(before)


_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A token of a vocabulary that spells unknown characters by their bytes."""


def _is_byte(lm: LanguageModel, ids: Sequence[int]) -> bool:
    """Whether there is a token, and all are bytes."""
    return len(ids) > 0 and all(_BYTE.fullmatch(lm.tokenizer.token(i)) for i in ids)


def _check_direction(lm: LanguageModel, how: Decoding) -> None:
    model = lm.model
    both = isinstance(model, Elmo)
    backward = isinstance(model, AWDLSTM) and model.config.backward
    if how.backward != backward and not both:
        raise UnsupportedError(
            "this model was trained from right to left; set backward"
            if backward
            else "this model reads from left to right; leave backward out (a biLM, elmo, has both)"
        )


def _prompts(lm: LanguageModel, texts: Sequence[Text], how: Decoding) -> _Prompts:
    """Token ids in the order of reading, not closed; sources, if any."""
    vocabulary = lm.tokenizer.vocabulary
    _check_direction(lm, how)
    if isinstance(lm.model, SourceToTarget):
        sources = [encoding.ids for encoding in lm.encode(texts, whole=True)]
        return _Prompts([np.array([vocabulary.first])] * len(sources), sources)
    lm.require_context("generate")
    if not lm.causal:
        raise UnsupportedError(
            "generate needs a model that predicts the next token (a decoder), and this is a "
            "masked one; fill its blanks with fill"
        )
    found = []
    for encoding in lm.encode(texts):
        inside = encoding.ids[encoding.words >= 0]
        opening = vocabulary.last if how.backward else vocabulary.first
        found.append(np.concatenate([[opening], inside[::-1] if how.backward else inside]))
        if len(found[-1]) >= lm.max_length:
            raise UnsupportedError(
                f"a prompt has {len(found[-1])} tokens and the model's window is "
                f"{lm.max_length}; shorten it, so that there is room for more"
            )
    return _Prompts(found, None)


def _closing(lm: LanguageModel, how: Decoding) -> list[int]:
    """What ends a text; the one that opens it, for a writer from right to left."""
    vocabulary = lm.tokenizer.vocabulary
    return [vocabulary.first] if how.backward else [vocabulary.last, *lm.record.get(END_TOKENS, ())]


def _generated(
    lm: LanguageModel, text: Text, one: Continuation, stop: Sequence[str], how: Decoding
) -> Generated:
    line = text if isinstance(text, str) else " ".join(text)
    own = isinstance(lm.model, SourceToTarget)  # it does not continue what it reads
    prompt = [] if own or how.backward else lm.tokenizer.encode(text).ids.tolist()
    whole = _written(lm, prompt, one.ids, how)
    shown = before_stop(whole, stop, backward=how.backward)
    count = len(one.ids)
    if shown != whole:
        # In most vocabularies the token of a word has the space before it, which is no part of it.
        while count and shown.strip() in _written(lm, prompt, one.ids[: count - 1], how):
            count -= 1
    turn = -1 if how.backward else 1
    logs = one.log_probabilities if shown == whole else one.log_probabilities[:count]
    return Generated(
        prompt="" if own else line,
        source=line if own else "",
        continuation=shown,
        tokens=[lm.tokenizer.token(i) for i in one.ids[:count][::turn]],
        log_probabilities=np.array(logs[::turn]),
        ended=one.ended or "length",
        backward=how.backward,
    )


def before_stop(text: str, stop: Sequence[str], *, backward: bool = False) -> str:
    """What was written before the first stop string, whatever their order in the list.

    Of a text written backward, that is what stands behind the last one.
    """
    met = [word for word in stop if word in text]
    if backward:
        return text[max((text.rfind(word) + len(word) for word in met), default=0) :]
    return text[: min(map(text.find, met), default=len(text))]


def _may_stop(text: str, stop: Sequence[str]) -> bool:
    """Whether the text ends with the beginning of a stop string."""
    return any(text.endswith(word[:n]) for word in stop for n in range(1, len(word) + 1))
