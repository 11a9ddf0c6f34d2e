"""Where a token stands: rotary positions turn queries and keys (learned ones are an embedding)."""

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles (Su et al. 2021, eq. 15).

    The angle of position m in pair i of K/2 is m theta^(-2i/K); pair i is made of the elements i
    and i + K/2 of a head (the layout of GPT-NeoX and ModernBERT).

    Args:
        positions: (N) int64.
        head_size: K.
        theta: the base of the geometric progression of wavelengths.

    Returns:
        cos and sin, (N, K/2) float32.
    """
    pairs = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32)
    frequencies = theta ** (-pairs / head_size)  # (K/2)
    angles = positions[:, None].float() * frequencies  # (N, K/2)
    return angles.cos(), angles.sin()


class _Rotate(torch.autograd.Function):
    """Turns the query and key parts of (N, 3, H, K) and copies the values, in one new tensor."""

    @staticmethod
    def forward(ctx, qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _rotated(qkv, cos, sin)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, -sin), None, None


def _rotated(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos = cos[:, None, None].to(qkv.dtype)  # (N, 1, 1, K/2)
    sin = sin[:, None, None].to(qkv.dtype)
    turned = torch.empty_like(qkv)
    half = qkv.shape[-1] // 2
    a, b = qkv[:, :2, :, :half], qkv[:, :2, :, half:]
    torch.mul(a, cos, out=turned[:, :2, :, :half]).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=turned[:, :2, :, half:]).addcmul_(a, sin)
    turned[:, 2] = qkv[:, 2]
    return turned


def rotate(qkv: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Applies rotary positions to the queries and keys of (N, 3, H, K)."""
    return _Rotate.apply(qkv, *tables)  # type: ignore[return-value]
