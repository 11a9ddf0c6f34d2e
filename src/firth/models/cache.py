"""Keys and values of what a decoder has read, so that the next token costs one token's work."""

import torch
from torch import Tensor

from firth.models.attention import Scores, attend
from firth.models.layout import Layout


class Columns:
    """Keys and values (B, T, 2G, K) of B sequences of unequal length."""

    def __init__(self, values: Tensor, positions: Tensor, room: int) -> None:
        """Takes (N, 2G, K) columns of sequences that lie end to end.

        Args:
            values: the columns.
            positions: (N), 0 where a sequence begins.
            room: T, the most tokens of a sequence.
        """
        owner = (positions == 0).cumsum(0) - 1
        count = int(owner[-1]) + 1
        self.values = values.new_zeros(count, room, *values.shape[1:])
        self.values[owner, positions] = values
        self.lengths = torch.bincount(owner, minlength=count)

    def add(self, columns: Tensor) -> None:
        """One more (B, 2G, K) token of each sequence."""
        row = torch.arange(len(columns), device=columns.device)
        self.values[row, self.lengths] = columns
        self.lengths = self.lengths + 1

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences (B'), in this order; a beam may repeat one."""
        self.values = self.values[rows]
        self.lengths = self.lengths[rows]

    def attend(self, q: Tensor, how: Scores, distances: Tensor | None = None) -> Tensor:
        """(B, H, K) queries at the last tokens to (B, H, K)."""
        longest = int(self.lengths.max())
        k, v = self.values[:, :longest].transpose(1, 2).chunk(2, dim=1)  # (B, G, T, K)
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


class LayerCache:
    """What one layer holds: of the decoder's own tokens and of its source."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.own: Columns | None = None
        self.source: Columns | None = None

    def attend(self, own: Tensor, layout: Layout, how: Scores, distances: Tensor | None) -> Tensor:
        """Adds the keys and values of `own` (R, H + 2G, K) and attends to all that are held.

        The first call reads whole sequences; each later one reads one more token of each.
        """
        beside = own[: layout.num_tokens, how.num_heads :]
        if self.own is None:
            self.own = Columns(beside, layout.positions[: layout.num_tokens], self.room)
            return attend(own, layout, how, distances=distances)
        self.own.add(beside)
        return _with_spare(
            self.own.attend(own[: len(beside), : how.num_heads], how, distances), own
        )

    def hold_source(self, columns: Tensor, positions: Tensor) -> None:
        """Keeps (R_k, 2H, K) keys and values of the source sequences' N_k tokens."""
        self.source = Columns(columns[: len(positions)], positions, int(positions.max()) + 1)

    def attend_source(self, q: Tensor, how: Scores) -> Tensor:
        """(R, H, K) queries of one token a sequence to (R, H, K)."""
        assert self.source is not None
        count = len(self.source.lengths)
        return _with_spare(self.source.attend(q[:count], how), q)

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences, in this order."""
        for columns in (self.own, self.source):
            if columns is not None:
                columns.keep(rows)


def _with_spare(attended: Tensor, own: Tensor) -> Tensor:
    """(B, H, K) with the spare rows of `own`."""
    out = own.new_zeros(len(own), *attended.shape[1:])
    out[: len(attended)] = attended
    return out


class Cache:
    """The caches of all layers of a decoder."""

    def __init__(self, num_layers: int, room: int) -> None:
        """Makes room for sequences of up to `room` tokens."""
        self.layers = [LayerCache(room) for _ in range(num_layers)]

    @property
    def lengths(self) -> Tensor:
        """(B) tokens held of each sequence; empty before the first call."""
        own = self.layers[0].own
        return torch.zeros(0, dtype=torch.int64) if own is None else own.lengths

    def keep(self, rows: Tensor) -> None:
        """Goes on with these sequences, in this order."""
        for layer in self.layers:
            layer.keep(rows)
