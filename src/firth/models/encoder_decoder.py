"""Encoder-decoders: the Transformer (Vaswani et al. 2017) and T5 (Raffel et al. 2020)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.device import activation_dtype
from firth.errors import ConfigError
from firth.models.attention import Mask
from firth.models.cache import Cache, Extent
from firth.models.checks import check_shape
from firth.models.layers import Activation, Dropout, FeedForward, linear_cross_entropy, round_up
from firth.models.layout import Layout
from firth.models.norms import NormKind, make_norm
from firth.models.positions import DistanceBias, sinusoids
from firth.models.transformer import (
    Block,
    CrossAttention,
    Memory,
    NormPlacement,
    SelfAttention,
    replace_top_layers,
)
from firth.protocols import Batch, Context, Output


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """The shape of an encoder-decoder. The defaults are those of 2017; see `t5`."""

    num_segments: ClassVar[int] = 0

    vocab_size: int
    """V, rows of the embedding matrix."""
    hidden_size: int
    """D, of the states."""
    num_layers: int
    """Of the encoder."""
    num_decoder_layers: int | None = None
    """None for as many as the encoder has."""
    num_heads: int
    """Heads of attention; they share D."""
    head_size: int | None = None
    """None for hidden_size / num_heads."""
    intermediate_size: int
    """Width inside the feed-forward network."""
    max_length: int = 512
    """Longest sequence of either side, in tokens."""
    dropout: float = 0.1
    """Of the embeddings, of each sub-layer's output and of the attention probabilities; in T5 also
    inside the feed-forward layers and after each stack."""
    activation: Activation = "relu"
    """Of the feed-forward network."""
    gated: bool = False
    """Whether the feed-forward network is gated, as GeGLU and SwiGLU (Shazeer 2020)."""
    norm: NormPlacement = "post"
    """Whether norms stand before each sub-layer ("pre") or behind its sum ("post")."""
    norm_kind: NormKind = "layer"
    """LayerNorm, or RMSNorm, which neither centres nor has a bias."""
    norm_eps: float = 1e-5
    """Added to the variance before its root is taken."""
    positions: Literal["sinusoidal", "relative"] = "sinusoidal"
    """Sines and cosines that are added, or T5's biases by distance."""
    distance_buckets: int = 32
    """Of relative positions; in the encoder half of them for keys after the query."""
    max_distance: int = 128
    """From here on, relative positions share a bucket."""
    bias: bool = True
    """Of the linear layers and the norms."""
    tied: bool = True
    """Whether the output matrix is the embedding matrix."""
    scale_embeddings: bool = True
    """Multiply embeddings by sqrt(D) (Vaswani et al. 2017, section 3.4)."""
    scale_outputs: bool = False
    """Divide the last states by sqrt(D) before the output matrix (T5 v1.0)."""
    scale_scores: bool = True
    """Divide attention scores by sqrt(K); T5 has it in the initialisation instead."""

    def __post_init__(self) -> None:
        check_shape(self)
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ConfigError("sinusoidal positions need an even hidden_size")
        if self.distance_buckets < 4 or self.max_distance <= self.distance_buckets // 2:
            raise ConfigError(
                f"distance_buckets is {self.distance_buckets} and max_distance "
                f"{self.max_distance}; expected at least 4 buckets, and a distance of more than "
                "half of them"
            )

    @property
    def size_of_head(self) -> int:
        """K."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def depth(self) -> tuple[int, int]:
        """Layers of the encoder and of the decoder."""
        own = self.num_decoder_layers
        return self.num_layers, self.num_layers if own is None else own


class Embeddings(nn.Module):
    """dropout(s token + position), both stacks' own and the same."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.scale = config.hidden_size**0.5 if config.scale_embeddings else 1.0
        self.sinusoidal = config.positions == "sinusoidal"
        self.dropout = Dropout(config.dropout)
        # A pre-norm stream only grows: in bfloat16 what a layer adds would be lost in it.
        self.low_precision = config.norm == "post"

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(R, D): the N tokens, then spare rows."""
        spare = len(positions) - len(ids)
        x = self.tokens(F.pad(ids, (0, spare)) if spare else ids) * self.scale  # (R, D)
        if self.sinusoidal:
            x = x + sinusoids(positions, x.shape[1])
        dtype = activation_dtype(x.device) if self.low_precision else None
        return self.dropout(x if dtype is None else x.to(dtype))


class Stack(nn.Module):
    """The layers of an encoder or of a decoder, with its distance bias and its final norm."""

    def __init__(self, config: EncoderDecoderConfig, *, decoder: bool) -> None:
        super().__init__()
        count = config.depth[1 if decoder else 0]
        self.layers = nn.ModuleList(_block(config, decoder=decoder) for _ in range(count))
        self.distances = None
        if config.positions == "relative":
            self.distances = DistanceBias(
                config.num_heads,
                num_buckets=config.distance_buckets,
                max_distance=config.max_distance,
                both_sides=not decoder,
            )
        self.final_norm = _norm(config) if config.norm == "pre" else nn.Identity()
        self.dropout = Dropout(config.dropout) if config.norm == "pre" else nn.Identity()

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        *,
        memory: Memory | None = None,
        cache: Cache | None = None,
        longest: int,
        hidden_states: bool,
    ) -> Output:
        """(R, D) embeddings to states with the same spare rows.

        `longest` is the length of the longest sequence, for the distances.
        """
        distances = None if self.distances is None else self.distances(longest)
        states = [x]
        for i, layer in enumerate(self.layers):
            own = None if cache is None else cache.layers[i]
            x = layer(x, layout, distances=distances, memory=memory, cache=own)
            if hidden_states:
                states.append(x)
        states[-1] = x = self.dropout(self.final_norm(x))
        return Output(x, tuple(states) if hidden_states else ())


class EncoderDecoder(nn.Module):
    """An encoder that reads a source and a causal decoder that attends to it.

    Initialisation (`reset_parameters`), T5's where positions are relative:

    | parameter                         | Transformer (2017)          | T5                      |
    | --------------------------------- | --------------------------- | ----------------------- |
    | token embeddings                  | normal D^-1/2               | normal 1                |
    | output matrix of its own          | normal D^-1/2               | normal D^-1/2           |
    | queries                           | Glorot uniform              | normal (D K)^-1/2       |
    | keys, values                      | Glorot uniform              | normal D^-1/2           |
    | attention out                     | Glorot uniform              | normal (H K)^-1/2       |
    | feed-forward up, down             | Glorot uniform              | normal D^-1/2, F^-1/2   |
    | distance bias                     | none                        | Glorot uniform          |
    | biases; norm weights              | 0; 1                        | none; 1                 |

    The papers do not say; these are their published programs (tensorflow/tensor2tensor,
    google-research/text-to-text-transfer-transformer). Queries carry T5's missing 1/sqrt(K).
    """

    context: ClassVar[Context] = "both"

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config, decoder=False)
        self.decoder = Stack(config, decoder=True)
        self.head = (
            None if config.tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.reset_parameters()

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's: those that read a text which has no source."""
        return self.encoder.layers

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all weights anew from torch's generator, by the table above."""
        t5 = self.config.positions == "relative"
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            elif name == "embeddings.tokens.weight" and t5:
                nn.init.normal_(parameter)
            elif name in ("embeddings.tokens.weight", "head.weight"):
                nn.init.normal_(parameter, std=self.config.hidden_size**-0.5)
            elif "distances" in name:  # what Mesh TensorFlow draws where nothing is said
                nn.init.xavier_uniform_(parameter)
            else:
                _draw_matrix(name, parameter, self.config, t5=t5)

    def forward(
        self, batch: Batch, *, hidden_states: bool = False, cache: Cache | None = None
    ) -> Output:
        """Hidden states of every token: the decoder's, or the encoder's of a batch without source.

        Args:
            batch: N tokens, end to end; `source` holds what the encoder reads.
            hidden_states: keep every layer's states of the same stack, the embedding output first;
                the last entry of a pre-norm stack has passed the final norm.
            cache: what the sequences' earlier tokens and their sources left; after its first use,
                `batch` holds one more token of each sequence and no source.
        """
        if batch.source is None and cache is None:
            return _without_spare(*self._encode(batch, hidden_states))
        device = batch.input_ids.device
        layout = (
            Layout.of(batch.starts, device) if cache is None else cache.step(batch.starts, device)
        )
        memory = None
        if batch.source is not None:
            encoded, own = self._encode(batch.source, hidden_states=False)
            both = Layout.of(batch.starts, device, keys=batch.source.starts)
            memory = Memory(encoded.last, both)
            if cache is not None:
                cache.source = Extent(own.positions[: own.num_tokens])
        output = self.decoder(
            self.embeddings(batch.input_ids, layout.positions),
            layout,
            memory=memory,
            cache=cache,
            longest=layout.longest if cache is None else cache.longest,
            hidden_states=hidden_states,
        )
        return _without_spare(output, layout)

    def _encode(self, batch: Batch, hidden_states: bool) -> tuple[Output, Layout]:
        """The encoder's states, spare rows among them."""
        layout = Layout.of(batch.starts, batch.input_ids.device)
        x = self.embeddings(batch.input_ids, layout.positions)
        encoded = self.encoder(x, layout, longest=layout.longest, hidden_states=hidden_states)
        return encoded, layout

    def new_cache(self, room: int) -> Cache:
        """An empty cache of the decoder for sequences of up to `room` tokens."""
        return Cache(len(self.decoder.layers), room)

    @property
    def output_matrix(self) -> Tensor:
        """(V, D) of the softmax."""
        return self.embeddings.tokens.weight if self.head is None else self.head.weight

    def scaled(self, hidden: Tensor) -> Tensor:
        """What the output matrix is given of the decoder's states."""
        return hidden * self.config.hidden_size**-0.5 if self.config.scale_outputs else hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) states of the decoder to (M, V) scores of the next token."""
        return F.linear(self.scaled(hidden), self.output_matrix)

    def prediction_loss(
        self, hidden: Tensor, targets: Tensor, *, label_smoothing: float = 0.0
    ) -> Tensor:
        """Summed cross-entropy of (M) token ids at (M, D) hidden states, in nats."""
        dtype = activation_dtype(hidden.device)
        hidden = self.scaled(hidden)
        hidden = round_up(hidden if dtype is None else hidden.to(dtype))
        return linear_cross_entropy(
            hidden, self.output_matrix, None, targets, label_smoothing=label_smoothing
        )

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: embeddings, each encoder layer, each decoder layer.

        A stack's distance bias belongs to its first layer and its final norm to its last.
        """
        groups = [list(self.embeddings.parameters())]
        for stack in (self.encoder, self.decoder):
            own = [list(layer.parameters()) for layer in stack.layers]
            own[0] += [] if stack.distances is None else list(stack.distances.parameters())
            own[-1] += list(stack.final_norm.parameters())
            groups += own
        return groups

    @torch.no_grad()
    def reset_top_layers(self, count: int) -> None:
        """Draws the top `count` layers of the encoder anew (Zhang et al. 2021, section 4)."""
        replace_top_layers(self.layers, EncoderDecoder(self.config).layers, count)


def _without_spare(output: Output, layout: Layout) -> Output:
    kept = tuple(state[: layout.num_tokens] for state in output.hidden_states)
    return Output(output.last[: layout.num_tokens], kept)


def _draw_matrix(name: str, parameter: Tensor, config: EncoderDecoderConfig, *, t5: bool) -> None:
    """A matrix of a layer; queries, keys and values are drawn as matrices of their own."""
    inside = config.num_heads * config.size_of_head
    rows, columns = parameter.shape
    parts = parameter.split(inside if ".qkv." in name or ".kv." in name else rows)
    for i, part in enumerate(parts):
        if not t5:
            nn.init.xavier_uniform_(part)
            continue
        query = ".q." in name or (".qkv." in name and i == 0)
        nn.init.normal_(part, std=(columns * (config.size_of_head if query else 1)) ** -0.5)


def _norm(config: EncoderDecoderConfig) -> nn.Module:
    return make_norm(config.norm_kind, config.hidden_size, eps=config.norm_eps, bias=config.bias)


def _block(config: EncoderDecoderConfig, *, decoder: bool) -> Block:
    scale = None if config.scale_scores else 1.0
    cross = CrossAttention(
        config.hidden_size,
        config.num_heads,
        bias=config.bias,
        dropout=config.dropout,
        head_size=config.head_size,
        scale=scale,
    )
    return Block(
        SelfAttention(
            config.hidden_size,
            config.num_heads,
            bias=config.bias,
            dropout=config.dropout,
            mask=Mask(causal=decoder),
            head_size=config.head_size,
            scale=scale,
        ),
        FeedForward(
            config.hidden_size,
            config.intermediate_size,
            activation=config.activation,
            gated=config.gated,
            bias=config.bias,
            dropout=config.dropout if config.norm == "pre" else None,
        ),
        attention_norm=_norm(config),
        feed_forward_norm=_norm(config),
        placement=config.norm,
        dropout=config.dropout,
        cross=cross if decoder else None,
        cross_norm=_norm(config) if decoder else None,
    )
