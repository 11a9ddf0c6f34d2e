"""Metrics agree with scikit-learn and scipy, and say 0 where those say NaN."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as reference

from firth.tasks import metrics


@st.composite
def class_pairs(draw):
    size, classes = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    ids = st.lists(st.integers(0, classes - 1), min_size=size, max_size=size)
    return np.array(draw(ids)), np.array(draw(ids))


@st.composite
def set_pairs(draw):
    size, labels = draw(st.integers(1, 20)), draw(st.integers(2, 5))
    cells = st.lists(st.booleans(), min_size=size * labels, max_size=size * labels)
    return tuple(np.array(draw(cells)).reshape(size, labels) for _ in range(2))


@st.composite
def value_pairs(draw):
    size = draw(st.integers(3, 30))
    values = st.lists(st.integers(-50, 50), min_size=size, max_size=size)  # small: many ties
    scale = draw(st.sampled_from([1e-200, 0.1, 1.0, 1e150]))
    return np.array(draw(values)) * scale, np.array(draw(values)) * 0.5


def quietly(function, *arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **keywords)


@settings(max_examples=200, deadline=None)
@given(class_pairs())
def test_class_metrics_agree_with_scikit_learn(pair):
    targets, predictions = pair
    expected = {
        "accuracy": reference.accuracy_score(targets, predictions),
        "macro_f1": quietly(reference.f1_score, targets, predictions, average="macro"),
        "micro_f1": quietly(reference.f1_score, targets, predictions, average="micro"),
        "mcc": quietly(reference.matthews_corrcoef, targets, predictions),
    }
    found = {name: getattr(metrics, name)(targets, predictions) for name in expected}
    assert found == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(class_pairs())
def test_confusion_matrix_agrees_with_scikit_learn(pair):
    expected = quietly(reference.confusion_matrix, *pair, labels=range(7))
    found = metrics.confusion_matrix(*pair, 7)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=100, deadline=None)
@given(set_pairs())
def test_label_set_metrics_agree_with_scikit_learn(pair):
    targets, predictions = pair
    expected = {
        "accuracy": reference.accuracy_score(targets, predictions),
        "macro_f1": quietly(reference.f1_score, targets, predictions, average="macro"),
        "micro_f1": quietly(reference.f1_score, targets, predictions, average="micro"),
    }
    found = {name: getattr(metrics, name)(targets, predictions) for name in expected}
    assert found == pytest.approx(expected, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(value_pairs())
def test_correlations_agree_with_scipy(pair):
    expected_pearson = np.nan_to_num(quietly(stats.pearsonr, *pair).statistic)
    expected_spearman = np.nan_to_num(quietly(stats.spearmanr, *pair).statistic)
    assert metrics.pearson(*pair) == pytest.approx(expected_pearson, abs=1e-12)
    assert metrics.spearman(*pair) == pytest.approx(expected_spearman, abs=1e-12)


def test_correlation_of_a_constant_is_zero_even_when_its_mean_is_not_exact():
    constant, varied = np.full(12, 0.1), np.arange(12.0)
    assert constant.mean() != 0.1  # so deviations from the mean would be noise, not zero
    assert metrics.pearson(constant, varied) == 0.0
    for wrong in (np.inf, -np.inf, np.nan):  # as a network that diverges gives
        assert metrics.pearson(varied, np.where(varied == varied[0], wrong, varied)) == 0.0
    assert metrics.spearman(varied, constant) == 0.0
    assert metrics.pearson(np.array([1.0]), np.array([2.0])) == 0.0


def test_mcc_of_many_examples_does_not_overflow():
    targets = np.tile([0, 1, 2], 400_000)
    assert metrics.mcc(targets, targets) == pytest.approx(1.0)
    assert metrics.mcc(targets, (targets + 1) % 3) == pytest.approx(-0.5)


def test_mcc_is_zero_when_one_side_has_one_class():
    assert metrics.mcc(np.array([0, 1, 2]), np.zeros(3, int)) == 0.0
    assert metrics.mcc(np.zeros(3, int), np.array([0, 1, 2])) == 0.0


def test_macro_f1_counts_a_predicted_class_that_is_never_true():
    targets, predictions = np.array([0, 0, 0, 3]), np.array([0, 0, 1, 3])
    assert metrics.macro_f1(targets, predictions) == pytest.approx((0.8 + 0 + 1) / 3)  # not class 2


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_t_quantile_agrees_with_scipy(confidence):
    degrees = [*range(1, 41), 100, 1001]
    found = [metrics.t_quantile(d, confidence) for d in degrees]
    np.testing.assert_allclose(found, stats.t.ppf((1 + confidence) / 2, degrees), rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_interval_agrees_with_scipy(values):
    mean, half = metrics.mean_and_interval(values)
    assert mean == pytest.approx(np.mean(values))
    error = stats.sem(values)
    if error > 1e-12:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=error)
        assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-9)
    else:
        assert half == pytest.approx(0.0, abs=1e-10)


def test_one_value_has_no_interval():
    assert metrics.mean_and_interval([0.75]) == (0.75, None)
