"""Spans of words that tags mark (IOB, IOB2, BIOES, BILOU), and how many of them were found."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from firth.tasks.metrics import f1

_CHUNK_TAG = re.compile(r"O|[BIESLU](-.+)?")
_IOBES = {"L": "E", "U": "S"}
"""BILOU's letters for the last word of a span and for a span of one word."""


class Span(NamedTuple):
    """Words begin to end - 1 of a sentence, counted from 0."""

    label: str
    begin: int
    end: int


def mark_spans(tags: Iterable[str]) -> bool:
    """Whether tags are those of spans: O, and B, I, E, S, L or U with a hyphen and a type.

    Letters alone may be names of classes as well (L for long, S for subject): they are those of
    spans where B or I is among them, and O, or both.
    """
    tags = set(tags)
    letters = {tag for tag in tags if len(tag) == 1} - {"O"}
    begun = letters & {"B", "I"}
    if letters and not (begun and ("O" in tags or len(begun) == 2)):
        return False
    return bool(tags - {"O"}) and all(map(_CHUNK_TAG.fullmatch, tags))


def odd_tags(tags: Iterable[str]) -> list[str]:
    """The few tags, sorted, but for which all would be those of spans with a type; else none."""
    tags = set(tags)
    odd = {tag for tag in tags if not _CHUNK_TAG.fullmatch(tag)}
    typed = [tag for tag in tags - odd if len(tag) > 1]
    return sorted(odd) if 2 * len(odd) < len(tags) and len(typed) > len(odd) else []


def find_spans(tags: Sequence[str]) -> list[Span]:
    """The spans of a sentence by the rules of `conlleval` (Tjong Kim Sang and Buchholz 2000).

    So ill-formed sequences have spans, too: an I- after O, or after another type, begins one. E and
    S are read as in seqeval; all well-formed sequences of any of the schemes mean what they should.

    Args:
        tags: "O", or a letter and a type, as "B-PER"; a letter alone has the type "".
    """
    spans, begin = [], 0
    before, type_before = "O", ""
    for i, tag in enumerate([*tags, "O"]):
        letter, _, kind = tag.partition("-")
        letter = _IOBES.get(letter, letter)
        new = letter != "O" and (letter in "BS" or before in "OES" or kind != type_before)
        if before != "O" and (new or letter == "O"):
            spans.append(Span(type_before, begin, i))
        if new:
            begin = i
        before, type_before = letter, kind
    return spans


def span_scores(
    expected: Sequence[Sequence[str]], found: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Precision, recall and F1 of whole spans, by exact place and type, as `conlleval` counts.

    Args:
        expected: the true tags of each sentence.
        found: the predicted ones.

    Returns:
        all types counted together (micro), and a table by type with the number of true spans.
    """
    hits, predicted, actual = Counter[str](), Counter[str](), Counter[str]()
    for true, guess in zip(expected, found, strict=True):
        wanted, got = set(find_spans(true)), set(find_spans(guess))
        actual.update(span.label for span in wanted)
        predicted.update(span.label for span in got)
        hits.update(span.label for span in wanted & got)
    total = _ratios(hits.total(), predicted.total(), actual.total())
    types = sorted({*actual, *predicted})
    by_type = {
        name: {**_ratios(hits[name], predicted[name], actual[name]), "count": actual[name]}
        for name in types
    }
    return total, by_type


def _ratios(hits: int, predicted: int, actual: int) -> dict[str, float]:
    return {
        "f1": float(f1(np.array(hits), np.array(predicted), np.array(actual))),
        "precision": hits / max(1, predicted),
        "recall": hits / max(1, actual),
    }
