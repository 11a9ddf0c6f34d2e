"""Transformer layers: self-attention, cross-attention, norms after (2017) or before (2020) each."""

from typing import Literal

import torch
from torch import Tensor, nn

from firth.models.attention import Mask, Scores, attend
from firth.models.cache import LayerCache
from firth.models.layers import Dropout, FeedForward, RMSNorm
from firth.models.layout import Layout
from firth.models.positions import rotate

NormPlacement = Literal["post", "pre"]


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2), one matrix for Q, K and V.

    With `num_groups` G < H heads share keys and values (Ainslie et al. 2023); with `qk_norm`
    queries and keys are normalised head by head (Henry et al. 2020).
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
        self.qk_norm = RMSNorm(self.head_size, eps=1e-6, gain=False) if qk_norm else None
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
        columns = self.qkv(x).view(len(x), -1, self.head_size)  # (R, H + 2G, K)
        turned = self.num_heads + self.num_groups
        if self.qk_norm is not None:
            columns = torch.cat([self.qk_norm(columns[:, :turned]), columns[:, turned:]], dim=1)
        if rotary is not None:
            columns = rotate(columns, rotary, turned)
        how = _scores(self, self.mask)
        if cache is None:
            attended = attend(columns, layout, how, distances=distances)  # (R, H, K)
        else:
            attended = cache.attend(columns, layout, how, distances)
        return self.out(attended.flatten(1))


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

    def forward(self, x: Tensor, remembered: Tensor, layout: Layout) -> Tensor:
        """(R, D) states and what `remember` gave to (R, D)."""
        q = self.q(x).view(len(x), -1, self.head_size)  # (R, H, K)
        attended = attend(q, layout, _scores(self, Mask()), memory=remembered)
        return self.out(attended.flatten(1))


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
    """Self-attention and a feed-forward layer, each with a residual connection and a norm.

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
    ) -> None:
        super().__init__()
        self.attention = attention
        self.feed_forward = feed_forward
        self.attention_norm = attention_norm
        self.feed_forward_norm = feed_forward_norm
        self.placement = placement
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        rotary: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """(R, D) to (R, D)."""
        if self.placement == "post":
            x = self.attention_norm(
                self.dropout.add(x, self.attention(x, layout, rotary, cache=cache))
            )
            return self.feed_forward_norm(self.dropout.add(x, self.feed_forward(x)))
        x = self.dropout.add(x, self.attention(self.attention_norm(x), layout, rotary, cache=cache))
        return self.dropout.add(x, self.feed_forward(self.feed_forward_norm(x)))


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
