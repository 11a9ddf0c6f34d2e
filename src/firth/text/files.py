"""Text files: finding them, decompressing and decoding them.

    paths --find_files--> files --read_chunks--> bytes --read_text--> characters

Everything is a stream: memory holds a few chunks of about 1 MB.
"""

import codecs
import errno
import gzip
import hashlib
import io
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from glob import glob, has_magic
from itertools import chain, takewhile
from pathlib import Path

from firth.errors import DataError, UnsupportedError

logger = logging.getLogger(__name__)

FORMATS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")
COMPRESSIONS = (".gz", ".zst")
KNOWN = f"known: {', '.join(FORMATS)}; all but .parquet also with {' or '.join(COMPRESSIONS)}"
CHUNK = 1 << 20
"""Bytes read at a time."""
HEAD = 4096
"""Bytes that tell whether a file is text."""
MOST_NULS = 0.1
"""Share of them that may be NUL; of English in UTF-16 a half is."""
FEWEST_NULS = 32
"""Below so many, a short text with a stray NUL is not refused."""


@dataclass
class Statistics:
    """Counts that reading adds to; complete once the last document has been read."""

    documents: int = 0
    """Documents given."""
    characters: int = 0
    """Characters in them."""
    duplicates: int = 0
    """Documents left out because the same text came before (with ``drop_duplicates``)."""
    replaced: int = 0
    """Replacement characters put for invalid bytes (with ``errors="replace"``) in the files read,
    whichever part of a split they are in."""


def file_format(path: Path) -> tuple[str, str]:
    """Format and compression of a file by its suffixes, or ``("", "")`` where they are unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    kind = suffixes[-1] if suffixes else ""
    known = kind in FORMATS and not (kind == ".parquet" and compression)
    return (kind, compression) if known else ("", "")


def find_files(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """The files that `paths` name, in the order given, each once.

    A file is taken as it is. A folder gives all files below it that have a known suffix and are not
    hidden, sorted by path, those of linked folders too; so does a glob pattern, in which ``**``
    stands for any folders. Folders of models and indexes that firth has written there are left out,
    with a warning.

    Raises:
        DataError: if a path is empty or does not exist, has an unknown suffix, or yields no file.
    """
    found: dict[Path, Path] = {}
    for path in paths if isinstance(paths, Iterable) else [paths]:
        if not isinstance(path, str | os.PathLike):
            raise DataError(f"{path!r} is no path; expected the name of a file, folder or glob")
        if not str(path):  # which would be the folder one is in
            raise DataError("an empty path was given for a text; is a variable unset?")
        try:
            files = _files(Path(path))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise DataError(
                f"{str(path)[:40]!r}... is too long for the name of a file; a text in memory goes "
                "into Corpus.from_texts([text])"
            ) from error
        for file in files:
            found.setdefault(file.resolve(), file)
    if not found:
        raise DataError("no files were given; give at least one file, folder or glob pattern")
    return tuple(found.values())


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        if _of_index(path):
            raise DataError(f"{path}: an index of words, no text; neighbours has it as --index")
        matches = _below(path)
    elif path.exists():
        if not file_format(path)[0]:
            raise DataError(
                f"{path}: unknown suffix {''.join(path.suffixes[-2:])!r}; {KNOWN}; "
                "rename or convert the file"
            )
        return [path]
    elif has_magic(str(path)):
        matches = [Path(name) for name in glob(str(path), recursive=True)]
    else:
        raise DataError(
            f"{path}: no such file or folder (seen from {Path.cwd()}); "
            "give a file, a folder or a glob pattern"
        )
    files = sorted(file for file in matches if file_format(file)[0] and file.is_file())
    files = _without_models(files, path)
    if not files:
        raise DataError(
            f"{path}: no text files among {len(matches)} matches; {KNOWN}; "
            "check the path, or rename or convert the files"
        )
    return files


def _below(folder: Path) -> list[Path]:
    """The files below a folder that are not hidden, those of linked folders too.

    Each folder is looked through once, so links that lead back into each other end. What is linked
    comes after all else, so a folder has its own name rather than that of a link.
    """
    found: list[Path] = []
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        for place, folders, names in os.walk(waiting.pop(0), onerror=_warn_unreadable):
            here = Path(place)
            if here.resolve() in seen:
                folders.clear()
                continue
            seen.add(here.resolve())
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [here / name for name in folders if (here / name).is_symlink()]
            found += [here / name for name in names if not name.startswith(".")]
    return found


def _warn_unreadable(error: OSError) -> None:
    logger.warning("%s: cannot be read (%s); left out", error.filename, error.strerror)


def _without_models(files: list[Path], path: Path) -> list[Path]:
    """Leaves out what lies in a folder of firth's own, unless it is named in `path`."""
    named = len(path.parts)
    if not path.is_dir():
        named = len(list(takewhile(lambda part: not has_magic(part), path.parts)))
    below = {folder for file in files for folder in file.parents if len(folder.parts) > named}
    own = sorted(filter(_written_by_firth, below))
    for folder in own:
        logger.warning("%s: a model or an index, no text; left out", folder)
    return [file for file in files if not any(file.is_relative_to(folder) for folder in own)]


def _written_by_firth(folder: Path) -> bool:
    """Whether a folder is a run, an adapted model or an index of words."""
    if _of_index(folder):
        return True
    recipe = folder / "recipe.json"
    own = recipe.is_file() and b'"requested"' in recipe.read_bytes()
    return own or (folder / "adaptation.json").is_file()


def _of_index(folder: Path) -> bool:
    return any(_is_of_index(folder / name) for name in ("manifest.json", "progress.json"))


def _is_of_index(file: Path) -> bool:
    """Whether a file says how large the files of an index of words are."""
    try:
        return "words.txt" in json.loads(file.read_bytes())["sizes"]
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return False  # no such file, or one of the user's own


def read_chunks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file in pieces of about `CHUNK`, none of them empty.

    Raises:
        DataError: if the file cannot be read, or its compressed content is damaged or cut short.
        UnsupportedError: if it is .zst and `zstandard` is not installed.
    """
    suffix = path.suffix.lower()
    compression = suffix if suffix in COMPRESSIONS else ""
    try:
        with path.open("rb") as file:
            if compression == ".zst":
                yield from _decompress_zst(file, path)
            else:
                source = gzip.GzipFile(fileobj=file) if compression else file
                while chunk := source.read(CHUNK):
                    yield chunk
            if compression and not path.stat().st_size:
                raise _damaged(path, "it has no bytes at all")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def digest_file(path: Path) -> bytes:
    """A 16-byte hash (BLAKE2b) of the bytes of a file as they lie on disk.

    A file that has kept its size and time of change is read once in the life of the process.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        found = path.stat()
        return _digest_at(path.resolve(), found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise _unreadable(path, error) from error


@lru_cache(maxsize=1 << 16)
def _digest_at(path: Path, _size: int, _changed: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be read ({error.strerror or error}); check that it exists and its "
        "permissions"
    )


def _decompress_zst(file: io.BufferedReader, path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise missing_extra(path, "zstandard") from error
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # that of zstd --long=31
    frame, parts, size = None, [], 0
    try:
        # The input is taken in small bites, because one bite of it may unpack to much more.
        while data := file.read(1 << 14):
            while data:  # a file may hold several frames
                frame = frame or decompressor.decompressobj()
                parts.append(frame.decompress(data))
                size += len(parts[-1])
                data = frame.unused_data
                if frame.eof:
                    frame = None
            if size >= CHUNK:
                yield b"".join(parts)
                parts, size = [], 0
    except zstandard.ZstdError as error:
        raise _damaged(path, error) from error
    if size:
        yield b"".join(parts)
    if frame:
        raise _damaged(path, "it ends before the compressed stream does")


def _damaged(path: Path, error: object) -> DataError:
    return DataError(
        f"{path}: damaged or cut short ({error}); expected a whole {path.suffix} file; "
        "copy, download or compress it again"
    )


def missing_extra(path: Path, package: str) -> UnsupportedError:
    """The error for a file that needs a package of the extra ``data``."""
    return UnsupportedError(
        f"{path}: reading {path.suffix} needs {package}: pip install 'firth[data]'"
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that is read whole; raises as `read_text` does."""
    return "".join(read_text(path, "strict", Statistics())).split("\n")


def read_text(path: Path, errors: str, statistics: Statistics) -> Iterator[str]:
    """The text of a UTF-8 file in pieces: no byte-order mark, every line break a line feed.

    Args:
        path: the file.
        errors: ``"strict"``, or ``"replace"`` to put U+FFFD for invalid bytes and count them.
        statistics: its `replaced` is added to.

    Raises:
        DataError: on an invalid byte, with its offset in the (decompressed) file; and if the file
            is UTF-16 or no text, whatever `errors` is.
    """
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    data, offset = b"", 0
    for chunk in chain(_checked(path, read_chunks(path)), (b"",)):
        data += chunk
        try:
            text, used = codecs.utf_8_decode(data, errors, not chunk)
        except UnicodeDecodeError as error:
            raise _invalid_byte(path, error, offset) from error
        if errors == "replace":
            # U+FFFD may also be in the file itself; those are not counted.
            statistics.replaced += text.count("\ufffd") - data[:used].count(b"\xef\xbf\xbd")
        if offset == 0:
            text = text.removeprefix("\ufeff")
        data, offset = data[used:], offset + used
        if text := newlines.decode(text, final=not chunk):
            yield text


def _checked(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, unless they begin as no UTF-8 text does."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEAD:
            break
    advice = "expected UTF-8; convert the file (for instance `iconv -f utf-16 -t utf-8`)"
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise DataError(f"{path}: begins as UTF-16, {advice}")
    nuls, size = head[:HEAD].count(0), len(head[:HEAD])
    if nuls >= max(FEWEST_NULS, MOST_NULS * size):
        raise DataError(
            f"{path}: {nuls:,} of the first {size:,} bytes are NUL, as in UTF-16 or in a file that "
            f"is no text; {advice}"
        )
    yield head
    yield from chunks


def _invalid_byte(path: Path, error: UnicodeDecodeError, offset: int) -> DataError:
    before = error.object[max(0, error.start - 24) : error.start].decode(errors="ignore")
    return DataError(
        f"{path}: byte {offset + error.start} is 0x{error.object[error.start]:02x} "
        f"(after {before!r}), expected UTF-8; convert the file (for instance "
        "`iconv -f latin1 -t utf-8`); to pre-train on it, a corpus can also be read with "
        "errors='replace' (`firth pretrain --errors replace`), which puts U+FFFD and counts"
    )
