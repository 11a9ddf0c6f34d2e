"""Sentences of files with a word a line and its tags in columns (CoNLL), and of jsonl files."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from firth.config import suggest
from firth.errors import ConfigError, DataError
from firth.tasks.tables import Column, column_number, read_rows
from firth.text.files import COMPRESSIONS, Statistics, read_text

CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U (Universal Dependencies), which may be given by name."""

_NO_COLUMNS = (".csv", ".parquet")


class Sentence(NamedTuple):
    """The words of a sentence and, where they were asked for, the tags."""

    row: int
    """The line on which it begins, counted from 1."""
    words: tuple[str, ...]
    tags: tuple[str, ...] | None


def read_sentences(
    path: str | Path, word: Column | None = None, tag: Column | None = None, *, labelled: bool
) -> list[Sentence]:
    """The sentences of a file.

    A `.jsonl` file holds a sentence a line, with a list of words and one of tags. Every other file
    is taken to have a word a line, cells between tabs or else spaces, and an empty line between
    sentences; lines of `-DOCSTART-` are left out. In a `.conllu` file comments, the ranges of
    multi-word tokens (1-2) and empty nodes (1.1) are left out, too. All may end in .gz or .zst.

    Args:
        path: the file.
        word: column of the words: a number counted from 1, in jsonl a name. None: 2 in .conllu,
            else 1, in jsonl "words".
        tag: column of the tags. None: upos in .conllu, else the last, in jsonl "tags".
        labelled: False leaves the tags unread.

    Raises:
        ConfigError: a column that the file does not have.
        DataError: no sentences, a row with more or fewer cells than the first, an empty word or
            tag, lists of different lengths, bytes that are not UTF-8.
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
        found = _column_sentences(path, word, tag, labelled, conllu=kind == ".conllu")
    if not found:
        raise DataError(f"{path}: found no sentences, expected at least one; is it the right file?")
    return found


def looks_like_columns(lines: list[str]) -> bool:
    """Whether lines that should be texts are words in columns: all of so many cells, 2 or more."""
    counts = {len(line.split()) for line in lines if line.strip()}
    sentences = sum(not line.strip() for line in lines)
    return len(counts) == 1 and counts.pop() > 1 and sentences > 0 and len(lines) > 10


def _column_sentences(
    path: Path, word: Column | None, tag: Column | None, labelled: bool, *, conllu: bool
) -> list[Sentence]:
    sentences: list[Sentence] = []
    first, words, tags = 0, list[str](), list[str]()
    at: tuple[int, int] | None = None
    width = 0
    for number, cells in _rows(path, conllu):
        if cells is None:
            if words:
                sentences.append(Sentence(first, tuple(words), tuple(tags) if labelled else None))
                words, tags = [], []
            continue
        where = f"{path}: row {number}"
        if at is None:
            width = len(cells)
            last = 4 if conllu else width
            at = (
                _position(word, 2 if conllu else 1, width, where, conllu),
                _position(tag, last, width, where, conllu) if labelled else 0,
            )
        if len(cells) != width:
            raise DataError(
                f"{where}: {len(cells)} cells, expected {width} as in the first row; correct the "
                "row (cells are separated by tabs where the first row has one, else by spaces)"
            )
        tag = cells[at[1]].strip(" ") if labelled else ""
        if not cells[at[0]] or (labelled and not tag):
            raise DataError(f"{where}: an empty word or tag; fill it in, or take the row out")
        first = first if words else number
        words.append(cells[at[0]])
        tags.append(tag)
    return sentences


def _rows(path: Path, conllu: bool) -> Iterator[tuple[int, list[str] | None]]:
    """The cells of each line with its number; None ends a sentence."""
    tabs = None
    lines = "".join(read_text(path, "strict", Statistics())).split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            yield number, None
            continue
        if conllu and line.startswith("#"):
            continue
        tabs = "\t" in line if tabs is None else tabs
        cells = line.split("\t") if tabs else re.split("[ \t]+", line.strip(" \t"))
        if cells[0] == "-DOCSTART-":
            yield number, None
            continue
        if conllu and not cells[0].isdecimal():
            if re.fullmatch(r"\d+[-.]\d+", cells[0]):
                continue
            raise DataError(
                f"{path}: row {number}: the id is {cells[0]!r}, expected a number as in CoNLL-U; "
                "give the file another name than .conllu if it has other columns"
            )
        yield number, cells
    yield len(lines) + 1, None


def _position(column: Column | None, default: int, width: int, where: str, conllu: bool) -> int:
    """A column's place in a row, counted from 0."""
    number = default if column is None else column_number(column)
    if number is None and conllu:
        name = str(column).lower()
        if name not in CONLLU:
            raise ConfigError(f"{where}: no column {column!r}; {suggest(name, CONLLU)}")
        number = CONLLU.index(name) + 1
    if number is None:
        raise ConfigError(f"{where}: column {column!r} must be given by number, counted from 1")
    if not 1 <= number <= width:
        raise ConfigError(f"{where}: no column {number}; columns are counted 1 to {width}")
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
        tags = tuple(tag.strip() for tag in cells[1]) if labelled else None
        sentences.append(Sentence(number, tuple(cells[0]), tags))
    return sentences
