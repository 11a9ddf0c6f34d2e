"""Recurrent layers over packed sequences: LSTM, GRU and the elementary RNN."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from firth.device import activation_dtype, uncompiled
from firth.models.layers import Dropout, dropped, round_up
from firth.models.lstm import fused_lstm, has_fused_lstm, lstm
from firth.models.recurrence import State, Steps

Kind = Literal["lstm", "gru", "tanh"]


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

    @uncompiled  # a loop over steps whose numbers differ from batch to batch
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
        rows = x.index_select(0, steps.order)
        placed = State(state.hidden[steps.slots], state.cell[steps.slots])
        recurrent = dropped(self.recurrent, self.weight_dropout if self.training else 0.0)
        if self._is_plain and self._has_kernel(steps):
            weights = (self.weight, recurrent, self.bias)
            # A backward pass may follow in evaluation, too.
            training = torch.is_grad_enabled()
            outputs, last = fused_lstm(rows, weights, placed, steps.sizes, training=training)
        else:
            outputs, last = lstm(
                F.linear(round_up(rows), self.weight, self.bias),
                recurrent,
                self.projection,
                placed,
                steps.sizes,
                cell_clip=self.clips[0],
                projection_clip=self.clips[1],
            )
        back = torch.argsort(steps.slots)
        after = State(last.hidden[back], last.cell[back])
        return outputs.index_select(0, steps.back), after

    @property
    def _is_plain(self) -> bool:
        return self.projection is None and not any(self.clips)

    def _has_kernel(self, steps: Steps) -> bool:
        """Whether torch has a kernel for a plain LSTM that is fast where this runs."""
        device = self.weight.device
        if device.type == "cuda":
            return steps.full
        return steps.even and has_fused_lstm(activation_dtype(device), device)


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
        last = x.new_zeros(len(steps.slots), self.layer.hidden_size, dtype=torch.float32)
        if not steps.sizes:
            return last[:0], last
        with torch.autocast(x.device.type, enabled=False):
            rows = x.float().index_select(0, steps.order)
            packed, ends = self.layer(PackedSequence(rows, torch.tensor(steps.sizes)))
        last = torch.cat([ends[0], last[len(ends[0]) :]])  # sequences without a token come last
        return packed.data.index_select(0, steps.back), last[torch.argsort(steps.slots)]


def _direction(kind: Kind, input_size: int, hidden_size: int, *, reverse: bool) -> nn.Module:
    if kind == "lstm":
        return LSTMLayer(input_size, hidden_size, reverse=reverse)
    return TorchLayer({"gru": nn.GRU, "tanh": nn.RNN}[kind](input_size, hidden_size))
