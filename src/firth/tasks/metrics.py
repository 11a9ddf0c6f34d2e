"""Metrics for classes, label sets and real values, and the interval over several seeds.

Class ids come as (B,) integers, label sets as (B, K) booleans, B at least 1. Every metric is larger
for better answers and never NaN: where a ratio is undefined, it is 0.
"""

import math
from collections.abc import Sequence

import numpy as np

from firth.errors import DataError

COMMON = 0.8
"""One answer for everything is no collapse where it is right for this share of the examples (of the
words, for tags: entities are rare, and learning begins there)."""


def accuracy(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Share of examples that are right; a label set is right when all its labels are."""
    same = targets == predictions
    return float((same if same.ndim == 1 else same.all(axis=1)).mean())


def confusion_matrix(targets: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (K, K) int64 of each true class (row) that was predicted as each class (column)."""
    pairs = targets.astype(np.int64) * num_classes + predictions
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def f1(hits: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Harmonic mean of precision and recall from counts: 2 hits / (predicted + actual), or 0.

    Args:
        hits: how many predictions were right, of any shape.
        predicted: how many were predicted.
        actual: how many there are.
    """
    return 2.0 * hits / np.maximum(predicted + actual, 1)


def macro_f1(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 over the classes that occur in targets or predictions; over all K labels for sets."""
    hits, predicted, actual = _counts(targets, predictions)
    occurs = (predicted + actual > 0) if targets.ndim == 1 else np.ones(hits.shape, bool)
    return float(f1(hits, predicted, actual)[occurs].mean())


def micro_f1(targets: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of the decisions of all classes counted together; for single classes, the accuracy."""
    hits, predicted, actual = _counts(targets, predictions)
    return float(f1(hits.sum(), predicted.sum(), actual.sum()))


def by_class(
    targets: np.ndarray, predictions: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and the number of true members of each of the K named classes."""
    if targets.ndim == 1:
        ids = np.arange(len(names))
        targets, predictions = targets[:, None] == ids, predictions[:, None] == ids
    hits, predicted, actual = _counts(targets, predictions)
    table = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(actual, 1),
        "f1": f1(hits, predicted, actual),
        "count": actual,
    }
    return {name: {key: table[key][i].item() for key in table} for i, name in enumerate(names)}


def mcc(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews correlation coefficient for K classes; 0 when either side has one class only.

    R_K = (c s - p.t) / sqrt((s^2 - p.p) (s^2 - t.t)), with c right of s examples, and p and t the
    number of times that each class was predicted and is true (Gorodkin 2004, eq. 8).
    """
    hits, predicted, actual = (count.astype(np.float64) for count in _counts(targets, predictions))
    size = len(targets)
    spread = (size**2 - predicted @ predicted) * (size**2 - actual @ actual)
    covariance = hits.sum() * size - predicted @ actual
    return float(covariance / math.sqrt(spread)) if spread > 0 else 0.0


def pearson(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's correlation of two (B,) arrays; 0 when either is constant."""
    x, y = _unit(targets), _unit(predictions)
    return float(np.clip(x @ y, -1.0, 1.0))


def spearman(targets: np.ndarray, predictions: np.ndarray) -> float:
    """Spearman's correlation, that of the ranks, ties at their mean; 0 when either is constant."""
    return pearson(_ranks(targets), _ranks(predictions))


def mean_and_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over seeds and the half-width of its 95 % interval, t(n-1) s / sqrt(n) (Student).

    The half-width is None for a single value, which says nothing about its spread.

    Raises:
        DataError: without values.
    """
    if not len(values):
        raise DataError("there are no values to take the mean of; expected at least one")
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return mean, None
    return mean, t_quantile(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)


def t_quantile(degrees: int, confidence: float = 0.95) -> float:
    """The t with P(|T| <= t) = confidence for Student's T of `degrees` degrees of freedom."""
    low, high = 0.0, math.pi / 2  # t = sqrt(degrees) tan(angle)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _t_within(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) tan(angle)), a finite sum (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    sine, cosine, odd = math.sin(angle), math.cos(angle), degrees % 2
    term = sine * cosine if odd else sine
    total = term if degrees > 1 else 0.0
    for power in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + total) if odd else total


def _counts(targets: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Hits, predictions and true members of each class."""
    if targets.ndim == 2:
        return (targets & predictions).sum(0), predictions.sum(0), targets.sum(0)
    size = int(max(targets.max(), predictions.max())) + 1
    groups = (targets[targets == predictions], predictions, targets)
    return tuple(np.bincount(group, minlength=size) for group in groups)


def _unit(values: np.ndarray) -> np.ndarray:
    """The values about their mean, scaled to length 1; zeros when they are all the same, or when
    one is not finite.
    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all() or np.ptp(values) == 0:
        return np.zeros_like(values)
    centred = values - values.mean()
    centred /= np.abs(centred).max()  # keeps the squares of tiny and huge values finite
    return centred / np.linalg.norm(centred)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
