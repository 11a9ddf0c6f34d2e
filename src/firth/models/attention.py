"""Attention over sequences that lie end to end: the one place that knows where they end.

A `Layout` groups the sequences of a batch by length once; every layer then computes plain batched
matrix products over each group. On the CPU this is several times faster than
`scaled_dot_product_attention`, whose bfloat16 backward pass is slow there.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.models.layers import Dropout, keep_mask, keep_scale
from firth.models.positions import rotate

_HIDDEN = -1e9
"""Score of a key that may not be seen. Finite, so that a row without keys gives no NaN."""

_EDGES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


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
    positions: Tensor
    """(N) int64, counted from 0 in each sequence."""

    @staticmethod
    def of(starts: Tensor, device: torch.device) -> "Layout":
        """Groups the sequences that `starts` (B+1, on the CPU) delimits."""
        lengths = starts.diff()
        positions = torch.arange(int(starts[-1])) - starts[:-1].repeat_interleave(lengths)
        order = torch.argsort(lengths, stable=True)
        edges = torch.tensor(_EDGES)
        which = torch.searchsorted(edges, lengths[order])
        which = torch.where(which == len(_EDGES), len(_EDGES) + lengths[order] // 256, which)
        counts = torch.unique_consecutive(which, return_counts=True)[1].tolist()
        groups = [_group(starts, members, device) for members in order.split(counts)]
        return Layout(groups=tuple(groups), positions=positions.to(device))


def _group(starts: Tensor, members: Tensor, device: torch.device) -> Group:
    members = members.sort().values
    begin, lengths = starts[members], starts[members + 1] - starts[members]
    count, length = len(members), int(lengths.max())
    adjacent = bool((members.diff() == 1).all())
    tokens: Tensor | slice
    if adjacent:
        tokens = slice(int(begin[0]), int(begin[0] + lengths.sum()))
    if bool((lengths == length).all()):
        if not adjacent:
            tokens = (begin[:, None] + torch.arange(length)).flatten().to(device)
        return Group(count, length, tokens, None, tokens, None)
    place = torch.arange(length).expand(count, length)
    padding = place >= lengths[:, None]
    slots = begin[:, None] + torch.where(padding, 0, place)
    filled = (~padding).flatten().nonzero().squeeze(1)
    if not adjacent:
        tokens = slots.flatten()[filled].to(device)
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


class _PackedProducts(torch.autograd.Function):
    """softmax(Q K' / sqrt(K)) V group by group, with batched matrix products.

    Vaswani et al. 2017, eq. 1. The scale of the scores is folded into Q and the scale of dropout
    into V: both are K/S times smaller than the scores.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, layout: Layout, mask: Mask, rate: float) -> Tensor:  # type: ignore[override]
        tokens, _, heads, size = qkv.shape
        keep = keep_scale(rate, qkv.device) if rate else 1.0
        out = qkv.new_empty(tokens, heads, size)
        saved: list[Tensor | None] = []
        for group in layout.groups:
            slots = group.pad(qkv)  # (n, S, 3, H, K)
            q, k, v = (_heads(slots, part) for part in range(3))  # (n H, S, K)
            q.mul_(size**-0.5)
            scores = torch.bmm(q, k.transpose(1, 2))  # (n H, S, S)
            bias = _bias(group, mask, scores)
            if bias is not None:
                scores.view(group.count, heads, *scores.shape[1:]).add_(bias)
            p = torch.softmax(scores, dim=-1)
            dropped = keep_mask(p.shape, rate, p) if rate else None
            if dropped is not None:
                v.mul_(keep)
            o = torch.bmm(p if dropped is None else p * dropped, v)
            o = o.view(group.count, heads, group.length, size).transpose(1, 2)
            group.unpad_into(out, o)
            saved += [q, k, v, p, dropped]
        ctx.save_for_backward(*saved)
        ctx.layout, ctx.shape, ctx.keep = layout, qkv.shape, keep
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        _, _, heads, size = ctx.shape
        d_out = grads[0]
        d_qkv = d_out.new_empty(ctx.shape)
        for i, group in enumerate(ctx.layout.groups):
            q, k, v, p, dropped = ctx.saved_tensors[5 * i : 5 * i + 5]
            d_slots = p.new_empty(group.count, group.length, 3, heads, size)
            o = group.pad(d_out)  # (n, S, H, K)
            if group.filled is not None:  # a padding slot repeats a token: it must not count
                keep = group.hidden_keys.view(group.count, group.length, 1, 1) == 0
                o = o * keep.to(o.dtype)
            o = o.transpose(1, 2).reshape(-1, group.length, size)  # (n H, S, K)
            seen = p if dropped is None else p * dropped
            _write(d_slots, 2, torch.bmm(seen.transpose(1, 2), o).mul_(ctx.keep))
            d_p = torch.bmm(o, v.transpose(1, 2))
            if dropped is not None:
                d_p.mul_(dropped)
            d_scores = torch._softmax_backward_data(d_p, p, -1, d_p.dtype)
            _write(d_slots, 0, torch.bmm(d_scores, k).mul_(size**-0.5))
            _write(d_slots, 1, torch.bmm(d_scores.transpose(1, 2), q))
            group.unpad_into(d_qkv, d_slots)
        return d_qkv, None, None, None


def _write(slots: Tensor, part: int, value: Tensor) -> None:
    n, length, _, heads, size = slots.shape
    slots.select(2, part).copy_(value.view(n, heads, length, size).transpose(1, 2))


def _scaled_dot_product(qkv: Tensor, layout: Layout, mask: Mask, rate: float) -> Tensor:
    """The same through `scaled_dot_product_attention`, for devices with fused kernels."""
    tokens, _, heads, size = qkv.shape
    out = qkv.new_empty(tokens, heads, size)
    for group in layout.groups:
        q, k, v = group.pad(qkv).permute(2, 0, 3, 1, 4).unbind(0)  # (n, H, S, K)
        bias = _bias(group, mask, qkv)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)
        group.unpad_into(out, o.transpose(1, 2))
    return out


def attend(qkv: Tensor, layout: Layout, mask: Mask, *, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention within each sequence (Vaswani et al. 2017, eq. 1).

    Args:
        qkv: (N, 3, H, K) queries, keys and values.
        layout: where the sequences are.
        mask: which keys a query may see.
        dropout: rate on the attention probabilities.

    Returns:
        (N, H, K).
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
        tokens, size = x.shape
        qkv = self.qkv(x).view(tokens, 3, self.num_heads, size // self.num_heads)
        if rotary is not None:
            qkv = rotate(qkv, rotary)
        rate = self.dropout.rate if self.dropout.active else 0.0
        attended = attend(qkv, layout, self.mask, dropout=rate)  # (N, H, K)
        return self.out(attended.view(tokens, size))
