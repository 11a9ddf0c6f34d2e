"""Killed, interrupted, resumed, on one process or two: the same weights."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import firth
from firth.atomic import write_text
from firth.device import pick_device
from firth.errors import CheckpointError, ConfigError, ResourceError
from firth.training import State, Training, checkpoint
from firth.training.tracking import read_metrics
from tests.sources import tiny_bert

ROOT = Path(__file__).resolve().parents[1]


def start(run: Path, *arguments: str, environment: dict | None = None) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.train_process", str(run), *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> int:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 or "Interrupted" in errors, errors
    return process.returncode


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.time() + 60
    while time.time() < deadline:
        rows = read_metrics(run)
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was never reached")


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.find(run)
    assert path is not None
    files = ("model", "optimizer", "average")
    return {f"{n}.{k}": v for n in files for k, v in load_file(path / f"{n}.safetensors").items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_killed_at_random_steps_and_resumed_bit_for_bit(tmp_path, optimizer):
    assert finish(start(tmp_path / "whole", "0", "1", optimizer)) == 0
    rng = random.Random(optimizer)
    killed = tmp_path / "killed"
    for workers in ("2", "1"):
        process = start(killed, workers, "1", optimizer)
        wait_for_step(killed, rng.randint(3, 18) + (15 if workers == "1" else 0))
        process.kill()
        process.communicate()
    path = checkpoint.find(killed)
    assert path is not None
    resumed_at = checkpoint.read_record(path)["step"]
    assert resumed_at > 0
    before = [row for row in read_metrics(killed) if row["step"] <= resumed_at]
    assert finish(start(killed, "3", "1", optimizer)) == 0
    # With their times, which steps done again would not have again.
    assert [row for row in read_metrics(killed) if row["step"] <= resumed_at] == before
    expected, found = final_weights(tmp_path / "whole"), final_weights(killed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name

    def course(run: Path) -> list[tuple[int, float]]:
        return [(r["step"], r.get("loss", r.get("valid_loss"))) for r in read_metrics(run)]

    assert course(killed) == course(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_saves_and_says_how_to_resume(tmp_path, number):
    process = start(tmp_path, "1", "1", "adamw", "4000")
    wait_for_step(tmp_path, 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert "all is saved" in errors
    path = checkpoint.find(tmp_path)
    assert path is not None
    assert f"after step {checkpoint.read_record(path)['step']} of 4000" in errors


def test_two_processes_give_the_losses_of_one(tmp_path):
    assert finish(start(tmp_path / "one", "0", "2", "adamw")) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        start(
            tmp_path / "two",
            "0",
            "1",
            "adamw",
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [finish(process) for process in processes] == [0, 0]
    one, two = (
        {r["step"]: r["loss"] for r in read_metrics(tmp_path / name) if "loss" in r}
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    worst = max(abs(one[step] - two[step]) for step in one)
    assert worst < 1e-5, worst


def test_only_the_last_two_and_the_best_are_kept(tmp_path):
    state = State.begin(tiny_bert(), Training())
    for step in (1, 2, 3, 4, 5):
        state.step = step
        checkpoint.save(tmp_path, state, {"seconds": 0.0}, best=step == 2)
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir())
    assert kept == ["step-00000002", "step-00000004", "step-00000005"]
    assert {p.suffix for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()} <= {
        ".safetensors",
        ".json",
        "",
    }


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoint.save(tmp_path, State.begin(tiny_bert(), Training()), {})
    path = checkpoint.find(tmp_path)
    assert path is not None
    other = State.begin(tiny_bert(hidden_size=64), Training())
    with pytest.raises(CheckpointError, match="does not fit this model"):
        checkpoint.restore(path, other)


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    from firth import atomic
    from firth.errors import ResourceError

    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(ResourceError, match="a checkpoint needs"):
        checkpoint.save(tmp_path, State.begin(tiny_bert(), Training()), {})
    assert checkpoint.find(tmp_path) is None


def test_a_run_from_before_a_setting_existed_goes_on(tmp_path, papers):
    """What its recipe.json does not say has the default; another value is another run."""
    recipe = firth.recipe("bert", size="tiny", vocab_size=300).with_settings(
        {"training.steps": 2, "training.batch_tokens": 512, "data.valid": 0.3}
    )
    corpus = firth.Corpus.from_texts(papers[:20])
    firth.pretrain(recipe, corpus, tmp_path / "run")
    path = tmp_path / "run" / "recipe.json"
    record = json.loads(path.read_text())
    for part in ("recipe", "requested"):
        del record[part]["data"]["smoothing"]
        del record[part]["training"]["clip"]
    path.write_text(json.dumps(record))
    before = read_metrics(tmp_path / "run")
    firth.pretrain(recipe, corpus, tmp_path / "run")
    assert read_metrics(tmp_path / "run") == before
    with pytest.raises(ConfigError, match=r"training\.clip: 1\.0 there, 0\.5 now"):
        firth.pretrain(recipe.with_settings({"training.clip": 0.5}), corpus, tmp_path / "run")


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path):
    state = State.begin(tiny_bert(), Training())
    (tmp_path / "checkpoints" / "step-00000137.part").mkdir(parents=True)
    checkpoint.save(tmp_path, state, {})
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir())
    assert kept == ["step-00000000"]


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_a_checkpoint_that_lacks_weights_or_has_others_is_refused(tmp_path, change):
    state = State.begin(tiny_bert(), Training())
    path = checkpoint.save(tmp_path, state, {})
    weights = load_file(path / "model.safetensors")
    name = next(iter(weights))
    weights = {**weights, "other": torch.zeros(1)} if change == "unexpected" else weights
    if change == "missing":
        del weights[name]
    save_file(weights, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=change):
        checkpoint.restore(path, State.begin(tiny_bert(), Training()))


def test_a_write_that_fails_gives_advice(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: File too large (os error 27)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ResourceError, match=r"could not be written: .*File too large"):
        checkpoint.save(tmp_path, State.begin(tiny_bert(), Training()), {})
    assert checkpoint.find(tmp_path) is None


def test_what_went_wrong_is_said_though_clearing_up_fails_too(tmp_path):
    with pytest.raises(ResourceError, match="could not be written"):
        write_text(tmp_path / ("a" * 300), "text")


def test_devices_that_nothing_supports_are_refused():
    for name in ("mps", "meta", "nothing"):
        with pytest.raises(ConfigError, match="expected auto, cpu or cuda"):
            pick_device(name)
