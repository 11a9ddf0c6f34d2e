"""Sentences of files with a word a line and its tags in columns (CoNLL), and of jsonl files."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from firth.errors import ConfigError, DataError
from firth.tasks.spans import mark_spans
from firth.tasks.tables import NO_HEADER, Column, column_number, read_rows, unknown_column
from firth.text.files import COMPRESSIONS, read_lines

logger = logging.getLogger(__name__)

CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U (Universal Dependencies), which may be given by name."""

_NO_COLUMNS = (".csv", ".parquet")
_WORDS_ARE_CALLED = {"word", "words", "token", "tokens", "form"}
_TAGS_ARE_CALLED = {
    *("tag", "tags", "label", "labels", "class", "pos", "upos", "xpos", "ner", "chunk"),
    *("pos_tag", "pos_tags", "ner_tag", "ner_tags", "chunk_tag", "chunk_tags", "bio", "iob"),
}


_Line = tuple[int, list[str] | None]
"""The number of a line and its cells; None between sentences."""


class Sentence(NamedTuple):
    """The words of a sentence and, where they were asked for, the tags."""

    row: int
    """The line on which it begins, counted from 1."""
    words: tuple[str, ...]
    tags: tuple[str, ...] | None


def read_sentences(
    path: str | Path,
    word: Column | None = None,
    tag: Column | None = None,
    *,
    labelled: bool,
    header: bool | None = None,
) -> list[Sentence]:
    """The sentences of a file.

    A `.jsonl` file holds a sentence a line, with a list of words and one of tags. Every other file
    is taken to have a word a line, cells between tabs or else spaces, and an empty line between
    sentences; lines of `-DOCSTART-` are left out. In a `.conllu` file comments, the ranges of
    multi-word tokens (1-2) and empty nodes (1.1) are left out, too. All may end in .gz or .zst.

    Args:
        path: the file.
        word: column of the words: a number counted from 1, or a name that the header has, in jsonl
            always a name. None: 2 in .conllu, else 1, in jsonl "words".
        tag: column of the tags. None: upos in .conllu, else the last, in jsonl "tags".
        labelled: False leaves the tags unread.
        header: whether the first row of columns has their names; .conllu and jsonl have no header.
            None: it has if a column is given by name; or if no other row has its tag and its word
            is "word", "token" or "form", or all other tags mark spans.

    Raises:
        ConfigError: a column that the file does not have, or a first row that may be a header.
        DataError: no sentences, no column of tags beside the words, a row with more or fewer cells
            than the first, an empty word or tag, lists of different lengths, bytes that are not
            UTF-8.
    """
    path = Path(path)
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in COMPRESSIONS]
    kind = suffixes[-1] if suffixes else ""
    if kind in _NO_COLUMNS:
        raise ConfigError(
            f"{path}: tags are read from columns (.conll, .conllu, .tsv, .txt, a word a line) and "
            "from .jsonl (lists of words and tags); convert the file"
        )
    if kind == ".jsonl":
        found = _json_sentences(path, word or "words", tag or "tags", labelled)
    else:
        rows = list(_rows(path, kind == ".conllu"))
        columns, rows = _columns(path, rows, word, tag, labelled, header, kind == ".conllu")
        found = _column_sentences(path, rows, columns, labelled)
    if not found:
        raise DataError(f"{path}: found no sentences, expected at least one; is it the right file?")
    return found


def looks_like_columns(lines: list[str]) -> bool:
    """Whether lines that should be texts are words in columns: all of so many cells, 2 or more."""
    counts = {len(line.split()) for line in lines if line.strip()}
    sentences = sum(not line.strip() for line in lines)
    return len(counts) == 1 and counts.pop() > 1 and sentences > 0 and len(lines) > 10


def _columns(
    path: Path,
    rows: list[_Line],
    word: Column | None,
    tag: Column | None,
    labelled: bool,
    header: bool | None,
    conllu: bool,
) -> tuple[tuple[int, int], list[_Line]]:
    """The places of words and tags in a row, and the rows without a header."""
    filled = ((i, number, cells) for i, (number, cells) in enumerate(rows) if cells)
    begin, number, first = next(filled, (0, 0, list[str]()))
    if not first:
        return (0, 0), []
    rest = [cells for _, cells in rows[begin + 1 :] if cells]
    if header is None and not conllu:
        named = [c for c in (word, tag) if c is not None and column_number(c) is None]
        if not labelled and word not in named:  # the tag's column need not be there
            named = [c for c in named if str(c).casefold() in map(str.casefold, first)]
        header = bool(named) or _looks_like_header(path, first, rest, word, tag, labelled)
    names = CONLLU if conllu else first if header else None
    last = len(first)
    place = _position(path, number, word, 2 if conllu else 1, last, names)
    tags = _position(path, number, tag, 4 if conllu else last, last, names) if labelled else 0
    if labelled and place == tags:
        raise DataError(
            f"{path}: row {number}: words and tags are both in column {place + 1} of {last}; "
            "expected a word a line with its tag in another column"
        )
    return (place, tags), rows if conllu or not header else rows[begin + 1 :]


def _looks_like_header(
    path: Path,
    first: list[str],
    rest: list[list[str]],
    word: Column | None,
    tag: Column | None,
    labelled: bool,
) -> bool:
    """Whether the first row is "token tag" or the like, by its word or because all other tags are
    those of spans.

    Raises:
        ConfigError: if that cannot be told, as its tag alone occurs once.
    """
    place, last = (column_number(1 if word is None else word) or 1) - 1, len(first) - 1
    tags = last if tag is None else (column_number(tag) or 1) - 1
    if max(place, tags) > last or place == tags:
        return False
    others = Counter(cells[tags] for cells in rest if len(cells) > tags)
    if first[tags] in others:
        return False
    named = first[place].casefold() in _WORDS_ARE_CALLED
    if named and first[tags].casefold() in _TAGS_ARE_CALLED:
        return True
    if mark_spans(others) and not mark_spans([first[tags]]):
        return True
    if labelled and len(others) > 1 and min(others.values()) > 1:
        raise ConfigError(
            f"{path}: row 1 looks like the names of the columns: its tag {first[tags]!r} is in no "
            "other row, every other tag in several; set header=True if so, header=False "
            "if not (`firth adapt --header True` or False)"
        )
    return False


def _column_sentences(
    path: Path, rows: Iterable[_Line], columns: tuple[int, int], labelled: bool
) -> list[Sentence]:
    sentences: list[Sentence] = []
    first, words, tags = 0, list[str](), list[str]()
    width = 0
    for number, cells in rows:
        if cells is None:
            if words:
                sentences.append(Sentence(first, tuple(words), tuple(tags) if labelled else None))
                words, tags = [], []
            continue
        where = f"{path}: row {number}"
        width = width or len(cells)
        if len(cells) != width:
            raise DataError(
                f"{where}: {len(cells)} cells, expected {width} as in the first row; correct the "
                "row (cells are separated by tabs where the first row has one, else by spaces)"
            )
        word, tag = cells[columns[0]], cells[columns[1]].strip(" ") if labelled else ""
        if not word or (labelled and not tag):
            raise DataError(f"{where}: an empty word or tag; fill it in, or take the row out")
        first = first if words else number
        words.append(word)
        tags.append(tag)
    return sentences


def _rows(path: Path, conllu: bool) -> Iterator[_Line]:
    """The cells of each line with its number; None ends a sentence."""
    lines = read_lines(path)
    words = (line for line in lines if line.strip() and line[0] != "#" and not _between(line))
    first = next(words, "")
    tabs = "\t" in first
    width, opens, comments = len(_cells(first, tabs)), True, 0
    for number, line in enumerate(lines, 1):
        if _between(line):
            opens = True
            yield number, None
            continue
        cells = _cells(line, tabs)
        if line[0] == "#" and (conllu or (opens and len(line) > 1 and len(cells) != width)):
            comments += 1
            continue
        opens = False
        if conllu and not cells[0].isdecimal():
            if re.fullmatch(r"\d+[-.]\d+", cells[0]):
                continue
            raise DataError(
                f"{path}: row {number}: the id is {cells[0]!r}, expected a number as in CoNLL-U; "
                "give the file another name than .conllu if it has other columns"
            )
        yield number, cells
    if comments and not conllu:
        logger.info("%s: %d lines that begin with # were taken for comments", path, comments)
    yield len(lines) + 1, None


def _between(line: str) -> bool:
    """Whether a line stands between sentences."""
    return not line.strip() or re.split("[ \t]", line, maxsplit=1)[0] == "-DOCSTART-"


def _cells(line: str, tabs: bool) -> list[str]:
    return line.split("\t") if tabs else re.split("[ \t]+", line.strip(" \t"))


def _position(
    path: Path,
    row: int,
    column: Column | None,
    default: int,
    width: int,
    names: Sequence[str] | None,
) -> int:
    """A column's place in a row, counted from 0."""
    number = default if column is None else column_number(column)
    if number is None:
        known = [name.casefold() for name in names or ()]
        if str(column).casefold() not in known:
            raise unknown_column(path, row, str(column), names or (), NO_HEADER)
        number = known.index(str(column).casefold()) + 1
    if not 1 <= number <= width:
        raise ConfigError(
            f"{path}: row {row}: no column {number}; columns are counted 1 to {width}"
        )
    return number - 1


def _json_sentences(path: Path, word: Column, tag: Column, labelled: bool) -> list[Sentence]:
    sentences = []
    columns = [word, tag] if labelled else [word]
    for number, cells in read_rows(path, columns):
        where = f"{path}: row {number}"
        for name, cell in zip(columns, cells, strict=True):
            if not isinstance(cell, list) or not all(isinstance(one, str) for one in cell):
                raise DataError(
                    f"{where}: {name!r} is {str(cell)[:60]}; expected a list of strings (tags by "
                    "name, not by number)"
                )
        if labelled and len(cells[0]) != len(cells[1]):
            raise DataError(
                f"{where}: {len(cells[0])} words and {len(cells[1])} tags, expected one tag a word"
            )
        if not all(cells[0]):
            raise DataError(f"{where}: an empty word; fill it in, or take the row out")
        tags = tuple(tag.strip() for tag in cells[1]) if labelled else None
        if tags and not all(tags):
            raise DataError(f"{where}: an empty tag; fill it in, or take the row out")
        sentences.append(Sentence(number, tuple(cells[0]), tags))
    return sentences
