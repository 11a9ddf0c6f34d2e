"""Masked language modelling: which positions are predicted, and what stands there meanwhile."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from firth.config import check_types
from firth.errors import ConfigError
from firth.objectives.prediction import cross_entropy
from firth.objectives.spans import runs_of, word_order_by_spans
from firth.protocols import ABSENT, INSIDE, OPENS, Batch, Loss, Sequences, Vocabulary

_LONGEST_WORD = 10
"""Tokens."""

Units = Literal["token", "word", "entity", "span"]


@dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """BERT's masked LM (Devlin et al. 2019, section 3.1 and appendix A.1).

    In each sequence of n tokens, max(1, round(rate n)) are chosen anew at every visit; of these
    80 % become the mask token, 10 % a random token and 10 % stay. The loss is the cross-entropy at
    the chosen positions. What is chosen together is a matter of `units`:

    token: any tokens.
    word:  words, as the tokenizer's pre-tokenizer cuts them, in random order, skipping any that no
           longer fits (google-research/bert, `create_pretraining_data.py`, whole-word masking).
           What is no word but a clause (of scripts without spaces: more than 10 tokens, and more
           than are to be chosen) is taken token by token.
    entity: the marked spans of the text (`data.spans`), and the words outside them, in random order
           (Sun et al. 2019, ERNIE, section 3.2).
    span:  spans of 1 to 10 words, 3.8 on average, one after another until the share is reached; all
           tokens of a span become the mask token, or random ones, or stay (Joshi et al. 2020,
           section 3.1). Spans that touch are one.

    Departures: random tokens are never special tokens; the last span ends with a word rather than
    within it, and skips a word that no longer fits.
    """

    rate: float = 0.15
    """Share of the tokens that is predicted, at the start of training."""
    final_rate: float | None = None
    """If set, the rate moves to this value, linearly over the run (Ankner et al. 2024)."""
    mask_share: float = 0.8
    """Share of the chosen tokens that becomes the mask."""
    random_share: float = 0.1
    """Share of them that becomes a random token; the rest stays."""
    units: Units = "token"
    """What is chosen together."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("rate", "final_rate", "mask_share", "random_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"MaskedLM.{name} is {value}, expected a share between 0 and 1")
        if not (self.rate or self.final_rate):
            raise ConfigError("MaskedLM.rate is 0, so nothing is predicted; expected more than 0")
        if self.mask_share + self.random_share > 1:
            raise ConfigError("MaskedLM: mask_share and random_share add up to more than 1")

    predicts: ClassVar[str] = "at masked positions"
    """What its perplexity is about."""
    models: ClassVar[tuple[str, ...]] = ("BertConfig",)
    """Configurations of the networks that can learn it."""
    spare: ClassVar[int] = 0
    """Tokens that it adds to each sequence."""

    def for_validation(self) -> "MaskedLM":
        """Masks 15 % whatever the training rate, so that runs compare."""
        return replace(self, rate=0.15, final_rate=None)

    def rate_at(self, progress: float) -> float:
        """The masking rate after this share of training."""
        if self.final_rate is None:
            return self.rate
        return self.rate + (self.final_rate - self.rate) * progress

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """Chooses and corrupts positions; `targets` are the tokens that stood there."""
        if sequences.vocabulary.mask == ABSENT:
            raise ConfigError(
                "masked language modelling needs a mask token, and this vocabulary has none; train "
                "one with firth, or add a mask_token to tokenizer_config.json and tokenizer.json"
            )
        ids = sequences.ids.copy()
        rate = self.rate_at(sequences.progress)
        chosen = choose_positions(sequences, rate, rng, units=self.units)
        targets = ids[chosen]
        draw = rng.random(len(chosen))
        if self.units == "span":
            draw = draw[runs_of(chosen)]
        masked = draw < self.mask_share
        random = ~masked & (draw < self.mask_share + self.random_share)
        ids[chosen[masked]] = sequences.vocabulary.mask
        ids[chosen[random]] = rng.choice(ordinary_ids(sequences.vocabulary), int(random.sum()))
        return Batch(
            input_ids=torch.from_numpy(ids),
            starts=torch.from_numpy(sequences.starts),
            predict_at=torch.from_numpy(chosen),
            targets=torch.from_numpy(targets),
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross-entropy at the predicted positions."""
        return cross_entropy(model, batch)


@lru_cache(maxsize=8)
def ordinary_ids(vocabulary: Vocabulary) -> np.ndarray:
    """All token ids that are not special."""
    return np.setdiff1d(np.arange(vocabulary.size), vocabulary.special)


@lru_cache(maxsize=8)
def frame_ids(vocabulary: Vocabulary) -> np.ndarray:
    """Token ids that are no part of a text: all special ones but the unknown one, if it has an id
    of its own; it stands for a word, and is predicted as any other (google-research/bert).
    """
    named = {vocabulary.pad, vocabulary.first, vocabulary.last, vocabulary.mask}
    unknown = {vocabulary.unknown} - named - {*vocabulary.sentinels}
    return np.array(sorted({*vocabulary.special} - unknown))


def choose_positions(
    sequences: Sequences, rate: float, rng: np.random.Generator, *, units: Units
) -> np.ndarray:
    """Positions to predict: about `rate` of each sequence's ordinary tokens, sorted.

    Returns:
        (M) int64 positions in 0..N-1.
    """
    lengths = np.diff(sequences.starts)
    owner = np.repeat(np.arange(len(lengths)), lengths)  # (N) sequence of each token
    ordinary = np.flatnonzero(~np.isin(sequences.ids, frame_ids(sequences.vocabulary)))
    owner = owner[ordinary]
    wanted = np.bincount(owner, minlength=len(lengths)) * rate
    wanted = np.where(wanted > 0, np.maximum(1, np.round(wanted)), 0).astype(np.int64)
    if units == "token":
        taken = _take_units(owner, np.ones_like(owner), wanted, rng.random(len(owner)))
        return ordinary[taken]
    # A word ends at a special token and at the end of its sequence.
    breaks = (np.diff(ordinary, prepend=-2) > 1) | (np.diff(owner, prepend=-1) > 0)
    opens = sequences.opens_word[ordinary] | breaks
    if units == "entity":
        marks = marks_of(sequences)[ordinary]
        goes_on = (marks == INSIDE) & ~breaks
        opens = (opens | (marks == OPENS)) & ~goes_on
    word = np.cumsum(opens) - 1  # of each ordinary token
    if units != "entity":
        long = np.bincount(word) > np.maximum(_LONGEST_WORD, wanted[owner[opens]])
        opens |= long[word]
        word = np.cumsum(opens) - 1
    if units in ("word", "entity"):
        order = rng.random(int(opens.sum()))
    else:
        stretch = np.cumsum(breaks)[opens] - 1
        order = word_order_by_spans(owner[opens], stretch, wanted, rng)
    taken = _take_units(owner[opens], np.bincount(word), wanted, order)
    return ordinary[taken[word]]


def marks_of(sequences: Sequences) -> np.ndarray:
    """(N) which tokens lie in marked spans.

    Raises:
        ConfigError: if none were looked for.
    """
    if sequences.marks is None:
        raise ConfigError(
            "this objective masks marked spans, and the text has none; set data.spans to names, "
            "salient or a file (see the guide on masking names and facts)"
        )
    return sequences.marks


def _take_units(
    owner: np.ndarray, sizes: np.ndarray, wanted: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """Which units are taken when each sequence fills its quota, smaller `order` first."""
    taken = np.zeros(len(sizes), dtype=bool)
    rest = np.lexsort((order, owner))
    left = wanted.copy()
    while True:
        rest = rest[sizes[rest] <= left[owner[rest]]]  # too long now is too long for good
        if not len(rest):
            return taken
        who, size = owner[rest], sizes[rest]
        first = np.flatnonzero(np.append(True, who[1:] != who[:-1]))
        repeats = np.diff(np.append(first, len(who)))
        within = np.cumsum(size)
        within -= np.repeat((within - size)[first], repeats)
        fits = within <= left[who]
        # Only those before the first that does not fit: what follows may fit beside fewer.
        blocked = np.cumsum(~fits)
        accepted = blocked == np.repeat((blocked - ~fits)[first], repeats)
        taken[rest[accepted]] = True
        left -= np.bincount(who[accepted], weights=size[accepted], minlength=len(left)).astype(int)
        rest = rest[~accepted]
