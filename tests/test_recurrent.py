"""Recurrent layers against torch's own, and against the definition."""

import pytest
import torch
from torch import nn

from firth.models.recurrence import State, Steps
from firth.models.recurrent import LSTMLayer, RecurrentStack

STARTS = torch.tensor([0, 3, 10, 11, 15, 22])


def per_sequence(x):
    return [x[a:b] for a, b in zip(STARTS[:-1].tolist(), STARTS[1:].tolist(), strict=True)]


def torch_order(matrix):
    """From our order of gates (i, f, o, g) to torch's (i, f, g, o)."""
    i, f, o, g = matrix.chunk(4)
    return torch.cat([i, f, g, o])


def reference_of(layer: LSTMLayer) -> nn.LSTM:
    projected = layer.projection is not None
    reference = nn.LSTM(
        layer.input_size, layer.cell_size, proj_size=layer.hidden_size if projected else 0
    )
    with torch.no_grad():
        reference.weight_ih_l0.copy_(torch_order(layer.weight))
        reference.weight_hh_l0.copy_(torch_order(layer.recurrent))
        reference.bias_ih_l0.copy_(torch_order(layer.bias))
        reference.bias_hh_l0.zero_()
        if projected:
            reference.weight_hr_l0.copy_(layer.projection)
    return reference


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("cell_size", [None, 9])
def test_lstm_and_its_gradients_are_torchs(cell_size):
    torch.manual_seed(0)
    layer = LSTMLayer(4, 6, cell_size=cell_size)
    nn.init.normal_(layer.bias)
    reference = reference_of(layer)
    x = torch.randn(22, 4, requires_grad=True)
    given = State(torch.randn(5, 6, requires_grad=True), torch.randn(5, cell_size or 6))
    given.cell.requires_grad_()
    outputs, after = layer(x, Steps.of(STARTS, x.device), given)
    weights = torch.randn(22, 6)
    loss = (outputs * weights).sum() + after.hidden.square().sum() + 2 * after.cell.sum()
    ours = torch.autograd.grad(loss, [x, *given, layer.weight, layer.recurrent, layer.bias])
    total, theirs = 0.0, []
    for i, (one, weight) in enumerate(zip(per_sequence(x), per_sequence(weights), strict=True)):
        out, (hidden, cell) = reference(one, (given.hidden[i : i + 1], given.cell[i : i + 1]))
        theirs.append(out)
        total = total + (out * weight).sum() + hidden.square().sum() + 2 * cell.sum()
        assert torch.allclose(hidden[0], after.hidden[i], atol=1e-6)
        assert torch.allclose(cell[0], after.cell[i], atol=1e-6)
    assert torch.allclose(torch.cat(theirs), outputs, atol=1e-6)
    own = [reference.weight_ih_l0, reference.weight_hh_l0, reference.bias_ih_l0]
    expected = torch.autograd.grad(total, [x, *given, *own])
    for a, b in zip(ours[:3], expected[:3], strict=True):
        assert torch.allclose(a, b, atol=2e-5)
    for a, b in zip(ours[3:], expected[3:], strict=True):
        assert torch.allclose(torch_order(a), b, atol=2e-5)


def by_hand(layer: LSTMLayer, x):
    """The clipped projected LSTM of one sequence, step by step, for autograd."""
    hidden, cell = x.new_zeros(layer.hidden_size), x.new_zeros(layer.cell_size)
    outputs = []
    for one in x:
        i, f, o, g = (layer.weight @ one + layer.recurrent @ hidden + layer.bias).chunk(4)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        cell = cell.clamp(-layer.clips[0], layer.clips[0])
        hidden = layer.projection @ (torch.sigmoid(o) * torch.tanh(cell))
        hidden = hidden.clamp(-layer.clips[1], layer.clips[1])
        outputs.append(hidden)
    return torch.stack(outputs)


def test_clipping_and_its_gradient():
    torch.manual_seed(1)
    layer = LSTMLayer(3, 4, cell_size=5, cell_clip=0.4, projection_clip=0.2).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(22, 3, dtype=torch.float64, requires_grad=True)
    outputs, _ = layer(x, Steps.of(STARTS, x.device))
    expected = torch.cat([by_hand(layer, one) for one in per_sequence(x)])
    clipped = (expected.abs() == 0.2).float().mean()
    assert 0.1 < clipped < 0.9  # else the test shows nothing
    assert torch.allclose(outputs.double(), expected, atol=1e-12)
    weights = torch.randn_like(outputs)
    wanted = [x, *layer.parameters()]
    ours = torch.autograd.grad((outputs * weights).sum(), wanted)
    theirs = torch.autograd.grad((expected * weights).sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh"])
def test_a_batch_gives_what_each_sequence_gives_alone(kind):
    torch.manual_seed(2)
    stack = RecurrentStack(4, 6, kind=kind, num_layers=2, bidirectional=True)
    x = torch.randn(22, 4)
    together = stack(x, STARTS)
    alone = [stack(one, torch.tensor([0, len(one)])) for one in per_sequence(x)]
    assert together.shape == (22, 12)
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh"])
@pytest.mark.parametrize("lengths", [[3, 3, 0], [0, 2], [0], [*[4] * 16, 0], [0, 1, 0, 5]])
def test_sequences_without_a_token_change_nothing(kind, lengths):
    torch.manual_seed(2)
    stack = RecurrentStack(4, 6, kind=kind, bidirectional=True)
    x = torch.randn(sum(lengths), 4, requires_grad=True)
    starts = torch.tensor([0, *lengths]).cumsum(0)
    found = stack(x, starts)
    expected = stack(x, starts.unique()) if x.numel() else x.new_empty(0, 12)
    assert torch.allclose(found, expected, atol=1e-6)
    if x.numel():
        assert torch.isfinite(torch.autograd.grad(found.sum(), x)[0]).all()


@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh"])
def test_directions_see_their_side_only(kind):
    torch.manual_seed(3)
    stack = RecurrentStack(4, 6, kind=kind, bidirectional=True)
    x = torch.randn(7, 4)
    starts = torch.tensor([0, 7])
    before = stack(x, starts)
    changed = x.clone()
    changed[3] += 1
    moved = (stack(changed, starts) - before).abs().amax(1, keepdim=False) > 0
    assert moved.all()
    forward = (stack(changed, starts) - before)[:, :6].abs().amax(1) > 1e-7
    backward = (stack(changed, starts) - before)[:, 6:].abs().amax(1) > 1e-7
    assert forward.tolist() == [False] * 3 + [True] * 4
    assert backward.tolist() == [True] * 4 + [False] * 3


def test_dropped_recurrent_weights():
    """Merity et al. 2018: one mask a pass, and the full matrix gets its gradient through it."""
    torch.manual_seed(4)
    layer = LSTMLayer(4, 32, weight_dropout=0.5)
    x = torch.randn(22, 4)
    steps = Steps.of(STARTS, x.device)
    first, second = layer(x, steps)[0], layer(x, steps)[0]
    assert not torch.allclose(first, second)
    # The first step has no h before it, so there U has no say.
    opening = STARTS[:-1]
    assert torch.equal(first[opening], second[opening])
    first.sum().backward()
    share = (layer.recurrent.grad == 0).float().mean()
    assert 0.45 < share < 0.55
    layer.eval()
    assert torch.equal(layer(x, steps)[0], layer(x, steps)[0])
    assert torch.allclose(layer(x, steps)[0][opening], first[opening])


def test_a_stream_cut_in_two_goes_on_where_it_stopped():
    torch.manual_seed(5)
    layer = LSTMLayer(4, 6, cell_size=8, cell_clip=3.0, projection_clip=3.0)
    x = torch.randn(20, 4)
    whole, last = layer(x, Steps.of(torch.tensor([0, 10, 20]), x.device))
    cut = torch.tensor([0, 5, 10])
    head, state = layer(torch.cat([x[:5], x[10:15]]), Steps.of(cut, x.device))
    tail, end = layer(torch.cat([x[5:10], x[15:]]), Steps.of(cut, x.device), state)
    rebuilt = torch.cat([head[:5], tail[:5], head[5:], tail[5:]])
    assert torch.allclose(rebuilt, whole, atol=1e-6)
    assert torch.allclose(end.cell, last.cell, atol=1e-6)


def test_bfloat16_products_are_close():
    torch.manual_seed(6)
    layer = LSTMLayer(16, 32)
    x = torch.randn(22, 16)
    steps = Steps.of(STARTS, x.device)
    exact = layer(x, steps)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = layer(x, steps)[0]
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().max() < 0.02
    rough.float().sum().backward()
    assert layer.recurrent.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sequences_of_one_length_take_torchs_kernel_and_give_the_same(dtype):
    """Those of one length go to a fused kernel; an additional sequence sends all to our own."""
    torch.manual_seed(7)
    layer = LSTMLayer(4, 6)
    nn.init.normal_(layer.bias)
    x = torch.randn(18, 4)
    even, uneven = torch.tensor([0, 5, 10, 15]), torch.tensor([0, 5, 10, 15, 18])
    given = State(torch.randn(4, 6), torch.randn(4, 6))
    three = State(given.hidden[:3], given.cell[:3])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        fused, after = layer(x[:15], Steps.of(even, x.device), three)
        ours, last = layer(x, Steps.of(uneven, x.device), given)
    near = 1e-6 if dtype == torch.float32 else 0.02
    assert (fused - ours[:15]).abs().max() < near
    assert (after.cell - last.cell[:3]).abs().max() < near
    wanted = [layer.weight, layer.recurrent, layer.bias]
    weights = torch.randn(15, 6)
    gradients = [
        torch.autograd.grad((one * weights).sum() + state.cell[:3].sum(), wanted)
        for one, state in ((fused, after), (ours[:15], last))
    ]
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() < (1e-5 if dtype == torch.float32 else 0.2)
