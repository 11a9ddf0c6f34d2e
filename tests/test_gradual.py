"""ULMFiT's fine-tuning: what is frozen when, rates of groups and of steps, concat pooling."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import firth
from firth.adaptation import FineTuning, GradualUnfreezing
from firth.adaptation.fitting import Fitted, scorer
from firth.adaptation.gradual import layer_groups
from firth.adaptation.network import AdaptedNetwork, EncodedExamples
from firth.api.adapted import family_head
from firth.cli import main
from firth.models import AWDLSTM, build
from firth.models.heads import BatchNorm, ConcatPoolingHead, RecurrentHead, WordHead
from firth.models.layers import Dropout
from firth.models.mix import SequenceHead
from firth.protocols import Batch, Example
from firth.tasks import Classification, Tagging
from firth.training import Schedule

HOW = GradualUnfreezing(lr=2e-3, batch_size=8, precision="float32")
TASK = Classification(labels=("mt", "other"))
LOW = "body.embeddings.tokens.weight"


@pytest.fixture(scope="module")
def lm(tiny_run) -> firth.LanguageModel:
    model = firth.load(tiny_run, device="cpu", precision="float32")
    assert isinstance(model, firth.LanguageModel)
    return model


def examples_of(seed: int, count: int) -> list[Example]:
    """What a text speaks of."""
    rng = np.random.default_rng(seed)
    words = ["the", "results", "of", "our", "system", "are", "shown", "in", "table"]
    found = []
    for _ in range(count):
        holds = bool(rng.random() < 0.5)
        own = [*rng.choice(words, rng.integers(3, 9)), *(["translation", "parsing"][holds],) * 2]
        label = "other" if holds else "mt"
        found.append(Example(texts=(" ".join(rng.permutation(own)),), label=label))
    return found


# Slanted triangular rates (Howard and Ruder 2018, eq. 3)


def test_slanted_triangular_rates_are_those_of_equation_3():
    """T = 100, cut_frac = 0.1, ratio = 32, eta_max = 0.01: cut = 10."""
    schedule = GradualUnfreezing().schedule()
    by_hand = {
        0: 0.0003125,  # p = 0: eta_max / ratio
        1: 0.00128125,  # p = 0.1: 0.01 (1 + 3.1) / 32
        5: 0.00515625,  # p = 0.5: 0.01 (1 + 15.5) / 32
        10: 0.01,  # p = 1
        55: 0.00515625,  # p = 1 - 45 / (10 * 9) = 0.5
        91: 0.00128125,  # p = 1 - 81 / 90 = 0.1
        99: 0.0004201388888888889,  # p = 1 / 90
    }
    for step, rate in by_hand.items():
        assert 0.01 * schedule(step, 100) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("total", [1, 3, 7, 15, 40, 1000])
def test_slanted_rates_stay_between_floor_and_peak(total):
    schedule = Schedule(shape="slanted", warmup=0.1, floor=1 / 32)
    found = [schedule(step, total) for step in range(total)]
    assert min(found) >= 1 / 32
    assert max(found) == 1.0
    top = int(np.argmax(found))
    assert top == total // 10
    assert found[:top] == sorted(found[:top])
    assert found[top:] == sorted(found[top:], reverse=True)


def test_the_literal_equation_where_its_cut_is_whole():
    def literal(t: int, total: int, cut_frac: float, ratio: float) -> float:
        cut = int(total * cut_frac)
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        return (1 + p * (ratio - 1)) / ratio

    for total, cut_frac, ratio in ((50, 0.1, 32.0), (200, 0.25, 10.0)):
        schedule = Schedule(shape="slanted", warmup=cut_frac, floor=1 / ratio)
        for t in range(total):
            assert schedule(t, total) == pytest.approx(literal(t, total, cut_frac, ratio))


def test_without_the_triangle_the_rate_stays():
    schedule = replace(HOW, slanted=False).schedule()
    assert {schedule(step, 50) for step in range(50)} == {1.0}


# Discriminative rates (eq. 1 and section 3.2)


def network_of(lm, how, task=TASK):
    return how.network(lm.model, family_head(lm.model, task, how), 0)


def test_each_group_has_the_rate_of_the_one_above_divided_by_decay(lm):
    how = replace(HOW, lr=0.01)
    network = network_of(lm, how)
    rate = {
        id(p): group["lr"]
        for optimizer in how.optimizers(network)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert all(rate[id(p)] == 0.01 for p in network.head.parameters())
    body = network.body
    parts = (body.layers[1], body.layers[0], body.embeddings)
    for part, expected in zip(parts, (0.01 / 2.6, 0.01 / 6.76, 0.01 / 17.576), strict=True):
        for parameter in part.parameters():
            assert rate[id(parameter)] == pytest.approx(expected)
    trained = {id(p) for p in network.parameters() if p.requires_grad}
    assert set(rate) == trained  # each once, and nothing that no task uses
    for optimizer in how.optimizers(network):
        for group in optimizer.param_groups:
            assert group["peak_lr"] == group["lr"]
            assert (group["betas"], group["weight_decay"]) == ((0.7, 0.99), 0.0)
    one = {g["lr"] for o in replace(how, decay=1).optimizers(network) for g in o.param_groups}
    assert one == {0.01}


# Gradual unfreezing (section 3.3)


def fit_watched(lm, how, monkeypatch) -> tuple[AdaptedNetwork, Fitted, list[dict]]:
    """Fits a network; its tensors before training and at each scoring of dev."""
    network, snapshots = network_of(lm, how), []

    def watched(*arguments):
        score = scorer(*arguments)

        def run():
            snapshots.append(state(network))
            return score()

        return run

    monkeypatch.setattr("firth.adaptation.gradual.scorer", watched)
    examples = examples_of(0, 40)
    data = EncodedExamples.of(examples, lm.tokenizer, 64)
    snapshots.append(state(network))
    part = (examples, data)
    return network, how.fit(network, TASK, part, part, 0), snapshots


def changed_by_epoch(lm, how, monkeypatch) -> list[set[str]]:
    """The parameters that each epoch changes."""
    names = {name for name, _ in network_of(lm, how).named_parameters()}
    _, _, snapshots = fit_watched(lm, replace(how, patience=99), monkeypatch)
    return [
        {name for name in names if not torch.equal(before[name], after[name])}
        for before, after in pairwise(snapshots)
    ]


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def part_of(name: str) -> str:
    """Which group a parameter is in."""
    return re.match(r"head|body\.layers\.\d+|body\.\w+", name)[0]


def test_an_epoch_takes_in_one_more_group_from_the_top(lm, monkeypatch):
    changed = changed_by_epoch(lm, replace(HOW, epochs=5), monkeypatch)
    order = ["head", "body.layers.1", "body.layers.0", "body.embeddings"]
    parts = [set(map(part_of, names)) for names in changed]
    assert parts == [set(order[:n]) for n in (1, 2, 3, 4, 4)]
    # All of a group, not some of it; a text without a pair has one segment.
    names = {name for name, _ in network_of(lm, HOW).named_parameters()}
    wanted = {name for name in names if part_of(name) in order}
    assert {name for name in wanted - changed[4] if "segments" not in name} == set()


def test_without_unfreezing_all_are_trained_from_the_start(lm, monkeypatch):
    how = replace(HOW, unfreezing=False, epochs=2)
    changed = changed_by_epoch(lm, how, monkeypatch)
    everything = {"head", "body.layers.1", "body.layers.0", "body.embeddings"}
    assert [set(map(part_of, names)) for names in changed] == [everything] * 2


def test_which_groups_an_epoch_trains():
    assert [HOW.trained_groups(epoch, 3) for epoch in range(6)] == [0, 1, 2, 3, 3, 3]
    assert replace(HOW, unfreezing=False).trained_groups(0, 3) == 3
    assert replace(HOW, min_steps=1).total_steps(10, 3) == 60
    assert replace(HOW, min_steps=1, unfreezing=False).total_steps(10, 3) == 30
    assert replace(HOW, min_steps=500).total_steps(10, 3) == 500
    assert replace(HOW, epochs=2.5).total_steps(10, 3) == 25


def test_decoders_beside_an_encoder_are_in_no_group(lm):
    config = firth.recipe("t5", size="tiny", vocab_size=lm.model.config.vocab_size).model
    body = build(config)
    groups = layer_groups(body)
    assert len(groups) == 1 + len(body.layers)
    decoder = {id(p) for p in body.decoder.parameters()}
    assert not decoder & {id(p) for group in groups for p in group}


def test_the_weights_of_the_best_epoch_are_kept_though_groups_were_frozen_then(lm, monkeypatch):
    """Dev is best after the second epoch; later ones change layers that were frozen before."""
    scores = iter([0.1, 0.9, 0.2, 0.2, 0.2, 0.2])
    original = Classification.evaluate

    def evaluate(self, found, examples):
        report = original(self, found, examples)
        return replace(report, metrics={**report.metrics, "accuracy": next(scores)})

    monkeypatch.setattr(Classification, "evaluate", evaluate)
    how = replace(HOW, epochs=6, patience=99)
    network, fitted, snapshots = fit_watched(lm, how, monkeypatch)
    assert fitted.steps == 10
    best, last = snapshots[2], snapshots[6]
    assert not torch.equal(best[LOW], last[LOW])
    assert all(torch.equal(tensor, best[name]) for name, tensor in network.state_dict().items())
    fresh = network_of(lm, HOW)
    fresh.load_state_dict(fitted.weights, strict=False)
    assert all(torch.equal(tensor, best[name]) for name, tensor in fresh.state_dict().items())
    assert any("running_mean" in name for name in fitted.weights)


# Concat pooling


def test_concat_pooling_is_that_of_the_paper():
    """[last, max, mean], batch norm, dropout, linear 50, ReLU, batch norm, dropout, linear."""
    torch.manual_seed(0)
    head = ConcatPoolingHead(4, 3)
    states, starts = torch.randn(9, 6), torch.tensor([0, 2, 3, 9])
    own = [states[a:b, :4] for a, b in ((0, 2), (2, 3), (3, 9))]
    h = torch.stack([torch.cat([s[-1], s.max(0).values, s.mean(0)]) for s in own])
    assert [dropout.rate for dropout in head.dropouts] == [0.4, 0.1]
    for dropout in head.dropouts:
        dropout.rate = 0.0
    first, second = head.norms

    def normed(x, norm):
        means, variances = x.mean(0), x.var(0, unbiased=False)
        return (x - means) / (variances + 1e-5).sqrt() * norm.weight + norm.bias

    x = torch.relu(normed(h, first) @ head.dense.weight.T + head.dense.bias)
    expected = normed(x, second) @ head.out.weight.T + head.out.bias
    assert x.shape == (3, 50)
    torch.testing.assert_close(head(states, starts), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first.running_mean, h.mean(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(first.running_var, h.var(0), atol=1e-6, rtol=1e-5)
    head.eval()
    alone = head(states[3:], torch.tensor([0, 6]))
    torch.testing.assert_close(alone[0], head(states, starts)[2])
    backward = ConcatPoolingHead(4, 3, last="first")
    assert backward.poolings == ("first", "max", "mean")


def test_few_batches_are_normalised_by_what_they_were():
    """Running statistics are means of the batches so far, not drawn to 0 and 1; then they decay."""
    torch.manual_seed(0)
    norm = BatchNorm(6)
    batches = [3.0 + 0.01 * torch.randn(32, 6) for _ in range(12)]
    for batch in batches[:5]:
        norm(batch)
    norm.eval()
    variance = torch.stack([batch.var(0) for batch in batches[:5]]).mean(0)
    torch.testing.assert_close(norm.running_var, variance, atol=0, rtol=1e-4)
    assert 0.8 < norm(batches[5]).std().item() < 1.1  # 0.01 with variances drawn to 1
    norm.train()
    for batch in batches[5:]:
        norm(batch)
    mean = torch.stack([batch.mean(0) for batch in batches[:10]]).mean(0)
    for batch in batches[10:]:
        mean = 0.9 * mean + 0.1 * batch.mean(0)
    torch.testing.assert_close(norm.running_mean, mean, atol=1e-6, rtol=1e-6)


def test_a_batch_of_one_has_no_variance():
    head = ConcatPoolingHead(4, 3)
    scores = head(torch.randn(5, 4), torch.tensor([0, 5]))
    assert torch.isfinite(scores).all()
    assert float(head.norms[0].running_mean.abs().sum()) == 0  # nothing is learned from one
    F.cross_entropy(scores, torch.tensor([1])).backward()
    assert float(head.dense.weight.grad.abs().sum()) > 0


def test_heads_of_words_and_of_the_family():
    body = nn.Linear(2, 2)
    words = WordHead(8, 3)
    assert HOW.assemble(body, words).head is words
    stock = SequenceHead(8, 3)
    assert replace(HOW, concat_pooling=False).assemble(body, stock).head is stock


def awd_lstm(vocab_size: int, **changes) -> AWDLSTM:
    config = firth.recipe("awd-lstm", size="tiny", vocab_size=vocab_size).model
    torch.manual_seed(0)
    model = build(replace(config, **changes)).eval()
    assert isinstance(model, AWDLSTM)
    return model


@pytest.mark.parametrize("backward", [False, True])
def test_awd_lstm_gives_the_head_what_it_read_last(lm, backward):
    model = awd_lstm(lm.model.config.vocab_size, backward=backward)
    own = firth.LanguageModel(model, lm.tokenizer, precision="float32")
    network = HOW.network(model, family_head(model, TASK, HOW), 0).eval()
    assert isinstance(network.head, ConcatPoolingHead)
    assert network.head.dense.in_features == 3 * model.config.embedding_size
    assert network.head.poolings[0] == ("first" if backward else "last")
    batch = own.batch(["one text", "another text here"])
    states = model(batch).last
    reaches = []
    for token in range(batch.num_tokens):
        ids = batch.input_ids.clone()
        ids[token] = (ids[token] + 7) % 500
        changed = model(Batch(input_ids=ids, starts=batch.starts)).last
        reaches.append((changed - states).abs().sum(1).gt(1e-7).tolist())
    first, end = 0, int(batch.starts[1])
    read_last = first if backward else end - 1
    assert all(reaches[token][read_last] for token in range(first, end))


def test_dropout_of_states_is_set_and_that_of_weights_is_not(lm):
    model = awd_lstm(lm.model.config.vocab_size)
    rates = [layer.weight_dropout for layer in model.layers]
    how = FineTuning(task_network="bilstm", dropout=0.25)
    network = how.network(model, family_head(model, TASK, how), 0)
    assert [layer.weight_dropout for layer in network.body.layers] == rates
    assert rates[0] > 0
    assert isinstance(network.head, RecurrentHead)
    assert {one.weight_dropout for layer in network.head.stack.layers for one in layer} == {0.0}
    assert network.head.dropout.rate == network.head.stack.dropout.rate == 0.25
    gradual = network_of(lm, replace(HOW, dropout=0.3))
    assert {m.rate for m in gradual.body.modules() if isinstance(m, Dropout)} == {0.3}
    assert [d.rate for d in gradual.head.dropouts] == [0.4, 0.1]


def test_what_the_head_sees_of_an_awd_lstm_is_not_dropped_twice(lm):
    """The dropout behind the last layer is the softmax's; the head has one of its own."""
    model = awd_lstm(lm.model.config.vocab_size)
    own = firth.LanguageModel(model, lm.tokenizer, precision="float32")
    batch = own.batch(["one text", "another text here"])
    others = {f"{what}_dropout": 0.0 for what in ("input", "hidden", "embedding", "weight")}
    model.config = replace(model.config, **others, output_dropout=0.9)
    for layer in model.layers:
        layer.weight_dropout = 0.0
    network = HOW.network(model, family_head(model, TASK, HOW), 0).train()
    seen = network.features(batch)[0]
    assert torch.equal(seen, model.eval()(batch).last)
    assert model.config.output_dropout == 0.9


# Whole runs


@pytest.mark.parametrize("tricks", ["all", "none"])
@pytest.mark.parametrize("family", ["bert", "awd-lstm"])
def test_it_learns_and_is_saved_whole(lm, tmp_path, tricks, family):
    model = lm
    if family == "awd-lstm":
        model = firth.LanguageModel(
            awd_lstm(lm.model.config.vocab_size, dropout=0.0), lm.tokenizer, precision="float32"
        )
    how = replace(HOW, epochs=8, lr=1e-2 if family == "awd-lstm" else 4e-3)
    if tricks == "none":
        how = replace(how, unfreezing=False, decay=1.0, slanted=False, concat_pooling=False)
        how = replace(how, lr=3e-3 if family == "awd-lstm" else 1e-3)
    adapted = firth.adapt(model, Classification(), examples_of(0, 120), how, dev=examples_of(1, 40))
    new = examples_of(2, 80)
    assert adapted.evaluate(new).score > 0.9
    adapted.save(tmp_path)
    loaded = firth.load(tmp_path, device="cpu", precision="float32")
    assert isinstance(loaded, firth.AdaptedModel)
    assert np.array_equal(loaded.scores(new), adapted.scores(new))
    assert loaded.adaptation == adapted.adaptation
    assert not loaded.network.training


@pytest.mark.parametrize(("epochs", "frozen"), [(1, 3), (1.5, 2), (3, 1), (4, 0), (9, 0)])
def test_epochs_that_are_over_before_all_layers_take_part_are_told(lm, caplog, epochs, frozen):
    assert len(layer_groups(lm.model)) == 3
    firth.adapt(lm, Classification(), examples_of(0, 24), replace(HOW, epochs=epochs))
    assert ("are never trained" in caplog.text) == (frozen > 0)
    assert frozen == 0 or f"{frozen} of 3 layer groups are never trained" in caplog.text


def test_tags_and_values_are_learned_gradually_too(lm, papers, tmp_path):
    words = [tuple(paper.split()[:20]) for paper in papers[:60]]
    tagged = [Example(texts=(w,), label=tuple("LS"[len(x) < 5] for x in w)) for w in words]
    adapted = firth.adapt(lm, Tagging(), tagged, replace(HOW, epochs=5))
    assert adapted.evaluate(tagged).score > 0.7
    values = [replace(e, label=100.0 + 5 * (e.label == "mt")) for e in examples_of(0, 80)]
    rated = firth.adapt(lm, Classification(kind="regression"), values, replace(HOW, epochs=6))
    rated.save(tmp_path)
    loaded = firth.load(tmp_path, device="cpu", precision="float32")
    texts = [e.texts[0] for e in values[:20]]
    one, other = ([p.label for p in m.predict(texts)] for m in (rated, loaded))
    assert one == pytest.approx(other, abs=1e-3)
    assert np.ptp(one) > 1


def test_the_command_line_unfreezes(tiny_run, tmp_path, capsys):
    rows = ["text\tlabel", *(f"{e.texts[0]}\t{e.label}" for e in examples_of(0, 60))]
    train = tmp_path / "train.tsv"
    train.write_text("\n".join(rows) + "\n")
    command = ["adapt", str(tiny_run), str(train), "-o", str(tmp_path / "out"), "gradual"]
    assert main([*command, "--epochs", "2", "--decay", "1", "--no-slanted", "--lr", "1e-3"]) == 0
    assert "dev accuracy" in capsys.readouterr().out
    adapted = firth.load(tmp_path / "out")
    assert isinstance(adapted, firth.AdaptedModel)
    assert isinstance(adapted.adaptation, GradualUnfreezing)
    assert (adapted.adaptation.decay, adapted.adaptation.slanted) == (1.0, False)
