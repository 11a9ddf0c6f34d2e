"""Attention of a recurrent decoder to its source (Bahdanau et al. 2015, Luong et al. 2015).

Notation: s_t is the decoder's state at step t, h_j the encoder's state at token j.

    a_tj = exp(score(s, h_j)) / sum_k exp(score(s, h_k)),   c_t = sum_j a_tj h_j
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from firth.models.attention import Mask, Scores, attend
from firth.models.layers import round_up
from firth.models.layout import Layout


@dataclass(frozen=True)
class Source:
    """The encoder's states of B sequences, for one query of each."""

    states: Tensor
    """(B, S, D)."""
    keys: Tensor
    """(B, S, A) what scores are made of."""
    hidden: Tensor
    """(B, S) True behind the end of a sequence."""

    @staticmethod
    def of(states: Tensor, keys: Tensor, starts: Tensor, chosen: Tensor) -> "Source":
        """Lays (N, D) packed states and their (N, A) keys out.

        Args:
            states: of all tokens.
            keys: of all tokens; may be the same tensor.
            starts: (B+1) where the sequences begin, on the CPU.
            chosen: (B') sequences, on the CPU; one may come twice.
        """
        lengths = starts.diff()[chosen]
        place = torch.arange(int(lengths.max()))
        hidden = place >= lengths[:, None]
        token = starts[chosen][:, None] + place.where(~hidden, 0)
        at = token.flatten().to(states.device)

        def laid(x: Tensor) -> Tensor:
            return x.index_select(0, at).view(*token.shape, -1)

        held = laid(states)
        return Source(held, held if keys is states else laid(keys), hidden.to(states.device))

    def first(self, count: int) -> "Source":
        """The first sequences alone."""
        return self if count == len(self.hidden) else self.keep(slice(count))

    def keep(self, rows: Tensor | slice) -> "Source":
        """These sequences, in this order; a beam may repeat one."""
        states = self.states[rows]
        keys = states if self.keys is self.states else self.keys[rows]
        return Source(states, keys, self.hidden[rows])


class _Attention(nn.Module, ABC):
    """What both kinds of scores share."""

    def keys(self, states: Tensor) -> Tensor:
        """(N, D) states of the source to what scores are made of."""
        return states

    @abstractmethod
    def scores(self, state: Tensor, keys: Tensor) -> Tensor:
        """(B, S) scores of (B, S, A) keys for (B, D) states of the decoder."""

    def weights(self, state: Tensor, source: Source) -> Tensor:
        """(B, S) the shares a_tj of each source's tokens at one step."""
        scores = self.scores(state, source.keys).float()
        return torch.softmax(scores.masked_fill(source.hidden, -torch.inf), dim=1)

    def context(self, state: Tensor, source: Source) -> Tensor:
        """(B, D) the vectors c_t for (B, D) states of the decoder."""
        shares = self.weights(state, source).to(source.states.dtype)
        return torch.bmm(shares[:, None], source.states)[:, 0]


class AdditiveAttention(_Attention):
    """score(s, h) = v' tanh(W s + U h) (Bahdanau et al. 2015, appendix A.1.2)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.v = nn.Parameter(torch.empty(size))

    def keys(self, states: Tensor) -> Tensor:
        """U h, which all steps share."""
        return self.key(states)

    def scores(self, state: Tensor, keys: Tensor) -> Tensor:
        """See above."""
        return torch.tanh(self.query(state)[:, None] + keys) @ self.v.to(keys.dtype)


class MultiplicativeAttention(_Attention):
    """score(s, h) = s' h ("dot"), or (W s)' h ("general") (Luong et al. 2015, section 3.1)."""

    def __init__(self, size: int, *, general: bool) -> None:
        super().__init__()
        self.query = nn.Linear(size, size, bias=False) if general else nn.Identity()
        self.how = Scores(num_heads=1, num_groups=1, mask=Mask(), scale=1.0)

    def scores(self, state: Tensor, keys: Tensor) -> Tensor:
        """See above."""
        return torch.bmm(keys, self.query(state)[:, :, None].to(keys.dtype))[:, :, 0]

    def contexts(
        self, states: Tensor, starts: Tensor, source: Tensor, source_starts: Tensor
    ) -> Tensor:
        """(N, D) the vectors c_t of all steps of all sequences at once.

        Args:
            states: (N, D) packed states of the decoder.
            starts: (B+1) of their sequences.
            source: (N_s, D) packed states of the encoder.
            source_starts: (B+1) of theirs.
        """
        layout = Layout.of(starts, states.device, keys=source_starts)
        queries = round_up(self.query(states))
        beside = round_up(source.to(queries.dtype))
        memory = torch.stack([beside, beside], dim=1)
        return attend(queries[:, None], layout, self.how, memory=memory)[: len(states), 0]
