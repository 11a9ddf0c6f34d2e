"""Text of several languages: one vocabulary and one model, each language by a smoothed share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from firth.errors import ConfigError
from firth.text.corpus import Corpus
from firth.text.shards import Shards


def smoothed_shares(sizes: Sequence[float] | np.ndarray, exponent: float) -> np.ndarray:
    r"""How often each language is shown, when small ones are shown more often than their share.

    $q_l = p_l^S / \sum_k p_k^S$, where p_l is the language's share of the text and S the exponent:
    0.7 in multilingual BERT (google-research/bert, `multilingual.md`, "Data Source and Sampling").
    1 leaves the shares as they are, 0 makes them equal.

    Args:
        sizes: of each language's text, in any unit.
        exponent: S, between 0 and 1.

    Returns:
        (languages) float64 that add up to one.

    Raises:
        ConfigError: if the exponent is not between 0 and 1.
    """
    if not 0 <= exponent <= 1:
        raise ConfigError(f"data.smoothing is {exponent}, expected between 0 (equal) and 1 (none)")
    sizes = np.asarray(sizes, dtype=float)
    powers = (sizes / sizes.sum()) ** exponent
    return powers / powers.sum()


@dataclass(frozen=True)
class MultilingualCorpus:
    """Corpora by the name of their language."""

    parts: tuple[tuple[str, Corpus], ...]

    @staticmethod
    def of(parts: Mapping[str, Corpus]) -> "MultilingualCorpus":
        """Corpora by language, such as ``{"de": Corpus.from_files("de/"), ...}``.

        Raises:
            ConfigError: if there are fewer than two, or a name cannot be part of a file's name.
        """
        if len(parts) < 2:
            raise ConfigError(f"{len(parts)} languages were given, expected two or more")
        for name in parts:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ConfigError(
                    f"the language {name!r}: expected a name of letters, digits, - and _, such as "
                    "de or zh-Hant"
                )
        return MultilingualCorpus(tuple(sorted(parts.items())))

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.parts)

    def split(
        self, *, valid: float, seed: int
    ) -> tuple["MultilingualCorpus", "MultilingualCorpus"]:
        """Sets a share of each language's documents aside (see `Corpus.split`)."""
        halves = [(name, corpus.split(valid=valid, seed=seed)) for name, corpus in self.parts]
        train, held_out = (
            MultilingualCorpus(tuple((name, both[side]) for name, both in halves))
            for side in (0, 1)
        )
        return train, held_out

    def smoothed(self, exponent: float) -> Iterator[str]:
        """All documents, those of small languages several times, in parts by `smoothed_shares`.

        For the vocabulary, which multilingual BERT learned from text with the same shares. The
        language that is shown least often for its size is shown once. Reads the text twice: the
        sizes are bytes of UTF-8.
        """
        sizes = [sum(len(text.encode()) for text in corpus) for _, corpus in self.parts]
        visits = smoothed_shares(sizes, exponent) / (np.array(sizes) / sum(sizes))
        for rate, (_, corpus) in zip((visits / visits.min()).tolist(), self.parts, strict=True):
            for i, text in enumerate(corpus):
                for _ in range(int(rate * (i + 1) + 0.5) - int(rate * i + 0.5)):
                    yield text


class JoinedLanguages:
    """The tokens of several languages as one source, one language after the other."""

    def __init__(self, parts: Mapping[str, Shards], smoothing: float) -> None:
        """`smoothing` is the exponent of `smoothed_shares`, by which they are shown."""
        self.parts = dict(parts)
        shards = list(self.parts.values())
        self._starts = np.cumsum([0, *(one.num_tokens for one in shards)])
        self._shards = shards
        self.num_tokens = int(self._starts[-1])
        self.num_documents = sum(one.num_documents for one in shards)
        sizes = np.array([one.num_tokens for one in shards])
        self.shares = smoothed_shares(sizes, smoothing)
        """(languages) of the tokens that are shown."""
        self.visits = self.shares / (sizes / sizes.sum())
        """(languages) how often each token is shown in an epoch, which is as long as the text."""

    @property
    def document_starts(self) -> np.ndarray:
        """(num_documents + 1) int64, over all languages."""
        starts = [
            one.document_starts[1:] + start
            for one, start in zip(self._shards, self._starts[:-1], strict=True)
        ]
        return np.concatenate([np.zeros(1, np.int64), *starts])

    @property
    def document_visits(self) -> np.ndarray:
        """(num_documents) float64: the visits of each document's language."""
        return np.repeat(self.visits, [one.num_documents for one in self._shards])

    @property
    def token_counts(self) -> np.ndarray:
        """(vocabulary_size) float64: how often each id is shown in an epoch."""
        visits = zip(self.visits, self._shards, strict=True)
        counts = [
            rate * one.token_counts * (one.num_tokens / one.token_counts.sum())
            for rate, one in visits
        ]
        return np.sum(counts, axis=0)

    def tokens(self, begin: int, end: int) -> np.ndarray:
        """The ids from position `begin` up to `end`, which lie in one language."""
        part, start = self._part(begin)
        return part.tokens(begin - start, end - start)

    def opens_word(self, begin: int, end: int) -> np.ndarray:
        """Whether each token from `begin` up to `end` begins a word."""
        part, start = self._part(begin)
        return part.opens_word(begin - start, end - start)

    def describe(self) -> str:
        """Languages with their shares of the text and of what is shown."""
        of_text = self.shares / self.visits
        return ", ".join(
            f"{name} {own:.1%} (shown {shown:.1%})"
            for name, own, shown in zip(self.parts, of_text, self.shares, strict=True)
        )

    def _part(self, begin: int) -> tuple[Shards, int]:
        i = int(np.searchsorted(self._starts, begin, side="right")) - 1
        return self._shards[i], int(self._starts[i])
