"""One vector for each word, whatever stands around it: skip-gram, CBOW, GloVe, fastText."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from firth.errors import ConfigError, UnsupportedError
from firth.models.checks import check_shape
from firth.protocols import Batch, Context, Output, WordList

_FNV_BASIS, _FNV_PRIME = 2166136261, 16777619


@dataclass(frozen=True, kw_only=True)
class StaticConfig:
    """The shape of a table of word vectors."""

    num_segments: ClassVar[int] = 0
    positions: ClassVar[str] = "none"
    num_layers: ClassVar[int] = 0

    vocab_size: int
    """V, words."""
    hidden_size: int
    """D, of the vectors."""
    max_length: int = 1_000_000
    """Longest text, in words; nothing depends on it, since words do not see each other."""
    buckets: int = 0
    """Rows that n-grams of characters are hashed to; 0 for none: unseen words are unknown then."""
    min_n: int = 3
    """Fewest characters of an n-gram."""
    max_n: int = 6
    """Characters of an n-gram, the marks of a word's ends counted."""
    outputs: bool = True
    """Whether there are the output vectors that predict words (GloVe adds them to the others)."""

    def __post_init__(self) -> None:
        check_shape(self, ())
        if self.buckets < 0 or (self.buckets and not 1 <= self.min_n <= self.max_n):
            raise ConfigError(
                f"buckets {self.buckets}, min_n {self.min_n}, max_n {self.max_n}; expected "
                "0 buckets (no n-grams), or some and 1 <= min_n <= max_n"
            )


class StaticEmbeddings(nn.Module):
    """A vector for each word of the vocabulary, and a row for each bucket of n-grams."""

    def __init__(self, config: StaticConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        buckets = config.buckets
        self.ngrams = nn.Embedding(buckets, config.hidden_size) if buckets else None


class Static(nn.Module):
    """Word vectors as a model without layers: a word's state is its vector.

    Special tokens and words without a vector have zeros, so that they leave the direction of a mean
    as it is. Where there are n-grams, an unseen word has the mean of the rows of its n-grams
    (Bojanowski et al. 2017, section 3.2); `tokens` holds the finished vectors of known words, their
    n-grams included.
    """

    context: ClassVar[Context] = "both"

    def __init__(self, config: StaticConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = StaticEmbeddings(config)
        size = config.hidden_size
        self.outputs = nn.Embedding(config.vocab_size, size) if config.outputs else None
        self.layers = nn.ModuleList()
        self._words: WordList | None = None
        self.reset_parameters()

    @property
    def reads_words(self) -> bool:
        """Whether unseen words have vectors, and so ids of their own."""
        return self.config.buckets > 0

    def use_words(self, words: WordList) -> None:
        """Reads the spelling of ids beyond the vocabulary from here on in `words`."""
        self._words = words

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Inputs uniform within 1/(2 D), outputs zero, as in the program word2vec."""
        bound = 0.5 / self.config.hidden_size
        for name, parameter in self.named_parameters():
            if name.startswith("outputs"):
                parameter.zero_()
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, batch: Batch, *, hidden_states: bool = False) -> Output:
        """The vectors of the words; the one entry of `hidden_states` are they too."""
        ids = batch.input_ids
        unseen = ids >= self.config.vocab_size
        x = self.embeddings.tokens(ids.masked_fill(unseen, 0))  # (N, D)
        if bool(unseen.any()):
            x = x.masked_scatter(unseen[:, None], self._spelled(ids[unseen]))
        return Output(x, (x,) if hidden_states else ())

    def _spelled(self, ids: Tensor) -> Tensor:
        """(n, D) vectors of unseen words, from their n-grams."""
        ngrams, words, config = self.embeddings.ngrams, self._words, self.config
        if ngrams is None or words is None:
            raise UnsupportedError(
                f"token {int(ids[0])} is not in the vocabulary of {config.vocab_size} words; only "
                "a model with n-grams has vectors for unseen words, once it has been given their "
                "spelling: model.use_words(tokenizer.open())"
            )
        distinct, places = torch.unique(ids, return_inverse=True)
        shape = (config.min_n, config.max_n, config.buckets)
        rows = [ngram_rows(words.word(i), *shape) for i in distinct.tolist()]
        ends = np.cumsum([0, *map(len, rows)])
        flat = torch.from_numpy(np.concatenate([*rows, np.zeros(0, np.int64)]))
        device = ids.device
        offsets = torch.from_numpy(ends[:-1]).to(device)
        return F.embedding_bag(flat.to(device), ngrams.weight, offsets)[places]

    def logits(self, hidden: Tensor) -> Tensor:
        """(M, D) vectors to (M, V) products with the output vectors: words that stand near.

        Raises:
            UnsupportedError: if there are no output vectors.
        """
        if self.outputs is None:
            raise UnsupportedError(
                "these word vectors have no output vectors, so they predict no words; embed and "
                "the search for neighbours work (skip-gram and CBOW keep their output vectors)"
            )
        return F.linear(hidden, self.outputs.weight)

    def layer_groups(self) -> list[list[nn.Parameter]]:
        """One group: the vectors."""
        return [list(self.embeddings.parameters())]


@lru_cache(maxsize=1 << 16)
def ngram_rows(word: str, min_n: int, max_n: int, buckets: int) -> np.ndarray:
    """The buckets of a word's n-grams, int64, as in the program fastText.

    The word stands between "<" and ">"; n counts characters, and the hash is of their UTF-8 bytes.
    The marks alone are no n-grams. The word as a whole is one where it is short enough.
    """
    marked = f"<{word}>"
    bytes_of = [character.encode(errors="surrogatepass") for character in marked]
    found = []
    for begin in range(len(marked)):
        value = _FNV_BASIS
        for end in range(begin + 1, min(begin + max_n, len(marked)) + 1):
            value = fnv1a(bytes_of[end - 1], value)
            mark = end - begin == 1 and (begin == 0 or end == len(marked))
            if end - begin >= min_n and not mark:
                found.append(value % buckets)
    return np.array(found, np.int64)


def fnv1a(data: bytes, value: int = _FNV_BASIS) -> int:
    """The 32-bit FNV-1a hash as fastText has it: bytes from 128 on are negative numbers.

    Args:
        data: bytes.
        value: the hash of what stands before them.
    """
    for byte in data:
        signed = byte | 0xFFFFFF00 if byte > 127 else byte
        value = ((value ^ signed) * _FNV_PRIME) & 0xFFFFFFFF
    return value


def input_rows(words: Sequence[str | None], config: StaticConfig) -> tuple[np.ndarray, np.ndarray]:
    """Which rows make up each word in training: its own, then V + those of its n-grams.

    Args:
        words: (V) the words; None for special tokens, which have no rows.
        config: of the model.

    Returns:
        row_starts (V + 1) int64 and rows int32: word v has rows[row_starts[v]:row_starts[v + 1]].
    """
    parts: list[Any] = []
    for index, word in enumerate(words):
        own = [] if word is None else [index]
        if word is not None and config.buckets:
            rows = ngram_rows(word, config.min_n, config.max_n, config.buckets)
            parts.append(np.concatenate([own, rows + len(words)]))
        else:
            parts.append(np.array(own))
    starts = np.cumsum([0, *map(len, parts)]).astype(np.int64)
    return starts, np.concatenate(parts).astype(np.int32)
