"""Schedules, optimizers, accumulation, divergence, learning."""

import errno
import itertools
import math
import shutil
import signal
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from firth.errors import ConfigError, DivergedError, Interrupted, ResourceError
from firth.models import GPT, GPTConfig
from firth.objectives import MaskedLM
from firth.text.batches import ObjectiveBatches, PackedSequences
from firth.training import (
    AdamW,
    HeldOut,
    Muon,
    Run,
    Schedule,
    State,
    Step,
    Training,
    mean_loss,
    steps,
    steps_within,
    train,
)
from firth.training.distributed import Ranks, join
from firth.training.loop import _accumulate
from firth.training.optimizers import SGD, Adagrad, WeightAverage
from firth.training.run import Watch
from firth.training.tracking import Tracker, read_metrics
from tests.sources import VOCABULARY, ListSource, markov_documents, tiny_bert, tiny_modern_bert


def batches(total: int = 20, batch_tokens: int = 512, count: int = 300) -> ObjectiveBatches:
    packed = PackedSequences(
        ListSource(markov_documents(0, count)),
        VOCABULARY,
        max_length=32,
        batch_tokens=batch_tokens,
        seed=0,
    )
    return ObjectiveBatches(packed, MaskedLM(), total_steps=total)


def exact(**changes) -> Training:
    return Training(**{"precision": "float32", "batch_tokens": 512, "workers": 0, **changes})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(shape="linear", warmup=0.1), {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 99: 1 / 90}),
        (Schedule(shape="linear", warmup=10, floor=0.2), {9: 1.0, 55: 0.6, 99: 0.2 + 0.8 / 90}),
        (Schedule(shape="cosine", warmup=0.1), {55: 0.5, 99: 0.0003, 32: 0.860}),
        (Schedule(shape="cosine", warmup=0.1, floor=0.1), {9: 1.0, 55: 0.55, 99: 0.1003}),
        (Schedule(shape="inverse_sqrt", warmup=0.04), {3: 1.0, 15: 0.5, 99: 0.2}),
        (Schedule(shape="trapezoid", warmup=0.1, decay=0.4), {9: 1.0, 60: 1.0, 80: 0.5, 99: 0.025}),
        (Schedule(shape="trapezoid", decay=0.4, floor=0.2), {60: 1.0, 80: 0.6, 99: 0.22}),
        (Schedule(shape="trapezoid", warmup=80, decay=0.4), {79: 1.0, 80: 1.0, 90: 0.5, 99: 0.05}),
        (Schedule(shape="constant", warmup=0), {0: 1.0, 99: 1.0}),
    ],
)
def test_schedules_take_their_values(schedule, expected):
    for step, value in expected.items():
        assert schedule(step, 100) == pytest.approx(value, abs=2e-3)
    factors = [schedule(step, 100) for step in range(100)]
    assert max(np.abs(np.diff(factors))) < 0.3  # no jump


@pytest.mark.parametrize("shape", ["linear", "cosine", "inverse_sqrt", "trapezoid", "slanted"])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_every_step_of_a_short_run_counts(shape, total):
    assert min(Schedule(shape=shape)(step, total) for step in range(total)) > 0.01


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (AdamW, {"lr": -1.0}),
        (AdamW, {"beta2": 1.0}),
        (AdamW, {"weight_decay": float("nan")}),
        (Muon, {"momentum": 1.5}),
        (Muon, {"weight_decay": -5.0}),
        (Adagrad, {"initial": -0.1}),
        (SGD, {"lr": float("inf")}),
    ],
)
def test_optimizers_that_are_none_are_refused(kind, settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=rf"{kind.__name__}\.{name} is .*, expected"):
        kind(**settings)


def test_what_decays_and_what_muon_takes():
    model = tiny_bert()
    names = {id(p): name for name, p in model.named_parameters()}
    (adamw,) = AdamW(weight_decay=0.1).build(model.named_parameters())
    decayed = {names[id(p)] for p in adamw.param_groups[0]["params"]}
    assert adamw.param_groups[1]["weight_decay"] == 0
    assert "embeddings.tokens.weight" in decayed
    assert not any("norm" in name or "bias" in name for name in decayed)
    muon, rest = Muon().build(model.named_parameters())
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    left = {names[id(p)] for group in rest.param_groups for p in group["params"]}
    assert taken | left == set(names.values())
    assert not taken & left
    assert "layers.0.attention.qkv.weight" in taken
    assert "embeddings.tokens.weight" in left


def test_adamw_corrects_its_bias():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    (optimizer,) = AdamW(lr=0.1, weight_decay=0.0).build(model.named_parameters())
    model.weight.grad = torch.full_like(model.weight, 1e-3)
    optimizer.step()
    assert model.weight.item() == pytest.approx(-0.1, rel=1e-2)  # uncorrected: -0.07


@pytest.mark.parametrize("make", [tiny_bert, tiny_modern_bert])
def test_one_step_gives_every_parameter_a_gradient(make):
    torch.manual_seed(0)
    model = make()
    batch = batches()(0)
    batch = (
        type(batch)(**{**vars(batch), "segments": torch.arange(batch.num_tokens) % 2})
        if (model.embeddings.segments is not None)
        else batch
    )
    MaskedLM().loss(model, batch).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("k", [2, 4, 100])  # 100: more parts than sequences
def test_accumulation_equals_the_whole_batch(k):
    results = []
    for accumulation in (1, k):
        torch.manual_seed(0)
        state = State.begin(tiny_bert(), exact(optimizer=AdamW(lr=1e-3)))
        settings = exact(accumulation=accumulation, optimizer=AdamW(lr=1e-3))
        seen = list(steps(state, MaskedLM(), batches(), settings, total_steps=8))
        results.append(([s.loss for s in seen], state.model.state_dict()))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=2e-6)
    for name, value in results[0][1].items():
        torch.testing.assert_close(value, results[1][1][name], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("world", "k"), [(2, 1), (3, 2), (40, 3)])
def test_processes_add_up_to_the_whole_batch(world, k, monkeypatch):
    """Also those that a small batch has no part for: they bring zeros, under the same names."""
    model, batch = tiny_bert(), batches()(0)
    monkeypatch.setattr("firth.training.loop.seed_step", lambda *_: None)
    training, objective = exact(accumulation=k), _Named()
    whole, _ = _accumulate(model, objective, batch, exact(), 0, Ranks())
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    found = [
        _accumulate(model, objective, batch, training, 0, Ranks(rank, world))
        for rank in range(world)
    ]
    assert sum(float(total) for total, _ in found) == pytest.approx(float(whole), abs=1e-5)
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, atol=1e-6, rtol=1e-4)
    assert all(list(parts) == ["cross_entropy"] for _, parts in found)
    named = sum(float(parts["cross_entropy"]) for _, parts in found)
    assert named == pytest.approx(float(whole), abs=1e-5)


class _Named(MaskedLM):
    def loss(self, model, batch):
        found = super().loss(model, batch)
        return replace(found, parts={"cross_entropy": found.total})


def test_a_run_that_stops_where_validation_is_due_does_not_miss_it(tmp_path):
    """Taken up again it begins behind that step."""

    class Stopping(MaskedLM):
        def loss(self, model, batch):
            if model.training and next(count) == 10:
                signal.raise_signal(signal.SIGINT)
            return super().loss(model, batch)

    settings = exact(log_every=5, evaluate_every=10, save_every=10)
    plan = Run(
        path=tmp_path,
        total_steps=20,
        valid={"": HeldOut(batches(), 2)},
        valid_objective=MaskedLM(),
        export=lambda _model: None,
    )
    count = itertools.count(1)
    with pytest.raises(Interrupted, match="after step 10 of 20"):
        train(State.begin(tiny_bert(), settings), Stopping(), batches(), settings, plan)
    train(State.begin(tiny_bert(), settings), MaskedLM(), batches(), settings, plan)
    assert [row["step"] for row in read_metrics(tmp_path) if "valid_loss" in row] == [10, 20]


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(
    interrupted, tmp_path, monkeypatch
):
    """Also where the run was taken up again after it: the lowest loss is kept."""

    class Stopping(MaskedLM):
        def loss(self, model, batch):
            if next(count) == 25 and interrupted:
                signal.raise_signal(signal.SIGINT)
            return super().loss(model, batch)

    count, losses = itertools.count(1), iter([3.0, 2.0, 4.0])
    monkeypatch.setattr("firth.training.run.mean_loss", lambda *_: next(losses))
    settings = exact(log_every=30, evaluate_every=10, save_every=10)
    plan = Run(path=tmp_path, total_steps=30, valid={"": HeldOut(batches(), 1)})
    if interrupted:
        with pytest.raises(Interrupted, match="after step 25 of 30"):
            train(State.begin(tiny_bert(), settings), Stopping(), batches(), settings, plan)
    loss = train(State.begin(tiny_bert(), settings), Stopping(), batches(), settings, plan)
    assert loss == 4.0
    last, best = ((tmp_path / "checkpoints" / n).read_text() for n in ("last", "best"))
    assert (best, last) == ("step-00000020", "step-00000030")


def test_workers_do_not_change_a_step():
    losses = []
    for workers in (0, 1, 3):
        torch.manual_seed(0)
        settings = exact(workers=workers)
        state = State.begin(tiny_bert(dropout=0.1), settings)
        losses.append(
            [s.loss for s in steps(state, MaskedLM(), batches(), settings, total_steps=12)]
        )
    assert losses[0] == losses[1] == losses[2]


def test_average_follows_its_formula():
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    average = WeightAverage(model, 0.9)
    torch.nn.init.constant_(model.weight, 2.0)
    average.update(model, 0)  # decay min(0.9, 1/10)
    assert average.weights["weight"].item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    average.update(model, 1000)
    assert average.weights["weight"].item() == pytest.approx(0.9 * 1.9 + 0.1 * 2)


@pytest.mark.parametrize("make", [tiny_bert, tiny_modern_bert])
@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Muon(lr=0.05, rest=AdamW(lr=1e-2))])
def test_it_learns_what_follows_what(make, optimizer):
    torch.manual_seed(0)
    source = batches(total=300)
    state = State.begin(make(), exact(optimizer=optimizer))
    for _ in steps(state, MaskedLM(), source, exact(optimizer=optimizer), total_steps=300):
        pass
    loss = mean_loss(state.model, MaskedLM(), source, 4, exact())
    assert loss < 0.7 * math.log(55)  # the unigram entropy of this text


def test_the_run_is_logged_and_validated(tmp_path):
    torch.manual_seed(0)
    settings = exact(log_every=5, evaluate_every=10, save_every=10, average=0.5)
    exported = []
    loss = train(
        State.begin(tiny_bert(), settings),
        MaskedLM(),
        batches(),
        settings,
        Run(
            path=tmp_path,
            total_steps=20,
            valid={"": HeldOut(batches(), 2)},
            export=exported.append,
        ),
    )
    rows = read_metrics(tmp_path)
    assert [r["step"] for r in rows if "loss" in r] == [5, 10, 15, 20]
    validated = [r for r in rows if "valid_loss" in r]
    assert [r["step"] for r in validated] == [10, 20]
    assert validated[-1]["valid_loss"] == loss
    assert len(exported) == 1
    last, best = ((tmp_path / "checkpoints" / n).read_text() for n in ("last", "best"))
    assert last == best == "step-00000020"


@pytest.mark.parametrize(("count", "every", "expected"), [(1, 1000, 978), (50, 10, 155)])
def test_minutes_include_the_validations(count, every, expected, monkeypatch):
    """A step and a validation batch take 60 ms each here, of a budget of a minute."""
    now = iter(x / 100 for x in range(10**6))
    monkeypatch.setattr("firth.training.run.time.perf_counter", lambda: next(now))
    monkeypatch.setattr("firth.training.run.mean_loss", lambda *_: [next(now) for _ in range(5)])
    monkeypatch.setattr(
        "firth.training.run.steps",
        lambda *_, **__: (a_step(i, 1.0, seconds=0.06) for i in range(15)),
    )
    settings = exact(evaluate_every=every)
    held_out = {"": HeldOut(batches(), count)}
    found = steps_within(
        1.0, tiny_bert(), MaskedLM(), batches(), settings,
        ranks=Ranks(), valid=held_out, valid_objective=MaskedLM(),
    )  # fmt: skip
    assert found == pytest.approx(expected, abs=2)
    spent = 0.06 * (found + count * (found / every + 1))
    assert spent == pytest.approx(0.98 * 60, rel=0.01)


def test_gradients_are_computed_at_full_speed_too(monkeypatch):
    seen = []
    monkeypatch.setattr("firth.device._is_intel", lambda: False)
    monkeypatch.setattr("firth.device._cpu_has", lambda _probe: False)
    model = tiny_bert()
    parameter = next(model.parameters())
    parameter.register_hook(lambda _: seen.append(torch.get_float32_matmul_precision()))
    _accumulate(model, MaskedLM(), batches()(0), exact(), 0, Ranks())
    assert seen == ["medium"]
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_full_disk_is_named_where_the_course_is_kept(tmp_path):
    tracker = Tracker(tmp_path)

    class Full:
        def write(self, _text: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            self.write("")

    tracker._file.close()
    tracker._file = Full()
    with pytest.raises(ResourceError, match=r"metrics\.jsonl: the disk is full"):
        tracker.write({"step": 1})
    tracker.close()


def test_tensorboard_shows_one_course(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra track"
    )
    for begin, end, loss in ((0, 6, 1.0), (3, 6, 2.0)):
        tracker = Tracker(tmp_path, from_step=begin, tensorboard=True)
        for step in range(begin + 1, end + 1):
            tracker.write({"step": step, "loss": loss})
        tracker.close()
        time.sleep(1.1)  # a new file each second
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(one.step, one.value) for one in events.Scalars("loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]


def a_step(step: int, loss: float, gradient_norm: float = 1.0, seconds: float = 1.0) -> Step:
    return Step(
        step=step,
        loss=loss,
        num_predictions=1,
        num_tokens=1,
        seconds=seconds,
        learning_rate=1e-3,
        gradient_norm=gradient_norm,
    )


def test_divergence_is_noticed(caplog):
    watch = Watch(unigram_entropy=4.0)
    for step in range(300):
        watch.see(a_step(step, 5.0), 400)
    assert "above the unigram entropy" in caplog.text
    assert caplog.text.count("above the unigram entropy") == 1
    for step in range(300, 306):
        watch.see(a_step(step, 20.0), 400)
    watch.smoothed = 7.1  # 2.1 above the lowest
    with pytest.raises(DivergedError, match="risen to"):
        watch.see(a_step(400, 7.1), 400)
    late = Watch(unigram_entropy=4.0)
    for step in range(100):  # a mask rate that rises from 0
        late.see(replace(a_step(step, 0.0), num_predictions=0), 400)
    for step in range(100, 200):
        late.see(a_step(step, 7.0), 400)
    assert late.lowest == pytest.approx(7.0)
    for bad in (a_step(1, math.nan), a_step(1, 1.0, math.inf)):
        with pytest.raises(DivergedError, match="expected finite"):
            Watch(unigram_entropy=None).see(bad, 10)


@dataclass(frozen=True)
class BreaksAt:
    """A loss that is no number from its n-th call on."""

    first: int
    calls: list[int] = field(default_factory=list)

    def loss(self, model, batch):
        self.calls.append(1)
        found = MaskedLM().loss(model, batch)
        return replace(found, total=found.total * (1.0 if len(self.calls) < self.first else np.nan))


@pytest.mark.parametrize("first", [7, 10])
def test_what_has_diverged_is_not_saved(tmp_path, first):
    settings = exact(log_every=100, evaluate_every=100, save_every=5)
    run = Run(path=tmp_path, total_steps=20)
    with pytest.raises(DivergedError, match=f"step {first}: the loss is nan"):
        train(State.begin(tiny_bert(), settings), BreaksAt(first), batches(), settings, run)
    assert (tmp_path / "checkpoints" / "last").read_text() == "step-00000005"


@dataclass(frozen=True)
class RisesAt(BreaksAt):
    """A loss that is three times as high from its n-th call on."""

    def loss(self, model, batch):
        self.calls.append(1)
        found = MaskedLM().loss(model, batch)
        return replace(found, total=found.total * (1.0 if len(self.calls) < self.first else 3.0))


def test_a_run_that_is_resumed_diverges_where_it_would_have(tmp_path, monkeypatch):
    monkeypatch.setattr("firth.training.run._RISE", 0.5)
    settings = exact(log_every=100, evaluate_every=100, save_every=1)
    run = Run(path=tmp_path, total_steps=20)
    for first in (5, 0):
        with pytest.raises(DivergedError, match="step 8: the loss has risen"):
            train(State.begin(tiny_bert(), settings), RisesAt(first), batches(), settings, run)
        assert (tmp_path / "checkpoints" / "last").read_text() == "step-00000007"


def test_budgets():
    assert Training(tokens=81920).fixed_steps(7) == 10
    assert Training(tokens=81920).fixed_steps(7, 7 * 4096) == 20  # batches are not full
    assert Training(epochs=1.5).fixed_steps(10) == 15
    assert Training(steps=3).fixed_steps(10) == 3
    assert Training(minutes=3).fixed_steps(10) is None
    with pytest.raises(ConfigError, match="one budget"):
        Training(steps=3, minutes=2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("clip", -1.0), ("seed", -1), ("workers", -1), ("nonmonotone", -1), ("average", 1.0),
     ("average", -0.1), ("layer_decay", 0.0), ("accumulation", 0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name, value):
    """A clip of -1 would turn the gradient round."""
    with pytest.raises(ConfigError, match=f"{name} is {value}, expected"):
        Training(**{name: value})


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler here")
@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_compiled_steps_have_the_same_losses(dropout):
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        training = Training(
            optimizer=AdamW(lr=1e-3), compile=compiled, precision="float32", workers=0
        )
        state = State.begin(tiny_modern_bert(num_layers=2, dropout=dropout), training)
        run = steps(state, MaskedLM(), batches(4), training, total_steps=4)
        found.append([step.loss for step in run])
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_muon_leaves_output_matrices_alone():
    model = tiny_bert(pair_head=True)
    names = {id(p): name for name, p in model.named_parameters()}
    muon, _ = Muon().build(model.named_parameters())
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert "pooler.weight" in taken
    assert "pair_head.weight" not in taken


@pytest.mark.parametrize(("tied", "rate"), [(True, 0.4), (False, 0.1)])
def test_a_softmax_learns_with_the_top_where_the_embeddings_are_its_matrix(tied, rate):
    model = GPT(
        GPTConfig(
            vocab_size=50, num_layers=2, hidden_size=8, num_heads=2, intermediate_size=16, tied=tied
        )
    )
    training = Training(steps=1, optimizer=AdamW(lr=0.4), layer_decay=2.0)
    rates = {
        id(p): group["peak_lr"]
        for optimizer in State.begin(model, training).optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert len(rates) == len(list(model.parameters()))
    assert rates[id(model.output_matrix)] == pytest.approx(0.4)
    assert rates[id(model.embeddings.tokens.weight)] == pytest.approx(rate)  # two layers above it


def test_processes_without_a_rank_are_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE=2 and no RANK"):
        join(torch.device("cpu"))
