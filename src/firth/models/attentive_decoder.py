"""The LSTM that writes a target, with or without attention to its source."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.device import activation_dtype, round_rows, uncompiled
from firth.models.layers import Dropout
from firth.models.recurrence import State, Steps
from firth.models.recurrent import LSTMLayer
from firth.models.source_attention import AdditiveAttention, MultiplicativeAttention, Source


class Encoded(NamedTuple):
    """What the encoder made of B sequences."""

    states: Tensor
    """(N_s, D)."""
    starts: Tensor
    """(B+1) on the CPU."""
    first: list[State]
    """Where each layer of the decoder begins."""


@dataclass
class AttentiveCache:
    """The state behind the tokens that were read, and the source that is attended to."""

    states: list[State] | None = None
    """Of each layer; None before the first token."""
    source: Source | None = None
    """None without attention."""
    fed: Tensor | None = None
    """(B, D) the last attentional vectors, where they are fed to the next step."""

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences, in this order; a beam may repeat one."""
        if self.states is not None:
            self.states = [State(one.hidden[rows], one.cell[rows]) for one in self.states]
        if self.source is not None:
            self.source = self.source.keep(rows)
        if self.fed is not None:
            self.fed = self.fed[rows]


class _Walked(NamedTuple):
    """What a walk through all steps leaves, in the order of steps."""

    hidden: list[Tensor]
    """(N, D) of each layer."""
    cells: list[Tensor]
    attended: Tensor
    """(N, D) the contexts, or with input feeding the attentional vectors."""


class AttentiveDecoder(nn.Module):
    """LSTM layers, attention, and what both give to the softmax.

    none:         s_t                                       (Sutskever et al. 2014)
    dot, general: tanh(W [c_t; s_t])                        (Luong et al. 2015, eq. 5)
    additive:     max of pairs of U s_t + V y_t-1 + C c_t   (Bahdanau et al. 2015, A.2.2)

    With "dot" and "general" s_t comes from y_t-1, with input feeding from [y_t-1; the last
    attentional vector]; with "additive" from [y_t-1; c_t], c_t being made with s_t-1.

    Args:
        input_size: E.
        size: D.
        num_layers: of the LSTM.
        attention: see `Seq2SeqConfig`.
        input_feeding: see there.
        dropout: between the layers and of what is given to the softmax.
        vocab_size: for a table of its own; None where the encoder's serves both.
    """

    def __init__(
        self,
        input_size: int,
        size: int,
        *,
        num_layers: int,
        attention: str,
        input_feeding: bool,
        dropout: float,
        vocab_size: int | None,
    ) -> None:
        super().__init__()
        additive = attention == "additive"
        self.fed = additive or input_feeding
        self.embeddings = None if vocab_size is None else nn.Embedding(vocab_size, input_size)
        first = input_size + (size if self.fed else 0)
        self.layers = nn.ModuleList(
            LSTMLayer(first if i == 0 else size, size) for i in range(num_layers)
        )
        self.bridges = nn.ModuleList(
            nn.Linear(size // 2, size, bias=False) for _ in range(num_layers if additive else 0)
        )
        self.attention: AdditiveAttention | MultiplicativeAttention | None = None
        self.combine: nn.Linear | None = None
        if additive:
            self.attention = AdditiveAttention(size)
            self.combine = nn.Linear(2 * size + input_size, 2 * size, bias=False)
        elif attention != "none":
            self.attention = MultiplicativeAttention(size, general=attention == "general")
            self.combine = nn.Linear(2 * size, size, bias=False)
        self.dropout = Dropout(dropout)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """Parameters of each layer, with what stands in front of the first and behind the last."""
        groups = [list(layer.parameters()) for layer in self.layers]
        for part in (self.embeddings, self.bridges):
            groups[0] += [] if part is None else list(part.parameters())
        for part in (self.attention, self.combine):
            groups[-1] += [] if part is None else list(part.parameters())
        return groups

    def first_states(self, after: list[State]) -> list[State]:
        """Where each layer begins: where that of the encoder ended.

        Behind a bidirectional encoder tanh(W h_1), of the direction that ends at the first token
        (Bahdanau et al. 2015, appendix A.2.2); W h_1 is the cell's content.
        """
        if not self.bridges:  # kernels of bfloat16 give cells of it
            return [State(one.hidden, one.cell.float()) for one in after]
        cells = [bridge(one.hidden) for bridge, one in zip(self.bridges, after, strict=True)]
        return [State(torch.tanh(cell), cell.float()) for cell in cells]

    @uncompiled  # a loop over steps whose numbers differ from batch to batch
    def forward(
        self, x: Tensor, starts: Tensor, encoded: Encoded | None, cache: AttentiveCache | None
    ) -> list[Tensor]:
        """The embeddings and each layer's states, the last one as the softmax sees it; (N, ...).

        Args:
            x: (N, E) tokens, end to end.
            starts: (B+1) on the CPU.
            encoded: the sources; None where the cache has them.
            cache: see `Seq2Seq.forward`.
        """
        if self.fed:
            return self._stepwise(x, starts, encoded, cache)
        steps = Steps.of(starts, x.device)
        begin = self._begin(encoded, cache)
        states, after = [x], []
        for i, layer in enumerate(self.layers):
            below = self.dropout(states[-1]) if i else x
            y, last = layer(below, steps, begin[i])
            states.append(y)
            after.append(last)
        if self.attention is not None and self.combine is not None:
            context = self._contexts(states[-1], starts, encoded, cache)
            states[-1] = torch.tanh(self.combine(torch.cat([context, states[-1]], dim=1)))
        if cache is not None:
            cache.states = after
            self._hold_source(encoded, cache)
        states[-1] = self.dropout(states[-1])
        return states

    def _begin(self, encoded: Encoded | None, cache: AttentiveCache | None) -> list[State]:
        if encoded is not None:
            return encoded.first
        assert cache is not None
        assert cache.states is not None
        return cache.states

    def _hold_source(self, encoded: Encoded | None, cache: AttentiveCache) -> None:
        if encoded is not None and self.attention is not None:
            cache.source = self._source(encoded, torch.arange(len(encoded.starts) - 1))

    def _source(self, encoded: Encoded, chosen: Tensor) -> Source:
        assert self.attention is not None
        keys = self.attention.keys(encoded.states)
        return Source.of(encoded.states, keys, encoded.starts, chosen)

    def _contexts(
        self, states: Tensor, starts: Tensor, encoded: Encoded | None, cache: AttentiveCache | None
    ) -> Tensor:
        """(N, D) contexts of all steps at once, or of one step with a cache."""
        assert isinstance(self.attention, MultiplicativeAttention)
        if encoded is not None:
            return self.attention.contexts(states, starts, encoded.states, encoded.starts)
        assert cache is not None
        assert cache.source is not None
        return self.attention.context(states, cache.source)

    def _stepwise(
        self, x: Tensor, starts: Tensor, encoded: Encoded | None, cache: AttentiveCache | None
    ) -> list[Tensor]:
        """The same where a step needs what attention made at the one before."""
        steps = Steps.of(starts, x.device)
        begin = self._begin(encoded, cache)
        count = len(starts) - 1
        # Products take a round number of rows (see `round_rows`); those to spare are not used.
        slots = F.pad(steps.slots, (0, round_rows(count, x.device) - count))
        if encoded is not None:
            source = self._source(encoded, slots.cpu())
        else:
            assert cache is not None
            assert cache.source is not None
            source = cache.source.keep(slots)
        fed = None if cache is None or cache.fed is None else cache.fed[slots]
        placed = [State(one.hidden[slots], one.cell[slots]) for one in begin]
        walked = self._walk(x, steps, placed, source, fed)
        hidden = [one.index_select(0, steps.back) for one in walked.hidden]
        attended = walked.attended.index_select(0, steps.back)
        if cache is not None:
            last = (starts[1:] - 1).to(x.device)
            cells = [one.index_select(0, steps.back) for one in walked.cells]
            cache.states = [State(h[last], c[last]) for h, c in zip(hidden, cells, strict=True)]
            if isinstance(self.attention, MultiplicativeAttention):
                cache.fed = attended[last]
            self._hold_source(encoded, cache)
        if isinstance(self.attention, AdditiveAttention):
            assert self.combine is not None
            both = self.combine(torch.cat([hidden[-1].to(x.dtype), x, attended], dim=1))
            attended = both.unflatten(1, (-1, 2)).amax(dim=2)  # maxout (Goodfellow et al. 2013)
        return [x, *hidden[:-1], self.dropout(attended)]

    def _walk(
        self, x: Tensor, steps: Steps, states: list[State], source: Source, fed: Tensor | None
    ) -> _Walked:
        """Computes step by step; states, source and `fed` are in the order of a step's places."""
        assert self.attention is not None
        dtype = activation_dtype(x.device) or x.dtype
        rows = [round_rows(count, x.device) for count in steps.sizes]
        spare = max(taken - count for taken, count in zip(rows, steps.sizes, strict=True))
        layers: list[Any] = list(self.layers)
        given, matrices = _prepared(layers, x.index_select(0, steps.order), spare, dtype)
        hidden, cells = [one.hidden for one in states], [one.cell for one in states]
        fed = x.new_zeros(len(hidden[0]), hidden[0].shape[1]) if fed is None else fed
        found: list[list[Tensor]] = []
        begin = 0
        for count, taken in zip(steps.sizes, rows, strict=True):
            source, fed = source.first(taken), fed[:taken]
            if isinstance(self.attention, AdditiveAttention):
                fed = self.attention.context(hidden[-1][:taken], source)
            below = fed
            for i, matrix in enumerate(matrices):
                both = torch.cat([below.to(dtype), hidden[i][:taken].to(dtype)], dim=1)
                offset = layers[i].bias if i else given[begin : begin + taken]
                gates = F.linear(both, matrix) + offset
                hidden[i], cells[i] = _cell(gates, cells[i][:taken])
                below = self.dropout(hidden[i])
            if self.combine is not None and isinstance(self.attention, MultiplicativeAttention):
                context = self.attention.context(hidden[-1], source)
                fed = torch.tanh(self.combine(torch.cat([context, hidden[-1]], dim=1)))
            found.append([one[:count] for one in (*hidden, *cells, fed)])
            begin += count
        *both_kinds, attended = [torch.cat(parts) for parts in zip(*found, strict=True)]
        depth = len(matrices)
        return _Walked(both_kinds[:depth], both_kinds[depth:], attended)


def _prepared(
    layers: list[Any], x: Tensor, spare: int, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """What does not depend on the step before.

    Args:
        layers: the LSTM's.
        x: (N, E) tokens in the order of steps.
        spare: rows behind them that a step may look at.
        dtype: of the matrices.

    Returns:
        The gates (N + spare, 4D) that come from the tokens, and for each layer the (4D, 2D) matrix
        of what enters beside them and of the state before.
    """
    first, width = layers[0], x.shape[1]
    x = F.pad(x, (0, 0, 0, round_rows(len(x) + spare, x.device) - len(x)))
    given = F.linear(x, first.weight[:, :width], first.bias)
    entering = [first.weight[:, width:], *(layer.weight for layer in layers[1:])]
    pairs = zip(entering, layers, strict=True)
    return given, [torch.cat([one, layer.recurrent], dim=1).to(dtype) for one, layer in pairs]


def _cell(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM from (B, 4D) gates, in the order i, f, o, g (see `recurrent`)."""
    size = cell.shape[1]
    gates = gates.to(cell.dtype)
    i, f, o = gates[:, : 3 * size].sigmoid().chunk(3, dim=1)
    cell = f * cell + i * gates[:, 3 * size :].tanh()
    return o * cell.tanh(), cell
