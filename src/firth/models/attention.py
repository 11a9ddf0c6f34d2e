"""Attention over sequences that lie end to end: the one place that knows where they end.

A `Layout` groups the sequences of a batch by length once; every layer then computes plain batched
matrix products over each group. On the CPU this is several times faster than
`scaled_dot_product_attention`, whose bfloat16 backward pass is slow there.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.device import round_rows
from firth.models.layers import Dropout, keep_mask, keep_scale, random_bytes
from firth.models.positions import rotate

_HIDDEN = -1e9
"""Score of a key that may not be seen. Finite, so that a row without keys gives no NaN."""

_EDGES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sequences up to one of these lengths, and longer than the one before it, form a group."""

_TILE_SCORES = 1 << 18
"""Scores a head in one CPU tile: with four heads in bfloat16, two megabytes, which stay cached."""


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see within its own sequence.

    `window` = w hides keys more than w positions away on either side.
    """

    causal: bool = False
    window: int | None = None

    def bias(self, length: int, like: Tensor) -> Tensor | None:
        """(length, length) scores to add, or None where every key is seen."""
        if not self.causal and (self.window is None or self.window >= length - 1):
            return None
        place = torch.arange(length, device=like.device)
        distance = place[:, None] - place[None, :]  # query - key
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if self.causal:
            hidden |= distance < 0
        if self.window is not None:
            hidden |= distance.abs() > self.window
        return torch.zeros(length, length, dtype=like.dtype, device=like.device).masked_fill_(
            hidden, _HIDDEN
        )


@dataclass(frozen=True)
class Group:
    """Sequences of nearly one length, laid out as (count, length) with padding at the ends."""

    count: int
    length: int
    gather: Tensor | slice
    """Token of each of the count * length slots (padding slots repeat a token)."""
    filled: Tensor | None
    """Slots that hold a token, in the order of `scatter`; None where all do."""
    scatter: Tensor | slice
    """Token of each filled slot."""
    hidden_keys: Tensor | None
    """(count, 1, length) scores to add to padding keys."""

    def pad(self, x: Tensor) -> Tensor:
        """(N, ...) tokens to (count, length, ...) slots."""
        rows = x[self.gather] if isinstance(self.gather, slice) else x.index_select(0, self.gather)
        return rows.view(self.count, self.length, *x.shape[1:])

    def unpad_into(self, out: Tensor, slots: Tensor) -> None:
        """Writes (count, length, ...) slots back to their tokens of `out`."""
        rows = slots.reshape(self.count * self.length, *out.shape[1:])
        if self.filled is not None:
            rows = rows.index_select(0, self.filled)
        out[self.scatter] = rows


@dataclass(frozen=True)
class Layout:
    """How a batch's sequences are grouped for attention, and each token's position."""

    groups: tuple[Group, ...]
    num_tokens: int
    """N."""
    positions: Tensor
    """(R) int64, counted from 0 in each sequence; R - N spare rows follow (see `round_rows`)."""

    @staticmethod
    def of(starts: Tensor, device: torch.device) -> "Layout":
        """Groups the sequences that `starts` (B+1, on the CPU) delimits."""
        lengths = starts.diff()
        num_tokens = int(starts[-1])
        positions = torch.zeros(round_rows(num_tokens, device), dtype=torch.int64)
        positions[:num_tokens] = torch.arange(num_tokens)
        positions[:num_tokens] -= starts[:-1].repeat_interleave(lengths)
        order = torch.argsort(lengths, stable=True)
        edges = torch.tensor(_EDGES)
        which = torch.searchsorted(edges, lengths[order])
        which = torch.where(which == len(_EDGES), len(_EDGES) + lengths[order] // 256, which)
        counts = torch.unique_consecutive(which, return_counts=True)[1].tolist()
        groups = []
        for members in order.split(counts):
            longest = int(lengths[members].max())
            tile = len(members)
            if device.type == "cpu":  # few shapes, and scores that fit the cache
                longest = next((edge for edge in _EDGES if edge >= longest), -(-longest // 64) * 64)
                tile = max(1, _TILE_SCORES // longest**2)
            for part in members.sort().values.split(tile):
                groups.append(_group(starts, part, longest, device))
        return Layout(tuple(groups), num_tokens, positions.to(device))


def _group(starts: Tensor, members: Tensor, length: int, device: torch.device) -> Group:
    begin, lengths = starts[members], starts[members + 1] - starts[members]
    count = len(members)
    place = torch.arange(length).expand(count, length)
    padding = place >= lengths[:, None]
    slots = begin[:, None] + torch.where(padding, 0, place)  # (n, S)
    filled = (~padding).flatten().nonzero().squeeze(1)
    tokens: Tensor | slice = slots.flatten()[filled].to(device)
    if bool((members.diff() == 1).all()):  # neighbours: a slice instead of indexes
        tokens = slice(int(begin[0]), int(begin[0] + lengths.sum()))
    if not bool(padding.any()):
        return Group(count, length, tokens, None, tokens, None)
    hidden = torch.zeros(count, 1, length).masked_fill_(padding[:, None], _HIDDEN)
    return Group(
        count,
        length,
        slots.flatten().to(device),
        filled.to(device),
        tokens,
        hidden.to(device),
    )


def _bias(group: Group, mask: Mask, like: Tensor) -> Tensor | None:
    """(count, 1, length or 1, length) scores to add, or None."""
    visible = mask.bias(group.length, like)
    if group.hidden_keys is None:
        return visible
    keys = group.hidden_keys[:, None].to(like.dtype)  # (n, 1, 1, S)
    return keys if visible is None else keys + visible


def _heads(slots: Tensor, part: int) -> Tensor:
    """Queries (0), keys (1) or values (2) of (n, S, 3, H, K), as a contiguous (n H, S, K) copy."""
    n, length, _, heads, size = slots.shape
    rows = slots.select(2, part).transpose(1, 2)
    # reshape would give a view where n or H is 1, and the caller scales the result in place.
    return rows.clone(memory_format=torch.contiguous_format).view(n * heads, length, size)


def _probabilities(slots: Tensor, group: Group, mask: Mask) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries, keys (n H, S, K) and softmax(Q K' / sqrt(K)) (n H, S, S) of a tile."""
    q, k = _heads(slots, 0), _heads(slots, 1)
    q.mul_(q.shape[-1] ** -0.5)
    scores = torch.bmm(q, k.transpose(1, 2))
    bias = _bias(group, mask, scores)
    if bias is not None:
        scores.view(group.count, -1, *scores.shape[1:]).add_(bias)
    return q, k, torch.softmax(scores, dim=-1)


class _PackedProducts(torch.autograd.Function):
    """softmax(Q K' / sqrt(K)) V tile by tile, with batched matrix products.

    Vaswani et al. 2017, eq. 1. As in Dao et al. 2022 the probabilities of a tile stay in the cache
    and are computed again in the backward pass: reading them back from memory would take longer.
    The scale of the scores is folded into Q and that of dropout into V: both are smaller.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, layout: Layout, mask: Mask, rate: float) -> Tensor:  # type: ignore[override]
        rows, _, heads, size = qkv.shape
        keep = keep_scale(rate, qkv.device) if rate else 1.0
        out = qkv.new_empty(rows, heads, size)
        out[layout.num_tokens :] = 0
        drawn = []
        for group in layout.groups:
            slots = group.pad(qkv)  # (n, S, 3, H, K)
            _, _, p = _probabilities(slots, group, mask)
            v = _heads(slots, 2)
            if rate:
                drawn.append(random_bytes(p.shape))
                p.mul_(keep_mask(drawn[-1], rate, p))
                v.mul_(keep)
            o = torch.bmm(p, v).view(group.count, heads, group.length, size)
            group.unpad_into(out, o.transpose(1, 2))
        ctx.save_for_backward(qkv, *drawn)
        ctx.layout, ctx.mask, ctx.rate, ctx.keep = layout, mask, rate, keep
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        qkv, *drawn = ctx.saved_tensors
        d_qkv = torch.empty_like(qkv)
        d_qkv[ctx.layout.num_tokens :] = 0
        for i, group in enumerate(ctx.layout.groups):
            slots = group.pad(qkv)
            q, k, p = _probabilities(slots, group, ctx.mask)
            d_o = _heads(_padding_cleared(group, group.pad(grads[0]))[:, :, None], 0)  # (n H, S, K)
            d_p = torch.bmm(d_o, _heads(slots, 2).mul_(ctx.keep).transpose(1, 2))
            seen = p
            if ctx.rate:
                kept = keep_mask(drawn[i], ctx.rate, p)
                seen = p * kept
                d_p.mul_(kept)
            d_slots = torch.empty_like(slots)
            _write(d_slots, 2, torch.bmm(seen.transpose(1, 2), d_o).mul_(ctx.keep))
            d_scores = torch._softmax_backward_data(d_p, p, -1, d_p.dtype)  # type: ignore[attr-defined]
            _write(d_slots, 0, torch.bmm(d_scores, k).mul_(q.shape[-1] ** -0.5))
            _write(d_slots, 1, torch.bmm(d_scores.transpose(1, 2), q))
            group.unpad_into(d_qkv, d_slots)
        return d_qkv, None, None, None


def _padding_cleared(group: Group, slots: Tensor) -> Tensor:
    """(n, S, H, K) gradients with zeros where a slot is padding, which repeats a token."""
    if group.hidden_keys is None:
        return slots
    keep = group.hidden_keys.view(group.count, group.length, 1, 1) == 0
    return slots * keep.to(slots.dtype)


def _write(slots: Tensor, part: int, value: Tensor) -> None:
    n, length, _, heads, size = slots.shape
    slots.select(2, part).copy_(value.view(n, heads, length, size).transpose(1, 2))


def _scaled_dot_product(qkv: Tensor, layout: Layout, mask: Mask, rate: float) -> Tensor:
    """The same through `scaled_dot_product_attention`, for devices with fused kernels."""
    rows, _, heads, size = qkv.shape
    out = qkv.new_zeros(rows, heads, size)
    for group in layout.groups:
        q, k, v = group.pad(qkv).permute(2, 0, 3, 1, 4).unbind(0)  # (n, H, S, K)
        bias = _bias(group, mask, qkv)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)
        group.unpad_into(out, o.transpose(1, 2))
    return out


def attend(qkv: Tensor, layout: Layout, mask: Mask, *, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention within each sequence (Vaswani et al. 2017, eq. 1).

    Args:
        qkv: (R, 3, H, K) queries, keys and values of N tokens, then spare rows.
        layout: where the sequences are.
        mask: which keys a query may see.
        dropout: rate on the attention probabilities.

    Returns:
        (R, H, K), zero in the spare rows.
    """
    if qkv.device.type == "cpu":
        return _PackedProducts.apply(qkv, layout, mask, dropout)  # type: ignore[return-value]
    return _scaled_dot_product(qkv, layout, mask, dropout)


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2), one matrix for Q, K and V."""

    def __init__(
        self, size: int, num_heads: int, *, bias: bool, dropout: float, mask: Mask
    ) -> None:
        super().__init__()
        self.qkv = nn.Linear(size, 3 * size, bias=bias)
        self.out = nn.Linear(size, size, bias=bias)
        self.dropout = Dropout(dropout)
        self.num_heads = num_heads
        self.mask = mask

    def forward(
        self, x: Tensor, layout: Layout, rotary: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        rows, size = x.shape
        qkv = self.qkv(x).view(rows, 3, self.num_heads, size // self.num_heads)
        if rotary is not None:
            qkv = rotate(qkv, rotary)
        rate = self.dropout.rate if self.dropout.active else 0.0
        attended = attend(qkv, layout, self.mask, dropout=rate)  # (R, H, K)
        return self.out(attended.view(rows, size))
