"""Recurrent layers over packed sequences: LSTM, GRU and the elementary RNN.

Sequences lie end to end; only here they are walked step by step. A step takes the tokens of one
place of all sequences that are so long, longest sequences first, so nothing is padded.

Notation (Hochreiter and Schmidhuber 1997, with forget gates, Gers et al. 2000):

    i, f, o = sigmoid(W x_t + U h_{t-1} + b),   g = tanh(W x_t + U h_{t-1} + b)
    c_t = f * c_{t-1} + i * g,                  h_t = o * tanh(c_t)
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from firth.device import round_rows
from firth.models.layers import Dropout, dropped, round_up

Kind = Literal["lstm", "gru", "tanh"]


@dataclass(frozen=True)
class Steps:
    """How N packed tokens of B sequences become steps."""

    order: Tensor
    """(N) the token of each row, step by step; within a step longest sequences first."""
    back: Tensor
    """(N) the row of each token."""
    sizes: tuple[int, ...]
    """Sequences that take part in each step, never rising."""
    slots: Tensor
    """(B) the sequence of each place in a step."""

    @staticmethod
    def of(starts: Tensor, device: torch.device, *, reverse: bool = False) -> "Steps":
        """The steps of sequences that `starts` (B+1, on the CPU) delimits.

        Args:
            starts: where each begins.
            device: of the tokens.
            reverse: begin at the last token of each.
        """
        lengths = starts.diff()
        slots = torch.argsort(lengths, descending=True, stable=True)
        longest = int(lengths.max()) if len(lengths) else 0
        place = torch.arange(longest)[:, None]  # (T, 1)
        inside = place < lengths[slots]  # (T, B)
        first = starts[:-1][slots]
        token = starts[1:][slots] - 1 - place if reverse else first + place
        order = token[inside]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        sizes = tuple(inside.sum(1).tolist())
        return Steps(order.to(device), back.to(device), sizes, slots.to(device))


class State(NamedTuple):
    """What an LSTM layer carries from one step to the next, a row for each sequence."""

    hidden: Tensor
    """(B, P)."""
    cell: Tensor
    """(B, H)."""


@dataclass
class RecurrentCache:
    """The state behind the tokens that were read, so that the next one costs one step."""

    backward: bool = False
    """Whether tokens come from right to left, each in front of those before."""
    states: list[State] | None = None
    """Of each layer; None before the first token."""

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences, in this order; a beam may repeat one."""
        if self.states is not None:
            self.states = [State(one.hidden[rows], one.cell[rows]) for one in self.states]


def handed_on(states: list[State]) -> dict[str, Tensor]:
    """Layers' states by name, cut off from what led to them (truncated BPTT)."""
    return {
        f"{i}.{name}": value.detach().float()
        for i, state in enumerate(states)
        for name, value in state._asdict().items()
    }


def taken_up(carried: dict[str, Tensor]) -> list[State] | None:
    """The states that `handed_on` named; None where there are none."""
    count = len(carried) // len(State._fields)
    found = [State(carried[f"{i}.hidden"], carried[f"{i}.cell"]) for i in range(count)]
    return found or None


class _Scan(torch.autograd.Function):
    """The recurrence of an LSTM layer, with its gradient written out.

    Compared with autograd over the steps, the gradients of the recurrent matrices are one product
    over all steps each, and nothing but the gates, the cells and the outputs is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        recurrent: Tensor,
        projection: Tensor | None,
        hidden: Tensor,
        cell: Tensor,
        sizes: tuple[int, ...],
        cell_clip: float,
        projection_clip: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gates in the order i, f, o, g; see `lstm`."""
        rows, size, width = inputs.shape[0], cell.shape[1], recurrent.shape[1]
        device, dtype = inputs.device, inputs.dtype
        wide = torch.promote_types(dtype, torch.float32)
        gates = torch.empty(rows, 4 * size, dtype=wide, device=device)
        before, cells = (gates.new_empty(rows, size) for _ in range(2))
        raw = inputs.new_zeros(rows, size) if projection is not None else None
        entering, outputs = (inputs.new_zeros(rows, width) for _ in range(2))
        # Products take a round number of rows (see `round_rows`); those to spare are not used.
        places = round_rows(sizes[0] if sizes else 0, device)
        last_hidden, spare = (inputs.new_zeros(places, n) for n in (width, size))
        last_hidden[: len(hidden)], last_cell = hidden, cell.to(wide, copy=True)
        transposed, begin = recurrent.t(), 0
        for count in sizes:
            now, taken = slice(begin, begin + count), round_rows(count, device)
            entering[now], before[now] = last_hidden[:count], last_cell[:count]
            gate = gates[now]
            torch.add(inputs[now], torch.mm(last_hidden[:taken], transposed)[:count], out=gate)
            gate[:, : 3 * size].sigmoid_()
            gate[:, 3 * size :].tanh_()
            i, f, o, g = gate.split(size, dim=1)
            state = torch.mul(f, before[now], out=cells[now]).addcmul_(i, g)
            if cell_clip:
                state.clamp_(-cell_clip, cell_clip)
            output = o * state.tanh()
            if projection is not None and raw is not None:
                raw[now] = spare[:count] = output
                output = torch.mm(spare[:taken], projection.t())[:count]
                if projection_clip:
                    output.clamp_(-projection_clip, projection_clip)
            outputs[now] = last_hidden[:count] = output
            last_cell[:count] = state
            begin += count
        ctx.save_for_backward(recurrent, projection, gates, before, cells, raw, entering, outputs)
        ctx.sizes, ctx.clips = sizes, (cell_clip, projection_clip)
        return outputs, last_hidden[: len(hidden)].clone(), last_cell

    @staticmethod
    def backward(ctx: Any, d_outputs: Tensor, d_hidden: Tensor, d_cell: Tensor):  # type: ignore[override]
        """Back through time, from the last step to the first."""
        recurrent, projection, gates, before, cells, raw, entering, outputs = ctx.saved_tensors
        cell_clip, projection_clip = ctx.clips
        size, dtype, device = cells.shape[1], recurrent.dtype, cells.device
        places = round_rows(len(d_hidden), device)
        d_gates = torch.zeros(gates.shape, dtype=dtype, device=device)
        spare = d_gates.new_zeros(places, 4 * size)
        d_projected = torch.zeros_like(outputs) if projection is not None else None
        spare_out = outputs.new_zeros(places, outputs.shape[1])
        # The states of sequences that have ended keep their gradient from outside.
        d_h, d_c = d_hidden.to(cells.dtype, copy=True), d_cell.clone()
        end = sum(ctx.sizes)
        for count in reversed(ctx.sizes):
            now, taken = slice(end - count, end), round_rows(count, device)
            grad = d_h[:count] + d_outputs[now]
            if projection is not None and d_projected is not None:
                if projection_clip:
                    grad *= outputs[now].abs() < projection_clip
                d_projected[now] = spare_out[:count] = grad
                grad = torch.mm(spare_out[:taken], projection)[:count].to(cells.dtype)
            i, f, o, g = gates[now].split(size, dim=1)
            tanh = cells[now].tanh()
            grad_c = torch.addcmul(d_c[:count], grad * o, 1 - tanh * tanh)
            if cell_clip:
                grad_c *= cells[now].abs() < cell_clip
            d_gate = torch.cat([grad_c * g, grad_c * before[now], grad * tanh, grad_c * i], dim=1)
            sigmoid = gates[now, : 3 * size]
            d_gate[:, : 3 * size] *= sigmoid * (1 - sigmoid)
            d_gate[:, 3 * size :] *= 1 - g * g
            d_gates[now] = spare[:count] = d_gate
            d_h[:count] = torch.mm(spare[:taken], recurrent)[:count]
            d_c[:count] = grad_c * f
            end -= count
        d_recurrent = torch.mm(d_gates.t(), entering)
        d_projection = None
        if projection is not None and d_projected is not None and raw is not None:
            d_projection = torch.mm(d_projected.t(), raw)
        return d_gates, d_recurrent, d_projection, d_h, d_c, None, None, None


def lstm(
    inputs: Tensor,
    recurrent: Tensor,
    projection: Tensor | None,
    state: State,
    sizes: tuple[int, ...],
    *,
    cell_clip: float = 0.0,
    projection_clip: float = 0.0,
) -> tuple[Tensor, State]:
    """Runs an LSTM layer over all steps.

    With a projection, h_t = R (o * tanh(c_t)) (Sak et al. 2014, eq. 6); cells, and what is
    projected, are clipped to their range as ELMo does (Peters et al. 2018, its implementation).

    Args:
        inputs: (R, 4H) W x + b, step by step (see `Steps`), in the order i, f, o, g; behind the
            N rows of tokens any number of spare ones.
        recurrent: (4H, P) the matrix U.
        projection: (P, H) the matrix R, or None (then P is H).
        state: what comes before the first step, in the order of a step's places.
        sizes: of each step.
        cell_clip: largest absolute value of a cell; 0 for none.
        projection_clip: the same of a projected output.

    Returns:
        (R, P) outputs step by step, and the state behind the last step of each sequence.
    """
    dtype = inputs.dtype
    outputs, hidden, cell = _Scan.apply(
        inputs,
        recurrent.to(dtype),
        None if projection is None else projection.to(dtype),
        state.hidden,
        state.cell,
        sizes,
        cell_clip,
        projection_clip,
    )  # type: ignore[misc]
    return outputs, State(hidden, cell)


class LSTMLayer(nn.Module):
    """One direction of one LSTM layer.

    Args:
        input_size: of x.
        hidden_size: P, the size of h (and of the cell, without `cell_size`).
        cell_size: H of a projected LSTM.
        cell_clip: see `lstm`.
        projection_clip: see `lstm`.
        reverse: read each sequence from its end.
        weight_dropout: share of the entries of U that are dropped in a training pass, the same for
            all its steps (Merity et al. 2018, section 2).

    Initialised uniformly in +-1/sqrt(H), as torch does, with forget biases of 1 (Jozefowicz et al.
    2015).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        cell_size: int | None = None,
        cell_clip: float = 0.0,
        projection_clip: float = 0.0,
        reverse: bool = False,
        weight_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        size = cell_size or hidden_size
        self.input_size, self.hidden_size, self.cell_size = input_size, hidden_size, size
        self.clips = (cell_clip, projection_clip)
        self.reverse = reverse
        self.weight = nn.Parameter(torch.empty(4 * size, input_size))
        self.recurrent = nn.Parameter(torch.empty(4 * size, hidden_size))
        self.projection = nn.Parameter(torch.empty(hidden_size, size)) if cell_size else None
        self.bias = nn.Parameter(torch.empty(4 * size))
        self.weight_dropout = weight_dropout
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all weights anew from torch's generator."""
        bound = self.cell_size**-0.5
        for parameter in (self.weight, self.recurrent, self.projection):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)
        self.bias.zero_()
        self.bias[self.cell_size : 2 * self.cell_size] = 1.0

    def begin(self, count: int) -> State:
        """The state before the first step of `count` sequences: zeros."""
        of = self.weight
        return State(of.new_zeros(count, self.hidden_size), of.new_zeros(count, self.cell_size))

    def forward(self, x: Tensor, steps: Steps, state: State | None = None) -> tuple[Tensor, State]:
        """The outputs of a layer.

        Args:
            x: (N, input_size) packed tokens.
            steps: of the sequences, in this layer's direction.
            state: a row for each sequence, or None to begin afresh.

        Returns:
            (N, P) packed outputs, and the state behind each sequence's last step.
        """
        state = self.begin(len(steps.slots)) if state is None else state
        inputs = F.linear(round_up(x.index_select(0, steps.order)), self.weight, self.bias)
        placed = State(state.hidden[steps.slots], state.cell[steps.slots])
        rate = self.weight_dropout if self.training else 0.0
        outputs, last = lstm(
            inputs,
            dropped(self.recurrent, rate),
            self.projection,
            placed,
            steps.sizes,
            cell_clip=self.clips[0],
            projection_clip=self.clips[1],
        )
        back = torch.argsort(steps.slots)
        after = State(last.hidden[back], last.cell[back])
        return outputs.index_select(0, steps.back), after


class RecurrentStack(nn.Module):
    """Layers of one kind over packed sequences, in one direction or in both.

    Args:
        input_size: of each token's vector.
        hidden_size: of each direction's states.
        kind: "lstm"; "gru" (Cho et al. 2014); "tanh", h_t = tanh(W x_t + U h_{t-1} + b)
            (Elman 1990).
        num_layers: one upon the other.
        bidirectional: two networks, whose states are concatenated (Schuster and Paliwal 1997).
        dropout: between the layers.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        kind: Kind = "lstm",
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.directions = 2 if bidirectional else 1
        self.output_size = hidden_size * self.directions
        sizes = [input_size, *[self.output_size] * (num_layers - 1)]
        self.layers = nn.ModuleList(
            nn.ModuleList(
                _direction(kind, size, hidden_size, reverse=bool(i)) for i in range(self.directions)
            )
            for size in sizes
        )
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, starts: Tensor) -> Tensor:
        """(N, input_size) packed tokens to (N, hidden_size * directions) states.

        Args:
            x: the tokens.
            starts: (B+1) on the CPU.
        """
        steps = [Steps.of(starts, x.device, reverse=bool(i)) for i in range(self.directions)]
        for depth, layer in enumerate(self.layers):
            x = self.dropout(x) if depth else x
            both = zip(layer, steps, strict=True)  # type: ignore[arg-type]
            x = torch.cat([direction(x, one)[0] for direction, one in both], dim=1)
        return x


class TorchLayer(nn.Module):
    """One direction of a layer of torch's own: a GRU or an elementary RNN."""

    def __init__(self, layer: nn.GRU | nn.RNN) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """(N, input_size) tokens to (N, hidden_size) states, and (B, hidden_size) at the end.

        In float32: torch has no faster form of these on a CPU.
        """
        with torch.autocast(x.device.type, enabled=False):
            rows = x.float().index_select(0, steps.order)
            packed, last = self.layer(PackedSequence(rows, torch.tensor(steps.sizes)))
        return packed.data.index_select(0, steps.back), last[0][torch.argsort(steps.slots)]


def _direction(kind: Kind, input_size: int, hidden_size: int, *, reverse: bool) -> nn.Module:
    if kind == "lstm":
        return LSTMLayer(input_size, hidden_size, reverse=reverse)
    return TorchLayer({"gru": nn.GRU, "tanh": nn.RNN}[kind](input_size, hidden_size))
