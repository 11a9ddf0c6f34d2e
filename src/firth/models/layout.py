"""Where the sequences of a batch lie, and how attention groups them into tiles of one length."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from firth.device import moved, round_rows, uncompiled

_EDGES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sequences up to one of these lengths, and longer than the one before it, form a group."""

_FEW_EDGES = (32, 128, 512, 1024, 2048, 4096, 8192)
"""The same for other devices: launching a tile's kernels takes longer than padding."""

_TILE_SCORES = 1 << 18
"""Scores a head in one CPU tile: with four heads in bfloat16, two megabytes, which stay cached."""


@dataclass(frozen=True)
class Slots:
    """Sequences of nearly one length, laid out as (count, length) with padding at the ends."""

    count: int
    length: int
    gather: Tensor | slice
    """Token of each of the count * length slots (padding slots repeat a token)."""
    filled: Tensor | None
    """Slots that hold a token, in the order of `scatter`; None where all do."""
    scatter: Tensor | slice
    """Token of each filled slot."""
    padding: Tensor | None
    """(count, length) True where a slot is padding; None where none is."""

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
class Tile:
    """Sequences whose attention is computed together."""

    queries: Slots
    keys: Slots
    """The same object in self-attention."""
    prefix: Tensor | None = None
    """(count) tokens of each sequence that all its tokens may see, whatever the mask."""
    whole: bool = False
    """Whether the prefix of each sequence is the sequence."""

    @property
    def own(self) -> bool:
        """Whether the sequences attend to themselves."""
        return self.keys is self.queries


@dataclass(frozen=True)
class Stretch:
    """Neighbouring sequences, all masked alike, for a kernel that takes sequences end to end."""

    rows: slice
    """Tokens of the queries."""
    key_rows: slice
    starts: Tensor
    """(n+1) int32 on the device: where each sequence begins, counted from the first."""
    key_starts: Tensor
    longest: int
    """Tokens of the longest sequence, rounded up: a kernel is compiled for few numbers."""
    longest_key: int
    whole: bool
    """Whether all tokens of a sequence see each other, whatever the mask."""


@dataclass(frozen=True)
class Packed:
    """What a layout is made from; see `Layout.of`."""

    starts: Tensor
    device: torch.device
    keys: Tensor | None = None
    prefix: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """How a batch's sequences are grouped for attention, and each token's position."""

    num_tokens: int
    """N."""
    positions: Tensor
    """(R) int64, counted from 0 in each sequence; R - N spare rows follow (see `round_rows`)."""
    stretches: tuple[Stretch, ...] = ()
    """At most two that hold all sequences; none on the CPU, or where masks differ more."""
    packed: Packed | None = None
    """None for a token of each sequence whose others are in a cache."""
    longest: int = 1
    """Tokens of the longest sequence."""

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Groups of sequences of nearly one length; made when a kernel first asks for them."""
        assert self.packed is not None
        return _tiles(self.packed)

    @staticmethod
    @uncompiled
    def of(
        starts: Tensor,
        device: torch.device,
        *,
        keys: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> "Layout":
        """Lays out the sequences that `starts` (B+1, on the CPU) delimits.

        Args:
            starts: of the sequences that attend.
            device: of the tokens.
            keys: (B+1) starts of the sequences that are attended to, where they are others.
            prefix: (B, on the CPU) tokens at the head of each sequence that a causal mask leaves
                visible.
        """
        found = Packed(starts, device, keys, prefix)
        stretches = () if device.type == "cpu" else _stretches(found)
        longest = max(starts.diff().tolist(), default=0)
        return Layout(int(starts[-1]), positions_of(starts, device), stretches, found, longest)


def _tiles(given: Packed) -> tuple[Tile, ...]:
    starts, keys, prefix, device = given.starts, given.keys, given.prefix, given.device
    lengths = starts.diff()
    if device.type == "cpu":
        classes = _classes(lengths)
        if keys is not None:
            classes = classes * 4096 + _classes(keys.diff())
    else:
        longer = lengths if keys is None else torch.maximum(lengths, keys.diff())
        classes = torch.searchsorted(torch.tensor(_FEW_EDGES), longer)
    extent = None if prefix is None else _extent(prefix, lengths)
    if extent is not None:
        classes = classes * 3 + extent
    order = torch.argsort(classes, stable=True)
    counts = torch.unique_consecutive(classes[order], return_counts=True)[1].tolist()
    tiles = []
    for members in order.split(counts):
        long = _padded_length(lengths[members], device)
        long_keys = long if keys is None else _padded_length(keys.diff()[members], device)
        tile = len(members)
        if device.type == "cpu":  # scores that fit the cache
            tile = max(1, _TILE_SCORES // (long * long_keys))
        for part in members.sort().values.split(tile):
            queries = _slots(starts, part, long, device)
            beside = queries if keys is None else _slots(keys, part, long_keys, device)
            tiles.append(Tile(queries, beside, *_prefix(prefix, extent, part, device)))
    return tuple(tiles)


def _stretches(given: Packed) -> tuple[Stretch, ...]:
    """All sequences, cut where causal ones end and whole ones begin, or the other way round."""
    starts, prefix = given.starts, given.prefix
    extent = torch.zeros(len(starts) - 1, dtype=torch.int64)
    if prefix is not None:
        extent = _extent(prefix, starts.diff())
    kinds, counts = torch.unique_consecutive(extent, return_counts=True)
    if len(kinds) > 2 or bool((kinds == _SOME).any()):
        return ()
    ends = [0, *counts.cumsum(0).tolist()]
    return tuple(
        _stretch(given, first, last, whole=kind == _ALL)
        for first, last, kind in zip(ends, ends[1:], kinds.tolist(), strict=False)
    )


def _stretch(given: Packed, first: int, last: int, *, whole: bool) -> Stretch:
    def part(starts: Tensor) -> tuple[slice, Tensor, int]:
        chosen = starts[first : last + 1]
        longest = -(-int(chosen.diff().max()) // 128) * 128
        rows = slice(int(chosen[0]), int(chosen[-1]))
        return rows, moved((chosen - chosen[0]).int(), given.device), longest

    rows, starts, longest = part(given.starts)
    if given.keys is None:
        return Stretch(rows, rows, starts, starts, longest, longest, whole)
    key_rows, key_starts, longest_key = part(given.keys)
    return Stretch(rows, key_rows, starts, key_starts, longest, longest_key, whole)


def positions_of(starts: Tensor, device: torch.device) -> Tensor:
    """(R) int64 positions counted from 0 in each sequence, then zeros in the spare rows."""
    num_tokens = int(starts[-1])
    positions = torch.zeros(round_rows(num_tokens, device), dtype=torch.int64, device=device)
    starts = moved(starts, device)
    first = starts[:-1].repeat_interleave(starts.diff(), output_size=num_tokens)
    torch.sub(torch.arange(num_tokens, device=device), first, out=positions[:num_tokens])
    return positions


_NONE, _SOME, _ALL = 0, 1, 2


def _extent(prefix: Tensor, lengths: Tensor) -> Tensor:
    """(B) whether prefixes make no difference to a causal mask, some, or undo it."""
    some = torch.where(prefix > 1, _SOME, _NONE)
    return torch.where(prefix >= lengths.clamp_min(2), _ALL, some)


def _prefix(
    prefix: Tensor | None, extent: Tensor | None, part: Tensor, device: torch.device
) -> tuple[Tensor | None, bool]:
    """What a tile of these sequences, of one extent, is told of prefixes."""
    if prefix is None or extent is None or extent[part[0]] == _NONE:
        return None, False
    whole = bool(extent[part[0]] == _ALL)
    return None if whole else prefix[part.to(prefix.device)].to(device), whole


def _classes(lengths: Tensor) -> Tensor:
    """Sequences of one class are padded to one length."""
    which = torch.searchsorted(torch.tensor(_EDGES), lengths)
    return torch.where(which == len(_EDGES), len(_EDGES) + lengths // 256, which)


def _padded_length(lengths: Tensor, device: torch.device) -> int:
    longest = int(lengths.max())
    if device.type != "cpu":
        return longest
    return next((edge for edge in _EDGES if edge >= longest), -(-longest // 64) * 64)  # few shapes


def _slots(starts: Tensor, members: Tensor, length: int, device: torch.device) -> Slots:
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
        return Slots(count, length, tokens, None, tokens, None)
    return Slots(
        count, length, slots.flatten().to(device), filled.to(device), tokens, padding.to(device)
    )
