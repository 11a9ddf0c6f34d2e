"""A tag for each of the user's own words: parts of speech, chunks, named entities."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from firth.config import check_types, suggest
from firth.errors import ConfigError, DataError
from firth.protocols import Example, Loss, Report, Scores, Unit
from firth.tasks import metrics
from firth.tasks.cells import is_text, place
from firth.tasks.classification import refuse_repeated
from firth.tasks.columns import read_sentences
from firth.tasks.metrics import COMMON
from firth.tasks.spans import Span, find_spans, mark_spans, odd_tags, span_scores
from firth.tasks.tables import Column

logger = logging.getLogger(__name__)

METRICS = {
    False: ("accuracy", "macro_f1"),
    True: ("f1", "precision", "recall", "accuracy"),
}
"""What an evaluation reports of plain tags and of tags that mark spans; the first is the main one
unless the task names one."""

SHOWN = 10
"""Errors and confusions in a report's details."""


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """A sentence with a tag for each word."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    probabilities: tuple[float, ...]
    """Of each tag that was chosen."""
    spans: tuple[Span, ...] = ()
    """What the tags mark, where they mark spans."""

    def to_dict(self) -> dict[str, Any]:
        """The sentence as JSON has it; spans with their text."""
        record: dict[str, Any] = {
            "words": list(self.words),
            "tags": list(self.tags),
            "probabilities": list(self.probabilities),
        }
        if self.spans:
            record["spans"] = [
                {**span._asdict(), "text": " ".join(self.words[span.begin : span.end])}
                for span in self.spans
            ]
        return record


@dataclass(frozen=True, kw_only=True)
class Tagging:
    """Reads tagged sentences, and turns the scores of words into tags (softmax, word by word).

    Where the tags mark spans (IOB, IOB2, BIOES, BILOU), whole spans are counted, too.
    """

    unit: ClassVar[Unit] = "word"

    text: Column | None = None
    """Column of the words, by number or by name. None: 2 in .conllu, else 1, in jsonl "words"."""
    label: Column | None = None
    """Column of the tags. None: upos in .conllu, else the last, in jsonl "tags"."""
    header: bool | None = None
    """Whether the first row of columns has their names (see `read_sentences`)."""
    spans: bool | None = None
    """Whether the tags mark spans; None: they do if each is O or begins with B-, I-, E-, S-, L- or
    U-."""
    labels: tuple[str, ...] = ()
    """The tags in the order of the outputs; () until `fit_labels`."""
    metric: str = ""
    """The metric that selects models; "": F1 of spans where there are any, else accuracy."""

    def __post_init__(self) -> None:
        check_types(self)
        refuse_repeated(self.labels)
        known = METRICS[self.marks_spans] if self.labels else METRICS[True] + METRICS[False]
        if self.metric and self.metric not in known:
            raise ConfigError(
                f"metric is {self.metric!r}, which these tags do not have; "
                f"{suggest(self.metric, known)}"
            )

    @property
    def marks_spans(self) -> bool:
        """Whether whole spans are counted."""
        return mark_spans(self.labels) if self.spans is None else self.spans

    @property
    def main_metric(self) -> str:
        """The name of the metric that selects models."""
        return self.metric or METRICS[self.marks_spans][0]

    @property
    def num_outputs(self) -> int:
        if not self.labels:
            raise ConfigError("the tags are not known yet; give labels=... or call fit_labels")
        return len(self.labels)

    def example(self, text: Any) -> Example:
        """Words as they are; a string is cut into words and marks by `split_words`."""
        words: tuple[Any, ...] = (text,)
        if isinstance(text, (str, Iterable)):
            words = split_words(text) if isinstance(text, str) else tuple(text)
        if not all(isinstance(word, str) for word in words):
            raise ConfigError(f"expected a list of words or a string, found {str(text)[:60]}")
        return Example(texts=(words,))

    def problem(self, example: Example) -> str | None:
        """What keeps an example from being one of this task, its tags apart where it has none."""
        (words, *more), tags = example.texts, example.label
        if more or isinstance(words, str) or not is_text(words):
            return "it is no list of words (task.example cuts a string into words)"
        if tags is None:
            return None
        if isinstance(tags, str) or not is_text(tags):
            return f"its label is {str(tags)[:40]!r}, expected a tag for each word"
        return None if len(tags) == len(words) else f"{len(words)} words have {len(tags)} tags"

    def read(self, path: str | Path, *, labelled: bool = True) -> list[Example]:
        """The sentences of a file (see `read_sentences`).

        Raises:
            ConfigError: a column that is not in the file.
            DataError: a file or row that cannot be read.
        """
        found = read_sentences(path, self.text, self.label, labelled=labelled, header=self.header)
        return [Example(texts=(words,), label=tags, row=row) for row, words, tags in found]

    def fit_labels(self, examples: Sequence[Example]) -> "Tagging":
        """The same task with its tags, sorted; a task that has them keeps them.

        Raises:
            DataError: with fewer than two tags.
        """
        if self.labels:
            return self
        names = {tag for example in examples for tag in _tags(example)}
        if len(names) < 2:
            raise DataError(
                f"the {len(examples)} training sentences have {len(names)} different tags "
                f"({', '.join(names)}), expected at least 2; is the column of the tags right?"
            )
        if self.spans and not mark_spans(names):
            raise DataError(
                f"spans is set, but the tags ({', '.join(sorted(names)[:8])}, ...) do not mark "
                "spans; expected O and tags as B-PER, I-PER"
            )
        odd = odd_tags(names) if self.spans is None else []
        if odd:
            logger.warning(
                "%d tags are not those of spans (%s) and all others are, so whole spans are not "
                "counted; correct them in the file, or set spans to False if that is meant",
                *(len(odd), ", ".join(odd[:5])),
            )
        return replace(self, labels=tuple(sorted(names)))

    def targets(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """(W) int64 tags of the words of each sentence.

        Raises:
            DataError: on sentences that have no tags, or one that the task does not know.
        """
        ids = {name: i for i, name in enumerate(self.labels)}
        unknown = [
            (place(e, i), tag) for i, e in enumerate(examples) for tag in _tags(e) if tag not in ids
        ]
        if unknown:
            shown = ", ".join(f"{where} has {tag!r}" for where, tag in unknown[:5])
            raise DataError(
                f"tags that the task does not know: {shown}; expected one of "
                f"{', '.join(self.labels)}; correct the rows, or train with such sentences"
            )
        return [np.array([ids[tag] for tag in _tags(e)], np.int64) for e in examples]

    def loss(self, scores: Tensor, targets: Tensor) -> Loss:
        """Cross-entropy of (M, K) scores of words and their (M) tags, summed, in float32."""
        total = F.cross_entropy(scores.float(), targets, reduction="sum")
        return Loss(total=total, count=scores.shape[0])

    def decode(self, scores: Scores, examples: Sequence[Example]) -> list[Tagged]:
        """The sentences with the best tag of each word."""
        found = []
        for rows, example in zip(scores, examples, strict=True):
            shares = torch.tensor(rows, dtype=torch.float64).softmax(dim=1)
            best = shares.max(dim=1)
            tags = tuple(self.labels[i] for i in best.indices.tolist())
            found.append(
                Tagged(
                    words=tuple(example.texts[0]),
                    tags=tags,
                    probabilities=tuple(best.values.tolist()),
                    spans=tuple(find_spans(tags)) if self.marks_spans else (),
                )
            )
        return found

    def evaluate(self, scores: Scores, examples: Sequence[Example]) -> Report:
        """Accuracy of words and, where tags mark spans, precision, recall and F1 of whole spans.

        A tag that training never saw counts as an error. The details hold `per_tag` (precision,
        recall, F1, count), `per_span`, the most frequent `confusions` and some `errors`.

        Raises:
            DataError: if an example has no tags, or all of them are others than the task's.
        """
        expected = [_tags(example) for example in examples]
        given = {tag for tags in expected for tag in tags}
        if given and not given & set(self.labels):
            raise DataError(
                f"the tags are {', '.join(sorted(given)[:8])}, and the model knows "
                f"{', '.join(self.labels[:8])}, none of them; is it another file or column?"
            )
        found = [[self.labels[i] for i in rows.argmax(axis=1)] for rows in scores]
        names = sorted({*self.labels, *(tag for tags in expected for tag in tags)})
        true, guess = (_flat(tags, names) for tags in (expected, found))
        values = {"accuracy": metrics.accuracy(true, guess)}
        details: dict[str, Any] = {"per_tag": metrics.by_class(true, guess, names)}
        if self.marks_spans:
            totals, details["per_span"] = span_scores(expected, found)
            values = {**totals, **values}
        else:
            values["macro_f1"] = metrics.macro_f1(true, guess)
        return Report(
            metrics=values,
            main=self.main_metric,
            num_examples=len(examples),
            details={**details, "num_words": len(true), **_mistakes(examples, found)},
        )

    def degenerate(self, scores: Scores, examples: Sequence[Example]) -> bool:
        """Whether all words get one tag though theirs differ, or a score is not finite."""
        if not all(np.isfinite(rows).all() for rows in scores):
            return True
        answers = np.concatenate([rows.argmax(axis=1) for rows in scores])
        if not len(answers):
            return False
        if (answers != answers[0]).any():
            return False
        counts = Counter(tag for example in examples for tag in _tags(example))
        share = counts[self.labels[answers[0]]] / max(1, counts.total())
        return len(counts) > 1 and share < COMMON


def split_words(text: str) -> tuple[str, ...]:
    """Words and marks of a string: cut at white space, marks at a word's ends stand alone.

    Apostrophes, hyphens and points inside a word stay. Corpora cut finer ("do n't"): give a list of
    words to have them as you want them.
    """
    words: list[str] = []
    for chunk in text.split():
        signs = _SIGN.findall(chunk)
        begin, end = 0, len(signs)
        while begin < end and _is_mark(signs[begin]):
            begin += 1
        while end > begin and _is_mark(signs[end - 1]):
            end -= 1
        inner = ["".join(signs[begin:end])] if begin < end else []
        words += [*signs[:begin], *inner, *signs[end:]]
    return tuple(words)


_SIGN = re.compile(r"(?s:.)(?:\u200d(?s:.)|[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff])*")
"""A character with what makes it another one: emoji are joined, coloured and chosen so."""


def _is_mark(sign: str) -> bool:
    return unicodedata.category(sign[0])[0] in "PS"


def _tags(example: Example) -> tuple[str, ...]:
    if example.label is None:
        raise DataError(
            f"{place(example)} has no tags; give it some (a file is read with labelled=True)"
        )
    return example.label


def _flat(sentences: Sequence[Sequence[str]], names: Sequence[str]) -> np.ndarray:
    """The tags of all words as numbers."""
    ids = {name: i for i, name in enumerate(names)}
    return np.array([ids[tag] for tags in sentences for tag in tags], np.int64)


def _mistakes(examples: Sequence[Example], found: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The most frequent confusions, and the first errors with the row of their sentence."""
    confusions, errors = Counter[tuple[str, str]](), []
    for example, guess in zip(examples, found, strict=True):
        for i, (tag, other) in enumerate(zip(_tags(example), guess, strict=True)):
            if tag == other:
                continue
            confusions[tag, other] += 1
            if len(errors) < SHOWN:
                word = example.texts[0][i]
                place = {"row": example.row, "word": i + 1, "text": word}
                errors.append({**place, "expected": tag, "found": other})
    frequent = [
        {"expected": tag, "found": other, "count": count}
        for (tag, other), count in confusions.most_common(SHOWN)
    ]
    return {"confusions": frequent, "errors": errors}
