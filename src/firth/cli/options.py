"""What several verbs share: parsing, reading lines, printing rows."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tyro

from firth.errors import ConfigError, DataError
from firth.text.files import Statistics, read_text


def parse(options: Any, arguments: Sequence[str], verb: str, *, more: bool = False) -> Any:
    """Fills an options dataclass from the command line; `more` also returns what is left over."""
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    return tyro.cli(
        options,
        args=list(arguments),
        prog=f"firth {verb}",
        config=config[:1],
        return_unknown_args=more,
    )


def settings(leftover: Sequence[str]) -> dict[str, Any]:
    """Dotted settings such as `--training.clip 0.5` or `--training.clip=0.5`.

    Raises:
        ConfigError: if something else is left over.
    """
    found: dict[str, Any] = {}
    words = [part for word in leftover for part in word.split("=", 1)]
    while words:
        name = words.pop(0)
        if not name.startswith("--") or not words:
            raise ConfigError(
                f"{name!r} is not understood; settings are written --part.name value, see "
                "`firth recipes show NAME`"
            )
        value = words.pop(0)
        try:
            found[name[2:].replace("-", "_")] = json.loads(value)
        except ValueError:
            found[name[2:].replace("-", "_")] = value
    return found


def read_lines(path: str) -> list[str]:
    """The lines of a text file (`-`: of stdin), empty ones kept, so that rows stay aligned."""
    if path == "-":
        return sys.stdin.read().splitlines()
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    text = "".join(read_text(Path(path), "strict", Statistics()))
    return text.split("\n")[: -1 if text.endswith("\n") else None]


def print_rows(rows: Iterable[dict[str, Any]], *, as_json: bool) -> None:
    """Rows to stdout: JSON lines, or tab-separated values."""
    for row in rows:
        if as_json:
            print(json.dumps(row, ensure_ascii=False))
        else:
            print("\t".join(_cell(value) for value in row.values()))


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("\t", " ").replace("\n", " ")
