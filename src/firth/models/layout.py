"""Where the sequences of a batch lie, and how attention groups them into tiles of one length."""

from dataclasses import dataclass

import torch
from torch import Tensor

from firth.device import round_rows, uncompiled

_EDGES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sequences up to one of these lengths, and longer than the one before it, form a group."""

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
class Layout:
    """How a batch's sequences are grouped for attention, and each token's position."""

    tiles: tuple[Tile, ...]
    num_tokens: int
    """N."""
    positions: Tensor
    """(R) int64, counted from 0 in each sequence; R - N spare rows follow (see `round_rows`)."""

    @staticmethod
    @uncompiled
    def of(
        starts: Tensor,
        device: torch.device,
        *,
        keys: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> "Layout":
        """Groups the sequences that `starts` (B+1, on the CPU) delimits.

        Args:
            starts: of the sequences that attend.
            device: of the tokens.
            keys: (B+1) starts of the sequences that are attended to, where they are others.
            prefix: (B) tokens at the head of each sequence that a causal mask leaves visible.
        """
        lengths = starts.diff()
        classes = _classes(lengths)
        if keys is not None:
            classes = classes * 4096 + _classes(keys.diff())
        extent = None if prefix is None else _extent(prefix.to(lengths.device), lengths)
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
        return Layout(tuple(tiles), int(starts[-1]), positions_of(starts, device))


def positions_of(starts: Tensor, device: torch.device) -> Tensor:
    """(R) int64 positions counted from 0 in each sequence, then zeros in the spare rows."""
    num_tokens = int(starts[-1])
    positions = torch.zeros(round_rows(num_tokens, device), dtype=torch.int64)
    positions[:num_tokens] = torch.arange(num_tokens)
    positions[:num_tokens] -= starts[:-1].repeat_interleave(starts.diff())
    return positions.to(device)


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
