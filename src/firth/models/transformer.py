"""One Transformer layer, with its norms after (2017) or before (2020) each sub-layer."""

from typing import Literal

from torch import Tensor, nn

from firth.models.attention import Layout, SelfAttention
from firth.models.layers import Dropout, FeedForward

NormPlacement = Literal["post", "pre"]


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
        self, x: Tensor, layout: Layout, rotary: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """(N, D) to (N, D)."""
        if self.placement == "post":
            x = self.attention_norm(self.dropout.add(x, self.attention(x, layout, rotary)))
            return self.feed_forward_norm(self.dropout.add(x, self.feed_forward(x)))
        x = self.dropout.add(x, self.attention(self.attention_norm(x), layout, rotary))
        return self.dropout.add(x, self.feed_forward(self.feed_forward_norm(x)))
