"""Attention over packed sequences: the two back ends agree, batched equals one by one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from firth.models.attention import Layout, Mask, _scaled_dot_product, attend
from firth.models.positions import rotary_tables, rotate
from firth.text.batches import collate
from tests.sources import tiny_bert, tiny_modern_bert

MASKS = [Mask(), Mask(window=3), Mask(causal=True), Mask(causal=True, window=2)]


def naive(qkv: torch.Tensor, starts: torch.Tensor, mask: Mask) -> torch.Tensor:
    """One sequence and one query at a time, straight from the definition."""
    out = torch.zeros(qkv.shape[0], *qkv.shape[2:], dtype=qkv.dtype)
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        for i in range(a, b):
            seen = [
                j
                for j in range(a, b)
                if (not mask.causal or j <= i)
                and (mask.window is None or abs(i - j) <= mask.window)
            ]
            for head in range(qkv.shape[2]):
                scores = qkv[seen, 1, head] @ qkv[i, 0, head] / qkv.shape[3] ** 0.5
                out[i, head] = torch.softmax(scores, 0) @ qkv[seen, 2, head]
    return out


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.sampled_from(MASKS))
def test_back_ends_agree_with_the_definition(lengths, mask):
    generator = torch.Generator().manual_seed(sum(lengths))
    starts = torch.tensor([0, *np.cumsum(lengths)])
    shape = (int(starts[-1]), 3, 2, 4)
    qkv = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(shape[0], 2, 4, generator=generator, dtype=torch.float64)
    layout = Layout.of(starts, torch.device("cpu"))
    grads = []
    for function in (
        lambda: naive(qkv, starts, mask),
        lambda: attend(qkv, layout, mask),
        lambda: _scaled_dot_product(qkv, layout, mask, 0.0),
    ):
        out = function()
        (grad,) = torch.autograd.grad((out * weight).sum(), qkv)
        grads.append((out.detach(), grad))
    for out, grad in grads[1:]:
        torch.testing.assert_close(out, grads[0][0], atol=1e-10, rtol=0)
        torch.testing.assert_close(grad, grads[0][1], atol=1e-10, rtol=0)


def test_dropout_is_unbiased_and_its_gradient_is_right():
    layout = Layout.of(torch.tensor([0, 6, 10]), torch.device("cpu"))
    qkv = torch.randn(10, 3, 2, 4, dtype=torch.float64, requires_grad=True)

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return attend(x, layout, Mask(), dropout=0.3)

    assert torch.autograd.gradcheck(run, (qkv,))
    torch.manual_seed(1)
    with torch.no_grad():
        mean = torch.stack([attend(qkv, layout, Mask(), dropout=0.3) for _ in range(4000)])
        exact = attend(qkv, layout, Mask())
    error = (mean.mean(0) - exact).abs() / (mean.std(0) / 4000**0.5)
    assert error.max() < 5


@pytest.mark.parametrize("make", [tiny_bert, tiny_modern_bert])
def test_batched_equals_one_by_one(make):
    torch.manual_seed(0)
    model = make().eval()
    rng = np.random.default_rng(0)
    texts = [rng.integers(5, 60, n) for n in (3, 17, 30, 17, 1, 9, 64)]
    with torch.no_grad():
        together = model(collate(texts), hidden_states=True)
        starts = collate(texts).starts.tolist()
        for i, text in enumerate(texts):
            alone = model(collate([text]), hidden_states=True)
            for a, b in zip(together.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(a[starts[i] : starts[i + 1]], b, atol=2e-6, rtol=0)


def test_a_window_hides_what_is_far():
    torch.manual_seed(0)
    model = tiny_modern_bert(global_every=100, num_layers=2).eval()  # layer 1 is local
    ids = np.arange(5, 37)  # 32 tokens: no spare rows
    changed = ids.copy()
    changed[0] = 50
    with torch.no_grad():
        layer = model.layers[1]
        states = [model(collate([x]), hidden_states=True).hidden_states[1] for x in (ids, changed)]
        states[1][1:] = states[0][1:]  # the layer sees a change at position 0 alone
        layout = Layout.of(torch.tensor([0, 32]), torch.device("cpu"))
        rotary = rotary_tables(layout.positions, 16, 10_000.0)
        difference = (layer(states[0], layout, rotary) - layer(states[1], layout, rotary)).abs()
    assert difference[:5].amax(1).min() > 1e-6
    assert difference[5:].max() == 0


def test_rotary_scores_depend_on_the_distance_alone():
    tables = rotary_tables(torch.arange(50), 8, 10_000.0)
    one = torch.randn(1, 3, 1, 8).expand(50, 3, 1, 8)
    turned = rotate(one, tables)
    scores = turned[:, 0, 0] @ turned[:, 1, 0].T
    for distance in (-7, 0, 3):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert torch.autograd.gradcheck(
        lambda x: rotate(x, tuple(t[:4].double() for t in tables)),
        (torch.randn(4, 3, 1, 8, dtype=torch.float64, requires_grad=True),),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_loss_and_gradients(dtype):
    from firth.models.layers import linear_cross_entropy

    torch.manual_seed(0)
    hidden = torch.randn(50, 16).to(dtype).requires_grad_()
    weight, bias = torch.randn(30, 16, requires_grad=True), torch.randn(30, requires_grad=True)
    targets = torch.randint(0, 30, (50,))
    expected = F.cross_entropy(hidden.float() @ weight.T + bias, targets, reduction="sum")
    reference = torch.autograd.grad(expected, (hidden, weight, bias))
    loss = linear_cross_entropy(hidden, weight, bias, targets)
    grads = torch.autograd.grad(loss * 1.0, (hidden, weight, bias))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=tolerance, atol=0)
    for ours, theirs in zip(grads, reference, strict=True):
        error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert error < tolerance
    with torch.no_grad():
        plain = linear_cross_entropy(hidden, weight, bias, targets)
    torch.testing.assert_close(plain, expected.detach(), rtol=tolerance, atol=0)


def test_head_loss_in_chunks_is_the_same(monkeypatch):
    from firth.models import layers

    torch.manual_seed(0)
    hidden = torch.randn(50, 16, requires_grad=True)
    weight, bias, targets = torch.randn(30, 16), torch.randn(30), torch.randint(0, 30, (50,))
    whole = layers.linear_cross_entropy(hidden, weight, bias, targets)
    (grad,) = torch.autograd.grad(whole, hidden)
    monkeypatch.setattr(layers, "_CHUNK_ELEMENTS", 7 * 30)
    parts = layers.linear_cross_entropy(hidden, weight, bias, targets)
    torch.testing.assert_close(parts.detach(), whole.detach())
    torch.testing.assert_close(torch.autograd.grad(parts, hidden)[0], grad)
