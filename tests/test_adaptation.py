"""Teaching a model a task: it learns, leaves the model alone, and is saved whole."""

import gzip
import logging
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import firth
from firth.adaptation import FineTuning, Frozen
from firth.adaptation.features import extract, score_features
from firth.adaptation.fitting import fit
from firth.adaptation.network import AdaptedNetwork, EncodedExamples, score_examples
from firth.api import adapting
from firth.errors import CheckpointError, ConfigError, DataError, DivergedError
from firth.inference.forward import Engine
from firth.models import Bert
from firth.models.mix import SequenceHead, pool
from firth.protocols import Batch, Example, Loss, Report
from firth.tasks import Classification
from firth.text.batches import collate
from firth.training import AdamW, Schedule, Training

DEMO_DATA = Path(firth.__file__).parent / "demo_data"
FINE = FineTuning(lr=1e-3, min_steps=40, batch_size=16, precision="float32")
FROZEN = Frozen(lr=5e-3, min_steps=150, batch_size=16, precision="float32")
WORDS = ["the", "results", "of", "our", "system", "are", "shown", "in", "table", "corpus"]
TOPICS = (("translation", "model"), ("parsing", "words"))
"""What a sentence says twice if it has the first or second property, and if it has not."""


@pytest.fixture(scope="module")
def lm(tiny_run) -> firth.LanguageModel:
    model = firth.load(tiny_run, device="cpu", precision="float32")
    assert isinstance(model, firth.LanguageModel)
    return model


def examples_of(kind: str, seed: int, count: int) -> list[Example]:
    """Labelled examples that anyone can learn: what a sentence speaks of."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        words = rng.choice(WORDS, rng.integers(3, 7)).tolist()
        holds = [bool(draw) for draw in rng.random(2) < 0.5]
        for yes_no, is_so in zip(TOPICS, holds, strict=True):
            for _ in range(2):
                words.insert(int(rng.integers(len(words) + 1)), yes_no[0 if is_so else 1])
        label = {
            "single": "mt" if holds[0] else "other",
            "pair": "mt" if holds[0] else "other",
            "multi_label": tuple(
                n for n, is_so in zip(("mt", "syntax"), holds, strict=True) if is_so
            ),
            "regression": 100 + 20.0 * holds[0] - 5.0 * holds[1],
        }[kind]
        half = len(words) // 2
        pair = (" ".join(words[:half]), " ".join(words[half:]))
        examples.append(Example(texts=pair if kind == "pair" else (" ".join(words),), label=label))
    return examples


def task_of(kind: str) -> Classification:
    if kind == "pair":
        return Classification(text_pair="second")
    return Classification(kind=kind)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def fine_tuned(lm) -> firth.AdaptedModel:
    train, dev = examples_of("single", 0, 160), examples_of("single", 1, 60)
    return firth.adapt(lm, task_of("single"), train, FINE, dev=dev, seeds=range(3))


@pytest.fixture(scope="module")
def frozen(lm) -> firth.AdaptedModel:
    train, dev = examples_of("single", 0, 160), examples_of("single", 1, 60)
    return firth.adapt(lm, task_of("single"), train, FROZEN, dev=dev)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# Learning


def test_fine_tuning_learns(fine_tuned):
    report = fine_tuned.evaluate(examples_of("single", 2, 200))
    assert report.score > 0.95
    assert report.num_examples == 200


def test_frozen_features_learn(frozen):
    assert frozen.evaluate(examples_of("single", 2, 200)).score > 0.9
    shares = frozen.layer_shares()
    assert len(shares) == 3
    assert sum(shares) == pytest.approx(1, abs=1e-6)
    assert max(shares) - min(shares) > 0.001  # the mix is learned, too


@pytest.mark.parametrize(
    ("how", "margin"), [(FineTuning(lr=1e-3, epochs=4, batch_size=16), 0.1), (FROZEN, 0.05)]
)
def test_roles_of_real_sentences_are_learned(lm, how, margin):
    """Does a sentence of an abstract give the objective or a result? 300 of both."""
    task = Classification(text="sentence")
    parts = {}
    for part, count in (("train", 150), ("dev", 50), ("test", 150)):
        rows = task.read(DEMO_DATA / f"roles.{part}.tsv.gz")
        by_label = ([e for e in rows if e.label == label] for label in ("objective", "result"))
        parts[part] = [example for rows in by_label for example in rows[:count]]
    adapted = firth.adapt(lm, task, parts["train"], how, dev=parts["dev"])
    assert adapted.task.labels == ("objective", "result")
    assert adapted.evaluate(parts["test"]).score > 0.5 + margin


def test_the_language_model_stays_as_it_was(lm):
    before = weights(lm.model)
    vectors = lm.embed(["The results of our system."])
    flags = [(p.requires_grad, p.grad is None) for p in lm.model.parameters()]
    rates = [m.rate for m in lm.model.modules() if hasattr(m, "rate")]
    for how in (FineTuning(epochs=1, lr=1e-2), Frozen(epochs=1)):
        adapted = firth.adapt(lm, task_of("single"), examples_of("single", 0, 40), how)
        assert adapted.network.body is not lm.model
    assert same(before, lm.model.state_dict())
    assert np.array_equal(vectors, lm.embed(["The results of our system."]))
    assert [(p.requires_grad, p.grad is None) for p in lm.model.parameters()] == flags
    assert [m.rate for m in lm.model.modules() if hasattr(m, "rate")] == rates
    assert not lm.model.training


def test_fine_tuning_changes_every_layer_and_frozen_none(lm, fine_tuned, frozen):
    body = dict(lm.model.named_parameters())
    kept = {n for n, p in fine_tuned.network.body.named_parameters() if torch.equal(p, body[n])}
    assert {name for name in kept if not name.startswith("head.")} == set()
    assert same(weights(lm.model), weights(frozen.network.body))


# Saving and loading


@pytest.mark.parametrize("how", [FINE, FROZEN], ids=["finetune", "frozen"])
@pytest.mark.parametrize("kind", ["single", "pair", "multi_label", "regression"])
def test_saved_and_loaded_it_gives_the_same_scores(lm, tmp_path, kind, how):
    how = replace(how, epochs=2)
    adapted = firth.adapt(lm, task_of(kind), examples_of(kind, 0, 80), how)
    adapted.save(tmp_path)
    loaded = firth.load(tmp_path, device="cpu", precision="float32")
    assert isinstance(loaded, firth.AdaptedModel)
    new = examples_of(kind, 2, 30)
    texts = [e.texts if kind == "pair" else e.texts[0] for e in new]
    if kind == "regression":
        assert 100 < adapted.task.shift < 120
        assert 5 < adapted.task.scale < 15
        before, after = ([p.label for p in m.predict(texts)] for m in (adapted, loaded))
        assert 90 < np.mean(before) < 130
        assert after == pytest.approx(before, abs=1e-4)
    else:
        assert np.array_equal(adapted.scores(new), loaded.scores(new))
        assert loaded.predict(texts) == adapted.predict(texts)
    assert loaded.task == adapted.task
    assert loaded.evaluate(new).metrics == pytest.approx(adapted.evaluate(new).metrics, abs=1e-6)
    assert loaded.layer_shares() == adapted.layer_shares()
    assert (loaded.layer_shares() is None) == (how.__class__ is FineTuning)
    assert loaded.adaptation == adapted.adaptation
    assert loaded.seeds == adapted.seeds
    again = tmp_path / "again"
    loaded.save(again)
    np.testing.assert_array_equal(
        firth.load(again, device="cpu", precision="float32").scores(new), loaded.scores(new)
    )


@pytest.mark.parametrize("how", [FINE, FROZEN], ids=["finetune", "frozen"])
def test_a_regression_of_large_numbers_keeps_its_digits(lm, tmp_path, how):
    """Seconds since 1970, of one day: float32 has steps of 128 there."""
    stamps = [replace(e, label=1.7e9 + 100 * e.label) for e in examples_of("regression", 0, 80)]
    adapted = firth.adapt(lm, task_of("regression"), stamps, replace(how, epochs=2))
    adapted.save(tmp_path)
    loaded = firth.load(tmp_path, device="cpu", precision="float32")
    texts = [example.texts[0] for example in stamps]
    before, after = ([p.label for p in model.predict(texts)] for model in (adapted, loaded))
    assert len(set(before)) > 40
    assert after == pytest.approx(before, abs=0.01, rel=0)
    for name, value in adapted.evaluate(stamps).metrics.items():
        assert loaded.evaluate(stamps).metrics[name] == pytest.approx(value, abs=1e-3)
    if how is FINE:  # what transformers would load is in whole units
        tensors = load_file(tmp_path / "model.safetensors")
        assert tensors["classifier.bias"].item() == pytest.approx(1.7e9, rel=1e-3)
        save_file({**tensors, "classifier.bias": torch.zeros(1)}, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match=r"the model was replaced since; delete"):
            firth.load(tmp_path)


def test_a_regression_in_bfloat16_keeps_its_digits(lm, tmp_path):
    """Years, say: 2000 is stored as 8 times 250 in bfloat16, and the next number is 2008."""
    years = [replace(e, label=1900 + e.label) for e in examples_of("regression", 0, 160)]
    how = replace(FINE, lr=2e-3, min_steps=60)
    adapted = firth.adapt(lm, task_of("regression"), years, how)
    adapted.save(tmp_path)
    texts = [example.texts[0] for example in examples_of("regression", 2, 40)]
    before = [prediction.label for prediction in adapted.predict(texts)]
    assert np.ptp(before) > 5
    coarse = firth.load(tmp_path, device="cpu", precision="bfloat16")
    assert isinstance(coarse, firth.AdaptedModel)
    assert [prediction.label for prediction in coarse.predict(texts)] == pytest.approx(
        before, abs=1
    )


def test_multi_label_and_regression_learn(lm):
    how = replace(FINE, lr=2e-3, min_steps=60)
    new = {kind: examples_of(kind, 2, 100) for kind in ("multi_label", "regression")}
    adapted = {kind: firth.adapt(lm, task_of(kind), examples_of(kind, 0, 160), how) for kind in new}
    for kind, least in (("multi_label", 0.9), ("regression", 0.8)):
        assert adapted[kind].evaluate(new[kind]).score > least
    found = adapted["regression"].predict([example.texts[0] for example in new["regression"]])
    truth = [example.label for example in new["regression"]]
    errors = np.abs(np.subtract([prediction.label for prediction in found], truth))
    assert errors.mean() < 0.7 * np.abs(truth - np.mean(truth)).mean()  # in the unit of the labels


@pytest.fixture(scope="module")
def modern(lm) -> firth.LanguageModel:
    """A random model of another family: no segments, the head averages the tokens."""
    torch.manual_seed(0)
    config = firth.recipe("modern-bert", size="tiny", vocab_size=lm.model.config.vocab_size).model
    model = Bert(replace(config, num_layers=3), pooler=False).eval()
    return firth.LanguageModel(model, lm.tokenizer, precision="float32")


@pytest.mark.parametrize(
    ("family", "kind"),
    [("lm", kind) for kind in ("single", "pair", "multi_label", "regression")]
    + [("modern", kind) for kind in ("single", "pair")],
)
def test_transformers_loads_it_with_the_same_logits(request, tmp_path, family, kind):
    transformers = pytest.importorskip("transformers")
    how = replace(FINE, epochs=1)
    model = request.getfixturevalue(family)
    adapted = firth.adapt(model, task_of(kind), examples_of(kind, 0, 60), how)
    adapted.save(tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    new = examples_of(kind, 2, 10)
    columns = map(list, zip(*(example.texts for example in new), strict=True))
    padded = tokenizer(*columns, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits = theirs(**padded).logits.numpy()
    loaded = firth.load(tmp_path, device="cpu", precision="float32")
    ours = loaded.scores(new) * loaded.task.scale + loaded.task.shift
    np.testing.assert_allclose(ours, logits, atol=1e-5, rtol=1e-6)
    names = [theirs.config.id2label[i] for i in range(logits.shape[1])]
    assert kind == "regression" or names == list(adapted.task.labels)


# Seeds


def test_the_same_seed_gives_the_same_model_and_another_seed_another(lm):
    train, dev = examples_of("single", 0, 60), examples_of("single", 1, 20)
    for how in (replace(FINE, epochs=2), replace(FROZEN, epochs=2)):
        one, again, other = (
            weights(firth.adapt(lm, task_of("single"), train, how, dev=dev, seeds=(s,)).network)
            for s in (5, 5, 6)
        )
        assert same(one, again)
        trained = [n for n in one if n.startswith(("head.dense", "head.out"))]
        assert [n for n in trained if torch.equal(one[n], other[n])] == []


def test_several_seeds_give_mean_and_interval(fine_tuned):
    assert [seed.seed for seed in fine_tuned.seeds] == [0, 1, 2]
    assert not any(seed.degenerate for seed in fine_tuned.seeds)
    summary = fine_tuned.summary()
    assert set(summary) == {"accuracy", "macro_f1", "mcc"}
    for name, (middle, half) in summary.items():
        values = [seed.metrics[name] for seed in fine_tuned.seeds]
        assert middle == pytest.approx(mean(values))
        assert half == pytest.approx(4.302653 * stdev(values) / math.sqrt(3), abs=1e-6)


def test_one_seed_has_no_interval(frozen):
    assert [half for _, half in frozen.summary().values()] == [None] * 3


def test_the_best_seed_is_kept(fine_tuned):
    best = max(seed.metrics["accuracy"] for seed in fine_tuned.seeds)
    assert fine_tuned.evaluate(examples_of("single", 1, 60)).score == pytest.approx(best)


@pytest.mark.parametrize("count", [-1, 3])
def test_more_layers_than_there_are_cannot_be_reset(lm, count):
    task = Classification(text="text", label="label")
    examples = [Example(texts=("a b",), label=str(i % 2)) for i in range(40)]
    assert len(lm.model.layers) == 2
    with pytest.raises(ConfigError, match=f"reset_layers is {count}, and the model has 2 layers"):
        firth.adapt(lm, task, examples, firth.FineTuning(reset_layers=count))


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ((), "seeds is empty"),
        (3, "seeds is 3"),
        ((0, -1), r"seeds is \(0, -1\)"),
        ((0, 0.5), "each 0 or more"),
        ((0, 1, 0), "the same one twice would look like certainty"),
    ],
)
def test_seeds_that_say_nothing_are_refused(lm, seeds, message):
    with pytest.raises(ConfigError, match=message):
        firth.adapt(lm, task_of("single"), examples_of("single", 0, 40), FINE, seeds=seeds)


def test_a_restart_takes_no_seed_that_was_asked_for(lm, stuck_seeds):
    stuck_seeds |= {0}
    train, dev = examples_of("single", 0, 120), examples_of("single", 1, 40)
    how = replace(FINE, min_steps=41)
    adapted = firth.adapt(lm, task_of("single"), train, how, dev=dev, seeds=np.array([0, 1000]))
    assert [seed.seed for seed in adapted.seeds] == [1001, 1000]


@pytest.mark.parametrize(
    ("task", "example", "message"),
    [
        (Classification(), Example(texts=("a", "b"), label="x"), "it has 2 texts"),
        (Classification(text_pair="b"), Example(texts=("a",), label="x"), "it has 1 texts"),
        (Classification(), Example(texts=("a",), label=1), "its label is 1, expected a string"),
        (
            Classification(kind="multi_label"),
            Example(texts=("a",), label="ship"),
            "its label is 'ship', expected several strings",
        ),
        (
            Classification(kind="regression"),
            Example(texts=("a",), label=float("nan")),
            "its label is nan, expected a number",
        ),
        (firth.Tagging(), Example(texts=("a b",), label=("X", "Y")), "it is no list of words"),
        (firth.Tagging(), Example(texts=(("a", "b"),), label=("X",)), "2 words have 1 tags"),
        (firth.Tagging(), Example(texts=(("a", "b"),), label="XY"), "its label is 'XY'"),
    ],
)
def test_examples_that_are_none_of_the_task_are_refused(lm, task, example, message):
    with pytest.raises(DataError, match=f"example 0: {message}"):
        firth.adapt(lm, task, [example] * 30, FINE)


def test_a_pair_needs_more_room_than_its_special_tokens(lm):
    train = examples_of("pair", 0, 40)
    with pytest.raises(ConfigError, match=r"a pair has 3 special tokens.*expected at least 4"):
        firth.adapt(lm, task_of("pair"), train, replace(FINE, max_length=3))


def test_labels_that_stand_twice_are_refused():
    for task in (Classification, firth.Tagging):
        with pytest.raises(ConfigError, match="labels has 'y' twice"):
            task(labels=("y", "n", "y"))


def test_copies_of_a_text_are_held_out_together():
    examples = [Example(texts=(f"text {i // 2}",), label="x", row=i) for i in range(100)]
    train, dev = adapting._hold_out(examples)
    assert len(dev) == 10
    assert not {e.texts for e in train} & {e.texts for e in dev}


def test_dev_texts_that_are_trained_on_are_told(lm, caplog):
    train = examples_of("single", 0, 40)
    how = replace(FINE, epochs=0.5)
    firth.adapt(lm, task_of("single"), train, how, dev=[*train[:7], *examples_of("single", 1, 5)])
    assert "7 of 12 dev texts are among the training texts" in caplog.text


def test_empty_texts_and_labels_of_dev_alone_are_told(lm, caplog):
    train, dev = examples_of("single", 0, 40), examples_of("single", 1, 20)
    empty = [replace(example, texts=("",)) for example in train[:30]]
    typo = [*dev, replace(dev[0], label="neutrl", row=77)]
    how = replace(FINE, epochs=0.5)
    firth.adapt(lm, task_of("single"), [*empty, *train[30:]], how, dev=typo)
    assert "30 of 40 training texts are empty" in caplog.text
    assert "1 dev examples have labels that no training example has (row 77" in caplog.text
    with pytest.raises(ConfigError, match="text and label are one column, 2"):
        Classification(text=2, label="2")


# Runs that go wrong


@pytest.fixture
def stuck_seeds(monkeypatch) -> set[int]:
    """The seeds put into this set give one answer for everything and do not move."""
    original, stuck = FineTuning.fit, set()

    def fit_stuck(self, network, task, train, dev, seed):
        if seed not in stuck:
            return original(self, network, task, train, dev, seed)
        with torch.no_grad():
            network.head.out.bias[0] = 5
        return original(replace(self, lr=1e-12), network, task, train, dev, seed)

    monkeypatch.setattr(FineTuning, "fit", fit_stuck)
    return stuck


def test_a_degenerate_run_is_restarted_and_reported(lm, stuck_seeds, caplog):
    stuck_seeds |= {0, 1000}
    train, dev = examples_of("single", 0, 120), examples_of("single", 1, 40)
    with caplog.at_level(logging.WARNING, "firth"):
        adapted = firth.adapt(lm, task_of("single"), train, FINE, dev=dev, seeds=(0, 1))
    assert "seed 0 gave a degenerate run" in caplog.text
    assert "restarting with seed 1000" in caplog.text
    assert "restarting with seed 2000" in caplog.text
    assert [seed.seed for seed in adapted.seeds] == [2000, 1]
    assert [seed.degenerate for seed in adapted.seeds] == [False, False]
    assert adapted.evaluate(dev).score > 0.9


def test_without_restarts_a_degenerate_seed_is_reported_and_not_chosen(lm, stuck_seeds):
    stuck_seeds.add(0)
    train, dev = examples_of("single", 0, 120), examples_of("single", 1, 40)
    how = replace(FINE, restarts=0)
    adapted = firth.adapt(lm, task_of("single"), train, how, dev=dev, seeds=(0, 1))
    assert [(seed.seed, seed.degenerate) for seed in adapted.seeds] == [(0, True), (1, False)]
    assert adapted.evaluate(dev).score > 0.9


def test_an_interruption_keeps_the_seeds_that_are_finished(lm, monkeypatch, caplog):
    original, interrupted = FineTuning.fit, {2}

    def fit(self, network, task, train, dev, seed):
        if seed in interrupted:
            raise KeyboardInterrupt
        return original(self, network, task, train, dev, seed)

    monkeypatch.setattr(FineTuning, "fit", fit)
    train, dev = examples_of("single", 0, 60), examples_of("single", 1, 20)
    how = replace(FINE, epochs=1)
    adapted = firth.adapt(lm, task_of("single"), train, how, dev=dev, seeds=(0, 1, 2, 3))
    assert [seed.seed for seed in adapted.seeds] == [0, 1]
    assert "interrupted in seed 2; 2 before it are kept" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        firth.adapt(lm, task_of("single"), train, how, dev=dev, seeds=(2, 3))


def test_an_interruption_in_the_first_seed_keeps_its_best_weights_so_far(lm, monkeypatch, caplog):
    """Ctrl-C while dev is scored for the third time."""
    scored, stop = [], 3
    train, dev = examples_of("single", 0, 60), examples_of("single", 1, 20)

    def score(engine, data):
        scored.append(data)
        if len(scored) == stop:
            raise KeyboardInterrupt
        return score_examples(engine, data)

    monkeypatch.setattr("firth.adaptation.fitting.score_examples", score)
    how = replace(FINE, epochs=6)
    adapted = firth.adapt(lm, task_of("single"), train, how, dev=dev, seeds=(4, 5))
    (seed,) = adapted.seeds
    assert (seed.seed, seed.degenerate) == (4, False)
    per_epoch = -(-len(train) // how.batch_size)
    assert seed.steps in (per_epoch, 2 * per_epoch)
    assert "interrupted; of seed 4 the best weights so far are kept" in caplog.text
    assert adapted.evaluate(dev).metrics == seed.metrics
    scored.clear()
    stop = 1
    with pytest.raises(KeyboardInterrupt):
        firth.adapt(lm, task_of("single"), train, how, dev=dev)


def test_weights_of_one_seed_are_held(lm, monkeypatch):
    train, dev = examples_of("single", 0, 60), examples_of("single", 1, 20)
    held = []
    result = adapting._seed_result
    monkeypatch.setattr(
        adapting, "_seed_result", lambda f: held.append(len(f.weights)) or result(f)
    )
    firth.adapt(lm, task_of("single"), train, replace(FINE, epochs=1), dev=dev, seeds=(0, 1, 2))
    assert sorted(map(bool, held)) == [False, False, True]


def test_if_every_run_is_degenerate_training_has_diverged(lm, stuck_seeds):
    stuck_seeds |= {0, 1000}
    train, dev = examples_of("single", 0, 60), examples_of("single", 1, 20)
    with pytest.raises(DivergedError, match="lower the learning rate") as found:
        firth.adapt(lm, task_of("single"), train, replace(FINE, restarts=1), dev=dev)
    assert found.value.exit_code == 4


def test_a_run_that_never_moves_is_degenerate_though_its_answers_differ(lm, caplog):
    train, dev = examples_of("single", 0, 60), examples_of("single", 1, 40)
    how = replace(FINE, lr=1e-12, dropout=0.0, restarts=0)
    with pytest.raises(DivergedError, match="every run was degenerate"):
        firth.adapt(lm, task_of("single"), train, how, dev=dev)
    assert "do not tell weights apart" not in caplog.text  # it is not the fault of dev


def test_a_learning_rate_that_breaks_the_model_is_noticed(lm):
    train, dev = examples_of("single", 0, 60), examples_of("single", 1, 40)
    with pytest.raises(DivergedError, match=r"every run was degenerate.*\(now 10\)"):
        firth.adapt(lm, task_of("single"), train, replace(FINE, lr=10.0, restarts=0), dev=dev)


def test_a_loss_that_is_not_finite_is_restarted_as_well(lm, monkeypatch):
    """A seed that breaks down is one more degenerate run: the other seeds are not lost with it."""
    original = FineTuning.fit

    def fit_badly(self, network, task, train, dev, seed):
        if seed == 0:
            with torch.no_grad():
                network.head.out.weight.fill_(math.nan)
        return original(self, network, task, train, dev, seed)

    monkeypatch.setattr(FineTuning, "fit", fit_badly)
    train, dev = examples_of("single", 0, 60), examples_of("single", 1, 20)
    adapted = firth.adapt(lm, task_of("single"), train, FINE, dev=dev, seeds=(0, 1))
    assert [seed.seed for seed in adapted.seeds] == [1000, 1]


def test_the_precision_is_that_of_the_model_or_the_one_asked_for(lm, tmp_path):
    """What was best on dev in one precision is measured in it again."""
    how = FineTuning(epochs=1, reset_layers=0, restarts=0, lr=1e-3)
    train, dev = examples_of("single", 0, 40), examples_of("single", 1, 20)
    exact = firth.adapt(lm, Classification(), train, how, dev=dev)
    assert lm.precision == exact.precision == exact.adaptation.precision == "float32"
    fast = firth.adapt(lm, Classification(), train, replace(how, precision="bfloat16"), dev=dev)
    assert fast.precision == "bfloat16"
    exact.save(tmp_path / "exact")
    assert firth.load(tmp_path / "exact").precision == "float32"
    assert firth.load(tmp_path / "exact", precision="bfloat16").precision == "bfloat16"


def test_an_adapted_model_is_not_adapted_again(fine_tuned):
    with pytest.raises(ConfigError, match="give the run that it came from"):
        firth.adapt(fine_tuned, Classification(), examples_of("single", 0, 40))


# Stopping


class Preset:
    """A task whose dev scores are given in advance."""

    def __init__(self, scores: list[float], *, degenerate: Iterable[bool] = repeat(False)) -> None:
        self.scores, self.collapses = iter(scores), iter(degenerate)

    def evaluate(self, _scores, examples) -> Report:
        return Report(metrics={"x": next(self.scores)}, main="x", num_examples=len(examples))

    def degenerate(self, _scores, _examples) -> bool:
        return next(self.collapses)

    def loss(self, model: nn.Linear, batch: Batch) -> Loss:
        return Loss(model(batch.input_ids).square().sum(), 1)


class OneBatch:
    steps_per_epoch = 1

    def __call__(self, _step: int) -> Batch:
        return Batch(
            input_ids=torch.ones(1, 2), starts=torch.tensor([0, 1]), targets=torch.zeros(1)
        )


@pytest.mark.parametrize(("patience", "last"), [(1, 3), (2, 6), (10, 10)])
def test_the_best_weights_are_kept_and_patience_ends_training(patience, last):
    scores = [0.1, 0.5, 0.4, 0.7, 0.6, 0.6, 0.65, 0.7, 0.2, 0.3]
    network, seen = nn.Linear(2, 1), []

    def evaluate() -> np.ndarray:
        seen.append(weights(network))
        return np.zeros((1, 1))

    task = Preset(scores)
    schedule = Schedule(shape="constant", warmup=0)
    training = Training(
        optimizer=AdamW(lr=0.1), schedule=schedule, precision="float32", workers=0, seed=3
    )
    fitted = fit(
        network,
        task,  # type: ignore[arg-type]
        task,
        OneBatch(),
        training,
        evaluate=evaluate,
        dev=[Example(texts=("a",))],
        total_steps=10,
        patience=patience,
    )
    best = int(np.flatnonzero(np.equal(scores[:last], max(scores[:last])))[-1])  # of equal ones
    assert len(seen) == last
    assert (fitted.steps, fitted.seed) == (best + 1, 3)
    assert fitted.report.score == scores[best]
    assert same(weights(network), seen[best])
    assert same(fitted.weights, seen[best])
    assert not same(seen[best], seen[-1]) or best == last - 1


@pytest.mark.parametrize(
    ("scores", "degenerate", "patience", "expected"),
    [
        ([0.1] * 50, repeat(True), 2, True),
        ([0.1] * 50, repeat(True), 50, True),
        ([0.1, 0.2, *[0.15] * 48], chain([False] * 24, repeat(True)), 50, True),
        ([0.1, 0.2, *[0.15] * 48], [True, True, *[False] * 48], 50, True),  # which is kept
        ([0.1, 0.2, *[0.15] * 48], [True, *[False] * 49], 50, False),
    ],
)
def test_a_run_is_degenerate_by_its_end_and_by_what_is_kept(scores, degenerate, patience, expected):
    task = Preset(scores, degenerate=degenerate)
    training = Training(optimizer=AdamW(lr=1e-12), precision="float32", workers=0)
    fitted = fit(
        nn.Linear(2, 1),
        task,  # type: ignore[arg-type]
        task,
        OneBatch(),
        training,
        evaluate=lambda: np.zeros((1, 1)),
        dev=[Example(texts=("a",))],
        total_steps=50,
        patience=patience,
    )
    assert fitted.degenerate == expected


@pytest.mark.parametrize(
    ("scores", "degenerate", "kept", "told"),
    [
        ([0.7] * 25, chain([True] * 5, repeat(False)), (50, False), True),
        ([0.7] * 25, chain([False] * 5, repeat(True), repeat(False)), (10, True), True),
        ([0.5, *[0.7] * 3, *[0.6] * 21], repeat(False), (8, False), False),
    ],
)
def test_of_equal_scores_the_last_counts_that_has_not_collapsed(
    scores, degenerate, kept, told, caplog
):
    task = Preset(scores, degenerate=degenerate)
    fitted = fit(
        nn.Linear(2, 1),
        task,  # type: ignore[arg-type]
        task,
        OneBatch(),
        Training(optimizer=AdamW(lr=0.1), precision="float32", workers=0),
        evaluate=lambda: np.zeros((1, 1)),
        dev=[Example(texts=("a",))],
        total_steps=50,
        patience=50,
    )
    assert (fitted.steps, fitted.degenerate) == kept
    assert ("0.700 all the time, so the last weights are kept" in caplog.text) == told


class Noisy(OneBatch):
    """A batch whose loss is noise, whatever was learned."""

    def __call__(self, step: int) -> Batch:
        scale = 1.0 + (step % 7)
        return replace(super().__call__(step), input_ids=torch.full((1, 2), scale))


@pytest.mark.parametrize(("score", "degenerate"), [(0.8, False), (0.05, True)])
def test_a_noisy_loss_alone_makes_no_run_degenerate(score, degenerate):
    """One epoch is scored once, and few batches do not tell whether their loss has moved."""
    answers = iter([score, 0.0])  # of the network, and of one answer for all

    class Once(Preset):
        def evaluate(self, _scores, examples) -> Report:
            return Report(metrics={"x": next(answers)}, main="x", num_examples=len(examples))

    task, batches = Once([]), Noisy()
    batches.steps_per_epoch = 50
    fitted = fit(
        nn.Linear(2, 1),
        task,  # type: ignore[arg-type]
        task,
        batches,
        Training(optimizer=AdamW(lr=1e-12), precision="float32", workers=0),
        evaluate=lambda: np.zeros((1, 1)),
        dev=[Example(texts=("a",))] * 40,
        total_steps=50,
        patience=50,
    )
    assert fitted.degenerate == degenerate


def test_an_adapted_model_has_the_weights_that_were_best_on_dev(lm, monkeypatch):
    recorded: list[float] = []
    original = Classification.evaluate

    def evaluate(self, scores, examples):
        report = original(self, scores, examples)
        recorded.append(report.score)
        return report

    monkeypatch.setattr(Classification, "evaluate", evaluate)
    train, dev = examples_of("single", 0, 160), examples_of("single", 1, 60)
    drawn = np.random.default_rng(0).choice(["mt", "other"], 60)  # learning does not help
    dev = [replace(e, label=str(label)) for e, label in zip(dev, drawn, strict=True)]
    adapted = firth.adapt(lm, task_of("single"), train, FINE, dev=dev)
    during = list(recorded)
    assert len(set(during)) > 1
    assert adapted.seeds[0].metrics["accuracy"] == max(during)
    assert adapted.evaluate(dev).score == max(during)


# Frozen features


def test_frozen_features_give_the_scores_of_a_full_forward_pass(lm):
    new = examples_of("pair", 2, 20)
    data = EncodedExamples.of(new, lm.tokenizer, 64)
    network = FROZEN.network(lm.model, SequenceHead(128, 3), seed=1).eval()
    assert network.mix is not None
    with torch.no_grad():
        network.mix.weights.copy_(torch.tensor([0.5, -1.0, 2.0]))
        network.mix.gamma.fill_(1.7)
    fast = score_features(network, extract(network, data, "float32"))
    full = score_examples(Engine.of(network, "float32", 64), data)
    assert np.std(full) > 0.001
    np.testing.assert_allclose(fast, full, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_pooling_commutes_with_the_mix(lm, pooling):
    torch.manual_seed(0)
    network = AdaptedNetwork(
        lm.model,
        SequenceHead(128, 3, pooling=pooling),
        FROZEN.network(lm.model, SequenceHead(128, 3), 0).mix,
    ).eval()
    assert network.mix is not None
    data = EncodedExamples.of(examples_of("single", 2, 8), lm.tokenizer, 64)
    batch = collate(data.ids)
    with torch.inference_mode():
        network.mix.weights.copy_(torch.tensor([0.5, -1.0, 2.0]))
        features, starts = network.features(batch)
        pooled_first = network.mix.combine(features)
        output = lm.model(batch, hidden_states=True)
        mixed = network.mix(torch.stack(output.hidden_states, dim=1))
        mixed_first = pool(mixed, batch.starts, pooling)
    assert starts.tolist() == list(range(9))
    assert pooled_first.std() > 0.1
    np.testing.assert_allclose(pooled_first.numpy(), mixed_first.numpy(), atol=1e-5)


# Input


def test_classes_that_are_only_held_out_are_known_all_the_same(lm):
    """Without dev examples a tenth is held out; a rare class may be there alone."""
    train = examples_of("single", 0, 40)
    rare = [replace(e, label=f"rare {i:02}") for i, e in enumerate(train[:20])]
    adapted = firth.adapt(lm, task_of("single"), [*rare, *train[20:]], replace(FROZEN, epochs=1))
    assert adapted.task.labels == ("mt", "other", *(f"rare {i:02}" for i in range(20)))


def test_a_string_instead_of_a_list_is_refused(fine_tuned):
    with pytest.raises(ConfigError, match="list of texts"):
        fine_tuned.predict("The results of our system.")


def test_texts_that_are_no_pairs_are_refused_by_a_pair_task(lm):
    adapted = firth.adapt(
        lm, task_of("pair"), examples_of("pair", 0, 40), replace(FROZEN, epochs=1)
    )
    with pytest.raises(ConfigError, match="pair"):
        adapted.predict(["One text alone.", "Another one."])


def test_predictions_have_probabilities_and_keep_the_order(fine_tuned):
    texts = ["our translation translation results", "the model corpus model"]
    texts += ["of translation translation", "table model model"]
    found = fine_tuned.predict(texts)
    assert [p.label for p in found] == ["mt", "other", "mt", "other"]
    for prediction in found:
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        best = max(prediction.probabilities, key=prediction.probabilities.get)
        assert best == prediction.label
    assert fine_tuned.predict([]) == []
    words = fine_tuned.predict([text.split() for text in texts])
    assert [p.label for p in words] == [p.label for p in found]


def test_texts_longer_than_the_window_are_cut(fine_tuned, lm):
    text = "our translation results " + "of the corpus " * 200
    (found,) = fine_tuned.predict([text])
    (same_beginning,) = fine_tuned.predict([text + "and more"])
    assert found == same_beginning


def test_labels_are_read_from_files(lm, tmp_path):
    """The demo data as a user has it: compressed tables with a header."""
    with gzip.open(DEMO_DATA / "roles.train.tsv.gz", "rt", encoding="utf-8") as file:
        lines = [next(file) for _ in range(61)]
    path = tmp_path / "train.tsv"
    path.write_text("".join(lines), encoding="utf-8")
    task = Classification(text="sentence")
    adapted = firth.adapt(lm, task, path, replace(FROZEN, epochs=1), dev=path)
    report = adapted.evaluate(path)
    assert report.num_examples == 60
    assert adapted.task.labels == tuple(
        sorted({line.rstrip("\n").split("\t")[1] for line in lines[1:]})
    )


@pytest.mark.parametrize(
    ("how", "name", "value"),
    [
        (firth.FineTuning, "batch_size", 0),
        (firth.FineTuning, "epochs", -1.0),
        (Frozen, "dropout", 1.0),
        (firth.GradualUnfreezing, "max_length", 2),
        (firth.GradualUnfreezing, "lr", 0.0),
        (firth.GradualUnfreezing, "ratio", 0.5),
    ],
)
def test_settings_that_cannot_train_are_refused(how, name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}, expected"):
        how(**{name: value})


def test_no_dev_examples_are_refused(lm):
    with pytest.raises(DataError, match="no dev examples"):
        firth.adapt(lm, task_of("single"), examples_of("single", 0, 40), dev=[])


def test_files_to_predict_begin_as_the_labelled_one_did(lm, tmp_path):
    rows = [f"{e.texts[0]}\t{e.label}" for e in examples_of("single", 0, 40)]
    (tmp_path / "train.tsv").write_text("\n".join(["sentence\tclass", *rows]) + "\n")
    (tmp_path / "new.tsv").write_text("sentence\tclass\na text\t?\n")
    task = Classification(text=1, label="class")
    adapted = firth.adapt(lm, task, tmp_path / "train.tsv", replace(FROZEN, epochs=1))
    (only,) = adapted.task.read(tmp_path / "new.tsv", labelled=False)
    assert only.texts == ("a text",)


def test_nothing_to_evaluate_on_is_an_error(lm):
    adapted = firth.adapt(
        lm, task_of("single"), examples_of("single", 0, 30), FineTuning(epochs=1, restarts=0)
    )
    assert adapted.predict([]) == []
    with pytest.raises(DataError, match="no examples to evaluate on"):
        adapted.evaluate([])


def test_scores_that_are_no_numbers_are_refused(lm):
    adapted = firth.adapt(
        lm, task_of("single"), examples_of("single", 0, 30), FineTuning(epochs=1, restarts=0)
    )
    with torch.no_grad():
        adapted.network.head.out.bias[0] = math.nan
    with pytest.raises(DivergedError, match="no numbers"):
        adapted.predict(["a text"])
    with pytest.raises(DivergedError, match="no numbers"):
        adapted.evaluate(examples_of("single", 1, 4))
