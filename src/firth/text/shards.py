"""Text as memory-mapped token files.

    corpus --encode--> shard-00000.tokens      ids, uint16 or uint32, without special tokens
                       shard-00000.words       a bit a token: 1 where it opens a word
                       shard-00000.documents   where each document ends, in tokens, uint64
                       shard-00001.tokens ...
                       manifest.json           what they were made of, and how much they hold

Numbers are little-endian and bits go from the highest to the lowest. A document lies in one shard.
The files depend on the corpus, the tokenizer and `shard_tokens` alone. Each appears under its name
once it is whole on disk, the manifest last.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from firth.atomic import TEMPORARY, write_text
from firth.config import read_json
from firth.errors import ConfigError, DataError
from firth.text.encoding import encode_stream, utf8_size
from firth.text.shard_files import Shard, ShardWriter, shard_path
from firth.text.tokenizers import Tokenizer

FORMAT = 1
MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"
_KEYS = {
    *("corpus", "tokenizer", "vocabulary_size", "dtype", "shard_tokens"),
    *("num_tokens", "num_documents", "shards"),
}
SAMPLE_TOKENS = 1 << 24
"""Tokens looked at for statistics of a large corpus."""

Progress = Callable[[int, int], None]
"""Called with the number of documents read and of tokens stored so far."""


class Corpus(Protocol):
    """Documents in a fixed order, streamed anew by each iteration, with a hash of it all."""

    def __iter__(self) -> Iterator[str]: ...

    def fingerprint(self) -> str: ...


class Shards:
    """The tokens of a corpus, end to end in the order of its documents.

    Positions are counted over all shards. Open a folder with `Shards.open`.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.tokenizer_hash: str = manifest["tokenizer"]
        self.vocabulary_size: int = manifest["vocabulary_size"]
        self.num_tokens: int = manifest["num_tokens"]
        self.num_documents: int = manifest["num_documents"]
        shards = _entries(manifest)
        self._starts = np.cumsum([0, *(shard.tokens for shard in shards)])
        for index, shard in enumerate(shards):
            if damage := shard.damage(directory, index, manifest["dtype"]):
                raise DataError(f"{damage}; copy the folder again, or delete and rewrite it")
        dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
        indexes = range(len(shards))
        self._tokens = [_map(shard_path(directory, i, "tokens"), dtype) for i in indexes]
        self._words = [_map(shard_path(directory, i, "words"), "u1") for i in indexes]
        self._ends = [_map(shard_path(directory, i, "documents"), "<u8") for i in indexes]

    @classmethod
    def open(cls, directory: str | Path) -> "Shards":
        """Opens a folder that `write_shards` has finished.

        Raises:
            DataError: if it has no manifest, or one of its files is missing or has another size.
        """
        directory = Path(directory)
        manifest = _read_manifest(directory / MANIFEST)
        if manifest is None:
            raise DataError(
                f"{directory}: no {MANIFEST}, so this is no folder of token files, or writing them "
                "has not finished; write them (again) with write_shards"
            )
        return cls(directory, manifest)

    def __len__(self) -> int:
        return self.num_tokens

    def tokens(self, begin: int, end: int) -> np.ndarray:
        """The ids from position `begin` up to `end`, (end - begin) int64."""
        parts = [self._tokens[i][a:b] for i, a, b in self._parts(begin, end)]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)

    def opens_word(self, begin: int, end: int) -> np.ndarray:
        """Whether each token from `begin` up to `end` begins a word, (end - begin) bool."""
        flags = [np.zeros(0, np.uint8)]
        for i, a, b in self._parts(begin, end):
            bits = np.unpackbits(self._words[i][a // 8 : -(-b // 8)])
            flags.append(bits[a % 8 :][: b - a])
        return np.concatenate(flags).view(bool)

    @property
    def document_starts(self) -> np.ndarray:
        """(num_documents + 1) int64: document d is at document_starts[d]:document_starts[d + 1]."""
        ends = [
            ends.astype(np.int64) + start
            for ends, start in zip(self._ends, self._starts[:-1], strict=True)
        ]
        return np.concatenate([np.zeros(1, np.int64), *ends])

    @cached_property
    def token_counts(self) -> np.ndarray:
        """(vocabulary_size) int64: how often each id occurs.

        Of a corpus of more than `SAMPLE_TOKENS`, about so many are counted, in 256 stretches spread
        evenly over it.
        """
        num_stretches = 256 if self.num_tokens > SAMPLE_TOKENS else 1
        length = min(self.num_tokens, SAMPLE_TOKENS) // num_stretches
        begins = np.linspace(0, self.num_tokens - length, num_stretches).astype(int)
        counts = np.zeros(self.vocabulary_size, np.int64)
        for begin in begins.tolist():
            counts += np.bincount(self.tokens(begin, begin + length), minlength=len(counts))
        return counts

    def _parts(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """The shards that a range touches, each with the range inside it."""
        if not 0 <= begin <= end <= self.num_tokens:
            raise IndexError(f"{begin}:{end} is not a range within {self.num_tokens} tokens")
        if begin == end:
            return []
        first = int(np.searchsorted(self._starts, begin, side="right")) - 1
        last = int(np.searchsorted(self._starts, end, side="left"))
        return [
            (i, max(begin - start, 0), min(end, int(self._starts[i + 1])) - start)
            for i in range(first, last)
            for start in [int(self._starts[i])]
        ]


def unigram_entropy(counts: np.ndarray) -> float:
    r"""Entropy of the frequencies of tokens, in nats a token.

    $H = -\sum_v p(v) \ln p(v)$: the loss of the best model that ignores the context.

    Args:
        counts: (vocabulary size) how often each occurs.
    """
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def write_shards(
    corpus: Corpus,
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    workers: int = 2,
    shard_tokens: int = 1 << 24,
    progress: Progress | None = None,
) -> Shards:
    """Encodes a corpus into a folder of token files, or opens the folder if that has been done.

    Special tokens are not stored, and text that looks like one is text. Documents without tokens
    are left out. After an interruption, the same call keeps the shards that were finished and gives
    byte for byte the files of an uninterrupted run.

    Args:
        corpus: documents, and a `fingerprint` that changes when they do.
        tokenizer: gives the ids.
        directory: the folder, made if need be.
        workers: processes that encode; the result does not depend on their number.
        shard_tokens: a shard ends with the document that reaches this many tokens.
        progress: called now and then with the documents read and the tokens stored so far.

    Raises:
        DataError: if the folder holds another corpus or tokenizer's shards, or no document has a
            token, or a document holds half of a surrogate pair (which UTF-8 cannot hold), or the
            corpus changes while it is read.
        ResourceError: if the disk is full, or an encoding process dies.
    """
    directory = Path(directory)
    settings = {
        "format": FORMAT,
        "corpus": corpus.fingerprint(),
        "tokenizer": tokenizer.content_hash,
        "vocabulary_size": tokenizer.vocabulary.size,
        "dtype": "uint16" if tokenizer.vocabulary.size <= 1 << 16 else "uint32",
    }
    for name in (MANIFEST, UNFINISHED):
        _check_identity(directory / name, settings)
    directory.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(directory)
    if (directory / MANIFEST).exists():
        return Shards.open(directory)
    settings["shard_tokens"] = shard_tokens
    writer = ShardWriter(directory, settings["dtype"], shard_tokens, _kept(directory, settings))
    documents = _checked(corpus, start=writer.documents_read)
    with writer, closing(encode_stream(documents, tokenizer.to_json(), workers=workers)) as stream:
        for encoded in stream:
            if writer.add(encoded):
                _save_manifest(directory / UNFINISHED, settings, writer.shards)
            if progress:
                progress(writer.documents_read, writer.num_tokens)
        writer.finish()
    if corpus.fingerprint() != settings["corpus"]:
        (directory / UNFINISHED).unlink(missing_ok=True)
        raise DataError(
            "the corpus was changed while it was read; run again when its files stay as they are"
        )
    if not writer.shards:
        raise DataError("none of the corpus's documents has a token; check its files and settings")
    _save_manifest(directory / MANIFEST, settings, writer.shards)
    _remove_leftovers(directory)
    return Shards.open(directory)


def _remove_leftovers(directory: Path) -> None:
    """Removes what is of no use any more, also of a run that was killed just before it did so."""
    names = (MANIFEST, UNFINISHED)
    left = [path for name in names for path in directory.glob(f"{name}.*{TEMPORARY}")]
    if (directory / MANIFEST).exists():
        left.append(directory / UNFINISHED)
    for path in left:
        with suppress(OSError):  # a finished folder may be where nothing can be written
            path.unlink(missing_ok=True)


def _save_manifest(path: Path, settings: dict[str, Any], shards: list[Shard]) -> None:
    manifest = {
        **settings,
        "num_tokens": sum(shard.tokens for shard in shards),
        "num_documents": sum(shard.documents for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }
    write_text(path, json.dumps(manifest, indent=1))


def _check_identity(path: Path, settings: dict[str, Any]) -> None:
    manifest = _read_manifest(path) or settings
    for key, wanted in settings.items():
        if manifest[key] != wanted:
            raise DataError(
                f"{path}: written for the {key} {manifest[key]}, expected {wanted}; choose another "
                "folder, or delete this one to write it anew"
            )


def _kept(directory: Path, settings: dict[str, Any]) -> list[Shard]:
    """The shards that an interrupted run has finished and left whole."""
    manifest = _read_manifest(directory / UNFINISHED)
    if manifest is None or manifest["shard_tokens"] != settings["shard_tokens"]:
        return []
    shards = _entries(manifest)
    damages = (shard.damage(directory, i, settings["dtype"]) for i, shard in enumerate(shards))
    return shards[: sum(1 for _ in itertools.takewhile(lambda damage: damage is None, damages))]


def _entries(manifest: dict[str, Any]) -> list[Shard]:
    return [Shard(**entry) for entry in manifest["shards"]]


def _checked(corpus: Corpus, *, start: int) -> Iterator[str]:
    for index, document in enumerate(itertools.islice(corpus, start, None), start):
        utf8_size(document, index)
        yield document


def _map(path: Path, dtype: Any) -> np.ndarray:
    return np.memmap(path, dtype, mode="r")


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest = read_json(path) if path.exists() else None
    except ConfigError as error:
        raise DataError(f"{error}; delete and rewrite it") from error
    if manifest is not None and manifest.get("format") != FORMAT:
        raise DataError(
            f"{path}: format {manifest.get('format')!r}, expected {FORMAT}; it comes from another "
            "version or program; delete the folder to write it anew, or choose another"
        )
    if manifest is not None and (missing := sorted(_KEYS - manifest.keys())):
        raise DataError(f"{path}: no {', '.join(missing)}; delete and rewrite it")
    return manifest
