"""Filling blanks, and scoring texts with masked and causal language models."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from firth.errors import ConfigError, UnsupportedError
from firth.inference.blanks import blank_scores, blank_states, blank_token
from firth.inference.forward import Engine, Window, check_numbers, windows
from firth.protocols import Batch, Encoding, Tokenizer

logger = logging.getLogger(__name__)

_TOGETHER = 1 << 24
"""Tokens of masked copies that are made at a time, also of one text, about."""


@dataclass(frozen=True)
class Filled:
    """A candidate for a blank."""

    token: str
    """As text; what goes on with a word begins with ## where the vocabulary marks it so."""
    probability: float
    """Among the tokens that a text is made of: special tokens are left out of the softmax."""
    text: str
    """The text with the blank filled in."""
    token_id: int


_CHUNK_SCORES = 1 << 24
"""Scores over the vocabulary that are held at a time."""

Method = Literal["log-likelihood", "pseudo-log-likelihood", "pseudo-log-likelihood, within words"]
"""Each token given those before it, given all the others, or given all but the rest of its word."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """How likely a model finds a text."""

    text: str
    tokens: list[str]
    """The ordinary tokens."""
    log_probabilities: np.ndarray
    """(tokens) nats: log p(token | context), the context being what `method` says."""
    method: Method

    @property
    def total(self) -> float:
        """Sum of the log probabilities, in nats."""
        return float(self.log_probabilities.sum())

    @property
    def perplexity(self) -> float:
        """Exponential of the mean negative log probability a token."""
        return float(np.exp(-self.log_probabilities.mean())) if len(self.tokens) else float("nan")

    @property
    def bits_per_byte(self) -> float:
        """Negative log probability in bits, by byte of the text in UTF-8."""
        size = len(self.text.encode())
        return -self.total / (math.log(2) * size) if size else float("nan")


def fill(
    engine: Engine, tokenizer: Tokenizer, encodings: Sequence[Encoding], top_k: int
) -> list[list[list[Filled]]]:
    """The most probable tokens for every mask of every text, special tokens left out.

    Returns:
        For each text, for each of its masks, `top_k` candidates; several masks are filled
        independently of each other.

    Raises:
        ConfigError: if `top_k` is no whole number, or less than one.
        UnsupportedError: if a text has no mask, or is longer than the model's window.
        DivergedError: if the model's scores are no numbers.
    """
    if not isinstance(top_k, Integral) or top_k < 1:
        raise ConfigError(f"top_k is {top_k}; expected a whole number of at least 1")
    vocabulary = tokenizer.vocabulary
    blank = blank_token(engine.model, vocabulary)
    mask = tokenizer.token(blank)
    for encoding in encodings:
        if blank not in encoding.ids:
            raise UnsupportedError(
                f"{encoding.text!r} has no blank; write {mask} where it should be"
            )
        if len(encoding.ids) > engine.max_length:
            raise UnsupportedError(
                f"a text to fill has {len(encoding.ids)} tokens and the model takes "
                f"{engine.max_length}; shorten it"
            )
    found: list[list[list[Filled]]] = [[] for _ in encodings]
    predicted = getattr(engine.model.config, "output_size", vocabulary.size)
    count = min(top_k, predicted - len(vocabulary.special))

    def compute(_chosen: np.ndarray, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        at = (batch.input_ids == blank).nonzero().squeeze(1)
        states = blank_states(engine.model, batch, at, vocabulary)
        logits = blank_scores(engine, states)
        logits[:, [i for i in vocabulary.special if i < logits.shape[1]]] = -torch.inf
        logits[:, vocabulary.size :] = -torch.inf  # rows that no token has
        best = torch.softmax(logits, dim=-1).topk(count)
        check_numbers(best.values)
        owners = torch.bucketize(at.cpu(), batch.starts, right=True) - 1
        return owners, best.values, best.indices

    for chosen, _, best in engine.run([e.ids for e in encodings], compute):
        for owner, p, ids in zip(*(part.tolist() for part in best), strict=True):
            which = int(chosen[owner])
            place, text = len(found[which]), encodings[which]
            found[which].append(
                [
                    Filled(token_text(tokenizer, i), q, _filled(tokenizer, text, place, i), i)
                    for q, i in zip(p, ids, strict=True)
                ]
            )
    return found


def token_text(tokenizer: Tokenizer, index: int) -> str:
    """A token as text, and not as the bytes or marks of word boundaries its vocabulary has.

    Part of a character is as the vocabulary has it.
    """
    text = tokenizer.decode([index], special_tokens=True)
    if "\ufffd" in text:
        return tokenizer.token(index)
    return text.strip() or (repr(text) if text else tokenizer.token(index))


def _filled(tokenizer: Tokenizer, encoding: Encoding, place: int, token: int) -> str:
    at = np.flatnonzero(encoding.ids == tokenizer.vocabulary.mask)[place]
    begin, end = encoding.offsets[at]
    # White space belongs to the mask in some vocabularies, and to the candidate in others.
    mask = encoding.text[begin:end]
    begin, end = end - len(mask.lstrip()), begin + len(mask.rstrip())
    before, alone = encoding.text[:begin], tokenizer.decode([token])
    piece = tokenizer.decode([token, token]).removeprefix(alone).strip()
    if piece != alone.strip():  # as "##ing" is: it goes on with the word before
        before = before.rstrip()
    return before + piece + encoding.text[end:]


def score_masked(
    engine: Engine,
    tokenizer: Tokenizer,
    encodings: Sequence[Encoding],
    *,
    within_word: bool = False,
) -> list[Score]:
    """Pseudo-log-likelihoods (Salazar et al. 2020, eq. 1): sum_t log p(w_t | w without t).

    Each ordinary token is masked in a copy of its own, and the head runs at that slot alone. Texts
    longer than the model's window are scored in overlapping windows, each token where it has most
    context.

    Args:
        engine: a masked language model, a hybrid, or an encoder-decoder that fills blanks.
        tokenizer: of the model.
        encodings: the texts.
        within_word: mask the later tokens of the same word too (Kauf & Ivanova 2023, PLL-word-l2r),
            so that a rare word is not made likely by its own last tokens.
    """
    blanks = [
        (window, token)
        for window in windows(encodings, engine.max_length)
        for token in range(window.begin, window.end)
        if encodings[window.text].words[token] >= 0
    ]
    copied = np.cumsum([len(window.ids) for window, _ in blanks], dtype=np.int64)
    borders = np.flatnonzero(np.diff(copied // _TOGETHER)) + 1
    logs = [np.zeros(len(encoding.ids)) for encoding in encodings]
    if len(borders):
        logger.info(
            "%s tokens are to be read, as each of %s is masked in a copy of its own; in %d parts",
            *(f"{copied[-1]:,}", f"{len(blanks):,}", len(borders) + 1),
        )
    for low, high in pairwise([0, *borders.tolist(), len(blanks)]):
        part = blanks[low:high]
        values = _score_blanks(engine, tokenizer, encodings, part, within_word=within_word)
        for (window, token), value in zip(part, values.tolist(), strict=True):
            logs[window.text][token] = value
    method: Method = "pseudo-log-likelihood"
    if within_word:
        method = "pseudo-log-likelihood, within words"
    kept = [log[e.words >= 0] for e, log in zip(encodings, logs, strict=True)]
    return _scores(encodings, kept, method)


def _score_blanks(
    engine: Engine,
    tokenizer: Tokenizer,
    encodings: Sequence[Encoding],
    blanks: Sequence[tuple[Window, int]],
    *,
    within_word: bool,
) -> np.ndarray:
    """(M) log probabilities of tokens of windows, each masked in a copy of its own."""
    vocabulary = tokenizer.vocabulary
    mask = blank_token(engine.model, vocabulary)
    words = [encoding.words if within_word else None for encoding in encodings]
    copies = [_masked_copy(window, t, mask, words[window.text]) for window, t in blanks]
    places = torch.tensor([t - window.offset for window, t in blanks], dtype=torch.int64)
    targets = [int(window.ids[t - window.offset]) for window, t in blanks]
    wanted = _predicted(engine.model, torch.tensor(targets, dtype=torch.int64))
    found = np.zeros(len(blanks))

    def compute(chosen: np.ndarray, batch: Batch) -> np.ndarray:
        which = torch.from_numpy(chosen.copy())
        at = batch.starts[:-1] + places[which]
        hidden = blank_states(engine.model, batch, at.to(engine.device), vocabulary)
        own = wanted[which].to(engine.device)
        return _log_probabilities(hidden, own, partial(blank_scores, engine), vocabulary.size)

    for chosen, _, values in engine.run(copies, compute):
        found[chosen] = values
    return found


def _log_probabilities(
    states: Tensor, targets: Tensor, scores: Callable[[Tensor], Tensor], size: int
) -> np.ndarray:
    """(M) log p of (M) targets at (M, D) states, in parts that hold few scores of `size` words."""
    rows = max(1, _CHUNK_SCORES // size)
    parts = [
        -F.cross_entropy(scores(h), t, reduction="none")
        for h, t in zip(states.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(parts).cpu().numpy()


def _masked_copy(window: Window, token: int, mask: int, words: np.ndarray | None) -> np.ndarray:
    """The window's ids with one token masked; given the `words`, also the rest of its word."""
    masked = window.ids.copy()
    at = token - window.offset
    masked[at] = mask
    if words is not None:
        # Where texts are closed the window's last place is, too, whatever the text has there.
        closed = int(words[-1] < 0)
        later = words[token + 1 : window.offset + len(masked) - closed] == words[token]
        masked[at + 1 :][: len(later)][later] = mask
    return masked


def _predicted(model: Any, ids: Tensor) -> Tensor:
    """Ids as the softmax has them: ELMo's has one class for all words beyond its own."""
    size = getattr(model.config, "output_size", None)
    return ids if size is None else torch.where(ids < size, ids, model.config.unknown)


@dataclass(frozen=True)
class _Stretch:
    """Part of a text that fits the window: reads `ids`, answers for tokens `begin` to `end`."""

    text: int
    ids: np.ndarray
    begin: int
    end: int


def score_causal(
    engine: Engine, tokenizer: Tokenizer, encodings: Sequence[Encoding]
) -> list[Score]:
    """Log-likelihoods: sum_t log p(w_t | w_<t), the first token given the opening one.

    Of a model that reads right to left sum_t log p(w_t | w_>t), the last given the closing one.

    Texts longer than the model's window are read in windows that overlap by half, so that every
    token has at least half a window before it.
    """
    vocabulary = tokenizer.vocabulary
    backward = getattr(engine.model.config, "backward", False)
    turn = -1 if backward else 1
    opening = vocabulary.last if backward else vocabulary.first
    ordinary = [encoding.ids[encoding.words >= 0][::turn] for encoding in encodings]
    stretches = _stretches([np.concatenate([[opening], x]) for x in ordinary], engine.max_length)
    logs = [np.zeros(len(ids)) for ids in ordinary]

    def compute(_chosen: np.ndarray, batch: Batch) -> np.ndarray:
        hidden = engine.model(batch).last
        targets = _predicted(engine.model, batch.input_ids.roll(-turn))
        return _log_probabilities(hidden, targets, engine.logits, vocabulary.size)

    for chosen, batch, values in engine.run(
        [s.ids[::turn].copy() for s in stretches], compute, causal=True
    ):
        for i, part in zip(chosen, np.split(values, batch.starts[1:-1].numpy()), strict=True):
            one = stretches[i]
            # The state at each token predicts the next one; the last one's prediction is idle.
            logs[one.text][one.begin : one.end] = part[::turn][:-1][one.begin - one.end :]
    turned = [log[::turn].copy() for log in logs]
    return _scores(encodings, turned, "log-likelihood")


def _stretches(texts: list[np.ndarray], max_length: int) -> list[_Stretch]:
    """Texts behind their opening tokens, in windows that overlap by half."""
    stretches: list[_Stretch] = []
    half = max(1, max_length // 2)
    for text, whole in enumerate(texts):
        done, size = 0, len(whole) - 1
        while done < size:
            begin = 0 if done == 0 else done + half + 1 - max_length
            end = min(size, begin + max_length - 1)
            stretches.append(_Stretch(text, whole[begin : end + 1], done, end))
            done = end
    return stretches


def _scores(
    encodings: Sequence[Encoding], logs: Sequence[np.ndarray], method: Method
) -> list[Score]:
    """Of texts with the log probabilities of their ordinary tokens."""
    return [
        Score(
            text=encoding.text,
            tokens=[
                t for t, word in zip(encoding.tokens, encoding.words, strict=True) if word >= 0
            ],
            log_probabilities=log,
            method=method,
        )
        for encoding, log in zip(encodings, logs, strict=True)
    ]
