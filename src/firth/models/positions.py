"""Where a token stands: rotary positions turn queries and keys, sinusoids add to embeddings, and
T5's distances add to scores.
"""

import math

import torch
import torch.nn.functional as F
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
    """Turns the first `count` of (N, C, K) columns and copies the others, in one new tensor.

    With `norm_eps` the columns to be turned are normalised first, here, so that the gradient of
    `columns` is not put together from parts.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, columns: Tensor, cos: Tensor, sin: Tensor, count: int, norm_eps: float | None
    ) -> Tensor:
        turning, saved = columns[:, :count], ()
        if norm_eps is not None:
            plain = turning.contiguous()
            size = plain.shape[-1:]
            turning, *moments = torch.native_layer_norm(plain, size, None, None, norm_eps)
            saved = (plain, *moments)
        ctx.save_for_backward(cos, sin, *saved)
        ctx.count = count
        turned = torch.empty_like(columns)
        _turn(turning, cos, sin, turned[:, :count])
        turned[:, count:] = columns[:, count:]
        return turned

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        (cos, sin, *saved), (grad,) = ctx.saved_tensors, grads
        count = ctx.count
        d_columns = torch.empty_like(grad)
        d_columns[:, count:] = grad[:, count:]
        d_turning = torch.empty_like(saved[0]) if saved else d_columns[:, :count]
        _turn(grad[:, :count], cos, -sin, d_turning)
        if saved:
            plain, mean, rstd = saved
            d_columns[:, :count] = torch.ops.aten.native_layer_norm_backward(
                d_turning, plain, plain.shape[-1:], mean, rstd, None, None, [True, False, False]
            )[0]
        return d_columns, None, None, None, None


def _turn(columns: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    cos = cos[:, None].to(columns.dtype)  # (N, 1, K/2)
    sin = sin[:, None].to(columns.dtype)
    half = columns.shape[-1] // 2
    a, b = columns[..., :half], columns[..., half:]
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=out[..., half:]).addcmul_(a, sin)


@uncompiled  # it writes into views
def _rotated_in_place(
    columns: Tensor, tables: tuple[Tensor, Tensor], count: int, norm_eps: float | None
) -> Tensor:
    return _Rotate.apply(columns, *tables, count, norm_eps)  # type: ignore[return-value]


def _rotated(
    columns: Tensor, tables: tuple[Tensor, Tensor], count: int, norm_eps: float | None
) -> Tensor:
    """The same in plain operations, which a compiler fuses."""
    turning, rest = columns.split([count, columns.shape[1] - count], dim=1)
    turning = turning.float()
    if norm_eps is not None:
        turning = F.layer_norm(turning, turning.shape[-1:], eps=norm_eps)
    cos, sin = (table[:, None] for table in tables)  # (N, 1, K/2)
    a, b = turning.chunk(2, dim=-1)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return torch.cat([turned.to(columns.dtype), rest], dim=1)


def rotate(
    columns: Tensor,
    tables: tuple[Tensor, Tensor],
    count: int,
    *,
    norm_eps: float | None = None,
) -> Tensor:
    """Applies rotary positions to the first `count` of (N, C, K) columns: queries and keys.

    Args:
        columns: all heads of each token.
        tables: cosines and sines, (N, K/2).
        count: heads that are turned.
        norm_eps: if given, they are normalised first, each to mean 0 and variance 1.
    """
    if torch.compiler.is_compiling() and columns.device.type != "cpu":
        return _rotated(columns, tables, count, norm_eps)
    return _rotated_in_place(columns, tables, count, norm_eps)


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
