"""Where a token stands: rotary positions turn queries and keys, sinusoids add to embeddings, and
T5's distances add to scores.
"""

import math

import torch
from torch import Tensor, nn

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


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """(N, D) float32 sinusoidal positions (Vaswani et al. 2017, section 3.5).

    PE(m, 2i) = sin(m / 10000^(2i / D)), PE(m, 2i + 1) = cos(m / 10000^(2i / D)).
    """
    pairs = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32)
    angles = positions[:, None].float() * 10_000.0 ** (-pairs / size)  # (N, D/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def distance_buckets(
    distances: Tensor, *, num_buckets: int, max_distance: int, both_sides: bool
) -> Tensor:
    """The bucket of each distance key - query (Raffel et al. 2020, section 2.1).

    Of n buckets the first n/2 hold one distance each; the others grow logarithmically up to
    `max_distance`, and the last holds all beyond. With `both_sides` half of the buckets are for
    keys after the query; without, such keys fall into the bucket of distance 0 (they are masked).

    Args:
        distances: int64 of any shape.
        num_buckets: of both sides together.
        max_distance: from here on all distances share a bucket.
        both_sides: whether keys may stand after the query.

    Returns:
        int64 of the same shape, from 0 to num_buckets - 1.
    """
    offset = torch.zeros_like(distances)
    if both_sides:
        num_buckets //= 2
        offset = (distances > 0) * num_buckets
        back = distances.abs()
    else:
        back = (-distances).clamp_min(0)
    exact = num_buckets // 2
    share = (back.clamp_min(1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (share * (num_buckets - exact)).long()).clamp_max(num_buckets - 1)
    return offset + torch.where(back < exact, back, far)


class DistanceBias(nn.Module):
    """What is added to each head's scores by the distance of key and query (T5)."""

    def __init__(
        self, num_heads: int, *, num_buckets: int, max_distance: int, both_sides: bool
    ) -> None:
        super().__init__()
        self.values = nn.Embedding(num_buckets, num_heads)
        self.max_distance, self.both_sides = max_distance, both_sides

    def forward(self, longest: int) -> Tensor:
        """(H, 2T-1) for distances from -(T-1) to T-1, T being the longest sequence."""
        device = self.values.weight.device
        buckets = distance_buckets(
            torch.arange(1 - longest, longest, device=device),
            num_buckets=self.values.num_embeddings,
            max_distance=self.max_distance,
            both_sides=self.both_sides,
        )
        return self.values(buckets).t()
