"""The documents of one file, by format: .txt by unit, tables by row.

A .txt file of any size is read in bounded memory; of a table, one row is held whole.
"""

import csv
import itertools
import json
import re
import statistics as stats
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from firth.config import suggest
from firth.errors import DataError
from firth.text.files import Statistics, file_format, missing_extra, read_text

SAMPLE = 4 << 20
"""Characters that detection looks at: enough for a blank line after a long novel to be seen."""
LONGEST = 1_000_000
"""Characters of a .txt document above which it is given in pieces."""
LONG_LINE = 25
"""Median words a line from which a line is taken for a document of its own."""
ROWS = 1024
"""Rows of a table that are handed on together."""
FIELD = 1 << 27
"""Characters a field of a .csv file may have: beyond, a quote was surely left open."""
UNITS = ("auto", "file", "block", "line")
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_documents(
    path: Path, *, documents: str, text_column: str, errors: str, statistics: Statistics
) -> Iterator[list[str]]:
    """The documents of a file in lists; they may be empty and are not stripped yet.

    The arguments are those of `firth.text.corpus.Corpus.from_files`.

    Raises:
        DataError: if the content is not what was expected, with the byte or row.
    """
    kind, _ = file_format(path)
    if kind == ".parquet":
        rows = _parquet(path, text_column, errors, statistics)
    else:
        texts = read_text(path, errors, statistics)
        if kind == ".txt":
            yield from _txt(texts, documents)
            return
        if kind == ".jsonl":
            rows = _jsonl(path, _lines(texts), text_column, errors, statistics)
        else:
            rows = _table(path, _csv(path, texts) if kind == ".csv" else _tsv(texts), text_column)
    while batch := list(itertools.islice(rows, ROWS)):
        yield batch


def describe_file(path: Path, documents: str, errors: str) -> tuple[str, str]:
    """Format and document unit of a file, such as ``(".txt.zst", "block")``; tables have "row".

    Raises:
        DataError: if the beginning of the file cannot be read.
    """
    kind, compression = file_format(path)
    if kind == ".txt" and documents == "auto":
        sample, _ = _take_sample(read_text(path, errors, Statistics()))
        documents = detect_unit(sample)
    return kind + compression, documents if kind == ".txt" else "row"


_BLANK_LINES = re.compile(r"\n\s*\n")


def detect_unit(sample: str) -> str:
    """What a document is in a .txt file, by the beginning of its text.

    ``"block"`` if there is a blank line between two lines of text; otherwise ``"line"`` if the
    first thousand lines have 25 words or more in the median (ten characters count as a word at
    least, for scripts that put no spaces between words); otherwise ``"file"``.
    """
    sample = sample[:SAMPLE].strip()
    if _BLANK_LINES.search(sample):
        return "block"
    lines = sample.split("\n", 1000)[:1000]
    words = stats.median(max(len(line.split()), len(line) // 10) for line in lines)
    return "line" if words >= LONG_LINE else "file"


def _take_sample(texts: Iterator[str]) -> tuple[str, Iterator[str]]:
    """The first `SAMPLE` characters (or a little more), and the whole stream again."""
    head, size = [], 0
    for text in texts:
        head.append(text)
        size += len(text)
        if size >= SAMPLE:
            break
    return "".join(head), itertools.chain(head, texts)


_SPLIT: dict[str, Callable[[str], list[str]]] = {
    "file": lambda text: [text],
    "block": _BLANK_LINES.split,
    "line": lambda text: text.split("\n"),
}


def _txt(texts: Iterator[str], unit: str) -> Iterator[list[str]]:
    """Cuts a stream of text into documents, given in lists (they may be empty or unstripped).

    A document of more than `LONGEST` characters is given in pieces, cut at a line break, else at a
    space, else anywhere.

    Args:
        texts: consecutive pieces of the text.
        unit: ``"file"``, ``"block"``, ``"line"``, or ``"auto"`` for `detect_unit`.
    """
    if unit == "auto":
        sample, texts = _take_sample(texts)
        unit = detect_unit(sample)
    rest = ""
    for text in texts:
        *documents, rest = _SPLIT[unit](rest + text)
        if max(map(len, documents), default=0) > LONGEST:
            documents = [piece for document in documents for piece in _cut(document)]
        # The end of `rest` stays as it is: it may be half of a blank line.
        *pieces, rest = _cut(rest)
        yield documents + pieces
    yield [rest]


def _cut(text: str) -> list[str]:
    text = text.lstrip()
    pieces = []
    while len(text) > LONGEST and len(text.rstrip()) > LONGEST:
        ends = (text.rfind(mark, 0, LONGEST + 1) for mark in "\n ")
        end = next((end for end in ends if end > 0), LONGEST)
        pieces.append(text[:end])
        text = text[end:].lstrip()
    return [*pieces, text]


def _lines(texts: Iterable[str]) -> Iterator[str]:
    line: list[str] = []  # its parts, joined once: a line may be as long as the file
    for text in texts:
        first, *others = text.split("\n")
        line.append(first)
        if others:
            yield "".join(line)
            yield from others[:-1]
            line = [others[-1]]
    if rest := "".join(line):
        yield rest


_SURROGATE = re.compile("[\ud800-\udfff]")


def _jsonl(
    path: Path, lines: Iterable[str], column: str, errors: str, statistics: Statistics
) -> Iterator[str]:
    for row, line in enumerate(lines, start=1):
        if not line or line.isspace():
            continue
        record = _record(path, row, line)
        if column not in record:
            raise _no_column(path, row, column, record)
        text = record[column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise DataError(
                f"{path}: row {row}: {column!r} is {_excerpt(text)}, expected a string; "
                "correct or remove the row"
            )
        if "\\u" in line and _SURROGATE.search(text):
            if errors == "strict":
                raise DataError(
                    f"{path}: row {row}: {column!r} holds half of a surrogate pair, which is no "
                    "character; correct the row, or pass errors='replace' to put U+FFFD and count"
                )
            text, count = _SURROGATE.subn("\ufffd", text)
            statistics.replaced += count
        yield text


def _record(path: Path, row: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # the latter where lists lie in lists in lists
        raise DataError(
            f"{path}: row {row}: not JSON ({error}), found {_excerpt(line)}; "
            "expected one JSON object a line; correct or remove the row"
        ) from error
    if not isinstance(record, dict):
        raise DataError(
            f"{path}: row {row}: found {_excerpt(record)}, expected a JSON object with the text "
            "in one of its fields; correct or remove the row"
        )
    return record


def _csv(path: Path, texts: Iterable[str]) -> Iterator[list[str]]:
    # Python's own limit of 131,072 characters is global and too low for documents.
    csv.field_size_limit(FIELD)
    lines = _lines(texts)
    first = next(lines, None)
    if first is None:
        return
    reader = csv.reader((f"{line}\n" for line in itertools.chain((first,), lines)), strict=True)
    try:
        yield from reader
    except csv.Error as error:
        check_separator(path, first)
        raise DataError(
            f"{path}: line {reader.line_num}: {error}; expected fields between commas, in double "
            "quotes where they hold commas, quotes (doubled) or line breaks; correct the line, "
            "or use .tsv, where quotes are literal"
        ) from error


def _tsv(texts: Iterable[str]) -> Iterator[list[str]]:
    return (line.split("\t") for line in _lines(texts))


def check_separator(path: Path, first: str) -> None:
    """Refuses a first row whose cells other characters separate than the file's name says.

    Args:
        path: a .csv or .tsv file.
        first: its first line.

    Raises:
        DataError: if it looks like names between other separators.
    """
    wanted = SEPARATORS[file_format(path)[0]]
    name = r'"?\w[\w -]*"?'
    for other in {*";\t|,"} - {wanted}:
        if re.fullmatch(rf"{name}({re.escape(other)}{name})+", first):
            raise DataError(
                f"{path}: the cells of the first row are separated by {other!r}, expected "
                f"{wanted!r} in a file of this name; convert or rename the file"
            )


def _table(path: Path, rows: Iterator[list[str]], column: str) -> Iterator[str]:
    header = next(rows, None)
    if header is None:
        return
    first = 2
    if column in header:
        _check_unique(path, column, header)
        index = header.index(column)
    elif column.isdecimal() and 0 < int(column) <= len(header):
        index, first, rows = int(column) - 1, 1, itertools.chain((header,), rows)
    else:
        check_separator(path, SEPARATORS[file_format(path)[0]].join(header))
        raise _no_column(path, 1, column, header)
    for row, cells in enumerate(rows, start=first):
        if index < len(cells) <= len(header):
            yield cells[index]
        elif any(map(str.strip, cells)):
            advice = "correct or remove the row"
            if len(cells) > len(header):
                advice += " (commas of a text are in double quotes in .csv, in .tsv it has no tabs)"
            raise DataError(
                f"{path}: row {row}: found {len(cells)} cells in {_excerpt(cells)}, expected "
                f"{len(header)} as in the first row; {advice}"
            )


def _check_unique(path: Path, column: str, names: Sequence[str]) -> None:
    if names.count(column) > 1:
        raise DataError(
            f"{path}: several columns are named {column!r}; rename all but the one with the text"
        )


def _parquet(path: Path, column: str, errors: str, statistics: Statistics) -> Iterator[str]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing_extra(path, "pyarrow") from error
    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise _no_column(path, 1, column, names)
            _check_unique(path, column, names)
            batches = file.iter_batches(ROWS, columns=[column])
            values = (value for batch in batches for value in _bytes(path, column, batch.column(0)))
            for row, value in enumerate(values, start=1):
                yield _decode(path, row, value or b"", errors, statistics)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a whole .parquet file ({error}); copy or download it again"
        ) from error


_TEXT_TYPES = {
    *("string", "large_string", "string_view", "binary", "large_binary", "binary_view"),
    *("fixed_size_binary", "null"),
}
"""Of parquet's columns, by the names that pyarrow gives them."""


def _bytes(path: Path, column: str, values: Any) -> list[bytes | None]:
    import pyarrow as arrow

    if arrow.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if str(values.type).split("[")[0] not in _TEXT_TYPES:
        raise DataError(
            f"{path}: column {column!r} is of type {values.type}, expected text; "
            "choose another column (text_column=, --column)"
        )
    return values.cast(arrow.large_binary()).to_pylist()


def _decode(path: Path, row: int, value: bytes, errors: str, statistics: Statistics) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise DataError(
                f"{path}: row {row}: byte {error.start} of the text is 0x{value[error.start]:02x}, "
                "expected UTF-8; correct the row, or pass errors='replace' to put U+FFFD and count"
            ) from error
    text = value.decode(errors="replace")
    statistics.replaced += text.count("\ufffd") - value.count(b"\xef\xbf\xbd")
    return text


def _no_column(path: Path, row: int, column: str, names: Iterable[str]) -> DataError:
    return DataError(
        f"{path}: row {row}: there is no column {column!r} to read (text_column=, --column); "
        f"{suggest(column, names)}"
    )


def _excerpt(found: object) -> str:
    shown = repr(found)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
