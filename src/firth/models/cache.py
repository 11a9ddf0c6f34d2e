"""Keys and values of what a decoder has read, so that the next token costs one token's work."""

import torch
from torch import Tensor

from firth.models.attention import Scores, attend
from firth.models.layout import Layout


class LayerCache:
    """One layer's keys and values, (B, T, 2G, K), of sequences of unequal length."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.columns: Tensor | None = None
        self.lengths = torch.zeros(0, dtype=torch.int64)

    def attend(self, own: Tensor, layout: Layout, how: Scores, distances: Tensor | None) -> Tensor:
        """Adds the keys and values of `own` (R, H + 2G, K) and attends to all that are held.

        The first call reads whole sequences; each later one reads one more token of each.
        """
        beside = own[: layout.num_tokens, how.num_heads :]
        if self.columns is None:
            count = sum(tile.queries.count for tile in layout.tiles)
            self.columns = own.new_zeros(count, self.room, *beside.shape[1:])
            positions = layout.positions[: layout.num_tokens]
            owner = (positions == 0).cumsum(0) - 1
            self.columns[owner, positions] = beside
            self.lengths = torch.bincount(owner, minlength=count)
            return attend(own, layout, how, distances=distances)
        row = torch.arange(len(beside), device=own.device)
        self.columns[row, self.lengths] = beside
        self.lengths = self.lengths + 1
        out = own.new_zeros(len(own), how.num_heads, own.shape[2])
        out[: layout.num_tokens] = self._attend_last(
            own[: len(beside), : how.num_heads], how, distances
        )
        return out

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences (B'), in this order; a beam may repeat one."""
        assert self.columns is not None
        self.columns = self.columns[rows]
        self.lengths = self.lengths[rows]

    def _attend_last(self, q: Tensor, how: Scores, distances: Tensor | None) -> Tensor:
        """(B, H, K) queries of the last tokens to (B, H, K)."""
        assert self.columns is not None
        longest = int(self.lengths.max())
        k, v = self.columns[:, :longest].transpose(1, 2).chunk(2, dim=1)  # (B, G, T, K)
        grouped = q.unflatten(1, (how.num_groups, how.shared_by)) * how.scale  # (B, G, H/G, K)
        scores = grouped @ k.transpose(2, 3)  # (B, G, H/G, T)
        place = torch.arange(longest, device=q.device)
        back = self.lengths[:, None] - 1 - place  # (B, T) query - key
        if distances is not None:
            reach = (distances.shape[1] + 1) // 2
            near = distances[:, (reach - 1 - back).clamp(0, reach - 1)]  # (H, B, T)
            scores = scores + near.transpose(0, 1).unflatten(1, grouped.shape[1:3])
        hidden = back < 0
        if how.mask.window is not None:
            hidden = hidden | (back > how.mask.window)
        scores = scores.float().masked_fill(hidden[:, None, None], -torch.inf)
        return (torch.softmax(scores, dim=-1).to(v.dtype) @ v).flatten(1, 2)


class Cache:
    """The caches of all layers of a decoder."""

    def __init__(self, num_layers: int, room: int) -> None:
        """Makes room for sequences of up to `room` tokens."""
        self.layers = [LayerCache(room) for _ in range(num_layers)]

    @property
    def lengths(self) -> Tensor:
        """(B) tokens held of each sequence; empty before the first call."""
        return self.layers[0].lengths

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences, in this order."""
        for layer in self.layers:
            layer.keep(rows)
