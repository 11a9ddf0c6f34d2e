"""One class, several labels or a number for each text or pair of texts."""

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from firth.config import check_types, suggest
from firth.errors import ConfigError, DataError
from firth.protocols import Example, Loss, Report, Scores, Unit
from firth.tasks import cells, metrics
from firth.tasks.metrics import COMMON
from firth.tasks.tables import Column, Quotes, column_number, read_rows

Kind = Literal["single", "multi_label", "regression"]

METRICS = {
    "single": {"accuracy": metrics.accuracy, "macro_f1": metrics.macro_f1, "mcc": metrics.mcc},
    "multi_label": {
        "micro_f1": metrics.micro_f1,
        "macro_f1": metrics.macro_f1,
        "accuracy": metrics.accuracy,
    },
    "regression": {"spearman": metrics.spearman, "pearson": metrics.pearson},
}
"""What an evaluation of each kind reports; the first is the main one unless the task names one."""

_EXPECTED = {
    "single": "a string",
    "multi_label": "several strings, as ('war', 'trade')",
    "regression": "a number",
}

COLLAPSED = 0.01
"""Regression scores with a deviation below this share of the training labels' are constant."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """An answer: a class name, a tuple of class names, or a number."""

    label: str | tuple[str, ...] | float
    probabilities: dict[str, float] = field(default_factory=dict)
    """Of each class; none for a regression."""

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON has it, without probabilities where there are none."""
        label = list(self.label) if isinstance(self.label, tuple) else self.label
        return {"label": label, **({"probabilities": p} if (p := self.probabilities) else {})}


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Reads labelled texts or pairs of texts, and turns scores into answers.

    `single` gives each example one class (softmax), `multi_label` any number of classes (those with
    a sigmoid above 0.5), `regression` a number. The score of a regression is in standardised units:
    the answer is `scale * score + shift`. An export folds that into its last layer: weight and bias
    times `scale`, and `shift` added to the bias.
    """

    unit: ClassVar[Unit] = "sequence"

    text: Column = "text"
    """Column of the text: its name, or its number counted from 1, as 4 or "4"."""
    text_pair: Column | None = None
    """Column of the second text of a pair."""
    label: Column = "label"
    """Column of the label."""
    kind: Kind = "single"
    """One class, several labels or a number for each example."""
    labels: tuple[str, ...] = ()
    """The classes in the order of the outputs; () until `fit_labels`."""
    label_separator: str = ","
    """Between the labels of a multi-label cell; jsonl files may hold lists instead."""
    header: bool | None = None
    """Whether the first row of a csv or tsv file names the columns; None: it does, unless all
    columns are given by number."""
    quotes: Quotes = "auto"
    """Whether quote characters enclose cells ("standard") or are ordinary text ("literal"); "auto":
    they enclose cells in csv, and in tsv only if the file was plainly written so (`read_rows`)."""
    metric: str = ""
    """The metric that selects models; "": the first of the kind's `METRICS`."""
    shift: float = 0.0
    """Mean of the training labels of a regression."""
    scale: float = 1.0
    """Standard deviation of the training labels of a regression."""

    def __post_init__(self) -> None:
        check_types(self)
        refuse_repeated(self.labels)
        for name in ("text", "text_pair"):
            if str(self.label) == str(getattr(self, name)):
                raise ConfigError(f"{name} and label are one column, {self.label}; they are two")
        if not self.label_separator:
            raise ConfigError("label_separator is empty, expected what stands between labels: ','")
        if self.metric and self.metric not in METRICS[self.kind]:
            raise ConfigError(
                f"metric is {self.metric!r}, which kind={self.kind!r} does not report; "
                f"{suggest(self.metric, METRICS[self.kind])}"
            )

    def example(self, text: Any) -> Example:
        """A text (a string or a list of words), or a pair of them where the task is about pairs."""
        if self.text_pair is None:
            if isinstance(text, tuple) and len(text) == 2 and all(" " in str(one) for one in text):
                raise ConfigError(
                    "a pair was given to a task about single texts (the words of one text go in a "
                    "list); where the model is of pairs, replace its task by one with text_pair set"
                )
            return Example(texts=(text,))
        if isinstance(text, str) or not hasattr(text, "__len__") or len(text) != 2:
            raise ConfigError("this task is about pairs of texts: give (first, second) for each")
        return Example(texts=tuple(text))

    def problem(self, example: Example) -> str | None:
        """What keeps an example from being one of this task, its label apart where it has none."""
        count = 1 if self.text_pair is None else 2
        if len(example.texts) != count:
            return f"it has {len(example.texts)} texts, and this task is about {count} (text_pair)"
        if not all(map(cells.is_text, example.texts)):
            (wrong, *_) = (one for one in example.texts if not cells.is_text(one))
            return f"its text is {repr(wrong)[:40]}, expected a string or a list of words"
        label, expected = example.label, _EXPECTED[self.kind]
        fits = {
            "single": isinstance(label, str),
            "multi_label": isinstance(label, tuple | list | set | frozenset)
            and all(isinstance(name, str) for name in label),
            "regression": isinstance(label, Real) and math.isfinite(label),
        }[self.kind]
        return None if label is None or fits else f"its label is {label!r}, expected {expected}"

    def read(self, path: str | Path, *, labelled: bool = True) -> list[Example]:
        """The rows of a csv, tsv or jsonl file, also .gz or .zst; a jsonl text may be a word list.

        Args:
            path: the file.
            labelled: False leaves the label column unread, and every label None.

        Raises:
            ConfigError: a column that is not in the file, or a first row that seems to be a header.
            DataError: a file or row that cannot be read, or a label that does not fit the kind.
        """
        texts = [self.text] if self.text_pair is None else [self.text, self.text_pair]
        columns = [*texts, self.label] if labelled else texts
        examples = []
        for row, found in read_rows(path, columns, header=self.header, quotes=self.quotes):
            where = f"{path}: row {row}"
            words = tuple(cells.parse_text(cell, where) for cell in found[: len(texts)])
            label = self._parse_label(found[-1], where) if labelled else None
            examples.append(Example(texts=words, label=label, row=row))
        numbered = all(column_number(column) is not None for column in columns)
        guessed = numbered and self.header is None and not self.labels
        if labelled and guessed and self.kind != "regression":
            _check_first_row(path, [_classes(example) for example in examples])
        return examples

    def with_header(self) -> "Classification":
        """The same task, for files that begin as the labelled one did, though no label is read.

        Where all columns are given by number the files go on saying it, as pandas' 0, 1, 2 do.
        """
        columns = (self.text, self.text_pair, self.label)
        named = any(column_number(one) is None for one in columns if one is not None)
        return replace(self, header=True) if named and self.header is None else self

    def fit_labels(self, examples: Sequence[Example]) -> "Classification":
        """The same task with its classes, or shift and scale of a regression, from training data.

        Classes are sorted, as numbers where all look like numbers; a task that has them keeps them.

        Raises:
            DataError: with fewer than two classes (one if multi-label), or numbers all the same.
        """
        found = [_label(example) for example in examples]
        if self.kind == "regression":
            if len(set(found)) < 2:
                raise DataError(
                    f"the {len(found)} training labels are all the same, {set(found)}, expected "
                    "numbers that differ; is the label column right?"
                )
            return replace(self, shift=float(np.mean(found)), scale=float(np.std(found)))
        if self.labels:
            return self
        several = self.kind == "multi_label"
        names, least = (set().union(*found), 1) if several else (set(found), 2)
        if len(names) < least:
            raise DataError(
                f"the {len(found)} training examples have {len(names)} classes "
                f"({', '.join(names)}), expected at least {least}; is the label column right?"
            )
        return replace(self, labels=_in_order(names))

    @property
    def num_outputs(self) -> int:
        if self.kind == "regression":
            return 1
        if not self.labels:
            raise ConfigError("the classes are not known yet; give labels=... or call fit_labels")
        return len(self.labels)

    @property
    def main_metric(self) -> str:
        """The name of the metric that selects models."""
        return self.metric or next(iter(METRICS[self.kind]))

    def targets(self, examples: Sequence[Example]) -> np.ndarray:
        """(B) int64 class ids, (B, K) float32 zeros and ones, or (B) float32 standardised values.

        Raises:
            DataError: on examples that have no label, or one that the task does not know.
        """
        found = [_label(example) for example in examples]
        if self.kind == "regression":
            return ((np.array(found) - self.shift) / self.scale).astype(np.float32)
        ids = {name: i for i, name in enumerate(self.labels)}
        targets = np.zeros((len(found), self.num_outputs), np.float32)
        unknown = []
        for i, names in enumerate(found):
            names = names if self.kind == "multi_label" else (names,)
            known = [ids[name] for name in names if name in ids]
            unknown += [(cells.place(examples[i], i), name) for name in names if name not in ids]
            targets[i, known] = 1
        if unknown:
            raise _unknown_labels(unknown, self.labels)
        return targets if self.kind == "multi_label" else targets.argmax(axis=1)

    def loss(self, scores: Tensor, targets: Tensor) -> Loss:
        """Cross-entropy, binary cross-entropy (mean over K labels) or squared error, summed over B.

        Args:
            scores: (B, K) of any floating type; the loss is computed in float32.
            targets: those of `targets`, on the device of the scores.
        """
        scores = scores.float()
        if self.kind == "single":
            total = F.cross_entropy(scores, targets, reduction="sum")
        elif self.kind == "multi_label":
            total = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
            total = total / scores.shape[1]
        else:
            total = F.mse_loss(scores[:, 0], targets, reduction="sum")
        return Loss(total=total, count=scores.shape[0])

    def decode(self, scores: Scores, examples: Sequence[Example] = ()) -> list[Prediction]:
        """(B, K) scores to an answer and its probabilities for each; texts are not looked at."""
        answers = self._answers(scores)
        if self.kind == "regression":
            values = answers.astype(np.float64) * self.scale + self.shift
            return [Prediction(label=value) for value in values.tolist()]
        logits = torch.tensor(np.asarray(scores), dtype=torch.float64)
        single = self.kind == "single"
        rows = (logits.softmax(dim=1) if single else logits.sigmoid()).tolist()
        return [
            Prediction(
                label=self.labels[answer] if single else self._chosen(answer),
                probabilities=dict(zip(self.labels, row, strict=True)),
            )
            for answer, row in zip(answers, rows, strict=True)
        ]

    def evaluate(self, scores: Scores, examples: Sequence[Example]) -> Report:
        """All metrics of the kind for finite scores (B, K) of B labelled examples.

        The details hold `per_class` (precision, recall, F1, count), for single classes `confusion`
        too (true classes by predicted ones, in the order of `labels`), for a regression `rmse`, the
        root of the mean squared error in the unit of the labels.
        """
        answers, targets = self._answers(scores), self.targets(examples)
        if self.kind == "regression":
            error = np.sqrt(np.square(answers - targets, dtype=np.float64).mean()) * self.scale
            details = {"rmse": float(error)}
        else:
            targets = targets.astype(answers.dtype)
            details = {"per_class": metrics.by_class(targets, answers, self.labels)}
        if self.kind == "single":
            confusion = metrics.confusion_matrix(targets, answers, self.num_outputs)
            details |= {"labels": list(self.labels), "confusion": confusion.tolist()}
        return Report(
            metrics={name: of(targets, answers) for name, of in METRICS[self.kind].items()},
            main=self.main_metric,
            num_examples=len(examples),
            details=details,
        )

    def degenerate(self, scores: Scores, examples: Sequence[Example]) -> bool:
        """Whether all examples get one answer though their labels differ, or a score is not finite.

        Fine-tuning on few examples sometimes collapses so, to the most frequent class or (in a
        regression) to a constant, and is best started again with another seed.
        """
        if not np.isfinite(np.asarray(scores)).all():
            return True
        answers, targets = self._answers(scores), self.targets(examples)
        if (targets == targets[0]).all():
            return False
        if self.kind == "regression":
            return bool(answers.std() < COLLAPSED)
        right = (targets == answers[0]).reshape(len(targets), -1).all(axis=1).mean()
        return bool((answers == answers[0]).all() and right < COMMON)

    def _answers(self, scores: Scores) -> np.ndarray:
        """(B) int64 class ids, (B, K) booleans, or (B) standardised values."""
        rows = np.asarray(scores)
        if self.kind == "single":
            return rows.argmax(axis=1)
        return rows > 0 if self.kind == "multi_label" else rows[:, 0]

    def _chosen(self, answer: np.ndarray) -> tuple[str, ...]:
        return tuple(self.labels[i] for i in np.flatnonzero(answer))

    def _parse_label(self, cell: Any, where: str) -> str | tuple[str, ...] | float:
        if self.kind == "regression":
            return cells.parse_value(cell, where)
        if self.kind == "multi_label":
            return cells.parse_classes(cell, self.label_separator, where)
        return cells.parse_class(cell, where)


def refuse_repeated(labels: Sequence[str]) -> None:
    """Refuses names that stand twice among the labels of a task.

    Raises:
        ConfigError: if there is one.
    """
    twice = [name for name, count in Counter(labels).items() if count > 1]
    if twice:
        raise ConfigError(f"labels has {', '.join(map(repr, twice))} twice; expected each once")


def _label(example: Example) -> Any:
    if example.label is None:
        raise DataError(
            f"{cells.place(example)} has no label; give it one (a file is read with labelled=True)"
        )
    return example.label


def _in_order(names: Collection[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def _unknown_labels(unknown: list[tuple[str, str]], labels: Sequence[str]) -> DataError:
    shown = ", ".join(f"{place} has {name!r}" for place, name in unknown[:5])
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return DataError(
        f"labels that the task does not know: {shown}{more}; expected one of {', '.join(labels)}; "
        "correct the rows, or train with examples of these labels"
    )


def _classes(example: Example) -> tuple[str, ...]:
    return (example.label,) if isinstance(example.label, str) else tuple(example.label)


def _check_first_row(path: str | Path, labels: Sequence[tuple[str, ...]]) -> None:
    """Refuses a first label that alone occurs once: with columns by number it may be a header."""
    counts = Counter(name for row in labels for name in row)
    first = [name for name in counts if counts[name] == 1]
    if len(counts) > 2 and tuple(first) == labels[0]:
        raise ConfigError(
            f"{path}: row 1 looks like the names of the columns: its label {first[0]!r} is in no "
            "other row, every other label in several; set header=True if so, header=False "
            "if not (`firth adapt --header True` or False)"
        )
