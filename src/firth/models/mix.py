"""From many hidden states to one: the learned layer mix, pooling, and sequence-level heads."""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.errors import ConfigError
from firth.models.layers import Dropout
from firth.models.norms import LayerNorm
from firth.protocols import Unit

Pooling = Literal["first", "mean", "max", "last"]
WordPooling = Literal["first", "last", "mean"]


class LayerMix(nn.Module):
    """gamma sum_j s_j h_j, with s = softmax(w) (Peters et al. 2018, eq. 1).

    w begins at 0 and gamma at 1: the plain average. The paper's optional layer norm of each h_j
    (section 3.2) makes layers of different scales comparable; `penalty` is the ||w||^2 of its
    regulariser (section 3.3). The norm is that of Ba et al. 2016, which the paper cites: over the D
    values of a token, without gain or bias. The published program norms over all tokens of a batch
    together, so that a sentence's vector would depend on its neighbours.
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
        """The weighted sum of (..., L+1, D) normalised states, in float32."""
        with torch.autocast(states.device.type, enabled=False):
            return self.gamma * torch.einsum("...ld,l->...d", states.float(), self.shares)

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

    Raises:
        ConfigError: for another way.
    """
    device = hidden.device
    if how not in get_args(Pooling):
        raise ConfigError(f"pooling {how!r}; expected one of {', '.join(get_args(Pooling))}")
    if how == "first":
        return hidden[starts[:-1].to(device)]
    if how == "last":
        return hidden[(starts[1:] - 1).to(device)]
    lengths = starts.diff().to(device)
    reduced = torch.segment_reduce(hidden.float(), how, lengths=lengths, axis=0)
    return reduced.to(hidden.dtype)


def pool_words(states: Tensor, words: Tensor, how: WordPooling) -> Tensor:
    """One vector a word: its first token's, as in Devlin et al. 2019 (section 5.3), last or mean.

    Args:
        states: (N, ...) of the tokens.
        words: (M, 2) first token of each word, and the one after its last.
        how: which; the last has seen the whole word where a model reads from left to right.

    Returns:
        (M, ...) in float32 for the mean; zeros for a word without tokens.
    """
    begin, lengths = words[:, 0], words[:, 1] - words[:, 0]
    if how == "mean":
        owner = torch.repeat_interleave(lengths)  # (tokens of words)
        firsts = (begin - (lengths.cumsum(0) - lengths))[owner]
        inside = states[firsts + torch.arange(len(owner), device=states.device)].float()
        sums = inside.new_zeros(len(words), *states.shape[1:]).index_add(0, owner, inside)
        return sums / _like(lengths.clamp(min=1), sums)
    chosen = begin if how == "first" else words[:, 1] - 1
    found = states[chosen.clamp(0, len(states) - 1)]
    return torch.where(_like(lengths, found) > 0, found, found.new_zeros(()))


def _like(values: Tensor, states: Tensor) -> Tensor:
    """(M) values with as many dimensions as (M, ...) states."""
    return values.view(-1, *[1] * (states.ndim - 1))


class SequenceHead(nn.Module):
    """Scores for a whole sequence: W2 dropout(norm(act(W1 pooled))) + b.

    With `activation="tanh"` and first-token pooling this is BERT's pooler and classifier (Devlin et
    al. 2019, section 4.1) and RoBERTa's head; "relu" is DistilBERT's; "gelu" with a norm and
    without `dense_bias` is ModernBERT's.
    """

    unit: Unit = "sequence"

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
