"""Wrong arguments from Python: an error of firth that says what was found and what is expected."""

import contextlib
import dataclasses

import numpy as np
import pytest

import firth
from firth.errors import ConfigError, DataError, DivergedError
from firth.objectives import Hybrid, MaskedLM
from firth.text.languages import MultilingualCorpus
from firth.training import Muon, Training

EXAMPLES = [firth.Example(texts=(f"text {i}",), label="ab"[i % 2], row=i) for i in range(24)]


@pytest.fixture(scope="module")
def lm(tiny_run) -> firth.LanguageModel:
    return firth.load(tiny_run)


@pytest.mark.parametrize("text", [None, float("nan"), 3, ["a", None], [["a"]]])
@pytest.mark.parametrize("use", ["embed", "hidden_states", "score", "logits"])
def test_what_is_no_text_is_named(lm, use, text):
    with pytest.raises(DataError, match="expected a string or a list of words"):
        getattr(lm, use)(["Some text.", text])


def test_what_is_no_text_is_named_by_vocabularies_of_words(papers):
    tokenizer = firth.Tokenizer.train(papers, kind="word", vocab_size=300)
    for text in (None, ["a", None]):
        with pytest.raises(DataError, match="expected a string or a list of words"):
            tokenizer.encode_batch([text])


def test_texts_that_can_be_read_once_are_refused(lm):
    with pytest.raises(ConfigError, match="expected a list of texts, found a generator"):
        lm.embed(text for text in ["one", "two"])
    array = np.array(["one", "two"])  # or a column of a table
    np.testing.assert_array_equal(lm.embed(array), lm.embed(["one", "two"]))


@pytest.mark.parametrize(
    ("task", "texts", "message"),
    [
        (firth.Classification(), [None], "expected a string or a list of words"),
        (firth.Classification(text_pair="b"), [None], "pairs of texts"),
        (firth.Tagging(), [None], "expected a list of words or a string, found None"),
    ],
)
def test_predicting_names_what_is_no_text(lm, task, texts, message):
    labels = [e.label if task.unit == "sequence" else (e.label,) for e in EXAMPLES]
    first = ("text",) if task.unit == "sequence" else (("word",),)
    own = first * 2 if getattr(task, "text_pair", None) else first
    examples = [firth.Example(texts=own, label=label, row=i) for i, label in enumerate(labels)]
    how = firth.Frozen(epochs=1, min_steps=1, restarts=0)
    adapted = firth.adapt(lm, task, examples, how)
    with pytest.raises((ConfigError, DataError), match=message):
        adapted.predict(texts)
    with pytest.raises(DataError, match=r"example 1 is .* \(tuple\), expected a firth.Example"):
        adapted.evaluate([examples[0], ("text", "a")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": [("text", "a")] * 30}, r"example 0 is .* \(tuple\), expected a firth.Example"),
        ({"dev": [("text", "a")] * 30}, r"example 0 is .* \(tuple\), expected a firth.Example"),
        ({"adaptation": firth.FineTuning}, "adaptation is FineTuning, expected one of"),
        ({"adaptation": "frozen"}, "adaptation is 'frozen', .*firth.Frozen()"),
        ({"task": firth.Classification}, "task is Classification, .*firth.Classification()"),
        ({"task": "tagging"}, "task is 'tagging', .*firth.Tagging()"),
    ],
)
def test_adapting_names_what_it_does_not_take(lm, arguments, message):
    given = {"task": firth.Classification(), "train": EXAMPLES, "adaptation": None, "dev": None}
    with pytest.raises((ConfigError, DataError), match=message):
        firth.adapt(lm, **{**given, **arguments})


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (firth.Frozen, {"task_network": "LSTM"}, "Frozen.task_network is 'LSTM'; known: .*bilstm"),
        (firth.Frozen, {"layers": "middle"}, "Frozen.layers is 'middle', expected 'all' or 'last'"),
        (firth.FineTuning, {"epochs": "3"}, "FineTuning.epochs is '3', expected float or None"),
        (firth.GradualUnfreezing, {"precision": "fp16"}, "GradualUnfreezing.precision is 'fp16'"),
        (firth.Decoding, {"beams": 2.5}, "Decoding.beams is 2.5, expected int"),
        (firth.Decoding, {"top_p": 0.9}, "top_k and top_p choose what is sampled from"),
        (firth.Decoding, {"top_k": 9}, "top_k and top_p choose what is sampled from"),
        (firth.Decoding, {"length_penalty": 2.0}, "length_penalty is about beam search"),
        (MaskedLM, {"rate": 0.0}, "MaskedLM.rate is 0, so nothing is predicted"),
        (Training, {"minutes": 0.0}, "Training.minutes is 0.0, expected a number above 0"),
        (Training, {"epochs": float("inf")}, "Training.epochs is inf, expected a number above 0"),
        (Training, {"steps": 0}, "Training.steps is 0, expected at least 1"),
        (
            firth.Decoding,
            {"top_k": 9, "beams": 3},
            "beam search does not sample: leave temperature",
        ),
        (firth.FineTuning, {"lr": float("nan")}, "lr is nan, expected a number above 0"),
        (firth.FineTuning, {"epochs": float("inf")}, "epochs is inf, expected a number above 0"),
        (firth.FineTuning, {"batch_size": 8.5}, "FineTuning.batch_size is 8.5, expected int"),
        (MaskedLM, {"rate": "0.1"}, "MaskedLM.rate is '0.1', expected float"),
        (Hybrid, {"rate": 0, "final_rate": 0}, "Hybrid.rate is 0.0, so nothing is predicted"),
        (Training, {"precision": "fp16"}, "Training.precision is 'fp16'"),
    ],
)
def test_settings_of_another_type_are_named(make, settings, message):
    with pytest.raises(ConfigError, match=message):
        make(**settings)


def test_what_is_learned_is_said_and_doubted(lm, caplog):
    how = firth.Frozen(epochs=1, min_steps=1, restarts=0)
    with caplog.at_level("INFO", logger="firth"):
        firth.adapt(lm, firth.Classification(), EXAMPLES, how)
    assert "2 labels: a, b" in caplog.messages
    assert "is this the column of the labels?" not in caplog.text
    caplog.clear()
    odd = [dataclasses.replace(one, label=f"text {i:02}") for i, one in enumerate(EXAMPLES)]
    numbers = [dataclasses.replace(one, label=i % 2) for i, one in enumerate(EXAMPLES)]
    with pytest.raises(DataError, match=r"example 0: its label is 0, expected a string"):
        firth.adapt(lm, firth.Classification(), numbers, how)
    caplog.clear()
    with caplog.at_level("INFO", logger="firth"), contextlib.suppress(DivergedError):
        firth.adapt(lm, firth.Classification(), odd, how)
    listed = ", ".join(f"text {i:02}" for i in range(12))
    assert f"24 labels: {listed} and 12 more" in caplog.messages
    assert "24 of 24 labels are in one example alone" in caplog.text
    assert "is this the column of the labels?" in caplog.text


def test_numbers_of_numpy_are_settings(lm, tmp_path):
    how = firth.Frozen(
        epochs=np.float64(1), batch_size=np.int64(8), lr=np.float32(1e-3), min_steps=1.0
    )
    assert [type(getattr(how, n)) for n in ("epochs", "batch_size", "lr", "min_steps")] == [
        *(float, int, float, int)
    ]
    firth.adapt(lm, firth.Classification(), EXAMPLES, how).save(tmp_path)
    assert firth.load(tmp_path).adaptation.batch_size == 8
    training = Training(optimizer={"type": "Muon"}, tokens=1e6)
    assert isinstance(training.optimizer, Muon)
    assert type(training.tokens) is int


def test_a_precision_that_is_none_is_refused_before_the_model_is_read(tmp_path):
    with pytest.raises(ConfigError, match="precision is 'fp16', expected auto, bfloat16 or flo"):
        firth.load(tmp_path / "nothing there", precision="fp16")


def test_pretraining_names_what_it_does_not_take(tmp_path):
    corpus = firth.Corpus.from_texts(["a text"])
    with pytest.raises(ConfigError, match=r"the recipe is 'bert', expected .*firth.recipe"):
        firth.pretrain("bert", corpus, tmp_path)
    with pytest.raises(ConfigError, match=r"the text of de is a list; expected a firth.Corpus"):
        MultilingualCorpus.of({"de": ["Ein Text."], "en": ["A text."]})
