"""What several verbs share: parsing, reading lines, printing rows."""

import codecs
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import tyro

from firth.errors import ConfigError, DataError
from firth.tasks.tables import read_rows
from firth.text.files import Statistics, file_format, read_text

Model = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(metavar="MODEL", help="A run, or a `transformers` directory."),
]
Device = Annotated[str, tyro.conf.arg(help="auto (a GPU where there is one), cpu, cuda or cuda:1.")]
AsJson = Annotated[bool, tyro.conf.arg(help="Print JSON.")]
Texts = Annotated[
    tyro.conf.Positional[str],
    tyro.conf.arg(
        metavar="FILE",
        help="A text a line (.txt, or - for stdin), or a .csv, .tsv or .jsonl file with a text a "
        "row.",
    ),
]


def _truth(words: list[str]) -> bool:
    known = {"true": True, "false": False}
    if words[0].lower() not in known:
        raise ValueError("expected true or false")
    return known[words[0].lower()]


Truth = Annotated[
    bool | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{true,false}",
        instance_from_str=_truth,
        is_instance=lambda value: value is None or isinstance(value, bool),
        str_from_instance=lambda value: [str(value).lower()],
    ),
]
"""True or false as settings have them, or not given."""


def parse(options: Any, arguments: Sequence[str], verb: str) -> Any:
    """Fills an options dataclass from the command line."""
    config = (tyro.conf.OmitArgPrefixes,)
    with _without_colour() if "NO_COLOR" in os.environ else nullcontext():
        return tyro.cli(options, args=list(arguments), prog=f"firth {verb}", config=config)


@contextmanager
def _without_colour() -> Iterator[None]:
    """Tyro knows nothing of NO_COLOR, and asks what the terminal can do."""
    before = os.environ.get("TERM")
    os.environ["TERM"] = "dumb"
    try:
        yield
    finally:
        del os.environ["TERM"]
        if before is not None:
            os.environ["TERM"] = before


def take_settings(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Takes dotted settings (`--training.clip 0.5`, `--training.clip=0.5`) out of the arguments.

    Returns:
        The other arguments, and the settings by their dotted names.

    Raises:
        ConfigError: if a setting has no value.
    """
    others: list[str] = []
    found: dict[str, Any] = {}
    words = iter(arguments)
    for word in words:
        name, given, value = word.partition("=")
        if not name.startswith("--") or "." not in name:
            others.append(word)
            continue
        if not given and (value := next(words, "--")).startswith("--"):
            raise ConfigError(f"{name} needs a value; see `firth recipes show NAME`")
        found[name[2:].replace("-", "_")] = _value(value)
    return others, found


def flat_settings(tree: Mapping[str, Any], place: str = "") -> list[tuple[str, Any]]:
    """Nested settings by their dotted names, without the type of the whole."""
    found = []
    for key, value in tree.items():
        path = f"{place}.{key}" if place else key
        if isinstance(value, Mapping):
            found += flat_settings(value, path)
        elif key != "type" or place:
            found.append((path, value))
    return found


def _value(word: str) -> Any:
    """A setting as JSON has it, or as Python writes truth values; else the word itself."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(word, word))
    except ValueError:
        return word


def one_line(text: str) -> str:
    """A text with spaces in place of its line breaks, so that rows stay aligned."""
    return " ".join(text.splitlines())


def read_lines(path: str, column: str | None = None) -> list[str]:
    """The lines of a text file (`-`: of stdin), empty ones kept, so that rows stay aligned.

    Args:
        path: the file.
        column: of tables, the column that holds the texts; None where only lines are read.

    Raises:
        DataError: if there is no such file, or it is a table and no column is read.
    """
    if column not in (None, "text") and file_format(Path(path))[0] in ("", ".txt"):
        raise ConfigError(f"{path}: --column {column} is about tables; leave it out for lines")
    if path == "-":
        text = _stdin()
    elif Path(path).is_dir():
        raise DataError(f"{path}: a folder, expected a file")
    elif not Path(path).exists():
        raise DataError(f"{path}: no such file")
    elif (kind := file_format(Path(path))[0]) not in ("", ".txt"):
        if column is None:
            raise DataError(f"{path}: a {kind} file, expected a text a line (.txt)")
        return _cells(path, column)
    else:
        text = "".join(read_text(Path(path), "strict", Statistics()))
    return text.removesuffix("\n").split("\n") if text else []


def _cells(path: str, column: str) -> list[str]:
    texts = []
    for row, (text,) in read_rows(path, [column]):
        if not isinstance(text, str | None):
            raise DataError(f"{path}: row {row}: {column!r} is {text!r}, expected a string")
        texts.append(text or "")
    return texts


def _stdin() -> str:
    data = sys.stdin.buffer.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise DataError(
            f"stdin: byte {error.start} is 0x{data[error.start]:02x}, expected UTF-8; convert the "
            f"text (for instance `iconv -f {'utf-16' if wide else 'latin1'} -t utf-8`)"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def print_rows(rows: Iterable[dict[str, Any]], *, as_json: bool) -> None:
    """Rows to stdout: JSON lines, or tab-separated values."""
    for row in rows:
        if as_json:
            print(json.dumps(row, ensure_ascii=False))
        else:
            print("\t".join(_cell(value) for value in row.values()))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("\t", " ").replace("\n", " ")
