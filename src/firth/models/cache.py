"""Keys and values of what a decoder has read, so that the next token costs one token's work."""

import torch
import torch.nn.functional as F
from torch import Tensor

from firth.models.attention import Scores, attend
from firth.models.layout import Layout

SPARE = 128
"""Tokens for which room is made beyond those of the longest sequence; then it doubles."""


class Extent:
    """How many tokens are held of each of B sequences; all layers share one."""

    def __init__(self, positions: Tensor) -> None:
        """`positions` (N) of sequences that lie end to end are 0 where one begins."""
        owner = (positions == 0).cumsum(0) - 1
        self.place: tuple[Tensor, Tensor] | int = (owner, positions)
        """Sequence and position of each of the N tokens that are new; a number where each sequence
        has one, all at the same position."""
        self._set(torch.bincount(owner))

    def _set(self, lengths: Tensor) -> None:
        self.lengths = lengths
        self.longest = int(lengths.max())
        even = bool((lengths == self.longest).all())
        place = torch.arange(self.longest, device=lengths.device)
        self.hidden = None if even else place >= lengths[:, None]
        """(B, T) True where nothing is held; None where all sequences are as long."""

    def advance(self) -> None:
        """One more token of each sequence."""
        if self.hidden is None:
            self.place = self.longest
            self.lengths, self.longest = self.lengths + 1, self.longest + 1
        else:
            self.place = (torch.arange(len(self.lengths), device=self.lengths.device), self.lengths)
            self._set(self.lengths + 1)

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences (B'), in this order; a beam may repeat one."""
        self._set(self.lengths[rows])


class Columns:
    """Keys and values (B, 2G, T, K) of one layer; a query sees all of its sequence's."""

    def __init__(self, columns: Tensor, extent: Extent, room: int) -> None:
        """Takes the (N, 2G, K) columns of an extent, of sequences that grow to `room` tokens."""
        heads, size = columns.shape[1:]
        self.extent, self.room = extent, room
        held = min(room, extent.longest + SPARE)
        self.values = columns.new_zeros(len(extent.lengths), heads, held, size)
        self.add(columns)

    def add(self, columns: Tensor) -> None:
        """The (N, 2G, K) columns of the tokens by which the extent has grown."""
        held = self.values.shape[2]
        if self.extent.longest > held:
            self.values = F.pad(self.values, (0, 0, 0, min(self.room, 2 * held) - held))
        place = self.extent.place
        if isinstance(place, int):
            self.values.select(2, place).copy_(columns)
        else:
            owner, position = place
            self.values[owner, :, position] = columns

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences, in this order; the extent has them already."""
        longest = self.extent.longest
        kept = self.values.new_empty(len(rows), *self.values.shape[1:])
        torch.index_select(self.values[:, :, :longest], 0, rows, out=kept[:, :, :longest])
        kept[:, :, longest:] = 0  # a mask hides what is not held, but for numbers that are infinite
        self.values = kept

    def attend(self, q: Tensor, how: Scores, distances: Tensor | None = None) -> Tensor:
        """(B, H, K) queries at the last tokens to (B, H, K)."""
        extent = self.extent
        k, v = self.values.narrow(2, 0, extent.longest).chunk(2, dim=1)  # (B, G, T, K)
        attended = F.scaled_dot_product_attention(
            q[:, :, None].to(k.dtype),
            k,
            v,
            attn_mask=_mask(extent, distances, k.dtype),
            scale=how.scale,
            enable_gqa=how.shared_by > 1,
        )
        return attended[:, :, 0]


def _mask(extent: Extent, distances: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """(B, 1, 1, T), True where a key is seen, or (B, H, 1, T) to add to the scores, or None."""
    if distances is None:
        return None if extent.hidden is None else ~extent.hidden[:, None, None]
    reach = (distances.shape[1] + 1) // 2
    if extent.hidden is None:
        near = distances[:, reach - extent.longest : reach].to(dtype)
        return near[None, :, None].expand(len(extent.lengths), -1, -1, -1)
    place = torch.arange(extent.longest, device=extent.lengths.device)
    back = extent.lengths[:, None] - 1 - place  # (B, T) query - key
    near = distances[:, (reach - 1 - back).clamp(0, reach - 1)].transpose(0, 1)[:, :, None]
    return near.to(dtype).masked_fill(extent.hidden[:, None, None], -torch.inf)  # (B, H, 1, T)


class LayerCache:
    """What one layer holds: of the decoder's own tokens and of its source."""

    def __init__(self, whole: "Cache") -> None:
        self.whole = whole
        self.own: Columns | None = None
        self.source: Columns | None = None

    def attend(self, own: Tensor, layout: Layout, how: Scores, distances: Tensor | None) -> Tensor:
        """Adds the keys and values of `own` (R, H + 2G, K) and attends to all that are held.

        The first call reads whole sequences; each later one reads one more token of each.
        """
        beside = own[: layout.num_tokens, how.num_heads :]
        if self.own is None:
            assert self.whole.own is not None
            self.own = Columns(beside, self.whole.own, self.whole.room)
            return attend(own, layout, how, distances=distances)
        return self.attend_next(own, how, distances)

    def attend_next(self, own: Tensor, how: Scores, distances: Tensor | None) -> Tensor:
        """The same for one more token of each sequence, (B, H + 2G, K) to (B, H, K)."""
        assert self.own is not None
        self.own.add(own[:, how.num_heads :])
        return self.own.attend(own[:, : how.num_heads], how, distances)

    def hold_source(self, columns: Tensor) -> None:
        """Keeps the (R_k, 2H, K) keys and values of the source sequences' N_k tokens."""
        extent = self.whole.source
        assert extent is not None
        self.source = Columns(columns[: int(extent.lengths.sum())], extent, extent.longest)

    def attend_source(self, q: Tensor, how: Scores) -> Tensor:
        """(B, H, K) queries of one token a sequence to (B, H, K)."""
        assert self.source is not None
        return self.source.attend(q, how)

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences, in this order."""
        for columns in (self.own, self.source):
            if columns is not None:
                columns.keep(rows)


class Cache:
    """The caches of all layers of a decoder."""

    def __init__(self, num_layers: int, room: int) -> None:
        """Prepares for sequences of up to `room` tokens; memory is taken as they grow."""
        self.room = room
        self.layers = [LayerCache(self) for _ in range(num_layers)]
        self.own: Extent | None = None
        self.source: Extent | None = None

    def step(self, starts: Tensor, device: torch.device, *, prefix: Tensor | None = None) -> Layout:
        """Makes place for sequences (B+1 starts), or for one more token of each that is held.

        A token of each has no spare rows: they would be most of the work.
        """
        if self.own is None:
            layout = Layout.of(starts, device, prefix=prefix)
            self.own = Extent(layout.positions[: layout.num_tokens])
            return layout
        positions = self.advance()
        return Layout(len(positions), positions)

    def advance(self) -> Tensor:
        """Makes place for one more token of each sequence, and gives its (B) positions."""
        assert self.own is not None
        positions = self.own.lengths
        self.own.advance()
        return positions

    @property
    def longest(self) -> int:
        """Tokens held of the longest sequence, this step's counted."""
        return 0 if self.own is None else self.own.longest

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences, in this order."""
        for extent in (self.own, self.source):
            if extent is not None:
                extent.keep(rows)
        for layer in self.layers:
            layer.keep(rows)
