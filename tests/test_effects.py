"""What is set has the effect that it is said to have: numbers worked out by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import firth
from firth.adaptation import FineTuning
from firth.adaptation.fitting import fit
from firth.api import adapting
from firth.inference.generation import penalised
from firth.inference.scoring import Score
from firth.models import SIZES, Bert, BertConfig, Elmo, ElmoConfig, build
from firth.models.characters import Highway
from firth.models.layers import Dropout
from firth.models.recurrent import LSTMLayer
from firth.models.sampled_softmax import (
    log_uniform_counts,
    log_uniform_sample,
    sampled_loss,
)
from firth.objectives import CausalLM, GloVe, Hybrid, MaskedLM, SequenceToSequence, SkipGram
from firth.objectives.word_context import alias_table, keep_probabilities
from firth.protocols import Batch, Example, Loss
from firth.tasks import Classification
from firth.training import (
    AdamW,
    HeldOut,
    Muon,
    Run,
    Schedule,
    State,
    Training,
    checkpoint,
    mean_loss,
    steps,
    train,
)
from firth.training.loop import seed_step
from firth.training.optimizers import SGD
from firth.training.word_vectors import learner
from tests.sources import VOCABULARY, ListSource, sequences_of, tiny_bert
from tests.test_training import batches, exact

# Training


def test_the_averaged_weights_are_the_model(papers, tmp_path):
    settings = {"training.steps": 6, "training.batch_tokens": 512, "training.average": 0.9}
    settings["data.valid"] = 0.2
    recipe = firth.recipe("bert", size="tiny", vocab_size=300).with_settings(settings)
    lm = firth.pretrain(recipe, firth.Corpus.from_texts(papers[:40]), tmp_path)
    last = checkpoint.find(tmp_path)
    average, raw = (load_file(last / f"{name}.safetensors") for name in ("average", "model"))
    for name, tensor in lm.model.state_dict().items():
        assert torch.equal(tensor, average[name]), name
    assert not torch.equal(average["embeddings.tokens.weight"], raw["embeddings.tokens.weight"])


def test_the_average_of_the_loop_is_its_formula():
    training = exact(average=0.9, optimizer=AdamW(lr=1e-2))
    state = State.begin(tiny_bert(), training)
    name = "embeddings.tokens.weight"
    expected = dict(state.model.named_parameters())[name].detach().clone()
    for step in steps(state, MaskedLM(), batches(), training, total_steps=4):
        decay = min(0.9, (1 + step.step) / (10 + step.step))
        now = dict(state.model.named_parameters())[name].detach()
        expected = decay * expected + (1 - decay) * now
    torch.testing.assert_close(state.average.weights[name], expected)
    assert not torch.allclose(expected, now, atol=1e-5)


def test_validation_is_without_dropout_and_counts_predictions():
    model = tiny_bert(dropout=0.5)
    few, many = batches(batch_tokens=128)(0), batches()(1)
    assert many.num_predictions > 2 * few.num_predictions
    given = [few, many]
    found = mean_loss(model.train(), MaskedLM(), given.__getitem__, 2, exact())
    model.eval()
    with torch.no_grad():
        total = sum(float(MaskedLM().loss(model, one).total) for one in given)
    assert found == pytest.approx(total / (few.num_predictions + many.num_predictions), rel=1e-6)


def test_optimizers_have_the_settings_that_are_given():
    named = list(tiny_bert().named_parameters())
    (adam,) = AdamW(lr=0.1, beta1=0.7, beta2=0.6, eps=1e-3, weight_decay=0.2).build(named)
    for group, decay in zip(adam.param_groups, (0.2, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"]) == (0.1, (0.7, 0.6), 1e-3)
        assert group["weight_decay"] == decay
    muon, rest = Muon(lr=0.3, momentum=0.8, weight_decay=0.4, rest=AdamW(lr=0.2)).build(named)
    for group in muon.param_groups:
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.8, 0.4)
    assert {group["lr"] for group in rest.param_groups} == {0.2}


@pytest.mark.parametrize("clip", [0.01, 0.0])
def test_a_step_is_no_longer_than_the_clip(clip):
    sgd = SGD(lr=1.0, weight_decay=0.0)
    training = exact(clip=clip, optimizer=sgd, schedule=Schedule(shape="constant", warmup=0))
    state = State.begin(tiny_bert(), training)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    (step,) = steps(state, MaskedLM(), batches(), training, total_steps=1)
    moved = [(p - before[name]).detach() for name, p in state.model.named_parameters()]
    length = math.sqrt(sum(float(one.square().sum()) for one in moved))
    assert step.gradient_norm > 0.1
    assert length == pytest.approx(clip or step.gradient_norm, rel=1e-3)


def test_the_rate_of_a_batch_is_heeded():
    """Of stretches of streams, whose lengths vary (Merity et al. 2018, section 4.1)."""
    training = exact(optimizer=AdamW(lr=0.4), schedule=Schedule(shape="constant", warmup=0))
    source = batches()

    def half(step):
        return replace(source(step), rate=0.5)

    found = steps(State.begin(tiny_bert(), training), MaskedLM(), half, training, total_steps=1)
    assert next(found).learning_rate == pytest.approx(0.2)


def test_every_part_of_every_step_has_its_own_dropout():
    seeds = []
    for place in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)):
        seed_step(*place)
        seeds.append(torch.initial_seed())
    assert len(set(seeds)) == 4
    assert seeds[0] == seeds[4]


def test_averaging_begins_when_validation_gets_worse(tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 4.0, 2.4])
    monkeypatch.setattr("firth.training.run.mean_loss", lambda *_: next(losses))
    training = exact(nonmonotone=1, optimizer=SGD(lr=0.1), evaluate_every=2, save_every=8)
    state = State.begin(tiny_bert(), training)
    run = Run(path=tmp_path, total_steps=8, valid={"": HeldOut(batches(), 1)})
    train(state, MaskedLM(), batches(), training, run)
    assert state.average.count == 2  # the steps behind the third validation


# Objectives


def test_the_sampled_softmax_is_corrected_by_the_expected_counts():
    torch.manual_seed(0)
    hidden, weight, bias, counts = (torch.randn(*n) for n in ((7, 4), (11, 4), (11,), (11,)))
    targets = torch.randint(11, (7,))
    found = sampled_loss(hidden, weight, bias, targets, torch.arange(11), counts)
    scores = hidden @ weight.t() + bias - counts
    assert found.item() == pytest.approx(
        F.cross_entropy(scores, targets, reduction="sum").item(), rel=1e-5
    )


def test_elmo_trains_with_the_corrected_sample():
    shape = {"projection_size": 4, "cell_size": 5, "filters": ((1, 3),), "samples": 6}
    model = Elmo(ElmoConfig(vocab_size=30, output_size=30, dropout=0.0, **shape)).train()
    nn.init.normal_(model.head.weight)
    hidden, targets = torch.randn(9, 8), torch.randint(30, (9,))
    torch.manual_seed(5)
    found = model.prediction_loss(hidden, targets)
    torch.manual_seed(5)
    drawn, counts = log_uniform_sample(6, 30), log_uniform_counts(6, 30)
    scores = model.head(hidden[:, :4]) - counts.log()
    for row, target in enumerate(targets.tolist()):
        others = [i for i in drawn.tolist() if i != target]
        scores[row, [i for i in range(30) if i not in {*others, target}]] = -torch.inf
    expected = F.cross_entropy(scores, targets, reduction="sum")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


class _Scores(nn.Module):
    """A model whose states are its scores."""

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, _batch, **_how):
        return SimpleNamespace(last=self.rows)

    def prediction_loss(self, hidden, targets, *, weights=None, label_smoothing=0.0):
        losses = F.cross_entropy(hidden, targets, reduction="none", label_smoothing=label_smoothing)
        return (losses if weights is None else losses * weights).sum()


def test_smoothing_and_weights_reach_the_loss():
    torch.manual_seed(0)
    rows, targets, weights = torch.randn(5, 8), torch.randint(8, (3,)), torch.rand(3)
    at = torch.tensor([0, 2, 3])
    batch = Batch(
        input_ids=torch.arange(5), starts=torch.tensor([0, 5]), predict_at=at, targets=targets
    )
    found = SequenceToSequence(label_smoothing=0.1).loss(_Scores(rows), batch)
    expected = F.cross_entropy(rows[at], targets, reduction="sum", label_smoothing=0.1)
    assert found.total.item() == pytest.approx(expected.item())
    found = Hybrid().loss(_Scores(rows), replace(batch, weights=weights))
    expected = (weights * F.cross_entropy(rows[at], targets, reduction="none")).sum()
    assert found.total.item() == pytest.approx(expected.item())


def test_the_hybrid_replaces_a_share_by_random_tokens():
    objective = Hybrid(causal_share=0.0, random_share=0.3, rate=0.5, final_rate=None)
    sequences = sequences_of([200] * 20)
    batch = objective.prepare(sequences, np.random.default_rng(0))
    changed = batch.input_ids.numpy() != sequences.ids
    masked = batch.input_ids.numpy() == VOCABULARY.mask
    assert (changed & ~masked).sum() / changed.sum() == pytest.approx(0.3, abs=0.03)


def test_validation_is_the_same_whatever_regularises():
    assert MaskedLM(rate=0.4, final_rate=0.3).for_validation() == MaskedLM(rate=0.15)
    assert CausalLM(ar=2.0, tar=1.0).for_validation() == CausalLM()


# Word vectors


def _word_source(counts: list[int]) -> ListSource:
    words = np.repeat(np.arange(5, 5 + len(counts)), counts)
    return ListSource([np.random.default_rng(0).permutation(words)])


def _learner(objective, outputs=True):
    config = firth.recipe("word2vec", size="tiny", vocab_size=9).model
    words = [None] * 5 + ["a", "b", "c", "d"]
    source = _word_source([400, 200, 50, 10])
    shape = replace(config, vocab_size=9, hidden_size=4, outputs=outputs)
    return learner(objective, shape, words, source, longest=100, stretch=200, seed=0)


def test_words_are_drawn_and_kept_by_the_settings(monkeypatch):
    counts = np.array([0] * 5 + [400, 200, 50, 10])
    learning = _learner(SkipGram(power=0.5, subsample=0.01, lr=0.2))
    keep, odds, alias, _ = learning._sampling
    expected = alias_table(np.where(counts > 0, counts, 1) ** 0.5 * (counts > 0))
    np.testing.assert_allclose(odds, expected[0])
    np.testing.assert_array_equal(alias, expected[1])
    np.testing.assert_allclose(keep, keep_probabilities(counts, 0.01))
    assert keep[5] < keep[8]
    rates = []
    monkeypatch.setattr(learning, "_run", lambda _text, rate, *_: rates.append(rate))
    for progress in (0.0, 0.5, 0.99999, None):
        learning.learn(0, progress)
    assert rates == pytest.approx([0.2, 0.1, 0.2 * 1e-4, 0.0])


def test_glove_is_weighted_by_its_settings():
    learning = _learner(GloVe(window=3, x_max=20.0, alpha=0.5), outputs=False)
    weights, biases = learning.arrays["weights"], learning.arrays["biases"]
    expected = 0.0
    for i, j, x in zip(*learning.pairs, learning.pair_counts, strict=True):
        f = min(1.0, (x / 20.0) ** 0.5)
        for a, b in {(int(i), int(j)), (int(j), int(i))}:
            error = weights[0, a] @ weights[1, b] + biases[0, a] + biases[1, b] - math.log(x)
            expected += f * error**2  # Pennington et al. 2014, eq. 8
    found = sum(learning.learn(step, None).loss for step in range(learning.steps_per_epoch))
    assert found == pytest.approx(expected, rel=1e-3)
    model = build(firth.recipe("glove", size="tiny", vocab_size=9).model)
    model = type(model)(replace(model.config, vocab_size=9, hidden_size=4))
    learning.fill(model)
    rows = model.embeddings.tokens.weight.detach().numpy()
    np.testing.assert_allclose(rows[5:], weights.sum(0)[5:], rtol=1e-6)


# Use


def test_repetition_lowers_scores_of_both_signs():
    found = penalised(torch.tensor([[2.0, -2.0, 1.0]]), [np.array([0, 1])], 2.0)
    assert found.tolist() == [[1.0, -4.0, 1.0]]


def test_bits_are_by_byte_not_by_character():
    score = Score(
        text="né",
        tokens=["n", "é"],
        log_probabilities=np.array([-1.0, -2.0]),
        method="",
    )
    assert score.bits_per_byte == pytest.approx(3.0 / (math.log(2) * 3))


def test_several_labels_are_those_above_zero():
    task = Classification(kind="multi_label", labels=("a", "b", "c"))
    (found,) = task.decode(np.array([[0.1, -0.1, 0.0]]))
    assert found.label == ("a",)


# Adaptation


def test_fine_tuning_warms_up_by_its_setting(monkeypatch, tiny_run):
    seen = []

    def stop(*arguments, **_named):
        seen.append(next(one for one in arguments if isinstance(one, Training)))
        raise KeyboardInterrupt

    monkeypatch.setattr("firth.adaptation.finetuning.fit", stop)
    examples = [Example(texts=("a b",), label=str(i % 2)) for i in range(40)]
    task, lm = Classification(text="text", label="label"), firth.load(tiny_run)
    how = FineTuning(warmup=0.25, weight_decay=0.3, lr=0.02)
    with pytest.raises(KeyboardInterrupt):
        firth.adapt(lm, task, examples, how)
    assert seen[0].schedule == Schedule(warmup=0.25)
    assert (seen[0].optimizer.lr, seen[0].optimizer.weight_decay) == (0.02, 0.3)


def test_a_tenth_is_held_out():
    examples = [Example(texts=(str(i),), label="x") for i in range(100)]
    train_part, dev = adapting._hold_out(examples)
    assert (len(train_part), len(dev)) == (90, 10)
    assert sorted(train_part + dev, key=str) == sorted(examples, key=str)


def test_the_seed_that_is_best_on_dev_is_kept(monkeypatch, tiny_run):
    examples = [Example(texts=(f"{'ab'[i % 2]} c",), label="ab"[i % 2]) for i in range(40)]
    scores = {3: 0.6, 4: 0.9, 5: 0.7}
    original = FineTuning.fit

    def scored(self, network, task, train_part, dev, seed):
        fitted = original(self, network, task, train_part, dev, seed)
        metrics = {**fitted.report.metrics, "accuracy": scores[seed]}
        return replace(
            fitted, report=replace(fitted.report, metrics=metrics), seed=seed, degenerate=False
        )

    monkeypatch.setattr(FineTuning, "fit", scored)
    kept = []
    network = adapting._network
    monkeypatch.setattr(adapting, "_network", lambda *a: kept.append(a[3]) or network(*a))
    task, lm = Classification(text="text", label="label"), firth.load(tiny_run)
    firth.adapt(lm, task, examples, FineTuning(min_steps=1, epochs=1), seeds=(3, 4, 5))
    assert kept == [3, 4, 5, 4]  # the network of the best one is made again at the end


@pytest.mark.parametrize("recipe", ["bert", "modern-bert", "gpt", "t5", "seq2seq"])
def test_the_top_layer_is_drawn_anew(recipe):
    model = build(firth.recipe(recipe, size="tiny", vocab_size=50).model)
    before = [
        {name: p.detach().clone() for name, p in layer.named_parameters()} for layer in model.layers
    ]
    model.reset_top_layers(1)
    for i, (layer, old) in enumerate(zip(model.layers, before, strict=True)):
        matrices = [name for name, p in layer.named_parameters() if p.ndim == 2]
        same = all(torch.equal(dict(layer.named_parameters())[n], old[n]) for n in matrices)
        assert same == (i + 1 < len(before)), i


# Initial values and recipes


def test_gates_begin_open():
    """Highways carry (Peters et al. 2018; bilm-tf), and cells remember (Jozefowicz et al. 2015)."""
    assert Highway(3).both.bias.tolist() == [0, 0, 0, -2, -2, -2]
    assert LSTMLayer(2, 3).bias.tolist() == [0] * 3 + [1] * 3 + [0] * 6


def test_bert_begins_as_published():
    torch.manual_seed(0)
    model = Bert(BertConfig(vocab_size=500, **SIZES["mini"]))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and parameter.numel() > 5000:
            assert parameter.std().item() == pytest.approx(0.0176, rel=0.05), name
            assert parameter.abs().max() <= 0.04
        elif "norm" in name and name.endswith("weight"):
            assert parameter.eq(1).all()
        elif parameter.ndim == 1:
            assert parameter.eq(0).all(), name


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("transformer", "objective.label_smoothing", 0.1),
        ("awd-lstm", "objective.ar", 2.0),
        ("awd-lstm", "objective.tar", 1.0),
        ("bert", "objective.rate", 0.15),
        ("bert", "objective.mask_share", 0.8),
        ("t5", "objective.rate", 0.15),
        ("t5", "objective.mean_length", 3.0),
        ("word2vec", "objective.power", 0.75),
        ("glove", "objective.x_max", 100.0),
        ("glove", "objective.alpha", 0.75),
        ("ulmfit", "training.layer_decay", 2.6),
    ],
)
def test_recipes_have_the_numbers_of_the_papers(name, setting, value):
    found = firth.recipe(name)
    for part in setting.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize("recipe", ["bert", "gpt", "t5", "elmo"])
def test_dropout_is_set_everywhere(recipe):
    chosen = firth.recipe(recipe, size="tiny", vocab_size=50).with_settings({"model.dropout": 0.3})
    rates = {part.rate for part in build(chosen.model).modules() if isinstance(part, Dropout)}
    assert rates == {0.3}


def test_dropout_keeps_the_expectation():
    torch.manual_seed(0)
    dropout = Dropout(0.5).train()
    found = dropout.add(torch.zeros(400, 400), torch.ones(400, 400))
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert found.mean().item() == pytest.approx(1.0, abs=0.02)


def test_awd_drops_words_and_whole_sequences():
    recipe = firth.recipe("awd-lstm", size="tiny", vocab_size=50)
    rates = {"input_dropout": 0.5, "embedding_dropout": 0.25, "dropout": 1.0}
    model = build(replace(recipe.model, **rates)).train()
    torch.manual_seed(0)
    ids = torch.arange(50)
    found, table = model._embed(ids), model.embeddings.weight
    kept = found.abs().sum(1) > 0
    assert 25 < int(kept.sum()) < 50
    torch.testing.assert_close(found[kept], table[kept] / 0.75)
    owner = torch.tensor([0, 0, 0, 1, 1])
    masked = model._one_mask(torch.ones(5, 40), owner, 0.5)
    assert torch.equal(masked[0], masked[2])
    assert torch.equal(masked[3], masked[4])
    assert not torch.equal(masked[0], masked[3])


def test_activation_regularisation_is_of_the_dropped_states():
    recipe = firth.recipe("awd-lstm", size="tiny", vocab_size=50)
    model = build(replace(recipe.model, dropout=1.0)).train()
    batch = CausalLM().prepare(sequences_of([20, 15]), np.random.default_rng(0))
    batch = replace(batch, input_ids=batch.input_ids % 50, targets=batch.targets % 50)
    size = model.regularised_size
    torch.manual_seed(1)
    output = model(batch, hidden_states=True)
    torch.manual_seed(1)
    loss = CausalLM(ar=2.0, tar=1.0).loss(model, batch)
    raw = output.hidden_states[-1][:, :size]
    jumps = torch.cat([raw[1:20] - raw[:19], raw[21:] - raw[20:-1]]).square().mean()
    expected = 2.0 * output.last[:, :size].square().mean() + jumps
    found = loss.parts["regularisation"] / batch.num_predictions
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert not torch.equal(output.last[:, :size], raw)


def test_the_best_point_is_by_the_chosen_metric():
    """Two scorings of dev: the first is better by accuracy, the second by the metric chosen."""
    network = nn.Linear(1, 1)
    reports = iter([{"accuracy": 0.9, "mcc": 0.1}, {"accuracy": 0.1, "mcc": 0.9}])

    class Task:
        def evaluate(self, _scores, _examples):
            return firth.protocols.Report(metrics=next(reports), main="mcc", num_examples=1)

        def degenerate(self, _scores, _examples):
            return False

    class Objective:
        def loss(self, model, _batch):
            return Loss(model(torch.ones(1, 1)).square().sum(), 1)

    empty = Batch(input_ids=torch.zeros(1, dtype=torch.int64), starts=torch.tensor([0, 1]))
    call = type("Source", (), {"steps_per_epoch": 1, "__call__": lambda _self, _step: empty})()
    fitted = fit(
        network, Task(), Objective(), call, exact(), evaluate=lambda: None, dev=[],
        total_steps=2, patience=5,
    )  # fmt: skip
    assert fitted.steps == 2
    assert fitted.report.score == 0.9
