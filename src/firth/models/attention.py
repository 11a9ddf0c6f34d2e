"""Attention over sequences that lie end to end: the one place that knows where they end.

On the CPU a `Layout` groups the sequences of a batch by length once; every layer then computes
plain batched matrix products over each group. This is several times faster than
`scaled_dot_product_attention`, whose bfloat16 backward pass is slow there. On CUDA devices
`varlen_attn` takes the sequences as they lie, where it can: in half precision, without dropout on
the probabilities and without a bias by distance.

A token's heads stand in columns (C, K): H of queries, then G of keys, then G of values, with G = H
or, in grouped-query attention, a divisor of it.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from firth.device import uncompiled
from firth.models.layers import keep_mask, keep_scale, random_bytes
from firth.models.layout import Layout, Slots, Stretch, Tile

_HIDDEN = -1e9
"""Score of a key that may not be seen. Finite, so that a row without keys gives no NaN."""


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see within its own sequence.

    `causal` hides the keys after the query, but for those in the sequence's prefix (where the batch
    has prefixes), which all may see. `window` = w hides keys more than w positions away on either
    side.
    """

    causal: bool = False
    window: int | None = None

    def hidden(self, length: int, prefix: Tensor | None, device: torch.device) -> Tensor | None:
        """True where a key may not be seen: (S, S), or (n, 1, S, S) with prefixes (n).

        None where every key is seen.
        """
        narrow = self.window is not None and self.window < length - 1
        if not self.causal and not narrow:
            return None
        place = torch.arange(length, device=device)
        distance = place[:, None] - place[None, :]  # query - key
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if self.causal:
            hidden = distance < 0
            if prefix is not None:
                hidden = hidden & (place >= prefix[:, None, None, None])  # (n, 1, S, S)
        if narrow:
            assert self.window is not None
            hidden = hidden | (distance.abs() > self.window)
        return hidden


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How scores are made of queries and keys, and what may be seen."""

    num_heads: int
    """H."""
    num_groups: int
    """G, heads of keys and values."""
    mask: Mask
    scale: float
    dropout: float = 0.0
    """Rate on the probabilities."""

    @property
    def shared_by(self) -> int:
        """Query heads that share one head of keys and values."""
        return self.num_heads // self.num_groups


def _distance_index(tile: Tile, reach: int, device: torch.device) -> Tensor:
    """(S_q, S_k) column of the distance bias for each query and key: key - query + reach - 1.

    Slots beyond the longest sequence are padding, whose scores do not count.
    """
    q = torch.arange(tile.queries.length, device=device)
    k = torch.arange(tile.keys.length, device=device)
    return (k[None, :] - q[:, None] + reach - 1).clamp_(0, 2 * reach - 2)


def _bias(tile: Tile, mask: Mask, like: Tensor) -> Tensor | None:
    """(n or 1, 1, S_q or 1, S_k) scores to add, or None."""
    hidden = None
    if tile.own:
        mask = replace(mask, causal=False) if tile.whole else mask
        hidden = mask.hidden(tile.keys.length, tile.prefix, like.device)
    bias = None
    if hidden is not None:
        bias = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        bias.masked_fill_(hidden, _HIDDEN)
    if tile.keys.padding is None:
        return bias
    keys = tile.keys.padding[:, None, None].to(like.dtype) * _HIDDEN  # (n, 1, 1, S_k)
    return keys if bias is None else keys + bias


def _columns(slots: Tensor, begin: int, count: int, copies: int = 1) -> Tensor:
    """Heads `begin` to `begin + count` of (n, S, C, K), as (n count copies, S, K), contiguous."""
    n, length, _, size = slots.shape
    rows = slots[:, :, begin : begin + count].transpose(1, 2)
    # reshape would give a view where n or count is 1, and the caller scales the result in place.
    rows = rows.clone(memory_format=torch.contiguous_format).view(n * count, length, size)
    return rows if copies == 1 else rows.repeat_interleave(copies, dim=0)


def _write(slots: Tensor, begin: int, value: Tensor, copies: int = 1) -> None:
    """Puts (n count copies, S, K) into heads `begin` on of (n, S, C, K), copies added up."""
    n, length, _, size = slots.shape
    if copies > 1:
        value = value.view(-1, copies, length, size).sum(1)
    count = value.shape[0] // n
    slots[:, :, begin : begin + count].copy_(value.view(n, count, length, size).transpose(1, 2))


def _probabilities(
    q: Tensor, k: Tensor, tile: Tile, how: Scores, distances: Tensor | None
) -> Tensor:
    """softmax(Q K' + bias) of a tile, (n H, S_q, S_k), the scale being in Q already."""
    scores = torch.bmm(q, k.transpose(1, 2))
    by_head = scores.view(tile.queries.count, how.num_heads, *scores.shape[1:])
    if distances is not None:
        index = _distance_index(tile, (distances.shape[1] + 1) // 2, q.device)
        by_head.add_(distances[:, index].to(scores.dtype))
    bias = _bias(tile, how.mask, scores)
    if bias is not None:
        by_head.add_(bias)
    return torch.softmax(scores, dim=-1)


class _PackedProducts(torch.autograd.Function):
    """softmax(s Q K' + bias) V tile by tile, with batched matrix products.

    Vaswani et al. 2017, eq. 1. As in Dao et al. 2022 the probabilities of a tile stay in the cache
    and are computed again in the backward pass: reading them back from memory would take longer.
    The scale of the scores is folded into Q and that of dropout into V: both are smaller.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        own: Tensor,
        memory: Tensor | None,
        distances: Tensor | None,
        layout: Layout,
        how: Scores,
    ) -> Tensor:
        rows, _, size = own.shape
        keep = keep_scale(how.dropout, own.device) if how.dropout else 1.0
        out = own.new_empty(rows, how.num_heads, size)
        out[layout.num_tokens :] = 0
        drawn = []
        for tile in layout.tiles:
            q, k, v = _tile_heads(tile, own, memory, how)
            p = _probabilities(q, k, tile, how, distances)
            if how.dropout:
                drawn.append(random_bytes(p.shape))
                p.mul_(keep_mask(drawn[-1], how.dropout, p))
                v.mul_(keep)
            o = torch.bmm(p, v).view(tile.queries.count, how.num_heads, -1, size)
            tile.queries.unpad_into(out, o.transpose(1, 2))
        ctx.save_for_backward(own, memory, distances, *drawn)
        ctx.layout, ctx.how, ctx.keep = layout, how, keep
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[override]
        own, memory, distances, *drawn = ctx.saved_tensors
        layout, how = ctx.layout, ctx.how
        d_own = torch.empty_like(own)
        d_own[layout.num_tokens :] = 0
        d_memory = None if memory is None else torch.zeros_like(memory)
        d_distances = None if distances is None else torch.zeros_like(distances)
        heads, copies = how.num_heads, how.shared_by
        for i, tile in enumerate(layout.tiles):
            q, k, v = _tile_heads(tile, own, memory, how)
            p = _probabilities(q, k, tile, how, distances)
            d_o = _columns(_cleared(tile.queries, tile.queries.pad(grads[0])), 0, heads)
            d_p = torch.bmm(d_o, v.mul_(ctx.keep).transpose(1, 2))
            seen = p
            if how.dropout:
                kept = keep_mask(drawn[i], how.dropout, p)
                seen = p * kept
                d_p.mul_(kept)
            d_scores = torch._softmax_backward_data(d_p, p, -1, d_p.dtype)  # type: ignore[attr-defined]
            if d_distances is not None:
                _add_distances(d_distances, d_scores, tile, heads)
            slots = _empty_slots(tile.queries, own)
            beside = slots if memory is None else _empty_slots(tile.keys, memory)
            first = heads if memory is None else 0
            _write(slots, 0, torch.bmm(d_scores, k).mul_(how.scale))
            _write(beside, first, torch.bmm(d_scores.transpose(1, 2), q), copies)
            d_v = torch.bmm(seen.transpose(1, 2), d_o).mul_(ctx.keep)
            _write(beside, first + how.num_groups, d_v, copies)
            tile.queries.unpad_into(d_own, slots)
            if d_memory is not None:
                tile.keys.unpad_into(d_memory, beside)
        return d_own, d_memory, d_distances, None, None


def _tile_heads(
    tile: Tile, own: Tensor, memory: Tensor | None, how: Scores
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries (n H, S_q, K), keys and values (n H, S_k, K) of a tile, all copies."""
    slots = tile.queries.pad(own)
    beside, first = (slots, how.num_heads) if memory is None else (tile.keys.pad(memory), 0)
    q = _columns(slots, 0, how.num_heads).mul_(how.scale)
    k = _columns(beside, first, how.num_groups, how.shared_by)
    return q, k, _columns(beside, first + how.num_groups, how.num_groups, how.shared_by)


def _empty_slots(slots: Slots, like: Tensor) -> Tensor:
    return like.new_empty(slots.count, slots.length, *like.shape[1:])


def _add_distances(total: Tensor, d_scores: Tensor, tile: Tile, heads: int) -> None:
    """Adds a tile's (n H, S_q, S_k) gradients to those of the (H, 2T-1) distance bias."""
    summed = d_scores.view(-1, heads, *d_scores.shape[1:]).sum(0, dtype=total.dtype)
    index = _distance_index(tile, (total.shape[1] + 1) // 2, total.device)
    total.index_add_(1, index.flatten(), summed.flatten(1))


def _cleared(slots: Slots, x: Tensor) -> Tensor:
    """(n, S, H, K) gradients with zeros where a slot is padding, which repeats a token."""
    if slots.padding is None:
        return x
    return x * (~slots.padding).view(slots.count, slots.length, 1, 1).to(x.dtype)


@uncompiled  # a kernel of its own, and its tiles differ from batch to batch
def _packed_products(
    own: Tensor, memory: Tensor | None, distances: Tensor | None, layout: Layout, how: Scores
) -> Tensor:
    return _PackedProducts.apply(own, memory, distances, layout, how)  # type: ignore[return-value]


@uncompiled
def _scaled_dot_product(
    own: Tensor, memory: Tensor | None, distances: Tensor | None, layout: Layout, how: Scores
) -> Tensor:
    """The same through `scaled_dot_product_attention`, for devices with fused kernels."""
    rows, _, size = own.shape
    out = own.new_zeros(rows, how.num_heads, size)
    for tile in layout.tiles:
        slots = tile.queries.pad(own)
        both = slots[:, :, how.num_heads :] if memory is None else tile.keys.pad(memory)
        q = slots[:, :, : how.num_heads].transpose(1, 2)  # (n, H, S_q, K)
        k, v = (x.transpose(1, 2) for x in both.chunk(2, dim=2))  # (n, G, S_k, K)
        if how.shared_by > 1:
            k, v = (x.repeat_interleave(how.shared_by, dim=1) for x in (k, v))
        bias = _bias(tile, how.mask, own)
        if distances is not None:
            index = _distance_index(tile, (distances.shape[1] + 1) // 2, own.device)
            near = distances[:, index].to(own.dtype)[None]  # (1, H, S_q, S_k)
            bias = near if bias is None else near + bias
        o = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=how.dropout, scale=how.scale
        )
        tile.queries.unpad_into(out, o.transpose(1, 2))
    return out


def _takes_packed(own: Tensor, distances: Tensor | None, layout: Layout, how: Scores) -> bool:
    """Whether `varlen_attn` can compute it."""
    half = own.dtype in (torch.bfloat16, torch.float16)
    size = own.shape[-1]
    plain = distances is None and not how.dropout
    return bool(layout.stretches) and half and plain and size % 8 == 0 and size <= 256


def _variable_length(own: Tensor, memory: Tensor | None, layout: Layout, how: Scores) -> Tensor:
    """The same through `varlen_attn` (Dao 2023, FlashAttention-2), which needs no tiles."""
    from torch.nn.attention.varlen import varlen_attn

    if memory is None:
        q, k, v = own.split([how.num_heads, how.num_groups, how.num_groups], dim=1)
    else:
        q, (k, v) = own, memory.chunk(2, dim=1)
    if how.shared_by > 1:
        k, v = (x.repeat_interleave(how.shared_by, dim=1) for x in (k, v))
    parts: list[Any] = [
        varlen_attn(
            q[stretch.rows],
            k[stretch.key_rows],
            v[stretch.key_rows],
            stretch.starts,
            stretch.key_starts,
            stretch.longest,
            stretch.longest_key,
            scale=how.scale,
            window_size=_window(how.mask, stretch),
        )
        for stretch in layout.stretches
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _window(mask: Mask, stretch: Stretch) -> tuple[int, int]:
    """How many keys before and after a query are seen; -1 for all."""
    before = -1 if mask.window is None else mask.window
    return before, 0 if mask.causal and not stretch.whole else before


def attend(
    own: Tensor,
    layout: Layout,
    how: Scores,
    *,
    memory: Tensor | None = None,
    distances: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention within each sequence (Vaswani et al. 2017, eq. 1).

    Args:
        own: (R, H + 2G, K) queries, keys and values of N tokens, then spare rows; with `memory`,
            (R, H, K) queries alone.
        layout: where the sequences are; with `memory`, a layout of both sides.
        how: mask, scale and dropout.
        memory: (R_k, 2G, K) keys and values of the sequences that are attended to.
        distances: (H, 2T-1) bias of the scores by the distance key - query, from -(T-1) to T-1.

    Returns:
        (R, H, K), zero in the spare rows.
    """
    if own.device.type == "cpu":
        return _packed_products(own, memory, distances, layout, how)
    if _takes_packed(own, distances, layout, how):
        return _variable_length(own, memory, layout, how)
    return _scaled_dot_product(own, memory, distances, layout, how)
