"""SpanBERT's head: a token of a masked span from the tokens on either side of the span."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.models.layers import linear_cross_entropy, round_up
from firth.models.norms import LayerNorm

_PLACE_SIZE = 200
"""Of the place embeddings (Joshi et al. 2020, section 4.2)."""


class BoundaryHead(nn.Module):
    """Scores over the vocabulary from a span's boundaries (Joshi et al. 2020, section 3.2).

        h0 = [x_{s-1}; x_{e+1}; p_{i-s+1}]
        h1 = norm(gelu(W1 h0))
        y_i = norm(gelu(W2 h1)),   scores = E y_i + b

    E being the input embedding (tied), passed in at each call; the bias over the vocabulary and
    those of W1 and W2 are the published program's (`pair_bert.py`).
    """

    def __init__(self, size: int, vocab_size: int, *, places: int, eps: float) -> None:
        super().__init__()
        self.place_embeddings = nn.Embedding(places, _PLACE_SIZE)
        self.first = nn.Linear(2 * size + _PLACE_SIZE, size)
        self.first_norm = LayerNorm(size, eps=eps)
        self.second = nn.Linear(size, size)
        self.second_norm = LayerNorm(size, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def transform(self, states: Tensor, place: Tensor) -> Tensor:
        """(M, 2 D) states of both boundaries and (M) places to (M', D), spare rows at the end."""
        p = self.place_embeddings(place).to(states.dtype)
        x = round_up(torch.cat([states, p], dim=1))  # (M', 2 D + 200)
        x = self.first_norm(F.gelu(self.first(x)))  # (M', D)
        return self.second_norm(F.gelu(self.second(x)))

    def loss(
        self, hidden: Tensor, boundaries: Tensor, embedding: Tensor, targets: Tensor
    ) -> Tensor:
        """Summed cross-entropy of (M) `targets` that have boundaries, in nats.

        Args:
            hidden: (N, D) last states.
            boundaries: (M, 3), see `Batch.boundaries`; rows whose place is below 0 or beyond the
                last one here count nothing.
            embedding: (V, D).
            targets: (M) int64.
        """
        place = boundaries[:, 2]
        known = (place >= 0) & (place < self.place_embeddings.num_embeddings)
        sides, place = boundaries[known, :2], place[known]
        states = hidden.index_select(0, sides.flatten()).view(-1, 2 * hidden.shape[1])  # (M, 2 D)
        y = self.transform(states, place)
        return linear_cross_entropy(y, embedding, self.bias, targets[known])
