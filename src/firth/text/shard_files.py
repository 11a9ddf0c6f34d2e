"""Writing the files of token shards: whole or not at all.

What a killed run leaves behind is a folder of whole shards, and at most one set of temporary files.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firth.atomic import resource_errors, sync, temporary_path
from firth.text.word_cache import Encoded

PARTS = ("tokens", "words", "documents")


def shard_path(directory: Path, index: int, part: str) -> Path:
    """The file of one part of a shard."""
    return directory / f"shard-{index:05d}.{part}"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What the manifest says of a shard."""

    tokens: int
    documents: int
    documents_read: int
    """Documents of the corpus up to the end of this shard, those without tokens included."""

    def damage(self, directory: Path, index: int, dtype: str) -> str | None:
        """What is wrong with the files of this shard, if something is."""
        sizes = (
            self.tokens * np.dtype(dtype).itemsize,
            -(-self.tokens // 8),
            self.documents * 8,
        )
        for part, size in zip(PARTS, sizes, strict=True):
            path = shard_path(directory, index, part)
            if not path.exists():
                return f"{path}: no such file"
            if path.stat().st_size != size:
                return f"{path}: {path.stat().st_size:,} bytes, expected {size:,} by the manifest"
        return None


class ShardWriter:
    """Lays encoded documents into shards, each of which ends with the document that fills it.

    Args:
        directory: the folder.
        dtype: type of the ids, ``"uint16"`` or ``"uint32"``.
        shard_tokens: tokens that fill a shard.
        shards: manifest entries of the shards that are there already and are kept.
    """

    def __init__(self, directory: Path, dtype: str, shard_tokens: int, shards: list[Shard]) -> None:
        self.shards = list(shards)
        self.documents_read = shards[-1].documents_read if shards else 0
        self._directory = directory
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shard_tokens = shard_tokens
        self._files: _Files | None = None
        self._remove_others()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._files:
            self._files.close()
            self._remove_others()

    @property
    def num_tokens(self) -> int:
        """Tokens in all shards so far."""
        return sum(s.tokens for s in self.shards) + (self._files.tokens if self._files else 0)

    def add(self, encoded: Encoded) -> bool:
        """Appends documents; tells whether that finished a shard.

        Raises:
            ResourceError: if the disk is full.
        """
        ends = np.cumsum(encoded.lengths)
        num_shards, first, start = len(self.shards), 0, 0
        while first < len(ends):
            room = self._shard_tokens - (self._files.tokens if self._files else 0)
            last = first + int(np.searchsorted(ends[first:] - start, room)) + 1
            is_full, last = last <= len(ends), min(last, len(ends))
            stop = int(ends[last - 1])
            self.documents_read += last - first
            if stop > start:
                ids, opens_word = encoded.ids[start:stop], encoded.opens_word[start:stop]
                self._append(ids, opens_word, ends[first:last] - start)
            if is_full:
                self.finish()
            first, start = last, stop
        return len(self.shards) > num_shards

    def finish(self) -> None:
        """Puts the shard that is being written in its place."""
        if self._files is None:
            return
        with self._disk():
            self._files.finish()
        self.shards.append(
            Shard(
                tokens=self._files.tokens,
                documents=self._files.documents,
                documents_read=self.documents_read,
            )
        )
        self._files = None

    def _append(self, ids: np.ndarray, opens_word: np.ndarray, ends: np.ndarray) -> None:
        with self._disk():
            if self._files is None:
                self._files = _Files(self._directory, len(self.shards))
            self._files.append(ids.astype(self._dtype), opens_word, ends)

    def _disk(self) -> contextlib.AbstractContextManager[None]:
        needed = self._shard_tokens * self._dtype.itemsize * 17 // 16
        path = shard_path(self._directory, len(self.shards), "tokens")
        return resource_errors(path, needed)

    def _remove_others(self) -> None:
        kept = {shard_path(self._directory, i, p) for i in range(len(self.shards)) for p in PARTS}
        for part in PARTS:
            for path in self._directory.glob(f"shard-[0-9][0-9][0-9][0-9][0-9].{part}*"):
                if path not in kept:
                    path.unlink()


class _Files:
    """The files of the shard that is being written."""

    def __init__(self, directory: Path, index: int) -> None:
        self.tokens = 0
        self.documents = 0
        self._paths = [shard_path(directory, index, part) for part in PARTS]
        self._files = [temporary_path(path).open("wb") for path in self._paths]
        self._bits = np.zeros(0, bool)

    def append(self, ids: np.ndarray, opens_word: np.ndarray, ends: np.ndarray) -> None:
        """Appends whole documents; `ends` counts from the first id given."""
        tokens, words, documents = self._files
        tokens.write(ids.tobytes())
        bits = np.concatenate([self._bits, opens_word])
        whole = len(bits) // 8 * 8
        words.write(np.packbits(bits[:whole]).tobytes())
        self._bits = bits[whole:]
        ends = ends[np.diff(ends, prepend=0) > 0]  # documents without tokens are left out
        documents.write((ends + self.tokens).astype("<u8").tobytes())
        self.tokens += len(ids)
        self.documents += len(ends)

    def finish(self) -> None:
        self._files[PARTS.index("words")].write(np.packbits(self._bits).tobytes())
        for file in self._files:
            file.flush()
            sync(Path(file.name))
        self.close()
        for file, path in zip(self._files, self._paths, strict=True):
            Path(file.name).replace(path)

    def close(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):  # closing writes what a full disk refused before
                file.close()
