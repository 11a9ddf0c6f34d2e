"""Sequence to sequence with teacher forcing: a decoder predicts a target given its source."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from firth.errors import ConfigError
from firth.objectives.prediction import cross_entropy
from firth.protocols import Batch, Loss, Sequences, Vocabulary


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence:
    """-sum_t log P(y_t | y_<t, x) over labelled pairs (Sutskever et al. 2014, eq. 1).

    With label smoothing e the target's distribution is 1 - e at y_t and e / V everywhere (Szegedy
    et al. 2016, section 7; Vaswani et al. 2017, section 5.4).
    """

    label_smoothing: float = 0.0
    """e; 0 for the target alone."""

    models: ClassVar[tuple[str, ...]] = ("EncoderDecoderConfig", "Seq2SeqConfig")
    """Configurations of the networks that can learn it."""
    spare: ClassVar[int] = 0
    """Tokens it adds to a sequence."""
    predicts: ClassVar[str] = "of the target's tokens"
    """What its perplexity is about."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"SequenceToSequence.label_smoothing is {self.label_smoothing}, expected 0 to 1"
            )

    def for_validation(self) -> "SequenceToSequence":
        """Without label smoothing, so that perplexities compare."""
        return replace(self, label_smoothing=0.0)

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """The pairs as they are."""
        if sequences.source is None:
            raise ConfigError(
                "sequence to sequence needs pairs of texts, and this corpus is plain text; give "
                "the targets too (firth pretrain RECIPE SOURCE --target TARGET)"
            )
        ids, ends = sequences.ids, sequences.starts[1:] - 1
        at = np.delete(np.arange(len(ids)), ends)
        return Batch(
            input_ids=torch.from_numpy(np.delete(ids, ends)),
            starts=torch.from_numpy(sequences.starts - np.arange(len(sequences.starts))),
            predict_at=torch.arange(len(at)),
            targets=torch.from_numpy(ids[at + 1]),
            source=Batch(
                input_ids=torch.from_numpy(sequences.source.ids),
                starts=torch.from_numpy(sequences.source.starts),
            ),
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross-entropy of the targets, smoothed."""
        return cross_entropy(model, batch, label_smoothing=self.label_smoothing)


def teacher_forced(
    source: tuple[np.ndarray, np.ndarray],
    target: tuple[np.ndarray, np.ndarray],
    vocabulary: Vocabulary,
    *,
    ends: np.ndarray | None = None,
) -> Batch:
    """A batch of sources and targets, given as flat token ids and lengths without special tokens.

    The source is opened and closed; the decoder reads the opening token and the target, and
    predicts the target and the closing token, this only where `ends` (B) says that the text ends.
    """
    closed, starts = _wrapped(*source, vocabulary.first, vocabulary.last)
    wanted, closing = _wrapped(*target, None, vocabulary.last)
    read, _ = _wrapped(*target, vocabulary.first, None)
    at = np.arange(len(read))
    if ends is not None:
        at = np.delete(at, closing[1:][~ends] - 1)
    return Batch(
        input_ids=torch.from_numpy(read),
        starts=torch.from_numpy(closing),
        predict_at=torch.from_numpy(at),
        targets=torch.from_numpy(wanted[at]),
        source=Batch(input_ids=torch.from_numpy(closed), starts=torch.from_numpy(starts)),
    )


def _wrapped(
    ids: np.ndarray, lengths: np.ndarray, before: int | None, after: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences with a token before and after each, and their starts (B+1)."""
    ends = np.cumsum(lengths)
    added = (before is not None) + (after is not None)
    starts = np.concatenate([[0], ends + added * np.arange(1, len(ends) + 1)])
    inner = np.ones(starts[-1], dtype=bool)
    if before is not None:
        inner[starts[:-1]] = False
    if after is not None:
        inner[starts[1:] - 1] = False
    whole = np.empty(len(inner), dtype=np.int64)
    whole[inner] = ids
    if before is not None:
        whole[starts[:-1]] = before
    if after is not None:
        whole[starts[1:] - 1] = after
    return whole, starts
