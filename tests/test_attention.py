"""Attention over packed sequences: the two back ends agree, batched equals one by one."""

from dataclasses import dataclass, replace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from firth.models.attention import (
    Mask,
    Scores,
    _scaled_dot_product,
    _takes_packed,
    _variable_length,
    attend,
)
from firth.models.layout import Layout, Packed, _stretches
from firth.models.positions import _rotated, _rotated_in_place, rotary_tables, rotate
from firth.text.batches import collate
from tests.sources import tiny_bert, tiny_modern_bert

MASKS = [Mask(), Mask(window=3), Mask(causal=True), Mask(causal=True, window=2)]


@dataclass
class Case:
    """Random queries, keys and values, and all that may shape their scores."""

    how: Scores
    starts: torch.Tensor
    own: torch.Tensor
    keys: torch.Tensor | None = None
    memory: torch.Tensor | None = None
    prefix: torch.Tensor | None = None
    distances: torch.Tensor | None = None

    @property
    def layout(self) -> Layout:
        device = torch.device("cpu")
        return Layout.of(self.starts, device, keys=self.keys, prefix=self.prefix)

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [x for x in (self.own, self.memory, self.distances) if x is not None]

    def attend(self, function=attend) -> torch.Tensor:
        if function is attend:
            given = {"memory": self.memory, "distances": self.distances}
            return attend(self.own, self.layout, self.how, **given)
        return function(self.own, self.memory, self.distances, self.layout, self.how)

    def naive(self) -> torch.Tensor:
        """One sequence and one query at a time, straight from the definition."""
        heads, groups = self.how.num_heads, self.how.num_groups
        beside = self.own[:, heads:] if self.memory is None else self.memory
        key_starts = self.starts if self.keys is None else self.keys
        out = torch.zeros(len(self.own), heads, self.own.shape[2], dtype=self.own.dtype)
        for b in range(len(self.starts) - 1):
            begin, first, last = int(self.starts[b]), int(key_starts[b]), int(key_starts[b + 1])
            for i in range(int(self.starts[b + 1]) - begin):
                seen = [j for j in range(last - first) if self.sees(b, i, j)]
                for head in range(heads):
                    group = head // (heads // groups)
                    k = beside[first:last, group][seen]
                    scores = k @ self.own[begin + i, head] * self.how.scale
                    if self.distances is not None:
                        reach = (self.distances.shape[1] + 1) // 2
                        places = torch.tensor([j - i + reach - 1 for j in seen])
                        scores = scores + self.distances[head, places]
                    v = beside[first:last, groups + group][seen]
                    out[begin + i, head] = torch.softmax(scores, 0) @ v
        return out

    def sees(self, b: int, i: int, j: int) -> bool:
        if self.keys is not None:
            return True
        mask = self.how.mask
        head = 0 if self.prefix is None else int(self.prefix[b])
        near = mask.window is None or abs(i - j) <= mask.window
        return near and (not mask.causal or j <= i or j < head)


@st.composite
def cases(draw) -> Case:
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    generator = torch.Generator().manual_seed(sum(lengths))
    groups = draw(st.sampled_from([1, 2, 4]))
    mask = draw(st.sampled_from(MASKS))
    how = Scores(num_heads=4, num_groups=groups, mask=mask, scale=draw(st.sampled_from([0.5, 1.0])))

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    starts = torch.tensor([0, *np.cumsum(lengths)])
    total, longest = sum(lengths), max(lengths)
    case = Case(how, starts, randn(total, 4 + 2 * groups, 2))
    if draw(st.booleans()):
        case.distances = randn(4, 2 * 24 - 1)
    if draw(st.booleans()):
        case.prefix = torch.tensor([draw(st.integers(0, n)) for n in lengths])
    elif draw(st.booleans()):
        others = [draw(st.integers(1, longest)) for _ in lengths]
        case.keys = torch.tensor([0, *np.cumsum(others)])
        case.own, case.memory = randn(total, 4, 2), randn(sum(others), 2 * groups, 2)
        case.how = replace(how, mask=Mask())
    return case


@settings(deadline=None)
@given(cases())
def test_back_ends_agree_with_the_definition(case):
    weight = torch.linspace(-1, 1, len(case.own) * 8, dtype=torch.float64).view(-1, 4, 2)
    found = []
    for out in (case.naive(), case.attend(), case.attend(_scaled_dot_product)):
        found.append((out.detach(), *torch.autograd.grad((out * weight).sum(), case.leaves)))
    for ours in found[1:]:
        for part, reference in zip(ours, found[0], strict=True):
            torch.testing.assert_close(part, reference, atol=1e-10, rtol=0)


def plain_varlen(q, k, v, starts, key_starts, longest, longest_key, *, scale, window_size):
    """What `varlen_attn` computes, from its description."""
    before, after = window_size
    out = torch.zeros_like(q)
    assert longest >= int(starts.diff().max())
    assert longest_key >= int(key_starts.diff().max())
    for b in range(len(starts) - 1):
        own = slice(int(starts[b]), int(starts[b + 1]))
        beside = slice(int(key_starts[b]), int(key_starts[b + 1]))
        place = torch.arange(own.stop - own.start)[:, None]
        key = torch.arange(beside.stop - beside.start)[None]
        hidden = ((key > place + after) & (after >= 0)) | ((key < place - before) & (before >= 0))
        scores = torch.einsum("ihk,jhk->hij", q[own], k[beside]) * scale
        p = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
        out[own] = torch.einsum("hij,jhk->ihk", p, v[beside])
    return out


@settings(deadline=None)
@given(cases(), st.booleans())
def test_packed_kernels_are_told_what_the_definition_says(case, grouped):
    if case.prefix is not None:  # causal sequences first, whole ones behind them
        lengths = case.starts.diff()
        whole = case.prefix > lengths // 2
        case.prefix = torch.where(whole.sort().values if grouped else whole, lengths, 0)
    packed = Packed(case.starts, torch.device("cpu"), case.keys, case.prefix)
    layout = replace(case.layout, stretches=_stretches(packed))
    if case.prefix is not None and not layout.stretches:
        seen = torch.where(case.prefix > 1, 1, 0)
        assert len(torch.unique_consecutive(seen)) > 2
        return
    with mock.patch("torch.nn.attention.varlen.varlen_attn", plain_varlen):
        found = _variable_length(case.own, case.memory, layout, case.how)
    case.distances = None
    torch.testing.assert_close(found, case.attend(), atol=1e-10, rtol=0)


def test_where_packed_kernels_are_not_taken():
    plain = Scores(num_heads=2, num_groups=2, mask=Mask(), scale=1.0)
    starts, cpu = torch.tensor([0, 4, 9]), torch.device("cpu")
    layout = replace(Layout.of(starts, cpu), stretches=_stretches(Packed(starts, cpu)))
    own = torch.zeros(9, 6, 16, dtype=torch.bfloat16)
    assert _takes_packed(own, None, layout, plain)
    for change in (
        (own.float(), None, layout, plain),
        (own, torch.zeros(2, 9), layout, plain),
        (own, None, replace(layout, stretches=()), plain),
        (own, None, layout, replace(plain, dropout=0.1)),
        (own[..., :12], None, layout, plain),
    ):
        assert not _takes_packed(*change)
    partial = Packed(starts, cpu, prefix=torch.tensor([2, 5]))
    assert _stretches(partial) == ()


def test_rotation_that_a_compiler_fuses_is_the_same():
    torch.manual_seed(0)
    columns = torch.randn(7, 6, 8, dtype=torch.float64, requires_grad=True)
    tables = rotary_tables(torch.arange(7), 8, 100.0)
    for norm_eps in (None, 1e-6):
        both = [turn(columns, tables, 4, norm_eps) for turn in (_rotated, _rotated_in_place)]
        torch.testing.assert_close(*both, atol=1e-6, rtol=0)
        grads = [torch.autograd.grad(one.sin().sum(), columns)[0] for one in both]
        torch.testing.assert_close(*grads, atol=1e-6, rtol=0)


def test_dropout_is_unbiased_and_its_gradient_is_right():
    layout = Layout.of(torch.tensor([0, 6, 10]), torch.device("cpu"))
    columns = torch.randn(10, 6, 4, dtype=torch.float64, requires_grad=True)
    plain = Scores(num_heads=2, num_groups=2, mask=Mask(), scale=0.5)
    dropped = replace(plain, dropout=0.3)

    def run(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return attend(x, layout, dropped)

    assert torch.autograd.gradcheck(run, (columns,))
    torch.manual_seed(1)
    with torch.no_grad():
        mean = torch.stack([attend(columns, layout, dropped) for _ in range(4000)])
        exact = attend(columns, layout, plain)
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
    one = torch.randn(1, 3, 8).expand(50, 3, 8)
    turned = rotate(one, tables, 2)
    scores = turned[:, 0] @ turned[:, 1].T
    for distance in (-7, 0, 3):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    assert torch.autograd.gradcheck(
        lambda x: rotate(x, tuple(t[:4].double() for t in tables), 2),
        (torch.randn(4, 3, 8, dtype=torch.float64, requires_grad=True),),
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
    monkeypatch.setitem(layers._CHUNK_ELEMENTS, "cpu", 7 * 30)
    parts = layers.linear_cross_entropy(hidden, weight, bias, targets)
    torch.testing.assert_close(parts.detach(), whole.detach())
    torch.testing.assert_close(torch.autograd.grad(parts, hidden)[0], grad)
