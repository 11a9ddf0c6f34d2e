"""Transformer layers: self-attention, cross-attention, norms after (2017) or before (2020) each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.models.attention import Mask, Scores, attend
from firth.models.cache import LayerCache
from firth.models.layers import Dropout, FeedForward
from firth.models.layout import Layout
from firth.models.positions import rotate

NormPlacement = Literal["post", "pre"]

_QK_EPS = 1e-6


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2), one matrix for Q, K and V.

    With `num_groups` G < H heads share keys and values (Ainslie et al. 2023); with `qk_norm`
    queries and keys are normalised head by head (Henry et al. 2020), by layer norm without weights
    (Dehghani et al. 2023, section 2).
    """

    def __init__(
        self,
        size: int,
        num_heads: int,
        *,
        bias: bool,
        dropout: float,
        mask: Mask,
        num_groups: int | None = None,
        head_size: int | None = None,
        scale: float | None = None,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_groups = num_heads, num_groups or num_heads
        self.head_size = head_size or size // num_heads
        self.qkv = nn.Linear(size, (num_heads + 2 * self.num_groups) * self.head_size, bias=bias)
        self.out = nn.Linear(num_heads * self.head_size, size, bias=bias)
        self.dropout = Dropout(dropout)
        self.qk_norm = qk_norm
        self.mask = mask
        self.scale = self.head_size**-0.5 if scale is None else scale

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        rotary: tuple[Tensor, Tensor] | None = None,
        *,
        distances: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(R, D) to (R, D); with a cache, sees what it holds and adds to it."""
        columns = self.placed(self.qkv(x).view(len(x), -1, self.head_size), rotary)
        how = self.scores
        if cache is None:
            attended = attend(columns, layout, how, distances=distances)  # (R, H, K)
        else:
            attended = cache.attend(columns, layout, how, distances)
        return self.out(attended.flatten(1))

    def placed(self, columns: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
        """(R, H + 2G, K) columns, queries and keys normalised and turned where the shape has it."""
        turned, eps = self.num_heads + self.num_groups, _QK_EPS if self.qk_norm else None
        if rotary is not None:
            return rotate(columns, rotary, turned, norm_eps=eps)
        if eps is None:
            return columns
        normed = F.layer_norm(columns[:, :turned], (self.head_size,), eps=eps)
        return torch.cat([normed, columns[:, turned:]], dim=1)

    @property
    def scores(self) -> Scores:
        """How this layer attends, in its present mode."""
        return _scores(self, self.mask)


@dataclass(frozen=True)
class Memory:
    """What a decoder attends to beside itself."""

    states: Tensor
    """(R_k, D) states of the source sequences."""
    layout: Layout
    """Of the decoder's sequences and theirs."""


class CrossAttention(nn.Module):
    """Attention to another sequence (Vaswani et al. 2017, section 3.2.3)."""

    def __init__(
        self,
        size: int,
        num_heads: int,
        *,
        bias: bool,
        dropout: float,
        head_size: int | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = self.num_groups = num_heads
        self.head_size = head_size or size // num_heads
        self.q = nn.Linear(size, num_heads * self.head_size, bias=bias)
        self.kv = nn.Linear(size, 2 * num_heads * self.head_size, bias=bias)
        self.out = nn.Linear(num_heads * self.head_size, size, bias=bias)
        self.dropout = Dropout(dropout)
        self.scale = self.head_size**-0.5 if scale is None else scale

    def remember(self, memory: Tensor) -> Tensor:
        """(R_k, D) states of the other sequences as keys and values, (R_k, 2H, K)."""
        return self.kv(memory).view(len(memory), -1, self.head_size)

    def forward(self, x: Tensor, memory: Memory | None, cache: LayerCache | None = None) -> Tensor:
        """(R, D) to (R, D); a cache holds the memory's keys and values from its first use on."""
        q = self.q(x).view(len(x), -1, self.head_size)  # (R, H, K)
        if memory is None:
            assert cache is not None
            return self.out(cache.attend_source(q, self.scores).flatten(1))
        beside = self.remember(memory.states)
        if cache is not None:
            cache.hold_source(beside)
        return self.out(attend(q, memory.layout, self.scores, memory=beside).flatten(1))

    @property
    def scores(self) -> Scores:
        """How this layer attends, in its present mode."""
        return _scores(self, Mask())


def _scores(attention: SelfAttention | CrossAttention, mask: Mask) -> Scores:
    dropout = attention.dropout
    return Scores(
        num_heads=attention.num_heads,
        num_groups=attention.num_groups,
        mask=mask,
        scale=attention.scale,
        dropout=dropout.rate if dropout.active else 0.0,
    )


class Block(nn.Module):
    """Self-attention, in decoders of a source cross-attention, and a feed-forward layer.

    Each stands in a residual connection with a norm:

    post: x = norm(x + sublayer(x))   Vaswani et al. 2017, section 3.1
    pre:  x = x + sublayer(norm(x))   Xiong et al. 2020, figure 1b
    """

    def __init__(
        self,
        attention: SelfAttention,
        feed_forward: FeedForward,
        *,
        attention_norm: nn.Module,
        feed_forward_norm: nn.Module,
        placement: NormPlacement,
        dropout: float,
        cross: CrossAttention | None = None,
        cross_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.attention, self.attention_norm = attention, attention_norm
        self.cross, self.cross_norm = cross, cross_norm
        self.feed_forward, self.feed_forward_norm = feed_forward, feed_forward_norm
        self.placement: NormPlacement = placement
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        rotary: tuple[Tensor, Tensor] | None = None,
        *,
        distances: Tensor | None = None,
        memory: Memory | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(R, D) to (R, D)."""

        def attention(y: Tensor) -> Tensor:
            return self.attention(y, layout, rotary, distances=distances, cache=cache)

        x = self._around(attention, self.attention_norm, x)
        if self.cross is not None:
            assert self.cross_norm is not None
            x = self._around(partial(self.cross, memory=memory, cache=cache), self.cross_norm, x)
        return self._around(self.feed_forward, self.feed_forward_norm, x)

    def _around(self, sublayer: Callable[[Tensor], Tensor], norm: nn.Module, x: Tensor) -> Tensor:
        if self.placement == "post":
            return norm(self.dropout.add(x, sublayer(x)))
        return self.dropout.add(x, sublayer(norm(x)))


def parameters_by_depth(
    embeddings: nn.Module, layers: nn.ModuleList, final_norm: nn.Module
) -> list[list[nn.Parameter]]:
    """Parameters of a stack: the embeddings', then each layer's, the last with the final norm's."""
    groups = [list(part.parameters()) for part in (embeddings, *layers)]
    groups[-1] += list(final_norm.parameters())
    return groups


def replace_top_layers(layers: nn.ModuleList, others: nn.ModuleList, count: int) -> None:
    """Copies the top `count` of other layers of the same shape into a stack."""
    for old, new in list(zip(layers, others, strict=True))[len(layers) - count :]:
        old.load_state_dict(new.state_dict())
