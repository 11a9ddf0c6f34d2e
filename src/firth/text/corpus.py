"""A corpus: documents streamed from text files, or held in memory, and split by content.

corpus = Corpus.from_files(["novels/", "news/*.jsonl.zst"], drop_duplicates=True)
train, valid = corpus.split(valid=0.01)
for document in train: ...
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, NamedTuple

from firth.config import suggest
from firth.errors import ConfigError, DataError
from firth.text.files import Statistics, digest_file, find_files
from firth.text.formats import ROWS, UNITS, describe_file, read_documents
from firth.text.words import check_texts

__all__ = ["Corpus", "Description", "Part", "Statistics"]


_LEAST = 2000
"""Characters of a file that a sample takes, if it takes any."""


class Description(NamedTuple):
    """How one file of a corpus is read."""

    path: str
    format: str
    """Suffixes that decided, such as ".txt.zst"; "list" for texts in memory."""
    unit: str
    """What a document is: "file", "block" or "line" of a .txt, "row" of a table, "text"."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One side of a split: a document belongs to it by a hash of its text alone."""

    side: Literal["train", "valid"]
    valid: float
    """Share of documents on the side "valid", in expectation."""
    seed: int
    depth: int = 0
    """How many splits came before; it makes them independent of each other."""

    def select(self, documents: list[str]) -> list[str]:
        """Those of the documents that are on this side."""
        salt = _digest(f"{self.depth}:{self.seed}")
        limit = int(self.valid * 2**128).to_bytes(16)
        is_valid = self.side == "valid"
        return [text for text in documents if (_digest(text, salt) < limit) == is_valid]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents in a fixed order, streamed anew by each iteration; build one with `from_files` or
    `from_texts`.

    Formats, by suffix: .txt; .jsonl, one object a line; .csv with standard quoting; .tsv, in which
    quotes are literal; .parquet (needs the extra ``data``). All but .parquet may also be
    compressed, as .gz or .zst (needs the extra ``data``). Text is UTF-8, with or without a
    byte-order mark; every line break becomes a line feed. Documents are stripped of white space at
    both ends, and empty ones are dropped.

    A document of a .txt file is the ``"file"``; a ``"block"``, the text between blank lines; a
    ``"line"``; or, with ``"auto"``, what the first 4 MB of each file suggest: block if there are
    blank lines, line if lines are long (25 words or more in the median), else file. So that memory
    stays bounded, a document of more than a million characters is given in pieces, cut at line
    breaks; each counts as a document. A row of a table is one document, however long.
    """

    files: tuple[Path, ...] = ()
    texts: tuple[str, ...] = ()
    documents: str = "auto"
    text_column: str = "text"
    errors: str = "strict"
    drop_duplicates: bool = False
    parts: tuple[Part, ...] = ()

    @classmethod
    def from_files(
        cls,
        paths: str | Path | Sequence[str | Path],
        *,
        documents: str = "auto",
        text_column: str | int = "text",
        errors: str = "strict",
        drop_duplicates: bool = False,
    ) -> "Corpus":
        """A corpus of text files; they are found now and read when it is iterated.

        Args:
            paths: one or many files, folders (everything below with a known suffix, sorted, hidden
                files left out) and glob patterns (``**`` for any folders). A file named twice is
                read once.
            documents: the unit of .txt files: ``"auto"``, ``"file"``, ``"block"`` or ``"line"``.
            text_column: the column (or key) of tables that holds the text; null there is empty. A
                number that is no column's name, such as 2, counts the columns of .csv and .tsv
                files without header from 1. No row of such files may have more cells than the
                first.
            errors: ``"strict"``, or ``"replace"`` to put U+FFFD for bytes that are not UTF-8.
            drop_duplicates: leave out documents whose text came before; this takes about 100 bytes
                of memory a document (a 16-byte hash, not the text).

        Raises:
            DataError: if a path does not exist, has an unknown suffix, or yields no file.
            ConfigError: if `documents` or `errors` is not one of the above.
        """
        if documents not in UNITS:
            raise ConfigError(f"documents is {documents!r}; {suggest(documents, UNITS)}")
        if errors not in ("strict", "replace"):
            raise ConfigError(f"errors is {errors!r}; {suggest(errors, ('strict', 'replace'))}")
        return cls(
            files=find_files([paths] if isinstance(paths, str | Path) else paths),
            documents=documents,
            text_column=str(text_column),
            errors=errors,
            drop_duplicates=drop_duplicates,
        )

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, drop_duplicates: bool = False) -> "Corpus":
        """A corpus of texts in memory, one document each.

        Raises:
            ConfigError: for a string in place of a list, or a set, which has no fixed order.
            DataError: if one of the texts is no string.
        """
        check_texts(texts, once=True)
        texts = tuple(texts)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"text {i} is {text!r} ({type(text).__name__}), expected a string")
        return cls(texts=texts, drop_duplicates=drop_duplicates)

    def __iter__(self) -> Iterator[str]:
        return self.read()

    def __repr__(self) -> str:
        names = ", ".join(str(file) for file in self.files[:3])
        more = ", ..." if len(self.files) > 3 else ""
        what = (
            f"{len(self.files)} files: {names}{more}" if self.files else f"{len(self.texts)} texts"
        )
        sides = "".join(f", {part.side} side of a split" for part in self.parts)
        return f"Corpus({what}{sides})"

    def read(self, statistics: Statistics | None = None) -> Iterator[str]:
        """Streams the documents, and adds to `statistics` while doing so.

        The counts run ahead of the documents by up to a chunk, and are right once the iterator is
        exhausted.

        Raises:
            DataError: on content that is not what was expected, with the file and the byte or row;
                or, at the end, if this side of a split turned out to hold no document.
        """
        statistics = Statistics() if statistics is None else statistics
        seen: set[bytes] = set()
        num_read = num_kept = 0
        for batch in self._batches(statistics):
            batch = [document for document in map(str.strip, batch) if document]
            num_read += len(batch)
            batch = self._on_this_side(batch)
            if self.drop_duplicates:
                batch = _drop_seen(batch, seen, statistics)
            num_kept += len(batch)
            statistics.documents += len(batch)
            statistics.characters += sum(map(len, batch))
            yield from batch
        if self.parts and not num_kept:
            raise self._empty_side(num_read)

    def sample(self, size: int) -> Iterator[str]:
        """The first documents of every file, about `size` characters in all; duplicates stay.

        Of so many files that little were taken of each, some are left out, evenly.

        Raises:
            DataError: as `read` does.
        """
        step = max(1, -(-len(self.files) * _LEAST // max(1, size)))
        sources = [replace(self, files=(file,)) for file in self.files[::step]] or [self]
        found = False
        for source in sources:
            batches = (map(str.strip, batch) for batch in source._batches(Statistics()))
            documents = (text for batch in batches for text in self._on_this_side(list(batch)))
            for text in first_characters(documents, size // len(sources)):
                found = True
                yield text
        if not found:  # in these files: then `read` says so, or there is text in others
            yield from first_characters(self, size)

    def statistics(self) -> Statistics:
        """Counts of documents, characters, duplicates and replaced bytes, by reading all once.

        To have the counts of an iteration that is made anyway, give `read` a `Statistics`.
        """
        statistics = Statistics()
        for _ in self.read(statistics):
            pass
        return statistics

    def describe(self) -> list[Description]:
        """How each file is read: its format, and the document unit set or detected."""
        if not self.files:
            return [Description("texts in memory", "list", "text")]
        return [
            Description(str(file), *describe_file(file, self.documents, self.errors))
            for file in self.files
        ]

    def split(self, *, valid: float = 0.01, seed: int = 0) -> tuple["Corpus", "Corpus"]:
        """Two corpora, for training and for validation, that share no document.

        A document is for validation if a hash of its text and of `seed`, as a number between 0 and
        1, is below `valid`. So equal texts are on the same side, and a document stays on its side
        whatever is added to the corpus. Reading a side that holds no document raises a DataError.

        Args:
            valid: expected share of documents for validation, between 0 and 1.
            seed: another one gives another split.

        Raises:
            ConfigError: if `valid` is not between 0 and 1, or `seed` no whole number.
        """
        if not isinstance(valid, Real) or not 0 < valid < 1:
            raise ConfigError(f"valid is {valid!r}, expected a share between 0 and 1, such as 0.01")
        if not isinstance(seed, Integral):
            raise ConfigError(f"seed is {seed!r}, expected a whole number")
        valid, seed = float(valid), int(seed)
        depth = len(self.parts)
        train_part = Part(side="train", valid=valid, seed=seed, depth=depth)
        valid_part = Part(side="valid", valid=valid, seed=seed, depth=depth)
        return (
            replace(self, parts=(*self.parts, train_part)),
            replace(self, parts=(*self.parts, valid_part)),
        )

    def fingerprint(self) -> str:
        """A hash of all that decides the documents: the files' names and bytes, and the settings.

        Folders do not count, so a corpus may be moved. Reads all files once, at disk speed.
        """
        settings = asdict(replace(self, files=(), texts=()))
        total = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16)
        for file in self.files:
            total.update(os.fsencode(file.name) + b"\0" + digest_file(file))
        for text in self.texts:
            total.update(_digest(text))
        return total.hexdigest()

    def _on_this_side(self, documents: list[str]) -> list[str]:
        for part in self.parts:
            documents = part.select(documents)
        return documents

    def _batches(self, statistics: Statistics) -> Iterator[list[str]]:
        for start in range(0, len(self.texts), ROWS):
            yield list(self.texts[start : start + ROWS])
        for file in self.files:
            yield from read_documents(
                file,
                documents=self.documents,
                text_column=self.text_column,
                errors=self.errors,
                statistics=statistics,
            )

    def _empty_side(self, num_documents: int) -> DataError:
        if not num_documents:
            first, more = next(iter(self.files), None), len(self.files) - 1
            others = f" and {more} more files" if more > 0 else ""
            where = f"in {first}{others}" if first else "among the texts given"
            return DataError(f"there is no text {where}, but white space at most; check the files")
        part = self.parts[-1]
        share = part.valid if part.side == "valid" else 1 - part.valid
        return DataError(
            f"none of {num_documents} documents fell into the {part.side} part, which should get "
            f"{share:.3g} of them; have smaller documents (documents='line' or 'block'; on the "
            "command line --documents line), give the validation text in files of its own "
            f"(--valid FILE), or choose another share than {part.valid} (--data.valid 0.1) or "
            f"another seed than {part.seed}"
        )


def first_characters(texts: Iterable[str], size: int) -> Iterator[str]:
    """The first texts that are not empty, until `size` characters are reached; the last is cut."""
    for text in filter(None, texts):
        yield text[:size]
        size -= len(text)
        if size <= 0:
            return


def _drop_seen(documents: list[str], seen: set[bytes], statistics: Statistics) -> list[str]:
    kept = []
    for document in documents:
        digest = _digest(document)
        if digest not in seen:
            seen.add(digest)
            kept.append(document)
    statistics.duplicates += len(documents) - len(kept)
    return kept


def _digest(text: str, salt: bytes = b"") -> bytes:
    # Text in memory may hold lone surrogates, which plain UTF-8 refuses.
    content = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16, salt=salt).digest()
