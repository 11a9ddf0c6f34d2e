"""Causal language modelling: every token is predicted from those before it, or from those after."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from firth.objectives.prediction import cross_entropy
from firth.protocols import Batch, Loss, Sequences


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """The left-to-right language model (Radford et al. 2018, eq. 1): sum_i log P(u_i | u_<i).

    The first token of a sequence is given; each other one is predicted from the state at the token
    before it, the closing token only where the document ends there (right to left: the opening
    token only where it begins). Of streams, every token is predicted.
    """

    predicts: ClassVar[str] = "of the next token"
    """What its perplexity is about."""
    models: ClassVar[tuple[str, ...]] = ("GPTConfig", "AWDLSTMConfig")
    """Configurations of the networks that can learn it."""
    spare: ClassVar[int] = 0
    """Tokens that it adds to each sequence."""

    backward: bool = False
    """Right to left instead: sum_i log P(u_i | u_>i)."""
    ar: float = 0.0
    """alpha of the activation regularisation of recurrent models, alpha mean(m * h_t)^2, of the
    last layer's states behind their dropout (Merity et al. 2018, section 4.6)."""
    tar: float = 0.0
    """beta of their temporal activation regularisation, beta mean(h_t - h_{t+1})^2."""

    def for_validation(self) -> "CausalLM":
        """The same objective without what regularises."""
        return replace(self, ar=0.0, tar=0.0)

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """Nothing is corrupted; `targets` are the next tokens."""
        ids, starts = sequences.ids, sequences.starts
        edge = starts[:-1] if self.backward else starts[1:] - 1
        after = np.roll(ids, 1 if self.backward else -1)
        idle = np.zeros(len(ids), dtype=bool)
        if sequences.beyond is None:
            idle[edge] = True
        else:
            after[edge] = sequences.beyond
        whole = sequences.begins_document if self.backward else sequences.ends_document
        if whole is not None:
            idle[edge[~whole] + (1 if self.backward else -1)] = True
        at = np.flatnonzero(~idle)
        return Batch(
            input_ids=torch.from_numpy(ids),
            starts=torch.from_numpy(starts),
            prefix=torch.zeros(len(starts) - 1, dtype=torch.int64),
            predict_at=torch.from_numpy(at),
            targets=torch.from_numpy(after[at]),
            continues=sequences.continues,
            rate=sequences.rate,
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Cross-entropy at the predicted positions, and what regularises the states.

        The means of AR and TAR are over the tokens that are computed at once: a batch in parts
        (accumulation, several processes) has the mean of its parts' means.
        """
        if not (self.ar or self.tar):
            return cross_entropy(model, batch)
        output = model(batch, hidden_states=True)
        assert batch.predict_at is not None
        assert batch.targets is not None
        hidden = output.last.index_select(0, batch.predict_at)
        total, count = model.prediction_loss(hidden, batch.targets), batch.num_predictions
        size = model.regularised_size
        rough = output.last[:, :size].float().square().mean()
        jumps = _jumps(output.hidden_states[-1][:, :size], batch.starts)
        penalty = (self.ar * rough + self.tar * jumps) * count
        return Loss(total + penalty, count, {"cross_entropy": total, "regularisation": penalty})


def _jumps(hidden: Tensor, starts: Tensor) -> Tensor:
    """Mean square of the difference between neighbouring states of a sequence."""
    inner = torch.ones(len(hidden) - 1, dtype=torch.bool)
    inner[starts[1:-1] - 1] = False
    if not inner.any():  # sequences of one token
        return hidden.new_zeros((), dtype=torch.float32)
    differences = hidden.float().diff(dim=0)[inner.to(hidden.device)]
    return differences.square().mean()


@dataclass(frozen=True, kw_only=True)
class BidirectionalLM:
    """Two language models at once (Peters et al. 2018, section 3.1).

        1/2 sum_k [log p(t_k | t_1 ... t_{k-1}) + log p(t_k | t_{k+1} ... t_N)]

    Its perplexity is the exponential of the mean of both losses, which are named in the log. Where
    a long document is cut, neither direction predicts across the cut: not that the text ends or
    begins there, nor the word beside it, of which nothing that it knows says anything.
    """

    predicts: ClassVar[str] = "of the next and the previous word"
    models: ClassVar[tuple[str, ...]] = ("ElmoConfig",)
    spare: ClassVar[int] = 0

    def for_validation(self) -> "BidirectionalLM":
        """The same objective; the softmax is the full one outside training."""
        return self

    def prepare(self, sequences: Sequences, rng: np.random.Generator) -> Batch:
        """`targets` are the next words; the words themselves are those before their next ones."""
        batch = CausalLM().prepare(sequences, rng)
        assert batch.predict_at is not None
        assert batch.targets is not None
        chosen = torch.ones(batch.num_predictions, dtype=torch.bool)
        if sequences.begins_document is not None:
            cut = torch.from_numpy(sequences.starts[:-1][~sequences.begins_document])
            chosen = ~torch.isin(batch.predict_at, cut)
        return replace(
            batch,
            prefix=None,
            predict_at=batch.predict_at[chosen],
            targets=batch.targets[chosen],
        )

    def loss(self, model: Any, batch: Batch) -> Loss:
        """The mean of both directions' cross-entropy.

        The word at `predict_at` is what the backward model predicts from the state behind it.
        """
        at, targets = batch.predict_at, batch.targets
        assert at is not None
        assert targets is not None
        hidden = model(batch).last
        forward = model.prediction_loss(hidden.index_select(0, at), targets)
        edge = torch.zeros(len(hidden), dtype=torch.bool)
        edge[batch.starts[1:] - 1] = True
        inner = at[~edge.to(at.device)[at]]  # what follows the others is not read here
        back = model.prediction_loss(
            hidden.index_select(0, inner + 1), batch.input_ids[inner], backward=True
        )
        back = back * (len(at) / max(1, len(inner)))
        parts = {"forward": forward, "backward": back}
        return Loss((forward + back) / 2, batch.num_predictions, parts)
