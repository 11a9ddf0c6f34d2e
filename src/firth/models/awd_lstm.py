"""AWD-LSTM (Merity et al. 2018), the language model of ULMFiT (Howard and Ruder 2018)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.device import activation_dtype
from firth.errors import ConfigError
from firth.models.checks import check_shape
from firth.models.layers import dropped, linear_cross_entropy, round_up
from firth.models.recurrence import RecurrentCache, State, Steps, handed_on, taken_up
from firth.models.recurrent import LSTMLayer
from firth.protocols import Batch, Context, Output


@dataclass(frozen=True, kw_only=True)
class AWDLSTMConfig:
    """The shape of an AWD-LSTM. The defaults are the paper's, for WikiText-2 (section 5)."""

    num_segments: ClassVar[int] = 0
    positions: ClassVar[str] = "none"

    vocab_size: int
    """V, words or tokens."""
    embedding_size: int = 400
    """E, of the word vectors and of the last layer, which share the softmax."""
    hidden_size: int = 1150
    """D, of the layers between."""
    num_layers: int = 3
    """LSTMs, one on another."""
    max_length: int = 1024
    """Longest sequence, in tokens; a recurrent network has no window of its own."""
    dropout: float = 1.0
    """What all five rates below are multiplied by."""
    output_dropout: float = 0.4
    """Of the last layer's states, one mask a sequence (Gal and Ghahramani 2016)."""
    hidden_dropout: float = 0.3
    """Of the other layers' states, one mask a sequence."""
    input_dropout: float = 0.65
    """Of the word vectors, one mask a sequence."""
    embedding_dropout: float = 0.1
    """Share of the words whose vectors are zero for a whole step."""
    weight_dropout: float = 0.5
    """Of the entries of the recurrent matrices (DropConnect, Wan et al. 2013)."""
    backward: bool = False
    """Reads from right to left."""

    def __post_init__(self) -> None:
        names = ("output", "hidden", "input", "embedding", "weight")
        rates = {f"{name}_dropout": getattr(self, f"{name}_dropout") for name in names}
        check_shape(self, [(f"{n} times dropout", r * self.dropout) for n, r in rates.items()])
        if self.embedding_size > self.hidden_size:
            raise ConfigError(
                f"embedding_size {self.embedding_size}, hidden_size {self.hidden_size}; expected "
                "states at least as wide as word vectors"
            )


class AWDLSTM(nn.Module):
    """A stack of LSTMs with a tied softmax, regularised in five ways.

    Initialisation: embeddings uniform in +-0.1, matrices of a layer uniform in +-1/sqrt(H), output
    biases 0 (Merity et al. 2018, section 5); forget biases 1.

    All states have D entries: those of the embeddings and of the last layer are zero beyond E.
    """

    def __init__(self, config: AWDLSTMConfig) -> None:
        super().__init__()
        self.config = config
        size, inner, depth = config.embedding_size, config.hidden_size, config.num_layers
        self.embeddings = nn.Embedding(config.vocab_size, size)
        sizes = [size, *[inner] * (depth - 1), size]
        self.layers = nn.ModuleList(
            LSTMLayer(sizes[i], sizes[i + 1], weight_dropout=config.weight_dropout * config.dropout)
            for i in range(depth)
        )
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        nn.init.uniform_(self.embeddings.weight, -0.1, 0.1)
        self.carried: dict[bool, dict[str, Tensor]] = {True: {}, False: {}}
        """What one batch of streams hands on to the next, in training and outside it."""

    @property
    def regularised_size(self) -> int:
        """E, the entries of the last states that are not always zero."""
        return self.config.embedding_size

    def forward(
        self,
        batch: Batch,
        *,
        hidden_states: bool = False,
        cache: RecurrentCache | None = None,
    ) -> Output:
        """Hidden states of every token; `last` is behind the output dropout, all others are not.

        Args:
            batch: N tokens, end to end.
            hidden_states: keep every layer's states, the embedding output first.
            cache: what the tokens read before left; the batch then comes in the order of reading.
        """
        config = self.config
        reverse = config.backward and cache is None
        steps = Steps.of(batch.starts, batch.input_ids.device, reverse=reverse)
        before = self._before(batch, cache)
        owner = torch.repeat_interleave(batch.starts.diff()).to(batch.input_ids.device)
        x = self._embed(batch.input_ids)
        states, after = [x], list[State]()
        x = self._one_mask(x, owner, config.input_dropout)
        for i, layer in enumerate(self.layers):
            x, last = layer(x, steps, None if before is None else before[i])
            after.append(last)
            states.append(x)
            top = i + 1 == len(self.layers)
            x = self._one_mask(x, owner, config.output_dropout if top else config.hidden_dropout)
        if cache is not None:
            cache.states = after
        elif batch.continues is not None:
            self.carried[self.training] = handed_on(after)
        kept = tuple(map(self._widened, states)) if hidden_states else ()
        return Output(self._widened(x), kept)

    def _before(self, batch: Batch, cache: RecurrentCache | None) -> list[State] | None:
        if cache is not None:
            return cache.states
        return taken_up(self.carried[self.training]) if batch.continues else None

    def _embed(self, ids: Tensor) -> Tensor:
        """(N, E) vectors; in training some words have none (Gal and Ghahramani 2016)."""
        weight, rate = self.embeddings.weight, self.config.embedding_dropout * self.config.dropout
        x = F.embedding(ids, weight)
        if not self.training or rate == 0:
            return x
        kept = torch.rand(len(weight), 1, device=x.device).ge(rate).to(x.dtype) / (1 - rate)
        return x * kept[ids]

    def _one_mask(self, x: Tensor, owner: Tensor, rate: float) -> Tensor:
        """Dropout with the same mask for all tokens of a sequence."""
        rate *= self.config.dropout
        if not self.training or rate == 0:
            return x
        masks = dropped(x.new_ones(int(owner[-1]) + 1, x.shape[1]), rate)
        return x * masks.index_select(0, owner)

    def _widened(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.config.hidden_size - x.shape[1]))

    def new_cache(self, room: int, *, backward: bool = False) -> RecurrentCache:
        """An empty cache for reading on, of any number of tokens."""
        return RecurrentCache(backward)

    @property
    def output_matrix(self) -> Tensor:
        """(V, E) of the softmax: the word vectors."""
        return self.embeddings.weight

    def logits(self, hidden: Tensor, *, backward: bool = False) -> Tensor:
        """(M, D) last states to (M, V) scores of the next token in the direction of reading."""
        return F.linear(hidden[:, : self.config.embedding_size], self.output_matrix, self.bias)

    def prediction_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy of (M) token ids at (M, D) states, in nats."""
        hidden = hidden[:, : self.config.embedding_size]
        dtype = activation_dtype(hidden.device)
        hidden = round_up(hidden if dtype is None else hidden.to(dtype))
        return linear_cross_entropy(hidden, self.output_matrix, self.bias, targets)

    @property
    def context(self) -> Context:
        """See `protocols.Model`."""
        return "right" if self.config.backward else "left"

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: the embeddings, then each layer."""
        return [list(part.parameters()) for part in (self.embeddings, *self.layers)]

    @torch.no_grad()
    def reset_top_layers(self, count: int) -> None:
        """Draws the top `count` layers anew."""
        for layer in list(self.layers)[len(self.layers) - count :]:
            layer.reset_parameters()  # type: ignore[operator]
