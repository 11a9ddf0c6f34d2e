"""Muon on stacked matrices: the steps of the definition, those of PyTorch's, matrix by matrix."""

import pytest
import torch
from torch import nn

import firth
from firth.models import build
from firth.training import Muon
from firth.training.muon import StackedMuon, orthogonal

SHAPES = [(64, 32), (32, 64), (64, 32), (48, 48)]


def definition(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz of one matrix in float64 (Jordan et al. 2024, the listing)."""
    x = matrix.double() / (matrix.double().norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


@pytest.fixture
def float32(monkeypatch):
    monkeypatch.setattr("firth.training.muon.compute_dtype", lambda *_: torch.float32)


@pytest.mark.parametrize("shape", [(3, 40, 20), (2, 20, 40), (1, 16, 16)])
def test_matrices_become_orthogonal(shape, float32):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    found = orthogonal(matrices)
    for one, plain in zip(found, matrices, strict=True):
        torch.testing.assert_close(one.double(), definition(plain), atol=1e-4, rtol=0)
    large = torch.linalg.svdvals(found)[:, : min(shape[1:]) - 4]
    assert large.min() > 0.6
    assert large.max() < 1.25


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def after_steps(optimizer: torch.optim.Optimizer, given: list[nn.Parameter], count: int = 5):
    torch.manual_seed(1)
    for _ in range(count):
        for p in given:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return given


def test_steps_are_those_of_torch():
    how = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    ours, theirs = parameters(), parameters()
    optimizer = StackedMuon([{"params": ours}], **how)
    after_steps(optimizer, ours)
    reference = torch.optim.Muon(theirs, **how)
    after_steps(reference, theirs)
    for a, b, start in zip(ours, theirs, parameters(), strict=True):
        moved = (b - start).norm()
        assert (a - b).norm() < 0.02 * moved  # theirs computes in bfloat16
    buffers = [
        [one.state[p]["momentum_buffer"] for p in given]
        for one, given in ((optimizer, ours), (reference, theirs))
    ]
    torch.testing.assert_close(*buffers)


def test_parts_of_a_matrix_are_matrices_of_their_own(float32):
    torch.manual_seed(0)
    start, grad = torch.randn(96, 32), torch.randn(96, 32)
    whole = nn.Parameter(start.clone())
    parts = [nn.Parameter(part.clone()) for part in start.chunk(3)]
    whole.grad = grad
    for part, of_part in zip(parts, grad.chunk(3), strict=True):
        part.grad = of_part.clone()
    for group in ({"params": [whole], "parts": 3}, {"params": parts}):
        StackedMuon([group], lr=0.1, momentum=0.9, weight_decay=0.1).step()
    torch.testing.assert_close(whole.data, torch.cat([p.data for p in parts]))


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("gpt", {}, {"qkv": 3, "out": 1, "up": 2, "down": 1}),
        ("gpt", {"model.num_groups": 1}, {"qkv": 1, "out": 1, "up": 2, "down": 1}),
        ("bert", {}, {"qkv": 3, "out": 1, "up": 1, "down": 1}),
        ("t5", {}, {"qkv": 3, "kv": 2, "q": 1, "up": 2}),
    ],
)
def test_fused_matrices_are_taken_apart(name, settings, expected):
    recipe = firth.recipe(name, size="tiny", vocab_size=100).with_settings(settings)
    named = list(build(recipe.model).named_parameters())
    muon = Muon().build(named)[0]
    parts = {id(p): group["parts"] for group in muon.param_groups for p in group["params"]}
    found = {key.split(".")[-2]: parts[id(p)] for key, p in named if id(p) in parts}
    assert expected.items() <= found.items()
