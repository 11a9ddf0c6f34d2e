"""Norms of a flat (N, D)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormKind = Literal["layer", "rms"]


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016): y = g (x - mean) / sqrt(var + eps) + b.

    Computed in float32 whatever the dtype of `x`; the output has the dtype of `x`.
    """

    def __init__(self, size: int, *, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":  # the kernel takes bfloat16 x with float32 g and b
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        bias = None if self.bias is None else self.bias.float()
        y = F.layer_norm(x.float(), self.weight.shape, self.weight.float(), bias, self.eps)
        return y.to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """g n with n = x / sqrt(mean x^2 + eps), of (N, D) float32, for the CPU.

    PyTorch composes its own of single operations, and their gradients of more: over three times the
    time of a layer norm, where this takes half as long again. A layer norm whose mean is 0 has the
    same gradient of x but for what the mean would have given, - mean(g dy) / sqrt(mean x^2 + eps);
    so its kernel is used here.
    """

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (N, 1)
        ctx.save_for_backward(x, gain, inverse)
        return (x * inverse).mul_(gain)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        (x, gain, inverse), grad = ctx.saved_tensors, grads[0].contiguous()
        d_x, d_gain, _ = torch.ops.aten.native_layer_norm_backward(
            *(grad, x, gain.shape, torch.zeros_like(inverse), inverse, gain, None),
            [True, True, False],
        )
        means = torch.mv(grad, gain).div_(len(gain))
        return d_x.add_(means[:, None] * inverse), d_gain, None


class RMSNorm(nn.Module):
    """RMS normalisation (Zhang and Sennrich 2019, eq. 4): y = g x / sqrt(mean x^2 + eps).

    Computed in float32 whatever the dtype of `x`; the output has the dtype of `x`.
    """

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return _RMSNorm.apply(x.float(), self.weight, self.eps).to(x.dtype)  # type: ignore[union-attr]
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


def make_norm(kind: NormKind, size: int, *, eps: float, bias: bool) -> LayerNorm | RMSNorm:
    """The norm of a Transformer: layer norm, or RMSNorm, which never has a bias."""
    if kind == "rms":
        return RMSNorm(size, eps=eps)
    return LayerNorm(size, eps=eps, bias=bias)
