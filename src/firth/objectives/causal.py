"""Causal language modelling: every token is predicted from those before it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from firth.objectives.prediction import cross_entropy
from firth.protocols import Batch, Loss, Sequences


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """The left-to-right language model (Radford et al. 2018, eq. 1): sum_i log P(u_i | u_<i).

    The first token of a sequence is given; each other one is predicted from the state at the token
    before it, the closing token only where the document ends there.
    """

    predicts: ClassVar[str] = "of the next token"
    """What its perplexity is about."""
    models: ClassVar[tuple[str, ...]] = ("GPTConfig",)
    """Configurations of the networks that can learn it."""
    spare: ClassVar[int] = 0
    """Tokens that it adds to each sequence."""

    def for_validation(self) -> "CausalLM":
        """The same objective."""
        return self

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """Nothing is corrupted; `targets` are the next tokens."""
        idle = np.zeros(len(sequences.ids), dtype=bool)
        ends = sequences.starts[1:]
        idle[ends - 1] = True
        if sequences.ends_document is not None:
            idle[ends[~sequences.ends_document] - 2] = True
        at = np.flatnonzero(~idle)
        return Batch(
            input_ids=torch.from_numpy(sequences.ids),
            starts=torch.from_numpy(sequences.starts),
            prefix=torch.zeros(len(ends), dtype=torch.int64),
            predict_at=torch.from_numpy(at),
            targets=torch.from_numpy(sequences.ids[at + 1]),
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross-entropy at the predicted positions."""
        return cross_entropy(model, batch)
