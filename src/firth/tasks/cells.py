"""Cells of a task file as texts, classes and numbers. `where` is the file and row for errors."""

import json
import math
from collections.abc import Collection
from typing import Any

from firth.errors import DataError
from firth.protocols import Example, Text


def is_text(value: Any) -> bool:
    """Whether a value is a string, or several in a row."""
    if isinstance(value, str):
        return True
    return isinstance(value, Collection) and all(isinstance(one, str) for one in value)


def place(example: Example, index: int | None = None) -> str:
    """Where an example is, for messages: its row in a file, or its place in a list, from 0."""
    if example.row:
        return f"row {example.row}"
    return "an example" if index is None else f"example {index}"


def parse_text(cell: Any, where: str) -> Text:
    """A string as it is, or a list of words as a tuple."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, list) and all(isinstance(word, str) for word in cell):
        return tuple(cell)
    raise DataError(f"{where}: the text is {_shown(cell)}; expected a string or a list of words")


def parse_class(cell: Any, where: str) -> str:
    """A class name without white space around it; JSON integers and booleans as JSON writes them.

    A float is refused: 1.0 is what an integer class becomes in a column with missing values, and
    would be a class other than 1.
    """
    if isinstance(cell, int):
        return json.dumps(cell)
    if not isinstance(cell, str):
        raise DataError(
            f"{where}: the label is {_shown(cell)}; expected a class name, an integer or a boolean "
            "(for several classes a row set kind='multi_label', for numbers kind='regression')"
        )
    if name := cell.strip():
        return name
    raise DataError(f"{where}: the label is empty; fill it in, or leave the row out")


def parse_classes(cell: Any, separator: str, where: str) -> tuple[str, ...]:
    """The distinct classes of a cell, as a list or split at `separator`; none is a valid answer."""
    if isinstance(cell, str):
        cell = [part for part in cell.split(separator) if part.strip()]
    if not isinstance(cell, list):
        raise DataError(f"{where}: the label is {_shown(cell)}; expected a list or a string")
    return tuple(dict.fromkeys(parse_class(part, where) for part in cell))


def parse_value(cell: Any, where: str) -> float:
    """A finite number."""
    try:
        grouped = isinstance(cell, str) and "_" in cell  # which Python takes for part of a number
        value = math.nan if isinstance(cell, bool) or grouped else float(cell)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{where}: the label is {_shown(cell)}; a regression needs a finite number "
            "(if this row holds the names of the columns, set header=True: --header True)"
        )
    return value


def _shown(cell: Any, width: int = 60) -> str:
    text = json.dumps(cell, ensure_ascii=False)
    return text if len(text) <= width else text[:width] + "..."
