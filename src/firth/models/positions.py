"""Where a token stands: rotary positions turn queries and keys, sinusoids add to embeddings."""

import torch
from torch import Tensor

from firth.device import uncompiled


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
    """Turns the first `count` of (N, C, K) columns and copies the others, in one new tensor."""

    @staticmethod
    def forward(ctx, columns: Tensor, cos: Tensor, sin: Tensor, count: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        ctx.count = count
        return _rotated(columns, cos, sin, count)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _rotated(grads[0], cos, -sin, ctx.count), None, None, None


def _rotated(columns: Tensor, cos: Tensor, sin: Tensor, count: int) -> Tensor:
    cos = cos[:, None].to(columns.dtype)  # (N, 1, K/2)
    sin = sin[:, None].to(columns.dtype)
    turned = torch.empty_like(columns)
    half = columns.shape[-1] // 2
    a, b = columns[:, :count, :half], columns[:, :count, half:]
    torch.mul(a, cos, out=turned[:, :count, :half]).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=turned[:, :count, half:]).addcmul_(a, sin)
    turned[:, count:] = columns[:, count:]
    return turned


@uncompiled  # it writes into views
def rotate(columns: Tensor, tables: tuple[Tensor, Tensor], count: int) -> Tensor:
    """Applies rotary positions to the first `count` of (N, C, K) columns: queries and keys."""
    return _Rotate.apply(columns, *tables, count)  # type: ignore[return-value]


def sinusoids(length: int, size: int) -> Tensor:
    """(length, size) sinusoidal positions (Vaswani et al. 2017, section 3.5).

    PE(m, 2i) = sin(m / 10000^(2i / D)), PE(m, 2i + 1) = cos(m / 10000^(2i / D)).
    """
    place = torch.arange(length, dtype=torch.float32)[:, None]
    frequencies = 10_000.0 ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = place * frequencies  # (length, D/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :size]
