"""A vector for a word from its characters (Kim et al. 2016, as ELMo has it)."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.device import round_rows
from firth.models.layers import round_up
from firth.protocols import WordList

BEGIN_SENTENCE, END_SENTENCE, BEGIN_WORD, END_WORD, PADDING = 256, 257, 258, 259, 260
"""Character ids beyond the 256 bytes of UTF-8, as ELMo's authors number them."""
NUM_CHARACTERS = 261

_EDGES = (8, 12, 16, 24, 1 << 20)
"""Words up to one of these lengths, and longer than the one before it, are convolved together."""

Filters = tuple[tuple[int, int], ...]


def spell(word: str, length: int) -> np.ndarray:
    """(length) int16 character ids of a word: its bytes between two marks, then padding."""
    content = list(word.encode("utf-8", "replace")[: length - 2])
    return _enclosed(content, length)


def _enclosed(content: list[int], length: int) -> np.ndarray:
    spelled = np.full(length, PADDING, np.int16)
    spelled[: len(content) + 2] = [BEGIN_WORD, *content, END_WORD]
    return spelled


class Spellings:
    """The characters of all words that have an id; those of new words are added as they come.

    Args:
        words: behind the ids.
        length: characters of each, the marks at both ends included.
    """

    def __init__(self, words: WordList, length: int) -> None:
        self._words, self._length = words, length
        self._table = np.empty((0, length), np.int16)

    def __deepcopy__(self, _memo: object) -> "Spellings":
        return self

    def of(self, ids: np.ndarray) -> np.ndarray:
        """(W, C) int16 characters of W ids."""
        if len(ids) and int(ids.max()) >= len(self._table):
            self._grow()
        return self._table[ids]

    def _grow(self) -> None:
        words = self._words
        ends = {words.first: BEGIN_SENTENCE, words.last: END_SENTENCE}
        fresh = [
            _enclosed([ends[i]], self._length) if i in ends else spell(words.word(i), self._length)
            for i in range(len(self._table), len(words))
        ]
        self._table = np.concatenate([self._table, np.stack(fresh)])


class Highway(nn.Module):
    """t * relu(W_H x + b_H) + (1 - t) * x, with t = sigmoid(W_T x + b_T) (Srivastava et al. 2015).

    Initialised as ELMo's: normal matrices of deviation 1/sqrt(n), b_T = -2, so that it carries.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.both = nn.Linear(size, 2 * size)
        """[H, T] in one product."""
        nn.init.normal_(self.both.weight, std=size**-0.5)
        with torch.no_grad():
            self.both.bias[:size] = 0.0
            self.both.bias[size:] = -2.0

    def forward(self, x: Tensor) -> Tensor:
        new, gate = self.both(x).chunk(2, dim=1)
        return torch.lerp(x.to(new.dtype), F.relu(new), torch.sigmoid(gate))


class CharacterEncoder(nn.Module):
    """Convolutions of several widths over a word's characters, their maxima, highways, projection.

    y_k = max_p act(F_k x[p : p + width_k] + b_k), all k concatenated (Jozefowicz et al. 2016,
    section 3.3; Peters et al. 2018, section 3.4).

    Args:
        filters: (width, number) pairs.
        dim: of a character's vector.
        num_highway: layers.
        output_size: P, what a word's vector is projected to.
        activation: of the convolutions.

    Initialised as the original: characters uniform in +-1, filters uniform in +-0.05 ("relu") or
    normal with deviation 1/sqrt(width dim) ("tanh"), the projection normal with 1/sqrt(n).
    """

    def __init__(
        self,
        filters: Filters,
        *,
        dim: int,
        num_highway: int,
        output_size: int,
        activation: Literal["relu", "tanh"] = "relu",
    ) -> None:
        super().__init__()
        self.widths = tuple(width for width, _ in filters)
        self.characters = nn.Embedding(NUM_CHARACTERS, dim)
        convolutions = [nn.Linear(width * dim, number) for width, number in filters]
        self.filters = nn.ModuleList(convolutions)
        size = sum(number for _, number in filters)
        self.highways = nn.ModuleList(Highway(size) for _ in range(num_highway))
        self.projection = nn.Linear(size, output_size)
        self.activation = activation
        nn.init.uniform_(self.characters.weight, -1, 1)
        for convolution in convolutions:
            if activation == "relu":
                nn.init.uniform_(convolution.weight, -0.05, 0.05)
            else:
                nn.init.normal_(convolution.weight, std=convolution.in_features**-0.5)
            nn.init.zeros_(convolution.bias)
        nn.init.normal_(self.projection.weight, std=size**-0.5)
        nn.init.zeros_(self.projection.bias)

    def forward(self, characters: Tensor) -> Tensor:
        """(W, C) character ids to (W, output_size)."""
        # Most words are short: those of like lengths together, so that few places are padding.
        lengths = (characters != PADDING).sum(1)
        groups = torch.bucketize(lengths, torch.tensor(_EDGES, device=lengths.device))
        order = torch.argsort(groups, stable=True)
        counts = torch.bincount(groups, minlength=len(_EDGES)).tolist()
        parts = [
            self._maxima(characters[members], edge)
            for members, edge in zip(order.split(counts), _EDGES, strict=True)
            if len(members)
        ]
        y = round_up(torch.cat(parts)[torch.argsort(order)])  # (W, n)
        for highway in self.highways:
            y = highway(y)
        return self.projection(y)[: len(characters)]

    def _maxima(self, characters: Tensor, longest: int) -> Tensor:
        """(W, n) of words of at most `longest` characters."""
        count = len(characters)
        spare = round_rows(count, characters.device) - count
        # Beyond the longest word and the widest filter all windows are padding and give the same.
        characters = F.pad(characters[:, : longest + max(self.widths)].long(), (0, 0, 0, spare))
        act = torch.tanh if self.activation == "tanh" else F.relu
        maxima = []
        for width, convolution in zip(self.widths, self.filters, strict=True):
            # (W, places, width * dim): each place with those that follow it.
            windows = self.characters(characters.unfold(1, width, 1)).flatten(2)
            assert isinstance(convolution, nn.Linear)
            scores = F.linear(windows, convolution.weight)
            # Bias and activation rise with their argument: after the maximum they cost less.
            maxima.append(act(scores.max(dim=1).values + convolution.bias))
        return torch.cat(maxima, dim=1)[:count]
