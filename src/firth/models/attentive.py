"""Sequence to sequence with LSTMs: Sutskever et al. 2014, Bahdanau et al. 2015, Luong et al. 2015.

Notation: x_j are the tokens of the source, h_j the encoder's states, y_t the tokens of the target,
s_t the decoder's states, c_t the context that attention makes of all h_j.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.device import activation_dtype
from firth.errors import ConfigError
from firth.models.attentive_decoder import AttentiveCache, AttentiveDecoder, Encoded
from firth.models.checks import check_shape
from firth.models.layers import Dropout, linear_cross_entropy, round_up
from firth.models.recurrence import State, Steps
from firth.models.recurrent import LSTMLayer
from firth.protocols import Batch, Context, Output

Attention = Literal["none", "additive", "dot", "general"]


@dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig:
    """The shape of a recurrent encoder and decoder."""

    num_segments: ClassVar[int] = 0
    positions: ClassVar[str] = "none"

    vocab_size: int
    """V, of source and target."""
    embedding_size: int
    """E, of the token vectors."""
    hidden_size: int
    """D, of the decoder's states and of the encoder's; two directions have D/2 each."""
    num_layers: int
    """Of the encoder, and as many of the decoder."""
    attention: Attention = "general"
    """"none": the encoder's last state is all that the decoder knows (Sutskever et al. 2014).
    "additive": v' tanh(W s + U h) with a bidirectional encoder; the context enters the decoder
    (Bahdanau et al. 2015). "dot", "general": s' h or (W s)' h after the decoder (Luong et al. 2015,
    section 3.1)."""
    input_feeding: bool = False
    """Whether the attentional vector enters the decoder's next step (Luong et al. 2015, section
    3.3). Then, as with "additive", the steps of a target are computed one after another."""
    reverse: bool = True
    """Whether the encoder reads the source from its end (Sutskever et al. 2014, section 3.3); the
    bidirectional one reads both ways."""
    tied: bool = False
    """Whether one table serves the source, the target and the output; needs E = D."""
    dropout: float = 0.2
    """Of the embeddings, between layers and before the softmax (Zaremba et al. 2014)."""
    max_length: int = 512
    """Longest sequence of either side, in tokens; a recurrent network has no window of its own."""

    def __post_init__(self) -> None:
        check_shape(self)
        if self.embedding_size > self.hidden_size:
            raise ConfigError(
                f"embedding_size {self.embedding_size} is more than hidden_size "
                f"{self.hidden_size}; expected at most as much"
            )
        if self.tied and self.embedding_size != self.hidden_size:
            raise ConfigError(
                f"tied needs embedding_size {self.embedding_size} and hidden_size "
                f"{self.hidden_size} to be the same; set model.tied to false or change one"
            )
        if self.bidirectional and self.hidden_size % 2:
            raise ConfigError("additive attention has two directions: hidden_size must be even")
        if self.input_feeding and self.attention not in ("dot", "general"):
            raise ConfigError(
                f"input_feeding is for the attentions dot and general, not {self.attention}; leave "
                "it out"
            )

    @property
    def bidirectional(self) -> bool:
        """Whether the encoder reads both ways."""
        return self.attention == "additive"

    @property
    def fed(self) -> bool:
        """Whether what attention makes enters the decoder beside the token."""
        return self.attention == "additive" or self.input_feeding


class EncoderLayer(nn.Module):
    """An LSTM layer in one direction, or two side by side (Schuster and Paliwal 1997)."""

    def __init__(self, input_size: int, config: Seq2SeqConfig) -> None:
        super().__init__()
        ways = (False, True) if config.bidirectional else (config.reverse,)
        size = config.hidden_size // len(ways)
        self.directions = nn.ModuleList(
            LSTMLayer(input_size, size, reverse=reverse) for reverse in ways
        )

    def forward(self, x: Tensor, steps: list[Steps]) -> tuple[Tensor, State]:
        """(N, D) states, and the state at the end of the last direction's reading."""
        both = [layer(x, one) for layer, one in zip(self.directions, steps, strict=True)]
        return torch.cat([states for states, _ in both], dim=1), both[-1][1]


class Seq2Seq(nn.Module):
    """An LSTM that reads a source, and one that writes a target.

    Initialisation (`reset_parameters`), as each paper gives it:

    | attention    | parameter                     | drawn from     | source                      |
    | ------------ | ----------------------------- | -------------- | --------------------------- |
    | none         | all matrices                  | uniform +-0.08 | Sutskever 2014, section 3.4 |
    | dot, general | all matrices                  | uniform +-0.1  | Luong 2015, section 4.1     |
    | additive     | recurrent matrices            | orthogonal     | Bahdanau 2015, appendix B.1 |
    |              | W and U of the attention      | normal 0.001   |                             |
    |              | v of the attention            | 0              |                             |
    |              | other matrices                | normal 0.01    |                             |
    | any          | biases                        | 0, forgetting 1| Jozefowicz et al. 2015      |

    Sutskever and Luong draw biases as the matrices, and Bahdanau sets all to 0: with a forget gate
    that is half shut, short runs learn little.

    `hidden_states` of a batch without source are the encoder's, so that it embeds and is fine-tuned
    as any encoder; the embeddings are zero beyond E.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        size, width = config.hidden_size, config.embedding_size
        self.embeddings = nn.Embedding(config.vocab_size, width)
        self.encoder = nn.ModuleList(
            EncoderLayer(width if i == 0 else size, config) for i in range(config.num_layers)
        )
        self.decoder = AttentiveDecoder(
            width,
            size,
            num_layers=config.num_layers,
            attention=config.attention,
            input_feeding=config.input_feeding,
            dropout=config.dropout,
            vocab_size=None if config.tied else config.vocab_size,
        )
        self.head = None if config.tied else nn.Linear(size, config.vocab_size, bias=False)
        self.dropout = Dropout(config.dropout)
        self.reset_parameters()

    @property
    def layers(self) -> nn.ModuleList:
        """The encoder's: those that read a text which has no source."""
        return self.encoder

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all weights anew from torch's generator, by the table above."""
        for name, parameter in self.named_parameters():
            _draw(name, parameter, self.config.attention)

    def forward(
        self,
        batch: Batch,
        *,
        hidden_states: bool = False,
        cache: AttentiveCache | None = None,
    ) -> Output:
        """Hidden states of every token: the decoder's, or the encoder's of a batch without source.

        Args:
            batch: N tokens, end to end; `source` holds what the encoder reads.
            hidden_states: keep every layer's states of the same network, the embedding output
                first; the last entry of the decoder's is what the softmax sees.
            cache: what the sequences' earlier tokens and their sources left; after its first use,
                `batch` holds one more token of each sequence and no source.
        """
        if batch.source is None and cache is None:
            states = self._encode(batch)[0]
            return Output(states[-1], tuple(map(self._widened, states)) if hidden_states else ())
        encoded = None
        if batch.source is not None:
            states, after = self._encode(batch.source)
            first = self.decoder.first_states(after)
            encoded = Encoded(states[-1], batch.source.starts, first)
        x = self.dropout((self.decoder.embeddings or self.embeddings)(batch.input_ids))
        states = self.decoder(x, batch.starts, encoded, cache)
        return Output(states[-1], tuple(map(self._widened, states)) if hidden_states else ())

    def _encode(self, batch: Batch) -> tuple[list[Tensor], list[State]]:
        """The embeddings and each layer's states, and each layer's state at its end."""
        x = self.dropout(self.embeddings(batch.input_ids))
        ways = (False, True) if self.config.bidirectional else (self.config.reverse,)
        steps = [Steps.of(batch.starts, x.device, reverse=reverse) for reverse in ways]
        states, after = [x], []
        for i, layer in enumerate(self.encoder):
            x, last = layer(self.dropout(x) if i else x, steps)
            states.append(x)
            after.append(last)
        return states, after

    def _widened(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.config.hidden_size - x.shape[1]))

    def new_cache(self, room: int) -> AttentiveCache:
        """An empty cache of the decoder, for any number of tokens."""
        return AttentiveCache()

    @property
    def output_matrix(self) -> Tensor:
        """(V, D) of the softmax."""
        return self.embeddings.weight if self.head is None else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) states of the decoder to (M, V) scores of the next token."""
        return F.linear(hidden, self.output_matrix)

    def prediction_loss(
        self, hidden: Tensor, targets: Tensor, *, label_smoothing: float = 0.0
    ) -> Tensor:
        """Summed cross-entropy of (M) token ids at (M, D) hidden states, in nats."""
        dtype = activation_dtype(hidden.device)
        hidden = round_up(hidden if dtype is None else hidden.to(dtype))
        return linear_cross_entropy(
            hidden, self.output_matrix, None, targets, label_smoothing=label_smoothing
        )

    @property
    def context(self) -> Context:
        """Where the encoder looks (see `protocols.Model`)."""
        if self.config.bidirectional:
            return "both"
        return "right" if self.config.reverse else "left"

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: embeddings, each encoder layer, each decoder layer.

        A table of the decoder's own and what begins its states belong to its first layer,
        attention to its last.
        """
        parts = (self.embeddings, *self.encoder)
        return [list(part.parameters()) for part in parts] + self.decoder.layer_groups()

    @torch.no_grad()
    def reset_top_layers(self, count: int) -> None:
        """Draws the top `count` layers of the encoder anew (Zhang et al. 2021, section 4)."""
        for layer in list(self.encoder)[len(self.encoder) - count :]:
            for name, parameter in layer.named_parameters():
                _draw(name, parameter, self.config.attention)


def _draw(name: str, parameter: Tensor, attention: Attention) -> None:
    """One parameter of the table in `Seq2Seq`."""
    if name.endswith("bias"):
        parameter.zero_()
        size = len(parameter) // 4
        parameter[size : 2 * size] = 1.0
    elif attention != "additive":
        bound = 0.08 if attention == "none" else 0.1
        nn.init.uniform_(parameter, -bound, bound)
    elif parameter.ndim == 1:
        parameter.zero_()
    elif name.endswith("recurrent"):
        for gate in parameter.chunk(4):
            nn.init.orthogonal_(gate)
    else:
        nn.init.normal_(parameter, std=0.001 if "attention" in name else 0.01)
