"""BERT (Devlin et al. 2019) and its modern form (ModernBERT, Warner et al. 2024), one assembly.

RoBERTa and DistilBERT are configurations: no segments, positions that start at 2, no pooler;
next-sentence prediction and SpanBERT are heads.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.device import activation_dtype
from firth.errors import ConfigError
from firth.models.attention import Mask
from firth.models.boundary import BoundaryHead
from firth.models.checks import check_shape
from firth.models.layers import Activation, Dropout, FeedForward, LanguageModelHead
from firth.models.layout import Layout
from firth.models.mix import pool
from firth.models.norms import LayerNorm
from firth.models.positions import rotary_tables
from firth.models.transformer import (
    Block,
    NormPlacement,
    SelfAttention,
    parameters_by_depth,
    replace_top_layers,
)
from firth.protocols import Batch, Context, Output


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """The shape of an encoder. The defaults are BERT's; see `modern`."""

    vocab_size: int
    """V, rows of the embedding matrix."""
    hidden_size: int
    """D, of the states."""
    num_layers: int
    """Blocks of attention and feed-forward network."""
    num_heads: int
    """Heads of attention; they share D."""
    intermediate_size: int
    """Width inside the feed-forward network."""
    max_length: int = 512
    """Longest sequence, in tokens, special tokens included."""
    num_segments: int = 2
    """Kinds of segment embeddings; 0 for none (RoBERTa, ModernBERT)."""
    dropout: float = 0.1
    """Of the embeddings, of each sub-layer's output and of the attention probabilities."""
    activation: Activation = "gelu"
    """Of the feed-forward network."""
    norm: NormPlacement = "post"
    """Whether norms stand before each sub-layer ("pre") or behind its sum ("post")."""
    positions: Literal["learned", "rotary"] = "learned"
    """A table of learned vectors, or rotary (Su et al. 2021)."""
    gated: bool = False
    """Whether the feed-forward network is gated, as GeGLU and SwiGLU (Shazeer 2020)."""
    bias: bool = True
    """Of the linear layers and the norms inside the encoder."""
    position_offset: int = 0
    """Row of the position table for the first token (RoBERTa: 2)."""
    local_window: int = 0
    """Local layers see this many positions on either side; 0 for global attention everywhere."""
    global_every: int = 3
    """With `local_window`, layers 0, global_every, 2 global_every, ... see everything."""
    rotary_base: float = 10_000.0
    """Base of the rotary wavelengths in local layers (or everywhere without local layers)."""
    rotary_base_global: float = 160_000.0
    """The same in global layers."""
    norm_eps: float = 1e-12
    """Added to the variance before its root is taken."""
    pair_head: bool = False
    """Two scores for a pair of segments, from the pooled first token (Devlin et al. 2019, 3.1)."""
    boundary_places: int = 0
    """Place embeddings of the span boundary head; 0 for no such head (Joshi et al. 2020, 3.2)."""

    def __post_init__(self) -> None:
        check_shape(self)
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.positions == "rotary" and (self.hidden_size // self.num_heads) % 2:
            raise ConfigError("rotary positions need an even head size (hidden_size / num_heads)")

    def is_local(self, layer: int) -> bool:
        """Whether this layer sees only its window."""
        return self.local_window > 0 and layer % self.global_every != 0


SIZES: dict[str, dict[str, int]] = {
    "tiny": {"num_layers": 2, "hidden_size": 128, "num_heads": 2, "intermediate_size": 512},
    "mini": {"num_layers": 4, "hidden_size": 256, "num_heads": 4, "intermediate_size": 1024},
    "small": {"num_layers": 4, "hidden_size": 512, "num_heads": 8, "intermediate_size": 2048},
    "medium": {"num_layers": 8, "hidden_size": 512, "num_heads": 8, "intermediate_size": 2048},
    "base": {"num_layers": 12, "hidden_size": 768, "num_heads": 12, "intermediate_size": 3072},
    "large": {"num_layers": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096},
}
"""Devlin et al. 2019, section 3, and the smaller ones of Turc et al. 2019, table 1."""


def modern(config: BertConfig) -> BertConfig:
    """The same shape with what ModernBERT changes (Warner et al. 2024, section 2.1)."""
    return replace(
        config,
        num_segments=0,
        dropout=0.0,
        norm="pre",
        positions="rotary",
        gated=True,
        bias=False,
        local_window=64,
        norm_eps=1e-5,
    )


class BertEmbeddings(nn.Module):
    """norm(token + position + segment), then dropout (Devlin et al. 2019, figure 2)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size, learned = config.hidden_size, config.positions == "learned"
        rows = config.max_length + config.position_offset
        self.tokens = nn.Embedding(config.vocab_size, size)
        self.positions = nn.Embedding(rows, size) if learned else None
        self.segments = nn.Embedding(config.num_segments, size) if config.num_segments else None
        self.norm = LayerNorm(size, eps=config.norm_eps, bias=config.bias)
        self.dropout = Dropout(config.dropout)
        self.offset = config.position_offset
        # A pre-norm stream only grows: in bfloat16 what a layer adds would be lost in it.
        self.low_precision = config.norm == "post"

    def forward(self, batch: Batch, positions: Tensor) -> Tensor:
        """(R, D): the batch's N tokens, then spare rows."""
        spare = (0, len(positions) - batch.num_tokens)
        x = self.tokens(F.pad(batch.input_ids, spare))  # (R, D)
        if self.positions is not None:
            x = x + self.positions(positions + self.offset)
        if self.segments is not None:
            segments = batch.segments if self.segments.num_embeddings > 1 else None
            none = segments is None
            x = x + (self.segments.weight[0] if none else self.segments(F.pad(segments, spare)))
        x = self.norm(x)
        dtype = activation_dtype(x.device) if self.low_precision else None
        return self.dropout(x if dtype is None else x.to(dtype))


class Bert(nn.Module):
    """A bidirectional Transformer encoder with a masked-LM head and, where it has one, a pooler.

    The configuration may ask for two heads more: `pair_head` (then there is a pooler) and
    `boundary_head`, which learn from `SentencePairs` and `SpanBoundary`.

    Initialisation (`reset_parameters`):

    | parameter                        | BERT (Devlin et al. 2019, A.2) | ModernBERT (2024)     |
    | -------------------------------- | ------------------------------ | --------------------- |
    | embeddings                       | truncated normal 0.02          | truncated normal 0.02 |
    | qkv, feed-forward up             | truncated normal 0.02          | truncated normal 0.02 |
    | attention out, feed-forward down | truncated normal 0.02          | 0.02 / sqrt(2 L)      |
    | head's dense layer               | truncated normal 0.02          | 0.02 / sqrt(2 L)      |
    | biases; norm weights             | 0; 1                           | none; 1               |

    "Truncated" draws again beyond two standard deviations, as TensorFlow's initialiser does.
    """

    context: ClassVar[Context] = "both"

    def __init__(self, config: BertConfig, *, pooler: bool = True) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(_block(config, i) for i in range(config.num_layers))
        pre = config.norm == "pre"
        size = config.hidden_size
        self.final_norm = (
            LayerNorm(size, eps=config.norm_eps, bias=config.bias) if pre else nn.Identity()
        )
        pooled = config.pair_head or (pooler and not pre)
        self.pooler = nn.Linear(size, size) if pooled else None
        self.pair_head = nn.Linear(size, 2) if config.pair_head else None
        self.boundary_head = (
            BoundaryHead(
                size, config.vocab_size, places=config.boundary_places, eps=config.norm_eps
            )
            if config.boundary_places
            else None
        )
        self.head = LanguageModelHead(
            size,
            config.vocab_size,
            activation="gelu",
            eps=config.norm_eps,
            dense_bias=config.bias,
            norm_bias=config.bias,
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all weights anew from torch's generator, by the table above."""
        scaled = 0.02 / (2 * self.config.num_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            out = name.endswith(("attention.out.weight", "down.weight", "head.dense.weight"))
            std = scaled if out and self.config.norm == "pre" else 0.02
            nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)

    def forward(self, batch: Batch, *, hidden_states: bool = False) -> Output:
        """Hidden states of every token.

        Args:
            batch: N tokens, end to end.
            hidden_states: keep every layer's states, the embedding output first. As in
                `transformers`, the last entry of a pre-norm encoder has passed the final norm.
        """
        layout = Layout.of(batch.starts, batch.input_ids.device)
        x = self.embeddings(batch, layout.positions)  # (R, D)
        rotary = self._rotary(layout.positions)
        states = [x]
        for i, layer in enumerate(self.layers):
            x = layer(x, layout, rotary[self.config.is_local(i)])
            if hidden_states:
                states.append(x)
        states[-1] = x = self.final_norm(x)
        kept = tuple(state[: layout.num_tokens] for state in states) if hidden_states else ()
        return Output(x[: layout.num_tokens], kept)

    def _rotary(self, positions: Tensor) -> dict[bool, tuple[Tensor, Tensor] | None]:
        config = self.config
        if config.positions != "rotary":
            return {True: None, False: None}
        head_size = config.hidden_size // config.num_heads
        base = config.rotary_base_global if config.local_window else config.rotary_base
        return {
            True: rotary_tables(positions, head_size, config.rotary_base),
            False: rotary_tables(positions, head_size, base),
        }

    @property
    def output_matrix(self) -> Tensor:
        """(V, D) of the softmax: the token embeddings."""
        return self.embeddings.tokens.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) hidden states to (M, V) masked-LM scores."""
        return self.head(hidden, self.output_matrix)

    def prediction_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy of (M) token ids at (M, D) hidden states, in nats."""
        return self.head.loss(hidden, self.output_matrix, targets)

    def pair_logits(self, hidden: Tensor, starts: Tensor) -> Tensor:
        """(B, 2) scores W tanh(W_p h + b_p) + b of the first tokens' states h (Devlin et al. 2019).

        Args:
            hidden: (N, D) last states.
            starts: (B+1) on the CPU.
        """
        assert self.pooler is not None
        assert self.pair_head is not None
        return self.pair_head(torch.tanh(self.pooler(pool(hidden, starts, "first"))))

    def boundary_loss(self, hidden: Tensor, boundaries: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy of (M) token ids given their spans' boundaries, in nats.

        Args:
            hidden: (N, D) last states.
            boundaries: (M, 3), see `Batch.boundaries`.
            targets: (M) int64.
        """
        assert self.boundary_head is not None
        return self.boundary_head.loss(hidden, boundaries, self.output_matrix, targets)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: the embeddings, then each layer (the last with the final norm)."""
        return parameters_by_depth(self.embeddings, self.layers, self.final_norm)

    @torch.no_grad()
    def reset_top_layers(self, count: int) -> None:
        """Draws the top `count` layers and the pooler anew (Zhang et al. 2021, section 4)."""
        fresh = Bert(self.config, pooler=self.pooler is not None)
        replace_top_layers(self.layers, fresh.layers, count)
        if self.pooler is not None and fresh.pooler is not None:
            self.pooler.load_state_dict(fresh.pooler.state_dict())


def _block(config: BertConfig, layer: int) -> Block:
    size = config.hidden_size

    def norm() -> LayerNorm:
        return LayerNorm(size, eps=config.norm_eps, bias=config.bias)

    mask = Mask(window=config.local_window if config.is_local(layer) else None)
    # The embedding norm already stands before the first sub-layer of a pre-norm encoder.
    bare = config.norm == "pre" and layer == 0
    return Block(
        SelfAttention(size, config.num_heads, bias=config.bias, dropout=config.dropout, mask=mask),
        FeedForward(
            size,
            config.intermediate_size,
            activation=config.activation,
            gated=config.gated,
            bias=config.bias,
        ),
        attention_norm=nn.Identity() if bare else norm(),
        feed_forward_norm=norm(),
        placement=config.norm,
        dropout=config.dropout,
    )
