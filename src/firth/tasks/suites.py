"""Suites of minimal pairs: reading them, and the accuracy of scores by paradigm and field.

files --read_suite--> pairs;  pairs + score differences --measure--> Accuracies --> Report
"""

import csv
import json
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np

from firth.errors import ConfigError, DataError, DivergedError
from firth.protocols import Report
from firth.tasks.tables import SEPARATORS, Row, read_rows
from firth.text.files import COMPRESSIONS, file_format, find_files, read_lines

Suite = Literal["blimp", "pairs"]
"""BLiMP's own files (Warstadt et al. 2020), or files of your own."""

_PARTS = ("good", "bad", "paradigm", "field")
_COLUMNS = {"blimp": ("sentence_good", "sentence_bad", "UID", "field"), "pairs": _PARTS}
_OPTIONAL = {"blimp": (), "pairs": ("paradigm", "field")}
_SUFFIXES = {"blimp": (".jsonl",), "pairs": (".jsonl", ".tsv", ".csv")}

PERMUTATION_SHARE = 0.95
"""A paradigm is one of permutations if so many of its pairs are."""


@dataclass(frozen=True, kw_only=True)
class MinimalPair:
    """Two sentences that differ in what makes the second one wrong."""

    good: str
    bad: str
    paradigm: str
    """The contrast that the pair is an example of."""
    field: str
    """The part of grammar that the paradigm belongs to; the paradigm itself where none is given."""
    where: str
    """File and row, for messages."""


def read_suite(
    path: str | Path, *, suite: Suite = "blimp", limit: int | None = None
) -> list[MinimalPair]:
    """Reads minimal pairs.

    Args:
        path: a file, or a folder of which all files with a fitting suffix are read.
        suite: "blimp" for .jsonl files with sentence_good, sentence_bad, UID and field; "pairs" for
            .jsonl, .tsv and .csv files with columns good and bad, and perhaps paradigm (else the
            file's name, with its folders where several have it) and field (else the paradigm).
        limit: of each paradigm only the first pairs.

    Raises:
        ConfigError: a suite or a limit that does not exist.
        DataError: no file; a column or sentence that is missing; a paradigm in two fields.
    """
    if suite not in _COLUMNS:
        raise ConfigError(f"suite {suite!r}; expected one of {', '.join(_COLUMNS)}")
    if limit is not None and not (isinstance(limit, Integral) and limit >= 1):
        raise ConfigError(f"limit {limit}; expected at least 1 pair a paradigm, or no limit")
    taken: dict[str, list[MinimalPair]] = {}
    for file, name in _named(_files(Path(path), suite), Path(path)):
        for pair in _pairs(file, name, suite):
            known = taken.setdefault(pair.paradigm, [])
            if known and known[0].field != pair.field:
                raise DataError(
                    f"{pair.where}: the paradigm {pair.paradigm!r} is of the field {pair.field!r}, "
                    f"and of {known[0].field!r} at {known[0].where}; expected one field a paradigm"
                )
            if limit is None or len(known) < limit:
                known.append(pair)
    return [pair for pairs in taken.values() for pair in pairs]


def _files(path: Path, suite: Suite) -> list[Path]:
    known = " or ".join(_SUFFIXES[suite])
    files = [file for file in find_files([path]) if file_format(file)[0] in _SUFFIXES[suite]]
    if not files:
        raise DataError(
            f"{path}: no file of the suite {suite!r}; expected {known}, also with "
            f"{' or '.join(COMPRESSIONS)}; check the path and the suite"
        )
    return files


def _named(files: Sequence[Path], folder: Path) -> list[tuple[Path, str]]:
    """Each file with a name that no other has: its own, or its path in the folder."""

    def whole(file: Path) -> str:
        inside = file.relative_to(folder) if file.is_relative_to(folder) else file
        return inside.as_posix().removesuffix("".join(file_format(file)))

    own = [file.name.removesuffix("".join(file_format(file))) for file in files]
    counts = Counter(own)
    named = zip(files, own, strict=True)
    return [(file, name if counts[name] == 1 else whole(file)) for file, name in named]


def _pairs(file: Path, name: str, suite: Suite) -> Iterator[MinimalPair]:
    there = _names(file)
    named = zip(_PARTS, _COLUMNS[suite], strict=True)
    wanted = {part: name for part, name in named if name in there or part not in _OPTIONAL[suite]}
    columns = ", ".join(wanted.values())
    if not set(wanted.values()) <= set(there):
        found = ", ".join(repr(name[:40]) for name in there) or "none"
        raise DataError(
            f"{file}: row 1: found the columns {found}; expected {columns} for suite {suite!r}"
        )
    try:
        rows = read_rows(file, list(wanted.values()), header=True)
    except ConfigError as error:  # the columns are the suite's, not a setting
        raise DataError(f"{error} (every row needs {columns})") from error
    left_out = set(_OPTIONAL[suite]) - set(wanted)
    if file_format(file)[0] == ".jsonl":
        _refuse_later(file, left_out)
    for row in rows:
        cells = _cells(file, wanted, row)
        cells.setdefault("paradigm", name)
        cells.setdefault("field", cells["paradigm"])
        if suite == "blimp":  # some of its files write syntax/semantics
            cells["field"] = cells["field"].replace("/", "_")
        yield MinimalPair(**cells, where=f"{file}: row {row.number}")


def _refuse_later(file: Path, names: Set[str]) -> None:
    """Refuses rows of a .jsonl file that have what its first row has not."""
    for number, line in enumerate(read_lines(file), 1):
        if line.strip() and (more := sorted(names & json.loads(line).keys())):
            raise DataError(
                f"{file}: row {number}: found {more[0]!r}, which the first row has not; expected "
                "it in every row, or in none"
            )


def _names(file: Path) -> list[str]:
    """The columns that the first row of a file has; [] where it is no such row."""
    lines = read_lines(file)
    first = next((line for line in lines if line.strip()), "")
    kind, _ = file_format(file)
    if kind in SEPARATORS:
        csv.field_size_limit(sys.maxsize)  # as the rows are read
        return next(csv.reader([first], delimiter=SEPARATORS[kind]), [])
    try:
        record = json.loads(first)
    except (ValueError, RecursionError):
        return []
    return list(record) if isinstance(record, dict) else []


def _cells(file: Path, wanted: Mapping[str, str], row: Row) -> dict[str, str]:
    for name, cell in zip(wanted.values(), row.cells, strict=True):
        if not isinstance(cell, str) or not cell.strip():
            raise DataError(
                f"{file}: row {row.number}: {name} is {json.dumps(cell, ensure_ascii=False)[:60]}; "
                "expected a text; fill it in, or leave the row out"
            )
    return dict(zip(wanted, row.cells, strict=True))


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """Shares of the pairs whose good sentence scores higher, as unweighted means."""

    paradigms: dict[str, float]
    fields: dict[str, float]
    """Over the field's paradigms."""
    overall: float
    """Over all paradigms."""
    without_permutations: float | None
    """Over the paradigms that are none of permutations; None without such."""


def accuracy(differences: np.ndarray) -> float:
    """Share of positive differences; a tie is half right, as if it were decided by a coin.

    Counted as right, ties would give a model that says nothing 100 %.
    """
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def measure(pairs: Sequence[MinimalPair], differences: np.ndarray) -> Accuracies:
    """Accuracies of a model's scores.

    Args:
        pairs: P minimal pairs.
        differences: (P) score of each good sentence minus that of its bad one.

    Raises:
        DivergedError: if a difference is no finite number.
    """
    if wrong := np.flatnonzero(~np.isfinite(differences)).tolist():
        pair = pairs[wrong[0]]
        raise DivergedError(
            f"{pair.where}: the scores of {pair.good!r} and {pair.bad!r} differ by "
            f"{differences[wrong[0]]}; expected a finite number ({len(wrong)} of {len(pairs)} "
            "pairs are so); the model's training has diverged, or its weights are damaged"
        )
    places = _by_paradigm(pairs)
    paradigms = {name: accuracy(differences[at]) for name, at in places.items()}
    of_field: dict[str, list[float]] = {}
    for name, at in places.items():
        of_field.setdefault(pairs[at[0]].field, []).append(paradigms[name])
    permuted = permutations(pairs)
    others = [value for name, value in paradigms.items() if name not in permuted]
    return Accuracies(
        paradigms=paradigms,
        fields={field: fmean(values) for field, values in sorted(of_field.items())},
        overall=fmean(paradigms.values()),
        without_permutations=fmean(others) if others else None,
    )


def report(
    pairs: Sequence[MinimalPair],
    differences: np.ndarray,
    baselines: Mapping[str, np.ndarray],
    **how: Any,
) -> Report:
    """The accuracies of a model and of baselines, from the differences of their scores.

    The metrics are the model's over all paradigms; the details have `how` and all the rest.
    """
    permuted, found = permutations(pairs), measure(pairs, differences)
    paradigms = {
        name: {
            "field": pairs[at[0]].field,
            "pairs": len(at),
            "permutations": name in permuted,
            "ties": int((differences[at] == 0).sum()),
            "accuracy": found.paradigms[name],
        }
        for name, at in _by_paradigm(pairs).items()
    }
    metrics = {"accuracy": found.overall}
    if (others := found.without_permutations) is not None:
        metrics["accuracy_without_permutations"] = others
    details = {
        **how,
        "fields": found.fields,
        "paradigms": paradigms,
        "baselines": {name: asdict(measure(pairs, one)) for name, one in baselines.items()},
    }
    return Report(metrics=metrics, main="accuracy", num_examples=len(pairs), details=details)


def permutations(pairs: Sequence[MinimalPair]) -> frozenset[str]:
    """The paradigms of whose pairs `PERMUTATION_SHARE` have the same words in another order.

    Word frequencies cannot tell such sentences apart. Words are what white space separates; case
    and the punctuation at the end of the sentence do not count.
    """
    return frozenset(
        name
        for name, at in _by_paradigm(pairs).items()
        if np.mean([_words(pairs[i].good) == _words(pairs[i].bad) for i in at]) >= PERMUTATION_SHARE
    )


def _by_paradigm(pairs: Sequence[MinimalPair]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        places.setdefault(pair.paradigm, []).append(i)
    return places


def _words(sentence: str) -> list[str]:
    text = sentence.casefold().rstrip()
    while text and unicodedata.category(text[-1]).startswith("P"):
        text = text[:-1].rstrip()
    return sorted(text.split())
