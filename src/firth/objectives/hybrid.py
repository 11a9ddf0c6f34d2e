"""Masked and causal language modelling in one network (Charpentier and Samuel 2024, GPT-BERT)."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from firth.config import check_types
from firth.errors import ConfigError
from firth.objectives.masked import frame_ids, ordinary_ids
from firth.objectives.prediction import cross_entropy
from firth.protocols import ABSENT, Batch, Loss, Sequences

_LONGEST = 3
"""Longest masked span, in tokens; lengths 1 to 3 are drawn alike, as in the published program."""


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """Some sequences are read left to right, the others in both directions with blanks.

    Causal sequences are those of `CausalLM`. In the others spans are masked, and a masked token is
    predicted from the state at the token *before* it: masked next-token prediction (Charpentier and
    Samuel 2024, section 2.1), so that both tasks use the network alike. Both kinds have the weight
    of their share of the tokens, however few tokens the masked ones predict.

    Departure: what is chosen never stays as it is (BERT leaves 10 %): it becomes the mask or, with
    `random_share`, a random token.
    """

    causal_share: float = 0.5
    """Share of the sequences that are read left to right, at the start of training."""
    final_causal_share: float | None = None
    """If set, the share moves to this value, linearly over the run."""
    rate: float = 0.3
    """Share of the tokens that is masked in the other sequences, at the start of training."""
    final_rate: float | None = 0.15
    """If set, the rate moves to this value, linearly over the run (Ankner et al. 2024)."""
    random_share: float = 0.1
    """Share of the chosen tokens that becomes a random token instead of the mask."""

    models: ClassVar[tuple[str, ...]] = ("GPTConfig",)
    """Configurations of the networks that can learn it."""
    spare: ClassVar[int] = 0
    """Tokens that it adds to each sequence."""
    predicts: ClassVar[str] = "of the next token"
    """What its perplexity is about."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("causal_share", "final_causal_share", "rate", "final_rate", "random_share"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"Hybrid.{name} is {value}, expected a share between 0 and 1")
        causal = {self.causal_share, self.final_causal_share} <= {1.0, None}
        if not (self.rate or self.final_rate or causal):
            raise ConfigError(
                f"Hybrid.rate is {self.rate}, so nothing is predicted in sequences with blanks; "
                "expected more than 0, or causal_share=1"
            )

    def for_validation(self) -> "Hybrid":
        """Left to right alone, so that its perplexity is a causal model's."""
        return replace(self, causal_share=1.0, final_causal_share=None)

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """Chooses which sequences are causal, lays them first, and masks spans of the others."""
        if sequences.vocabulary.mask == ABSENT:
            raise ConfigError("the hybrid objective needs a mask token; this vocabulary has none")
        share = _moved(self.causal_share, self.final_causal_share, sequences.progress)
        causal = _take_share(np.diff(sequences.starts), share, rng)
        order = np.argsort(~causal, kind="stable")
        sequences, causal = _in_order(sequences, order), causal[order]
        starts, lengths = sequences.starts, np.diff(sequences.starts)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        next_tokens = causal[owner]
        ends = starts[1:]
        next_tokens[ends - 1] = False
        if sequences.ends_document is not None:
            next_tokens[ends[~sequences.ends_document] - 2] = False
        rate = _moved(self.rate, self.final_rate, sequences.progress)
        masked = _spans(sequences, rate, rng) & ~causal[owner]
        at = np.flatnonzero(next_tokens | np.append(masked[1:], False))
        weights = _weights(causal[owner[at]], causal, lengths)
        return Batch(
            input_ids=torch.from_numpy(self._corrupted(sequences, masked, rng)),
            starts=torch.from_numpy(starts),
            prefix=torch.from_numpy(np.where(causal, 0, lengths)),
            predict_at=torch.from_numpy(at),
            targets=torch.from_numpy(sequences.ids[at + 1]),
            weights=torch.from_numpy(weights),
        )

    def _corrupted(
        self, sequences: Sequences, masked: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        ids = sequences.ids.copy()
        at = np.flatnonzero(masked)
        random = rng.random(len(at)) < self.random_share
        ids[at] = sequences.vocabulary.mask
        ids[at[random]] = rng.choice(ordinary_ids(sequences.vocabulary), int(random.sum()))
        return ids

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Weighted cross-entropy at the predicted positions."""
        return cross_entropy(model, batch)


def _moved(first: float, final: float | None, progress: float) -> float:
    return first if final is None else first + (final - first) * progress


def _take_share(lengths: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """(B) bool: sequences in random order that hold this share of the tokens on average.

    The one at the border is taken with the probability of the part of it that is needed.
    """
    order = rng.permutation(len(lengths))
    before = np.cumsum(lengths[order]) - lengths[order] * (1 - rng.random())
    taken = np.zeros(len(lengths), dtype=bool)
    taken[order[before < share * lengths.sum()]] = True
    return taken


def _in_order(sequences: Sequences, order: np.ndarray) -> Sequences:
    """The same sequences in another order, without what this objective does not look at."""
    lengths = np.diff(sequences.starts)[order]
    starts = np.concatenate(([0], np.cumsum(lengths)))
    shift = np.repeat(sequences.starts[order] - starts[:-1], lengths)
    ends = sequences.ends_document
    return replace(
        sequences,
        ids=sequences.ids[np.arange(len(shift)) + shift],
        starts=starts,
        ends_document=None if ends is None else ends[order],
    )


def _spans(sequences: Sequences, rate: float, rng: np.random.Generator) -> np.ndarray:
    """(N) bool: ordinary tokens covered by spans that begin at random, `rate` of them on average.

    With spans of 1 to 3 tokens beginning at each token with probability q, a token stays uncovered
    with probability (1 - q)(1 - 2q/3)(1 - q/3).
    """
    q = np.linspace(0, 1, 1001)
    covered = 1 - (1 - q) * (1 - 2 * q / 3) * (1 - q / 3)
    count = len(sequences.ids)
    begins = np.flatnonzero(rng.random(count) < np.interp(rate, covered, q))
    lengths = rng.integers(1, _LONGEST + 1, len(begins))
    owner = np.repeat(np.arange(len(sequences.starts) - 1), np.diff(sequences.starts))
    chosen = np.zeros(count, dtype=bool)
    for offset in range(_LONGEST):
        at = begins[lengths > offset] + offset
        inside = at < count
        at = at[inside]
        chosen[at[owner[at] == owner[at - offset]]] = True
    return chosen & ~np.isin(sequences.ids, frame_ids(sequences.vocabulary))


def _weights(of_causal: np.ndarray, causal: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(M) float32, 1 on average: each kind's predictions share its part of the tokens evenly."""
    total, weights = lengths.sum(), np.ones(len(of_causal), np.float32)
    for kind in (True, False):
        count = int((of_causal == kind).sum())
        if count:
            part = lengths[causal == kind].sum() / total
            weights[of_causal == kind] = part * len(of_causal) / count
    return weights / max(weights.mean(), 1e-9) if len(weights) else weights
