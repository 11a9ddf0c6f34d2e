"""Span boundaries: what stands in a masked span is predicted from the tokens on either side."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from firth.objectives.masked import MaskedLM
from firth.objectives.spans import span_boundaries
from firth.protocols import Batch, Loss, Sequences


@dataclass(frozen=True, kw_only=True)
class SpanBoundary:
    """Masked LM and the span boundary objective (Joshi et al. 2020, sections 3.2 and 3.3).

        y_i = f(x_{s-1}, x_{e+1}, p_{i-s+1})
        L(x_i) = L_MLM(x_i) + L_SBO(x_i) = -log P(x_i | x_i) - log P(x_i | y_i)

    for each token i of a masked span s ... e, bold x being the encoder's last states and f the
    model's `boundary_head`. Sequences are single segments, without next-sentence prediction. The
    loss is the sum of both over the predicted tokens.

    A span at the edge of its sequence has a special token beside it, and the tokens behind the
    head's last place have no place embedding: there L_SBO is 0 (facebookresearch/SpanBERT,
    `masking.py`). Departure: the published program takes the mean of L_SBO over the tokens that
    have it, ours over all predicted tokens, as the equation says.
    """

    masked: MaskedLM = field(default_factory=lambda: MaskedLM(units="span"))
    """With other units a span is a run of predicted tokens."""

    predicts: ClassVar[str] = MaskedLM.predicts
    """What its perplexity is about."""
    models: ClassVar[tuple[str, ...]] = ("BertConfig",)
    """Configurations of the networks that can learn it."""
    spare: ClassVar[int] = 0
    """Tokens that it adds to each sequence."""

    def for_validation(self) -> MaskedLM:
        """Batches without boundaries: the masked LM alone, so that perplexities compare."""
        return self.masked.for_validation()

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """The masked LM's batch, with the boundaries of each predicted token."""
        batch = self.masked.prepare(sequences, rng)
        assert batch.predict_at is not None
        boundaries = span_boundaries(sequences, batch.predict_at.numpy())
        return replace(batch, boundaries=torch.from_numpy(boundaries))

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Both cross-entropies; the parts are "masked_lm" and, with boundaries, "boundary"."""
        assert batch.predict_at is not None
        assert batch.targets is not None
        hidden = model(batch).last  # (N, D)
        at = hidden.index_select(0, batch.predict_at)  # (M, D)
        masked = model.prediction_loss(at, batch.targets)
        if batch.boundaries is None:
            return Loss(masked, batch.num_predictions, {"masked_lm": masked.detach()})
        boundary = model.boundary_loss(hidden, batch.boundaries, batch.targets)
        parts = {"masked_lm": masked.detach(), "boundary": boundary.detach()}
        return Loss(masked + boundary, batch.num_predictions, parts)
