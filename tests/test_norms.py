"""RMSNorm's own gradients on the CPU are those of PyTorch's formula."""

import pytest
import torch
import torch.nn.functional as F

from firth.models.norms import RMSNorm


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_rms_norm_has_the_values_and_gradients_of_the_formula(rows, offset):
    """Of states with a mean, too: a layer norm's would be other ones."""
    torch.manual_seed(0)
    norm = RMSNorm(24, eps=1e-2)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
    x = (0.2 * torch.randn(rows, 24) + offset).requires_grad_()
    given = torch.randn(rows, 24)
    y = norm(x)
    ours = torch.autograd.grad(y, [x, norm.weight], given)
    exact = [one.detach().double().requires_grad_() for one in (x, norm.weight)]
    theirs = F.rms_norm(exact[0], (24,), exact[1], 1e-2)
    assert torch.allclose(y.double(), theirs, atol=1e-6)
    for mine, other in zip(ours, torch.autograd.grad(theirs, exact, given.double()), strict=True):
        assert torch.allclose(mine.double(), other, atol=3e-6)


def test_rms_norm_of_zeros_is_zero_and_of_bfloat16_is_bfloat16():
    norm = RMSNorm(8, eps=1e-6)
    x = torch.zeros(2, 8, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    half = norm(torch.randn(3, 8).to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert torch.allclose(norm(torch.full((1, 8), 1e15)), torch.ones(1, 8))
