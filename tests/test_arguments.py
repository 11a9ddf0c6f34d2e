"""Wrong arguments from Python: an error of firth that says what was found and what is expected."""

import contextlib
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import firth
from firth.errors import ConfigError, DataError, DivergedError
from firth.objectives import Hybrid, MaskedLM
from firth.tasks.metrics import mean_and_interval
from firth.text.languages import MultilingualCorpus
from firth.training import Muon, Training

EXAMPLES = [firth.Example(texts=(f"text {i}",), label="ab"[i % 2], row=i) for i in range(24)]


@pytest.fixture(scope="module")
def lm(tiny_run) -> firth.LanguageModel:
    return firth.load(tiny_run)


@pytest.fixture(scope="module")
def gpt(papers, tmp_path_factory) -> firth.LanguageModel:
    recipe = firth.recipe("gpt", size="tiny", vocab_size=600).with_settings({"training.steps": 2})
    return firth.pretrain(recipe, firth.Corpus.from_texts(papers), tmp_path_factory.mktemp("gpt"))


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


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ("small.txt", "found one string; write ['small.txt']"),
        (Path("small.txt"), "found one string"),
        ({"b", "a"}, "a set, whose order changes from run to run"),
        ({"id": "A text."}, "a dict; give list(texts.values())"),
        (None, "found a NoneType"),
        (3, "found a int"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(lm, texts, found):
    uses = [
        *(lm.encode, lm.embed, lm.score, lm.tokenizer.encode_ids, lm.tokenizer.encode_batch),
        *(firth.Tokenizer.train, firth.Corpus.from_texts),
    ]
    for use in uses:
        with pytest.raises(ConfigError, match="expected a list of texts") as error:
            use(texts)
        assert found in str(error.value), use


def refusals(lm) -> list:
    task, adapted = firth.Classification(), EXAMPLES
    return [
        (lambda: firth.adapt(lm, task, None), ConfigError, "expected examples or the name of a"),
        (lambda: firth.adapt(lm, task, adapted, dev=0.2), ConfigError, "without dev examples a te"),
        (lambda: firth.adapt(lm, task, adapted, seeds=None), ConfigError, "seeds is None"),
        (lambda: firth.Corpus.from_files(None), DataError, "None is no path"),
        (lambda: firth.Corpus.from_files([None]), DataError, "None is no path"),
        (lambda: firth.Corpus.from_files("The cat. " * 50), DataError, "Corpus.from_texts"),
        (lambda: firth.Corpus.from_texts(["a"]).split(valid="0.1"), ConfigError, "valid is '0.1'"),
        (lambda: firth.Corpus.from_texts(["a"]).split(seed=1.5), ConfigError, "seed is 1.5"),
        (lambda: firth.load(lm.model), ConfigError, "expected the name of a directory or file"),
        (lambda: firth.load("x", device=None), ConfigError, "device is None"),
        (lambda: firth.recipe(None), ConfigError, "unknown recipe None"),
        (lambda: firth.recipe(["bert"]), ConfigError, "unknown recipe"),
        (lambda: firth.recipe("bert", size=3), ConfigError, "unknown size 3"),
        (lambda: firth.recipe("bert", vocab_size=1.5), ConfigError, "vocab_size is 1.5"),
        (lambda: firth.recipe("bert", vocab_size="1000"), ConfigError, "vocab_size is '1000'"),
        (lambda: firth.Classification(kind=None), ConfigError, "kind is None"),
        (lambda: firth.Classification(metric=["f1"]), ConfigError, "metric is"),
        (lambda: firth.Classification(labels=(0, 1)), ConfigError, r"labels\[0\] is 0"),
        (lambda: firth.Classification(labels="01"), ConfigError, "labels is '01'"),
        (lambda: firth.Classification(header="False"), ConfigError, "header is 'False'"),
        (lambda: firth.Classification(text=1.5), ConfigError, "text is 1.5"),
        (lambda: firth.Classification(quotes="x"), ConfigError, "quotes is 'x'"),
        (lambda: firth.Tagging(labels="ab"), ConfigError, "labels is 'ab'"),
        (lambda: lm.save(""), ConfigError, "an empty path"),
        (lambda: lm.save(None), ConfigError, "the place to write to is None"),
        (lambda: lm.tokenizer.save(""), ConfigError, "an empty path"),
        (lambda: firth.pretrain(firth.recipe("bert"), None, ""), ConfigError, "an empty path"),
        (lambda: lm.index_words(["a"], "ix"), ConfigError, "expected a firth.Corpus"),
        (
            lambda: lm.index_words(firth.Corpus.from_texts(["a"]), "ix", min_cout=3),
            *(ConfigError, "did you mean 'min_count'"),
        ),
        (lambda: lm.tokenizer.token(-1), ConfigError, "no token has the id -1"),
        (lambda: mean_and_interval([]), DataError, "no values"),
    ]


@pytest.mark.parametrize("number", range(31))
def test_other_arguments_that_cannot_be_meant(lm, number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = refusals(lm)
    assert len(cases) == 31
    call, error, message = cases[number]
    with pytest.raises(error, match=message):
        call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (None, "expected a dictionary of dotted names"),
        ({3: 4}, "expected a dictionary of dotted names"),
        ({"training.seed": 2**64}, r"expected one below 2\^63"),
        ({"tokenizer.min_frequency": -1}, "TokenizerSettings.min_frequency is -1"),
        ({"tokenizer.max_bytes": -1}, "TokenizerSettings.max_bytes is -1, expected at least 1"),
        ({"data.smoothing": -5}, "DataSettings.smoothing is -5.0, expected at least 0"),
        ({"data.valid_tokens": -5}, "DataSettings.valid_tokens is -5"),
    ],
)
def test_settings_are_looked_at_before_anything_is_made(settings, message):
    with pytest.raises(ConfigError, match=message):
        firth.recipe("bert").with_settings(settings)


@pytest.mark.parametrize("make", [list, set, tuple, frozenset])
def test_several_labels_may_come_in_any_collection(lm, make):
    examples = [
        firth.Example(texts=(f"text {i}",), label=make(["x"] if i % 2 else ["y", "x"]))
        for i in range(24)
    ]
    task = firth.Classification(kind="multi_label").fit_labels(examples)
    assert task.labels == ("x", "y")
    np.testing.assert_array_equal(task.targets(examples[:2]), [[1, 1], [1, 0]])


@pytest.mark.parametrize("text", [None, float("nan"), 3])
def test_examples_without_a_text_are_named(lm, text):
    examples = [*EXAMPLES, firth.Example(texts=(text,), label="a")]
    with pytest.raises(DataError, match=f"example 24: its text is {text}, expected a string"):
        firth.adapt(lm, firth.Classification(), examples)
    words = [firth.Example(texts=(text,), label=("a",))]
    with pytest.raises(DataError, match="example 0: it is no list of words"):
        firth.adapt(lm, firth.Tagging(), words)
    words = [firth.Example(texts=(("a",),), label=3)]
    with pytest.raises(DataError, match="example 0: its label is '3', expected a tag for each"):
        firth.adapt(lm, firth.Tagging(), words)


def test_examples_in_memory_are_named_by_their_place(lm):
    task = firth.Classification(labels=("0", "1"))
    examples = [firth.Example(texts=("a",), label=label) for label in ("0", "7", "8")]
    with pytest.raises(DataError, match="example 1 has '7', example 2 has '8'"):
        task.targets(examples)
    with pytest.raises(DataError, match="an example has no label"):
        task.targets([firth.Example(texts=("a",))])


def test_a_caller_keeps_random_numbers_and_gradient_mode(lm):
    how = firth.FineTuning(epochs=1, min_steps=1, restarts=0)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with contextlib.suppress(DivergedError), torch.no_grad():
        firth.adapt(lm, firth.Classification(), EXAMPLES, how)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_strings_that_end_a_text_may_come_in_any_iterable(gpt):
    (plain,) = gpt.generate(["The"], max_tokens=8)
    end = plain.continuation[2:4]
    expected = gpt.generate(["The"], stop=[end], max_tokens=8)[0].continuation
    assert expected == plain.continuation[: plain.continuation.index(end)]
    for stop in ((end,), {end}, iter([end]), map(str, [end])):
        assert gpt.generate(["The"], stop=stop, max_tokens=8)[0].continuation == expected
    assert "".join(gpt.stream("The", stop=iter([end]), max_tokens=8)) == expected
    assert gpt.generate(["The"], stop=None, max_tokens=8)[0].continuation == plain.continuation
    for stop in ("h", [""], [3], 3):
        with pytest.raises(ConfigError, match="expected a list of strings"):
            gpt.generate(["The"], stop=stop)


def test_using_a_model_leaves_its_mode(gpt):
    gpt.model.train()
    try:
        gpt.generate(["We"], max_tokens=2)
        gpt.generate(["We"], max_tokens=2, beams=2)
        "".join(gpt.stream("We", max_tokens=2))
        gpt.score(["We"])
        assert all(module.training for module in gpt.model.modules())
    finally:
        gpt.model.eval()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_in_use_has_the_weights_that_it_has_now(tiny_run, precision):
    lm = firth.load(tiny_run, precision=precision)
    before, hashed = lm.embed(["The tide is in."]), lm.weights_hash
    assert lm.engine is lm.engine
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(1.5)
    fresh = firth.LanguageModel(lm.model, lm.tokenizer, precision=precision)
    np.testing.assert_array_equal(lm.embed(["The tide is in."]), fresh.embed(["The tide is in."]))
    assert np.abs(lm.embed(["The tide is in."]) - before).max() > 0.1
    assert lm.weights_hash == fresh.weights_hash != hashed
    for factor in (2.0, 0.5):  # other parameters, whose versions are those of the ones before
        state = {name: factor * one.detach() for name, one in lm.model.state_dict().items()}
        lm.model.load_state_dict(state, assign=True)
        fresh = firth.LanguageModel(lm.model, lm.tokenizer, precision=precision)
        text = ["The tide is in."]
        np.testing.assert_array_equal(lm.embed(text), fresh.embed(text))
        assert lm.weights_hash == fresh.weights_hash


def test_what_a_notebook_shows(lm, gpt):
    one, other = lm.score(["a b"])[0], lm.score(["a b"])[0]
    assert one == one
    assert one != other
    assert len({lm, gpt}) == 2
    assert repr(lm).startswith("LanguageModel(Bert of ")
    how = firth.Frozen(epochs=1, min_steps=1, restarts=0)
    shown = repr(firth.adapt(lm, firth.Classification(), EXAMPLES, how))
    assert re.search(r"parameters, Classification of 2 labels, dev \{'accuracy': ", shown)
    assert repr(lm.tokenizer) == f"Tokenizer(WordPiece, {lm.tokenizer.vocabulary.size:,} tokens)"
    corpus = firth.Corpus.from_texts(["a text"] * 1000)
    assert repr(corpus) == "Corpus(1000 texts)"
    assert repr(corpus.split()[1]) == "Corpus(1000 texts, valid side of a split)"
    assert lm.batch([]).input_ids.shape == (0,)
