"""From many hidden states to one: the learned layer mix, pooling, and sequence-level heads."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.models.layers import Dropout, LayerNorm

Pooling = Literal["first", "mean", "max", "last"]


class LayerMix(nn.Module):
    """gamma sum_j s_j h_j, with s = softmax(w) (Peters et al. 2018, eq. 1).

    The paper's optional layer norm of each h_j (here without gain or bias) makes layers of
    different scales comparable; `penalty` is its lambda ||w||^2 regulariser.
    """

    def __init__(self, num_layers: int, *, layer_norm: bool = False) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))
        self.gamma = nn.Parameter(torch.ones(()))
        self.layer_norm = layer_norm

    @property
    def shares(self) -> Tensor:
        """The (L+1) softmax-normalised weights s."""
        return torch.softmax(self.weights, dim=0)

    def forward(self, states: Tensor) -> Tensor:
        """(..., L+1, D) states to (..., D)."""
        return self.combine(self.normalise(states))

    def normalise(self, states: Tensor) -> Tensor:
        """The states after the optional layer norm."""
        return F.layer_norm(states, states.shape[-1:]) if self.layer_norm else states

    def combine(self, states: Tensor) -> Tensor:
        """The weighted sum of (..., L+1, D) normalised states."""
        return self.gamma * torch.einsum("...ld,l->...d", states, self.shares.to(states.dtype))

    def penalty(self) -> Tensor:
        """||w||^2: pulls the mix towards the plain average of the layers."""
        return self.weights.square().sum()


def pool(hidden: Tensor, starts: Tensor, how: Pooling) -> Tensor:
    """One vector a sequence: its first token's, last token's, or the mean or maximum of all.

    Args:
        hidden: (N, D).
        starts: (B+1) on the CPU.
        how: which.

    Returns:
        (B, D).
    """
    device = hidden.device
    if how == "first":
        return hidden[starts[:-1].to(device)]
    if how == "last":
        return hidden[(starts[1:] - 1).to(device)]
    lengths = starts.diff().to(device)
    reduced = torch.segment_reduce(hidden.float(), how, lengths=lengths, axis=0)
    return reduced.to(hidden.dtype)


class SequenceHead(nn.Module):
    """Scores for a whole sequence: W2 dropout(norm(act(W1 pooled))) + b.

    With `activation="tanh"` and first-token pooling this is BERT's pooler and classifier (Devlin et
    al. 2019, section 4.1) and RoBERTa's head; "relu" is DistilBERT's; "gelu" with a norm and
    without `dense_bias` is ModernBERT's.
    """

    def __init__(
        self,
        size: int,
        num_outputs: int,
        *,
        activation: Literal["tanh", "relu", "gelu"] = "tanh",
        norm_eps: float | None = None,
        dense_bias: bool = True,
        dropout: float = 0.1,
        pooling: Pooling = "first",
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(size, size, bias=dense_bias)
        self.norm = nn.Identity() if norm_eps is None else LayerNorm(size, eps=norm_eps, bias=False)
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(size, num_outputs)
        self.activation = activation
        self.pooling: Pooling = pooling
        for layer in (self.dense, self.out):
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor, starts: Tensor) -> Tensor:
        """(N, D) hidden states to (B, num_outputs) scores."""
        return self.classify(pool(hidden, starts, self.pooling))

    def classify(self, pooled: Tensor) -> Tensor:
        """(B, D) pooled states to (B, num_outputs) scores, in float32.

        In bfloat16 a regression's large numbers (years, prices) would lose their last digits.
        """
        act = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu}[self.activation]
        with torch.autocast(pooled.device.type, enabled=False):
            x = self.norm(act(self.dense(pooled.float())))
            return self.out(self.dropout(x))
