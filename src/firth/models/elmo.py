"""ELMo (Peters et al. 2018): words spelled by a character network, and LSTMs of both directions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from firth.device import activation_dtype
from firth.errors import ConfigError
from firth.models.characters import CharacterEncoder, Filters, Spellings
from firth.models.checks import check_shape
from firth.models.layers import Dropout, linear_cross_entropy, round_up
from firth.models.recurrence import RecurrentCache, State, Steps, handed_on, taken_up
from firth.models.recurrent import LSTMLayer
from firth.models.sampled_softmax import log_uniform_counts, log_uniform_sample, sampled_loss
from firth.protocols import Batch, Context, Output, WordList

PAPER_FILTERS: Filters = (
    (1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024),
)  # fmt: skip
"""The 2,048 filters of the original."""

_REMEMBERED = 1 << 16
"""Words whose vectors are kept between texts."""


@dataclass(frozen=True, kw_only=True)
class ElmoConfig:
    """The shape of a biLM. The defaults are the paper's (Peters et al. 2018, section 3.4)."""

    num_segments: ClassVar[int] = 0
    positions: ClassVar[str] = "none"

    vocab_size: int
    """Words that have an id. The network spells them and any other word."""
    output_size: int
    """Words that are predicted: the most frequent ones, with the lowest ids."""
    unknown: int = 1
    """The id predicted in place of all other words."""
    projection_size: int = 512
    """P, of the states of one direction."""
    cell_size: int = 4096
    """Cells of an LSTM, projected to P."""
    num_layers: int = 2
    """LSTMs in each direction."""
    character_dim: int = 16
    """Of the vectors of bytes."""
    filters: Filters = PAPER_FILTERS
    """Widths of the convolutions over bytes, and how many there are of each."""
    num_highway: int = 2
    """Highway layers behind the convolutions."""
    activation: Literal["relu", "tanh"] = "relu"
    """Of the convolutions."""
    max_characters: int = 50
    """Bytes of a word that are read, with two marks."""
    cell_clip: float = 3.0
    """Cells are held between this and its negative."""
    projection_clip: float = 3.0
    """The same of the projected states."""
    residual: bool = True
    """Whether each layer but the first adds its input to its output."""
    max_length: int = 512
    """Longest sequence, in words; a recurrent network has no window of its own."""
    dropout: float = 0.1
    """Of the input of each LSTM, and of the states that predict."""
    samples: int = 8192
    """Draws for the sampled softmax in training, of which each word counts once; 0 for the full
    one."""

    def __post_init__(self) -> None:
        check_shape(self)
        if not self.filters or min(min(one) for one in self.filters) < 1:
            raise ConfigError(
                f"filters is {self.filters}; expected pairs of a width and a number, at least 1 "
                "each, such as ((1, 32), (2, 64))"
            )
        widest = max(3, *(width for width, _ in self.filters))
        if self.max_characters < widest:
            raise ConfigError(
                f"max_characters is {self.max_characters}, expected at least {widest}: two marks "
                "and a byte, and the width of the widest filter"
            )
        if self.output_size > self.vocab_size:
            raise ConfigError(
                f"output_size {self.output_size} is more than vocab_size {self.vocab_size}"
            )
        if not 0 <= self.unknown < self.output_size:
            raise ConfigError(
                f"unknown is {self.unknown}, expected an id below output_size, {self.output_size}"
            )

    @property
    def hidden_size(self) -> int:
        """2P, both directions."""
        return 2 * self.projection_size


class BiLayer(nn.Module):
    """A forward and a backward projected LSTM layer, side by side."""

    def __init__(self, config: ElmoConfig, *, residual: bool) -> None:
        super().__init__()
        shape: dict[str, Any] = {
            "cell_size": config.cell_size,
            "cell_clip": config.cell_clip,
            "projection_clip": config.projection_clip,
        }
        size = config.projection_size
        self.directions = nn.ModuleList(
            LSTMLayer(size, size, reverse=reverse, **shape) for reverse in (False, True)
        )
        self.dropout = Dropout(config.dropout)
        self.residual = residual

    def forward(
        self, x: list[Tensor], steps: list[Steps], states: Sequence[State | None]
    ) -> tuple[list[Tensor], list[State]]:
        """(N, P) of each direction to the same, and each one's state at the end."""
        outputs, after = [], []
        for direction, one, walk, state in zip(self.directions, x, steps, states, strict=True):
            read = self.dropout(one)
            y, last = direction(read, walk, state)
            outputs.append(y + read if self.residual else y)
            after.append(last)
        return outputs, after

    def read_on(
        self, x: Tensor, steps: Steps, state: State | None, *, backward: bool
    ) -> tuple[Tensor, State]:
        """(N, P) words in the order in which one direction reads them, to its outputs."""
        y, last = self.directions[int(backward)](x, steps, state)
        return (y + x if self.residual else y), last


Carried = Sequence[Sequence[State | None]]
"""The state of each direction of each layer, for a row of sequences."""


class Elmo(nn.Module):
    """Two language models, one from left to right and one from right to left.

    They share the character network and the softmax (section 3.1):

        sum_k log p(t_k | t_1 ... t_{k-1}) + log p(t_k | t_{k+1} ... t_N)

    `hidden_states` are [x, x] and then [forward, backward] of each layer, the L + 1
    representations of section 3.2.
    """

    reads_words: ClassVar[bool] = True
    context: ClassVar[Context] = "both"

    def __init__(self, config: ElmoConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = CharacterEncoder(
            config.filters,
            dim=config.character_dim,
            num_highway=config.num_highway,
            output_size=config.projection_size,
            activation=config.activation,
        )
        self.layers = nn.ModuleList(
            BiLayer(config, residual=config.residual and i > 0) for i in range(config.num_layers)
        )
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(config.projection_size, config.output_size)
        nn.init.normal_(self.head.weight, std=config.projection_size**-0.5)
        nn.init.zeros_(self.head.bias)
        self._spellings: Spellings | None = None
        self._vectors = _Remembered()
        self.carried: dict[bool, dict[str, Tensor]] = {True: {}, False: {}}
        """What one batch of streams hands on to the next, in training and outside it."""

    def use_words(self, words: WordList) -> None:
        """Reads the spelling of ids from here on in `words`."""
        self._spellings = Spellings(words, self.config.max_characters)
        self._vectors.forget()

    def train(self, mode: bool = True) -> "Elmo":
        """See `nn.Module`; vectors kept from before training are forgotten."""
        if mode:
            self._vectors.forget()
        return super().train(mode)

    def forward(
        self,
        batch: Batch,
        *,
        hidden_states: bool = False,
        cache: RecurrentCache | None = None,
    ) -> Output:
        """Hidden states of every word.

        Args:
            batch: N words, end to end.
            hidden_states: keep those of every layer.
            cache: what the words read before left; then one direction alone reads on, and both
                halves of the states are its own.
        """
        if cache is not None:
            return self._read_on(batch, cache)
        if batch.continues is None:
            return self.run(batch, None, hidden_states=hidden_states)[0]
        # Only left to right is what follows in a stream also what is read next.
        held = taken_up(self.carried[self.training]) if batch.continues else None
        before: Carried | None = None if held is None else [[one, None] for one in held]
        output, after = self.run(batch, before, hidden_states=hidden_states)
        self.carried[self.training] = handed_on([forward for forward, _ in after])
        return output

    def run(
        self, batch: Batch, before: Carried | None, *, hidden_states: bool = False
    ) -> tuple[Output, list[list[State]]]:
        """Hidden states of sequences that go on from a state, and the state behind them.

        Args:
            batch: N words of B sequences.
            before: of the B sequences, from an earlier call; None to begin afresh.
            hidden_states: keep those of every layer.
        """
        x = self._embed(batch.input_ids)  # (N, P)
        steps = [Steps.of(batch.starts, x.device, reverse=reverse) for reverse in (False, True)]
        both = [x, x]
        states = [torch.cat(both, dim=1)]
        after: list[list[State]] = []
        for i, layer in enumerate(self.layers):
            begin = [None, None] if before is None else before[i]
            both, last = layer(both, steps, begin)
            states.append(torch.cat(both, dim=1))
            after.append(last)
        return Output(states[-1], tuple(states) if hidden_states else ()), after

    def _read_on(self, batch: Batch, cache: RecurrentCache) -> Output:
        x = self._embed(batch.input_ids)
        steps = Steps.of(batch.starts, x.device)
        after = []
        for i, layer in enumerate(self.layers):
            before = None if cache.states is None else cache.states[i]
            x, last = layer.read_on(x, steps, before, backward=cache.backward)  # type: ignore[operator]
            after.append(last)
        cache.states = after
        return Output(torch.cat([x, x], dim=1))

    def new_cache(self, room: int, *, backward: bool = False) -> RecurrentCache:
        """An empty cache for reading on in one direction, of any number of words."""
        return RecurrentCache(backward)

    def _embed(self, ids: Tensor) -> Tensor:
        """(N, P) vectors of words; each distinct word is spelled once."""
        distinct, place = torch.unique(ids, return_inverse=True)
        if self.training or torch.is_grad_enabled():
            vectors = self._spelled(distinct)
        else:
            vectors = self._vectors.of(distinct, self._spelled)
        return vectors.index_select(0, place)

    def _spelled(self, ids: Tensor) -> Tensor:
        if self._spellings is None:
            raise ConfigError(
                "this model spells words and has not been given any; call "
                "model.use_words(tokenizer.open()) first"
            )
        characters = torch.from_numpy(self._spellings.of(ids.cpu().numpy()))
        return self.embeddings(characters.to(ids.device))

    def logits(self, hidden: Tensor, *, backward: bool = False) -> Tensor:
        """(M, 2P) last states to (M, V) scores of the next word, or of the one before."""
        return self.head(hidden.chunk(2, dim=1)[int(backward)])

    def prediction_loss(self, hidden: Tensor, targets: Tensor, *, backward: bool = False) -> Tensor:
        """Summed cross-entropy of (M) words at (M, 2P) states in one direction, in nats.

        In training over a sample of the vocabulary (Jean et al. 2015), where the shape says so.
        """
        config = self.config
        hidden = self.dropout(hidden.chunk(2, dim=1)[int(backward)])
        targets = torch.where(targets < config.output_size, targets, config.unknown)
        dtype = activation_dtype(hidden.device)
        hidden = hidden.contiguous() if dtype is None else hidden.to(dtype)
        weight, bias = self.head.weight, self.head.bias
        if self.training and 0 < config.samples < config.output_size:
            drawn = log_uniform_sample(config.samples, config.output_size).to(targets.device)
            counts = log_uniform_counts(config.samples, config.output_size).to(hidden.device)
            return sampled_loss(hidden, weight, bias, targets, drawn, counts.log())
        return linear_cross_entropy(round_up(hidden), weight, bias, targets)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters by depth: the character network, then each layer of both directions."""
        return [list(part.parameters()) for part in (self.embeddings, *self.layers)]

    @torch.no_grad()
    def reset_top_layers(self, count: int) -> None:
        """Draws the top `count` layers anew."""
        for layer in list(self.layers)[len(self.layers) - count :]:
            for direction in layer.directions:  # type: ignore[union-attr]
                direction.reset_parameters()  # type: ignore[operator]


class _Remembered:
    """Vectors of words that were met, while the weights stay as they are."""

    def __init__(self) -> None:
        self.forget()

    def __deepcopy__(self, _memo: object) -> "_Remembered":
        return _Remembered()

    def forget(self) -> None:
        """Drops all of them."""
        self._row = np.empty(0, np.int64)
        self._vectors: Tensor | None = None

    def of(self, ids: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """(W, P) vectors of distinct ids; `make` gives those of ids that are new."""
        asked = ids.cpu().numpy()
        if self._vectors is not None and len(self._vectors) > _REMEMBERED:
            self.forget()
        top = int(asked.max(initial=-1)) + 1
        if top > len(self._row):
            self._row = np.concatenate([self._row, np.full(top - len(self._row), -1)])
        fresh = asked[self._row[asked] < 0]
        if len(fresh):
            made = make(torch.from_numpy(fresh).to(ids.device))
            held = 0 if self._vectors is None else len(self._vectors)
            self._row[fresh] = held + np.arange(len(fresh))
            self._vectors = made if self._vectors is None else torch.cat([self._vectors, made])
        assert self._vectors is not None
        return self._vectors[torch.from_numpy(self._row[asked]).to(ids.device)]
