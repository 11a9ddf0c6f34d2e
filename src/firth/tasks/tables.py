"""Rows of csv, tsv and jsonl files, as the cells of the columns asked for."""

import csv
import difflib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from firth.errors import ConfigError, DataError
from firth.text.files import file_format, read_lines
from firth.text.formats import SEPARATORS, check_separator

Column = str | int
"""A column's name, or its number counted from 1 (an int, or a string of digits)."""

Quotes = Literal["auto", "literal", "standard"]

NO_HEADER = "give one of these names, or numbers (counted from 1) if that is not a header"


class Row(NamedTuple):
    """One row of a file."""

    number: int
    """The line of the file on which the row begins, counted from 1."""
    cells: tuple[Any, ...]
    """One cell for each column asked for: a string, or in jsonl any JSON value."""


def read_rows(
    path: str | Path,
    columns: Sequence[Column],
    *,
    header: bool | None = None,
    quotes: Quotes = "auto",
) -> list[Row]:
    """The cells of `columns` in every row of a .csv, .tsv or .jsonl file, also .gz or .zst.

    Empty lines are skipped, but for those between the rows of a single column, which are empty
    texts. All rows of a csv or tsv file must have as many cells as its first.

    Args:
        path: the file, in UTF-8 with or without a byte-order mark.
        columns: names, or numbers counted from 1; a jsonl file has names only.
        header: whether the first row of a csv or tsv file holds the names of the columns. None: it
            does, unless all `columns` are numbers.
        quotes: "literal" takes quote characters as ordinary text, as the files of GLUE need;
            "standard" takes them to enclose cells (RFC 4180). "auto" is standard for csv and
            literal for tsv, except a tsv file that was plainly written with enclosing quotes: every
            cell with a quote character is enclosed, and either the whole first row is or a cell
            holds a doubled quote.

    Raises:
        ConfigError: a column that the file does not have, or a file of another format.
        DataError: no rows, a row with more or fewer cells than the first, JSON or quotes that
            cannot be read, bytes that are not UTF-8.
        UnsupportedError: a .zst file where `zstandard` is not installed.
    """
    path = Path(path)
    kind, _ = file_format(path)
    if kind != ".jsonl" and kind not in SEPARATORS:
        raise ConfigError(
            f"{path}: expected a file name in .csv, .tsv or .jsonl, or these with .gz or .zst; "
            "rename or convert the file (words with their tags: firth adapt --task tagging)"
        )
    lines = read_lines(path)
    if kind == ".jsonl":
        rows = list(_json_rows(path, lines, columns))
    else:
        table = _split(path, lines, SEPARATORS[kind], quotes)
        rows = _select(path, table, columns, header) if table else []
    if not rows:
        raise DataError(f"{path}: found no rows, expected at least one; is it the right file?")
    return rows


def column_number(column: Column) -> int | None:
    """The number of a column that is given by number, else None."""
    return int(column) if isinstance(column, int) or column.isdecimal() else None


def _json_rows(path: Path, lines: list[str], columns: Sequence[Column]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line or line.isspace():
            continue
        try:
            record = json.loads(line)
            if "\\u" in line:
                json.dumps(record, ensure_ascii=False).encode()  # fails on half a surrogate pair
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}: row {number}: not JSON in Unicode ({error}); correct or remove the row"
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"{path}: row {number}: found {line.strip()[:40]}, "
                'expected a JSON object such as {"text": "...", "label": "..."}'
            )
        for column in columns:
            if column not in record:
                raise unknown_column(path, number, column, list(record), "give one of these names")
        yield Row(number, tuple(record[column] for column in columns))


def _split(path: Path, lines: list[str], separator: str, quotes: Quotes) -> list[Row]:
    if quotes == "standard" or (quotes == "auto" and separator == ","):
        return _quoted_rows(path, lines, separator)
    cut = [Row(i, tuple(line.split(separator) if line else ())) for i, line in enumerate(lines, 1)]
    rows = _without_blank(cut)
    return _without_quotes(rows) if quotes == "auto" else rows


def _without_blank(rows: list[Row]) -> list[Row]:
    """The rows that are not blank; in one column those between others are empty texts."""
    filled = [i for i, row in enumerate(rows) if row.cells]
    if not filled:
        return []
    if len(rows[filled[0]].cells) > 1:
        return [rows[i] for i in filled]
    return [Row(row.number, row.cells or ("",)) for row in rows[filled[0] : filled[-1] + 1]]


def _quoted_rows(path: Path, lines: list[str], separator: str) -> list[Row]:
    csv.field_size_limit(sys.maxsize)  # a cell may be a whole document
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, strict=True)
    rows, begin = [], 1
    try:
        for cells in reader:
            rows.append(Row(begin, tuple(cells)))
            begin = reader.line_num + 1
    except csv.Error as error:
        check_separator(path, lines[0])
        raise DataError(
            f"{path}: row {begin}: the quotes are not as in a csv file ({error}); correct them, "
            "or set quotes='literal' (--quotes literal) if quote characters are ordinary text here"
        ) from error
    return _without_blank(rows)


_ENCLOSED = re.compile(r'"(?:[^"]|"")*"')


def _without_quotes(rows: list[Row]) -> list[Row]:
    """The rows with enclosing quotes taken off if the file was plainly written with them."""
    quoted = [cell for row in rows for cell in row.cells if '"' in cell]
    doubled = any('""' in cell[1:-1] for cell in quoted)
    if not (doubled or (rows and all(map(_ENCLOSED.fullmatch, rows[0].cells)))):
        return rows
    if not all(map(_ENCLOSED.fullmatch, quoted)):
        return rows
    return [
        Row(number, tuple(c[1:-1].replace('""', '"') if '"' in c else c for c in cells))
        for number, cells in rows
    ]


def _select(
    path: Path, rows: list[Row], columns: Sequence[Column], header: bool | None
) -> list[Row]:
    names = rows[0].cells
    if len(names) == 1 and (len(columns) > 1 or columns[0] not in (*names, 1, "1")):
        check_separator(path, names[0])
    for number, cells in rows:
        if len(cells) != len(names):
            raise DataError(
                f"{path}: row {number}: {len(cells)} cells, expected {len(names)} as in the first "
                "row; correct the row, or read the file with quotes='standard' if it encloses "
                "cells in quotes, quotes='literal' if they are ordinary text (adapt --quotes)"
            )
    # Numbers from 0 on are how pandas names columns.
    named = names == tuple(map(str, range(len(names)))) and all(str(c) in names for c in columns)
    if header is None:
        header = named or any(column_number(column) is None for column in columns)
    if named and header:
        at = [names.index(str(column)) for column in columns]
    else:
        at = [_position(path, column, rows[0], header) for column in columns]
    return [Row(number, tuple(cells[i] for i in at)) for number, cells in rows[int(header) :]]


def _position(path: Path, column: Column, first: Row, header: bool) -> int:
    names = list(first.cells)
    number = column_number(column)
    if number is not None:
        if 1 <= number <= len(names):
            return number - 1
        raise ConfigError(f"{path}: no column {number}; columns are counted 1 to {len(names)}")
    if not header:
        raise ConfigError(f"{path}: with header=False column {column!r} must be given by number")
    if names.count(str(column)) > 1:
        raise ConfigError(f"{path}: several columns are named {column!r}; give one by number")
    if column not in names:
        raise unknown_column(path, first.number, column, names, NO_HEADER)
    return names.index(str(column))


def unknown_column(
    path: Path, row: int, column: Column, found: Sequence[str], hint: str
) -> ConfigError:
    """What to say of a column that is not among those found."""
    close = difflib.get_close_matches(str(column), found, n=1)
    shown = ", ".join(repr(name[:40]) for name in found)
    return ConfigError(
        f"{path}: row {row}: no column {column!r} among {shown}; "
        + (f"did you mean {close[0]!r}?" if close else hint)
    )
