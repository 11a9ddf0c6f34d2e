"""The recurrence of an LSTM, projected and clipped where it is asked for.

Notation (Hochreiter and Schmidhuber 1997, with forget gates, Gers et al. 2000):

    i, f, o = sigmoid(W x_t + U h_{t-1} + b),   g = tanh(W x_t + U h_{t-1} + b)
    c_t = f * c_{t-1} + i * g,                  h_t = o * tanh(c_t)
"""

import warnings
from typing import Any

import torch
from torch import Tensor

from firth.device import activation_dtype, fast_bfloat16, round_rows
from firth.models.recurrence import State


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
        places = round_rows(len(hidden), device)
        last_hidden, spare = (inputs.new_zeros(places, n) for n in (width, size))
        last_hidden[: len(hidden)], last_cell = hidden, cell.to(wide, copy=True)
        transposed, begin = recurrent.t(), 0
        for count in sizes:
            now, taken = slice(begin, begin + count), round_rows(count, device)
            entering[now], before[now] = last_hidden[:count], last_cell[:count]
            gate = gates[now]
            torch.add(inputs[now], torch.mm(last_hidden[:taken], transposed)[:count], out=gate)
            output = _cell(gate, before[now], cells[now], cell_clip)
            if projection is not None and raw is not None:
                raw[now] = spare[:count] = output
                output = torch.mm(spare[:taken], projection.t())[:count]
                if projection_clip:
                    output.clamp_(-projection_clip, projection_clip)
            outputs[now] = last_hidden[:count] = output
            last_cell[:count] = cells[now]
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


def _cell(gates: Tensor, before: Tensor, after: Tensor, clip: float) -> Tensor:
    """One step: activates the gates in place, fills `after` with the new cells, gives o tanh(c)."""
    size = before.shape[1]
    gates[:, : 3 * size].sigmoid_()
    gates[:, 3 * size :].tanh_()
    i, f, o, g = gates.split(size, dim=1)
    torch.mul(f, before, out=after).addcmul_(i, g)
    if clip:
        after.clamp_(-clip, clip)
    return o * after.tanh()


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


def has_fused_lstm(dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether torch has a kernel of its own for autocast to `dtype`; None for no autocast."""
    return dtype is None or fast_bfloat16(device)


def fused_lstm(
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    state: State,
    sizes: tuple[int, ...],
    *,
    training: bool,
) -> tuple[Tensor, State]:
    """The same by torch's own kernel, without projection and clipping.

    oneDNN computes all steps in one call, forward and backward, where sequences are of one length;
    cuDNN whatever their lengths are.

    Args:
        x: (N, D) step by step.
        weights: W (4H, D), U (4H, H) and b (4H), in our order of gates.
        state: before the first step.
        sizes: of each step.
        training: whether there will be a backward pass.

    Returns:
        (N, H) outputs step by step, and the state behind the last step of each sequence.
    """
    ordered = [_torch_order(one) for one in weights]
    ordered.append(torch.zeros_like(ordered[2]))  # it adds a second bias
    if not x.is_cpu:
        return _cudnn_lstm(x, ordered, state, sizes, training)
    begin = [state.hidden[None].to(x.dtype), state.cell[None].to(x.dtype)]
    together = x.view(len(sizes), -1, x.shape[1])
    outputs, hidden, cell = torch.lstm(
        together, begin, ordered, True, 1, 0.0, training, False, False
    )
    return outputs.flatten(0, 1), State(hidden[0], cell[0])


def _cudnn_lstm(
    x: Tensor, weights: list[Tensor], state: State, sizes: tuple[int, ...], training: bool
) -> tuple[Tensor, State]:
    dtype = activation_dtype(x.device) or x.dtype
    x, *weights = (one.to(dtype) for one in (x, *weights))
    begin = [state.hidden[None].to(dtype), state.cell[None].to(dtype)]
    with torch.autocast(x.device.type, enabled=False), warnings.catch_warnings():  # float16 else
        # Dropped weights are new in every step, so they cannot lie where it wants them.
        warnings.filterwarnings("ignore", message="RNN module weights are not part")
        outputs, hidden, cell = torch.lstm(
            x, torch.tensor(sizes), begin, weights, True, 1, 0.0, training, False
        )
    return outputs, State(hidden[0], cell[0])


def _torch_order(weight: Tensor) -> Tensor:
    """Rows of the gates i, f, o, g in the order i, f, g, o."""
    i, f, o, g = weight.chunk(4)
    return torch.cat([i, f, g, o])
