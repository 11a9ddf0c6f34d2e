"""Labels to targets, and scores to losses, answers and reports."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

from firth.config import from_dict, to_dict
from firth.errors import ConfigError, DataError
from firth.protocols import Example
from firth.tasks import TASKS
from firth.tasks.classification import Classification


def labelled(*labels):
    return [Example(texts=("t",), label=label, row=i) for i, label in enumerate(labels, 1)]


# Labels


def test_classes_are_sorted_and_numbers_by_value():
    task = Classification()
    assert task.fit_labels(labelled("b", "a", "b")).labels == ("a", "b")
    assert task.fit_labels(labelled("10", "9", "-1")).labels == ("-1", "9", "10")
    assert task.fit_labels(labelled("10", "9", "x")).labels == ("10", "9", "x")
    multi = Classification(kind="multi_label").fit_labels(labelled(("b", "a"), (), ("c",)))
    assert (multi.labels, multi.num_outputs) == (("a", "b", "c"), 3)


def test_given_classes_are_kept():
    task = Classification(labels=("b", "a"))
    assert task.fit_labels(labelled("a", "a")) == task
    np.testing.assert_array_equal(task.targets(labelled("a", "b")), [1, 0])


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    [
        ("single", ["a", "a"], "2 training examples have 1 classes"),
        ("multi_label", [(), ()], "0 classes"),
        ("regression", [2.0, 2.0], "all the same"),
        ("single", ["a", None], "row 2 has no label"),
    ],
)
def test_training_labels_that_teach_nothing(kind, labels, message):
    with pytest.raises(DataError, match=message):
        Classification(kind=kind).fit_labels(labelled(*labels))


def test_unknown_labels_are_named_with_their_rows():
    task = Classification(labels=("a", "b"))
    with pytest.raises(DataError, match=r"row 2 has 'c', row 4 has 'd'; expected one of a, b"):
        task.targets(labelled("a", "c", "b", "d"))
    with pytest.raises(DataError, match="row 5 has 'c' and 3 more"):
        task.targets(labelled(*"cccccccc"))
    multi = replace(task, kind="multi_label")
    with pytest.raises(DataError, match="row 1 has 'x';"):
        multi.targets(labelled(("a", "x")))


def test_targets_have_the_types_of_the_contract():
    single = Classification(labels=("a", "b")).targets(labelled("b", "a"))
    assert (single.dtype, single.tolist()) == (np.int64, [1, 0])
    multi = Classification(kind="multi_label", labels=("a", "b")).targets(labelled(("b",), ()))
    assert (multi.dtype, multi.tolist()) == (np.float32, [[0, 1], [0, 0]])


def test_unfitted_or_wrong_settings():
    with pytest.raises(ConfigError, match="fit_labels"):
        _ = Classification().num_outputs
    with pytest.raises(ConfigError, match="did you mean 'multi_label'"):
        Classification(kind="multilabel")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"'spearman', .*known: accuracy"):
        Classification(metric="spearman")
    assert Classification(metric="mcc").main_metric == "mcc"


def test_task_survives_a_file():
    task = Classification(text=4, text_pair="b", labels=("x", "y"), header=False, quotes="literal")
    stored = json.loads(json.dumps(to_dict(task)))
    assert from_dict(TASKS["classification"], stored) == task


# Scores


def test_cross_entropy_is_a_sum_in_float32():
    task = Classification(labels=("a", "b", "c"))
    scores = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    loss = task.loss(scores, targets)
    expected = log_loss(targets, scores.double().softmax(1), labels=[0, 1, 2]) * 8
    assert (loss.total.dtype, loss.count) == (torch.float32, 8)
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)
    halves = task.loss(scores[:3], targets[:3]).total + task.loss(scores[3:], targets[3:]).total
    assert halves.item() == pytest.approx(loss.total.item(), rel=1e-6)


def test_binary_cross_entropy_is_a_mean_over_labels():
    task = Classification(kind="multi_label", labels=("a", "b"))
    scores, targets = (
        torch.tensor([[0.5, -2.0], [3.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
    )
    p = 1 / (1 + np.exp(-scores.double().numpy()))
    expected = -np.log(np.where(targets.numpy() == 1, p, 1 - p)).mean(axis=1).sum()
    assert task.loss(scores, targets).total.item() == pytest.approx(expected, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100, width=16), min_size=2, max_size=10, unique=True))
def test_regression_answers_are_in_the_unit_of_the_labels(values):
    examples = labelled(*values)
    task = Classification(kind="regression").fit_labels(examples)
    targets = task.targets(examples)
    assert targets.dtype == np.float32
    assert (targets.mean(), targets.std()) == pytest.approx((0, 1), abs=1e-4)
    scores = targets[:, None]
    answers = [prediction.label for prediction in task.decode(scores)]
    assert answers == pytest.approx(values, abs=1e-4)
    assert task.loss(torch.tensor(scores), torch.tensor(targets)).total.item() == 0.0


def test_regression_report_has_the_error_in_the_unit_of_the_labels():
    task = Classification(kind="regression", shift=3.0, scale=2.0)
    report = task.evaluate(np.array([[-1.0], [0.5], [1.0]]), labelled(1.0, 3.0, 5.0))
    assert report.details["rmse"] == pytest.approx(np.sqrt((0 + 1 + 0) / 3))
    assert (report.main, report.score) == ("spearman", pytest.approx(1.0))
    assert report.metrics["pearson"] == pytest.approx(np.corrcoef([-1, 0.5, 1], [1, 3, 5])[0, 1])


def test_decode_single():
    task = Classification(labels=("a", "b"))
    first, second = task.decode(np.array([[0.0, np.log(3)], [800.0, -800.0]], np.float32))
    assert first.label == "b"
    assert first.probabilities == pytest.approx({"a": 0.25, "b": 0.75})
    assert second.to_dict() == {"label": "a", "probabilities": {"a": 1.0, "b": 0.0}}


def test_decode_multi_label_and_regression_to_json():
    multi = Classification(kind="multi_label", labels=("a", "b", "c"))
    scores = np.array([[1.0, -1.0, 0.5], [-1.0, -9.0, 0.0]])
    first, second = (json.loads(json.dumps(p.to_dict())) for p in multi.decode(scores))
    assert (first["label"], second["label"]) == (["a", "c"], [])
    assert second["probabilities"]["c"] == 0.5
    value = Classification(kind="regression", shift=1.0, scale=2.0).decode(np.array([[0.5]]))[0]
    assert value.to_dict() == {"label": 2.0}


def test_report_of_classes_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    names = ("a", "b", "c", "never")
    gold, scores = rng.integers(0, 3, 60), rng.normal(size=(60, 4)) - [0, 0, 0, 9]
    report = Classification(labels=names).evaluate(scores, labelled(*(names[i] for i in gold)))
    predicted = scores.argmax(1)
    assert (
        report.details["confusion"] == confusion_matrix(gold, predicted, labels=range(4)).tolist()
    )
    expected = precision_recall_fscore_support(gold, predicted, labels=range(4), zero_division=0)
    found = [list(report.details["per_class"][name].values()) for name in names]
    np.testing.assert_allclose(np.array(found).T, expected)
    assert report.score == report.metrics["accuracy"] == (gold == predicted).mean()
    assert report.num_examples == 60
    json.dumps(report.details)


def test_report_of_label_sets():
    task = Classification(kind="multi_label", labels=("a", "b"), metric="accuracy")
    scores = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    report = task.evaluate(scores, labelled(("a", "b"), ("a",), ()))
    assert report.metrics == pytest.approx(
        {"micro_f1": 2 * 2 / (3 + 3), "macro_f1": (2 / 3 + 2 / 3) / 2, "accuracy": 2 / 3}
    )
    assert report.score == pytest.approx(2 / 3)


def test_degenerate_runs():
    task = Classification(labels=("a", "b"))
    constant = np.array([[1.0, 0.0]] * 30)
    varied = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]] * 10)
    assert task.degenerate(constant, labelled(*"aba" * 10))
    assert not task.degenerate(varied, labelled(*"aba" * 10))
    assert not task.degenerate(constant, labelled(*"aaa" * 10))
    assert task.degenerate(varied * np.nan, labelled(*"aba" * 10))
    multi = replace(task, kind="multi_label")
    assert multi.degenerate(np.full((20, 2), -3.0), labelled(*[("a",), ()] * 10))
    assert not multi.degenerate(
        np.array([[-3.0, 2.0], [1.0, 2.0]] * 10), labelled(*[("a",), ()] * 10)
    )
    regression = Classification(kind="regression", shift=50.0, scale=20.0)
    values = labelled(*[20.0, 50.0, 80.0] * 10)
    assert regression.degenerate(np.array([[0.301], [0.3], [0.299]] * 10), values)
    assert not regression.degenerate(np.array([[-0.1], [0.0], [0.1]] * 10), values)


def test_a_common_class_is_no_sign_of_collapse():
    task = Classification(labels=("a", "b"))
    constant = np.array([[1.0, 0.0]] * 100)
    assert not task.degenerate(constant[:5], labelled(*"aaaab"))
    assert not task.degenerate(constant, labelled(*"a" * 97, *"bbb"))
    assert task.degenerate(constant, labelled(*"a" * 60, *"b" * 40))
    assert task.degenerate(constant[:5], labelled(*"aabbb"))


def test_a_pair_given_to_a_task_about_single_texts_is_refused():
    with pytest.raises(ConfigError, match="text_pair"):
        Classification().example(("It rains.", "It is wet."))
    for words in (("It", "rains"), ("New York", "wins")):
        assert Classification().example(words).texts == (words,)


def test_columns_that_pandas_numbered_are_taken_by_name(tmp_path):
    (tmp_path / "x.csv").write_text("0,1,2\n17,good film,pos\n18,bad film,neg\n")
    examples = Classification(text="1", label="2").read(tmp_path / "x.csv")
    assert [(e.texts, e.label) for e in examples] == [
        (("good film",), "pos"),
        (("bad film",), "neg"),
    ]
    (tmp_path / "y.csv").write_text("good film,1\nbad film,0\n")
    examples = Classification(text="1", label="2").read(tmp_path / "y.csv")
    assert [e.label for e in examples] == ["1", "0"]


def test_columns_that_pandas_numbered_stay_the_same_after_training(tmp_path):
    """A file to be labelled has its texts where the labelled one had them."""
    rows = [f"{i},id{i},{'good' if i % 2 else 'bad'} film {i},{i % 2}" for i in range(20)]
    (tmp_path / "x.csv").write_text("0,1,2,3\n" + "\n".join(rows))
    task = Classification(text="2", label="3")
    train = task.read(tmp_path / "x.csv")
    fitted = task.fit_labels(train).with_header()
    for labelled in (True, False):
        found = fitted.read(tmp_path / "x.csv", labelled=labelled)
        assert [one.texts for one in found] == [one.texts for one in train]


def test_the_separator_of_labels_cannot_be_empty():
    with pytest.raises(ConfigError, match="label_separator is empty"):
        Classification(kind="multi_label", label_separator="")


def test_numbers_with_underscores_are_none(tmp_path):
    (tmp_path / "x.tsv").write_text("text\tlabel\na\t1_000\n")
    with pytest.raises(DataError, match="1_000"):
        Classification(kind="regression").read(tmp_path / "x.tsv")


def test_rows_too_deep_to_read_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(DataError, match="row 1"):
        Classification().read(tmp_path / "x.jsonl")
