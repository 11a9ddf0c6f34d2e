"""Text of several languages: one vocabulary and one model, each language by a smoothed share.

data/train/languages.json     their names
data/train/de/, .../tr/       token files of each (see `firth.text.shards`)
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firth.atomic import write_text
from firth.errors import ConfigError, DataError
from firth.text.corpus import Corpus
from firth.text.encoding import utf8_size
from firth.text.shards import MANIFEST, Shards, write_shards
from firth.text.tokenizers import Tokenizer

LANGUAGES = "languages.json"


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
            raise ConfigError(
                f"{len(parts)} language was given, expected two or more; text of one language goes "
                "without a name"
            )
        for name, corpus in parts.items():
            if not isinstance(corpus, Corpus):
                raise ConfigError(
                    f"the text of {name} is a {type(corpus).__name__}; expected a firth.Corpus, "
                    "for instance firth.Corpus.from_texts(texts)"
                )
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
        sizes = []
        for name, corpus in self.parts:
            with _named(name):
                sizes.append(sum(utf8_size(text, i) for i, text in enumerate(corpus)))
                if not sizes[-1]:
                    raise DataError("there is no text; check its files, or leave it out")
        visits = smoothed_shares(sizes, exponent) / (np.array(sizes) / sum(sizes))
        for rate, (_, corpus) in zip((visits / visits.min()).tolist(), self.parts, strict=True):
            for i, text in enumerate(corpus):
                for _ in range(int(rate * (i + 1) + 0.5) - int(rate * i + 0.5)):
                    yield text


@contextmanager
def _named(language: str) -> Iterator[None]:
    """Says in errors of what language the text is."""
    try:
        yield
    except DataError as error:
        raise DataError(f"language {language}: {error}") from error


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

    @property
    def directory(self) -> Path:
        """The folder that the languages' folders are in."""
        return self._shards[0].directory.parent

    @property
    def tokenizer_hash(self) -> str:
        """Of the tokenizer that made the tokens."""
        return self._shards[0].tokenizer_hash

    def tokens(self, begin: int, end: int) -> np.ndarray:
        """The ids from position `begin` up to `end`, (end - begin) int64."""
        parts = [shards.tokens(a, b) for shards, a, b in self._parts_of(begin, end)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def opens_word(self, begin: int, end: int) -> np.ndarray:
        """Whether each token from `begin` up to `end` begins a word, (end - begin) bool."""
        parts = [shards.opens_word(a, b) for shards, a, b in self._parts_of(begin, end)]
        return np.concatenate([np.zeros(0, bool), *parts])

    def describe(self) -> str:
        """Languages with their shares of the text and, where smoothed, of what is shown."""
        of_text = self.shares / self.visits
        if np.allclose(self.visits, 1):
            return ", ".join(
                f"{name} {own:.1%}" for name, own in zip(self.parts, of_text, strict=True)
            )
        return ", ".join(
            f"{name} {own:.1%} (shown {shown:.1%})"
            for name, own, shown in zip(self.parts, of_text, self.shares, strict=True)
        )

    def _parts_of(self, begin: int, end: int) -> Iterator[tuple[Shards, int, int]]:
        """The languages that a range touches, each with the range inside it."""
        first = int(np.searchsorted(self._starts, begin, side="right")) - 1
        for shards, start in zip(self._shards[first:], self._starts[first:].tolist(), strict=False):
            if start >= end:
                return
            yield shards, max(begin - start, 0), min(end - start, shards.num_tokens)


def write_languages(corpus: MultilingualCorpus, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes token files of each language, their names last."""
    for name, documents in corpus.parts:
        with _named(name):
            write_shards(documents, tokenizer, folder / name)
    write_text(folder / LANGUAGES, json.dumps(corpus.languages))


def has_tokens(folder: Path) -> bool:
    """Whether the token files of a run's text are there and whole."""
    return (folder / LANGUAGES).is_file() or (folder / MANIFEST).is_file()


def open_tokens(folder: Path, smoothing: float = 1.0) -> Shards | JoinedLanguages:
    """The token files of a run's text, of one language or several.

    Args:
        folder: `data/train` or `data/valid` of a run.
        smoothing: exponent of the languages' shares.

    Raises:
        DataError: if writing them has not finished, or a file is missing.
    """
    if not (folder / LANGUAGES).is_file():
        return Shards.open(folder)
    try:
        names = json.loads((folder / LANGUAGES).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{folder / LANGUAGES}: not a JSON file ({error}); delete it") from error
    return JoinedLanguages({name: Shards.open(folder / name) for name in names}, smoothing)
