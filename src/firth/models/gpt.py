"""Decoders: GPT (Radford et al. 2018), GPT-2, GPT-3, and the modern form of Llama, one assembly."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.device import activation_dtype
from firth.errors import ConfigError
from firth.models.attention import Mask
from firth.models.cache import Cache
from firth.models.checks import check_shape
from firth.models.layers import Activation, Dropout, FeedForward, linear_cross_entropy, round_up
from firth.models.layout import Layout
from firth.models.norms import NormKind, make_norm
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
class GPTConfig:
    """The shape of a decoder. The defaults are GPT-2's; see `llama` for the modern form."""

    num_segments: ClassVar[int] = 0

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
    num_groups: int | None = None
    """Heads of keys and values; None for as many as queries have."""
    head_size: int | None = None
    """None for hidden_size / num_heads."""
    max_length: int = 1024
    """Longest sequence, in tokens."""
    dropout: float = 0.1
    """Of the embeddings, of each sub-layer's output and of the attention probabilities."""
    activation: Activation = "gelu_tanh"
    """Of the feed-forward network."""
    gated: bool = False
    """Whether the feed-forward network is gated, as GeGLU and SwiGLU (Shazeer 2020)."""
    norm: NormPlacement = "pre"
    """Whether norms stand before each sub-layer ("pre") or behind its sum ("post")."""
    norm_kind: NormKind = "layer"
    """LayerNorm, or RMSNorm, which neither centres nor has a bias."""
    norm_eps: float = 1e-5
    """Added to the variance before its root is taken."""
    positions: Literal["learned", "rotary"] = "learned"
    """A table of learned vectors, or rotary (Su et al. 2021)."""
    rotary_base: float = 10_000.0
    """Base of the rotary wavelengths."""
    bias: bool = True
    """Of the linear layers and the norms."""
    qk_norm: bool = False
    """Normalise queries and keys, head by head."""
    embedding_norm: bool = False
    """Normalise the embeddings."""
    tied: bool = True
    """Whether the output matrix is the embedding matrix."""
    output_init: Literal["plain", "scaled", "zero"] = "scaled"
    """Of the matrices that write to the residual stream; see `GPT`."""
    bidirectional: bool = False
    """How a batch that does not say (`Batch.prefix`) is read: in both directions, as a model of the
    hybrid objective can, or left to right."""

    whole_prompts: bool = False
    """Whether generation reads a prompt in both directions before it goes on, as a model of prefix
    LM has learned to."""

    def __post_init__(self) -> None:
        check_shape(self)
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.num_heads % (self.num_groups or self.num_heads):
            raise ConfigError(
                f"num_heads {self.num_heads} is not a multiple of num_groups {self.num_groups}"
            )
        if self.positions == "rotary" and self.size_of_head % 2:
            raise ConfigError("rotary positions need an even head size (hidden_size / num_heads)")

    @property
    def size_of_head(self) -> int:
        """K."""
        return self.head_size or self.hidden_size // self.num_heads


class GPTEmbeddings(nn.Module):
    """dropout(norm(token + position)), norm and position where the shape has them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.positions = nn.Embedding(config.max_length, config.hidden_size) if learned else None
        self.norm = _norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        # A pre-norm stream only grows: in bfloat16 what a layer adds would be lost in it.
        self.low_precision = config.norm == "post"

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(R, D): the N tokens, then spare rows."""
        spare = len(positions) - len(ids)
        x = self.tokens(F.pad(ids, (0, spare)) if spare else ids)  # (R, D)
        if self.positions is not None:
            x = x + self.positions(positions)
        x = self.dropout(self.norm(x))
        dtype = activation_dtype(x.device) if self.low_precision else None
        return x if dtype is None else x.to(dtype)


class GPT(nn.Module):
    """A causal Transformer with a language-model head.

    Initialisation (`reset_parameters`), by `output_init`:

    | parameter                        | plain: GPT, Llama | scaled: GPT-2, GPT-3  | zero        |
    | -------------------------------- | ----------------- | --------------------- | ----------- |
    | token embeddings, other matrices | normal 0.02       | normal 0.02           | normal 0.02 |
    | position embeddings              | normal 0.02       | normal 0.01           | normal 0.01 |
    | attention out, feed-forward down | normal 0.02       | normal 0.02/sqrt(2 L) | 0           |
    | biases; norm weights             | 0; 1              | 0; 1                  | 0; 1        |

    plain: Radford et al. 2018, section 4.1. scaled: Radford et al. 2019, section 2.3, the 2 L
    residual layers; 0.01 is the position table's in their published code. zero: every layer begins
    as the identity (Zhang et al. 2019, "Fixup"; Jordan et al. 2024).
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = GPTEmbeddings(config)
        self.layers = nn.ModuleList(_block(config) for _ in range(config.num_layers))
        self.final_norm = _norm(config) if config.norm == "pre" else nn.Identity()
        self.head = (
            None if config.tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all weights anew from torch's generator, by the table above."""
        how = self.config.output_init
        factor = {"plain": 1.0, "scaled": (2 * self.config.num_layers) ** -0.5, "zero": 0.0}[how]
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
                continue
            std = 0.01 if "positions" in name and how != "plain" else 0.02
            std *= factor if name.endswith(("attention.out.weight", "down.weight")) else 1.0
            nn.init.normal_(parameter, std=std)

    def forward(
        self, batch: Batch, *, hidden_states: bool = False, cache: Cache | None = None
    ) -> Output:
        """Hidden states of every token.

        Args:
            batch: N tokens, end to end.
            hidden_states: keep every layer's states, the embedding output first. As in
                `transformers`, the last entry of a pre-norm decoder has passed the final norm.
            cache: what the sequences' earlier tokens left; after its first use, `batch` holds one
                more token of each sequence.
        """
        prefix = batch.prefix
        if prefix is None and self.config.bidirectional and cache is None:
            prefix = batch.starts.diff()
        device = batch.input_ids.device
        if cache is None:
            layout = Layout.of(batch.starts, device, prefix=prefix)
        else:
            layout = cache.step(batch.starts, device, prefix=prefix)
        positions = layout.positions
        x = self.embeddings(batch.input_ids, positions)  # (R, D)
        rotary = None
        if self.config.positions == "rotary":
            rotary = rotary_tables(positions, self.config.size_of_head, self.config.rotary_base)
        states = [x]
        for i, layer in enumerate(self.layers):
            x = layer(x, layout, rotary, cache=None if cache is None else cache.layers[i])
            if hidden_states:
                states.append(x)
        states[-1] = x = self.final_norm(x)
        kept = tuple(state[: layout.num_tokens] for state in states) if hidden_states else ()
        return Output(x[: layout.num_tokens], kept)

    def new_cache(self, room: int) -> Cache:
        """An empty cache for sequences of up to `room` tokens."""
        return Cache(len(self.layers), room)

    @property
    def output_matrix(self) -> Tensor:
        """(V, D) of the softmax."""
        return self.embeddings.tokens.weight if self.head is None else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) hidden states to (M, V) scores of the next token."""
        return F.linear(hidden, self.output_matrix)

    def prediction_loss(
        self, hidden: Tensor, targets: Tensor, *, weights: Tensor | None = None
    ) -> Tensor:
        """Summed cross-entropy of (M) token ids at (M, D) states, in nats, (M) weighted."""
        dtype = activation_dtype(hidden.device)
        hidden = round_up(hidden if dtype is None else hidden.to(dtype))
        return linear_cross_entropy(hidden, self.output_matrix, None, targets, weights=weights)

    @property
    def context(self) -> Context:
        """See `protocols.Model`; of a batch that does not say."""
        return "both" if self.config.bidirectional else "left"

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: the embeddings, then each layer (the last with the final norm)."""
        return parameters_by_depth(self.embeddings, self.layers, self.final_norm)

    @torch.no_grad()
    def reset_top_layers(self, count: int) -> None:
        """Draws the top `count` layers anew (Zhang et al. 2021, section 4)."""
        replace_top_layers(self.layers, GPT(self.config).layers, count)


def _norm(config: GPTConfig) -> nn.Module:
    return make_norm(config.norm_kind, config.hidden_size, eps=config.norm_eps, bias=config.bias)


def _block(config: GPTConfig) -> Block:
    attention = SelfAttention(
        config.hidden_size,
        config.num_heads,
        bias=config.bias,
        dropout=config.dropout,
        mask=Mask(causal=True),
        num_groups=config.num_groups,
        head_size=config.head_size,
        qk_norm=config.qk_norm,
    )
    feed_forward = FeedForward(
        config.hidden_size,
        config.intermediate_size,
        activation=config.activation,
        gated=config.gated,
        bias=config.bias,
    )
    return Block(
        attention,
        feed_forward,
        attention_norm=_norm(config),
        feed_forward_norm=_norm(config),
        placement=config.norm,
        dropout=config.dropout,
    )
