"""Human judgements of how similar two words are, held against the cosines of their vectors.

files --read_similarity_sets--> pairs;  pairs + vectors --similarity_report--> Report
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from firth.errors import DataError
from firth.inference.word_similarity import unit_rows
from firth.protocols import Report
from firth.tasks.metrics import spearman
from firth.text.files import find_files, read_lines


@dataclass(frozen=True, kw_only=True)
class SimilaritySet:
    """Pairs of words with judgements."""

    name: str
    first: list[str]
    second: list[str]
    scores: np.ndarray
    """(pairs) float64, larger for words that are more similar."""


def read_similarity_sets(path: str | Path) -> list[SimilaritySet]:
    """Reads a .txt or .tsv file of lines of two words and a score, or a folder of such files.

    Raises:
        DataError: no file, or a line that is something else.
    """
    files = [file for file in find_files([path]) if {".txt", ".tsv"} & {*file.suffixes[-2:]}]
    if not files:
        raise DataError(f"{path}: no .txt or .tsv file (also .gz, .zst) of pairs of words")
    names = [file.name.split(".")[0] for file in files]
    if len(set(names)) < len(names):  # of several folders
        common = os.path.commonpath([file.parent for file in files])
        names = [str(file.relative_to(common)) for file in files]
    return [_read(file, name) for file, name in zip(files, names, strict=True)]


def _read(file: Path, name: str) -> SimilaritySet:
    first, second, scores = [], [], []
    lines = read_lines(file)
    for number, line in enumerate(lines, 1):
        if not (cells := line.split()):
            continue
        try:
            one, other, score = cells
            scores.append(float(score))
            if "_" in score or not math.isfinite(scores[-1]):
                raise ValueError(score)
        except ValueError as error:
            raise DataError(
                f"{file}: line {number} is {line[:60]!r}; expected two words and a score"
            ) from error
        first.append(one)
        second.append(other)
    if not scores:
        raise DataError(f"{file}: no pairs; expected lines of two words and a score")
    return SimilaritySet(name=name, first=first, second=second, scores=np.array(scores, np.float64))


def similarity_report(
    sets: Sequence[SimilaritySet], embed: Callable[[list[str]], np.ndarray]
) -> Report:
    """Spearman's correlation of cosines and judgements, set by set.

    A pair counts where both words have a vector that is not zero; the share of such pairs is the
    set's coverage. Where fewer than two pairs count, or all cosines or judgements are equal, there
    is no correlation: it is None, and the mean is over the other sets.

    Args:
        sets: the judgements.
        embed: gives (n, D) vectors of n words, zeros for unknown ones.

    Returns:
        The unweighted means over the sets; in the details each set's pairs, coverage and value.

    Raises:
        DataError: if no set has a correlation.
    """
    known = sorted({word for one in sets for word in (*one.first, *one.second)})
    rows = {word: i for i, word in enumerate(known)}
    vectors = unit_rows(embed(known))
    there = np.abs(vectors).sum(1) > 0
    found = {}
    for one in sets:
        a, b = (np.array([rows[word] for word in side]) for side in (one.first, one.second))
        both = there[a] & there[b]
        cosines = np.einsum("nd,nd->n", vectors[a], vectors[b])[both]
        varied = both.sum() > 1 and np.ptp(one.scores[both]) > 0 and np.ptp(cosines) > 0
        value = spearman(one.scores[both], cosines) if varied else None
        counts = {"pairs": len(a), "covered": int(both.sum())}
        found[one.name] = {**counts, "coverage": float(both.mean()), "spearman": value}
    values = [one["spearman"] for one in found.values() if one["spearman"] is not None]
    if not values:
        raise DataError(
            f"{', '.join(found)}: in no set are two pairs of words that the model knows, of "
            "different similarity, so there is no correlation; is the model of this language?"
        )
    means = {
        "spearman": fmean(values),
        "coverage": fmean(one["coverage"] for one in found.values()),
    }
    total = sum(len(one.first) for one in sets)
    return Report(metrics=means, main="spearman", num_examples=total, details={"sets": found})
