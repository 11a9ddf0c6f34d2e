"""Word vectors spread over all directions: the correction for vectors that share a few of them.

Contextual vectors crowd into a narrow cone, the more the higher the layer: any two have a large
cosine (Ethayarajh 2019, section 4.1). What they share says little of meaning, and is taken away.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from firth.errors import ConfigError

Remove = int | Literal["auto", "off"]
"""How many principal directions are removed besides the mean; "auto" is about one in a hundred
dimensions, "off" leaves the vectors as they are."""


@dataclass(frozen=True)
class Isotropy:
    """What a set of vectors has in common."""

    mean: Tensor
    """(D)"""
    directions: Tensor
    """(K, D) the principal directions, unit vectors, the one of largest variance first."""

    @staticmethod
    def of(chunks: Iterable[Tensor], keep: int = 64) -> "Isotropy":
        """Mean and principal directions of all rows, from one pass.

        Args:
            chunks: (n, D) float32 each; held one at a time.
            keep: directions to keep.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        shift: Tensor | None = None
        for chunk in chunks:
            shift = chunk.mean(0) if shift is None else shift  # so that squares stay exact
            moved = chunk - shift
            count += len(moved)
            total = total + moved.sum(0, dtype=torch.float64)
            squares = squares + (moved.T @ moved).double()
        assert shift is not None
        mean = total / count
        covariance = squares / count - torch.outer(mean, mean)
        _, vectors = torch.linalg.eigh(covariance)
        directions = vectors.flip(1).T[:keep]
        return Isotropy((mean + shift).float(), directions.float().contiguous())

    def correct(self, vectors: Tensor, remove: int) -> Tensor:
        """Removes the mean and the first `remove` directions u_i from (n, D) vectors.

        v' = v - mean - sum_i (u_i . (v - mean)) u_i (Mu and Viswanath 2018, algorithm 1; centred in
        the second term, too, so that nothing is left along u_i).
        """
        centred = vectors - self.mean
        top = self.directions[:remove]
        return centred - (centred @ top.T) @ top


def number_to_remove(remove: Remove, automatic: int, available: int) -> int | None:
    """The directions to remove, or None for no correction at all.

    Args:
        remove: the setting.
        automatic: what "auto" stands for.
        available: directions there are.

    Raises:
        ConfigError: if there are not so many.
    """
    if remove == "off":
        return None
    if remove == "auto":
        return automatic
    if not isinstance(remove, Integral) or not 0 <= remove <= available:
        raise ConfigError(
            f"directions is {remove!r}; expected auto, off, or a number from 0 to {available}"
        )
    return int(remove)


def directions_for(dimensions: int) -> int:
    """D = d / 100, the rule of thumb of Mu and Viswanath 2018 (section 2.2); at least one."""
    return max(1, round(dimensions / 100))


def cosine_of_random_pairs(vectors: Tensor) -> float:
    """Mean cosine of the rows of the first half with those of the second, in their order.

    Args:
        vectors: (n, D), drawn at random. Near 0 they point everywhere, near 1 all the same way
            (Ethayarajh 2019, section 3.3).
    """
    units = torch.nn.functional.normalize(vectors, dim=1)
    half = len(units) // 2
    return float((units[:half] * units[half : 2 * half]).sum(1).mean()) if half else 0.0
