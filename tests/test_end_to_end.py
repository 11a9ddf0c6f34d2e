"""The command line on real text: pre-train, kill, resume, adapt, use, load elsewhere."""

import contextlib
import gzip
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import firth
from firth.cli import VERBS, main
from firth.errors import CheckpointError, ConfigError
from firth.recipes import RECIPES
from firth.training.tracking import read_metrics

DEMO_DATA = Path(firth.__file__).parent / "demo_data"
ESCAPE = "\x1b"
SENTENCES = ["The results are shown in the table.", "", "We use a corpus, too."]


@dataclass
class Result:
    code: int
    out: str
    err: str

    def json(self) -> dict:
        return strict_json(self.out)


def strict_json(text: str) -> dict:
    """JSON as the standard has it, without Python's NaN and Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def run(*arguments: object, stdin: str | bytes = "", error: type = io.StringIO) -> Result:
    """`firth ARGUMENTS`, in this process."""
    out, err = io.StringIO(), error()
    before = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.stdin = before
    return Result(code, out.getvalue(), err.getvalue())


def good(*arguments: object, stdin: str = "") -> str:
    """The standard output of a command that must succeed."""
    result = run(*arguments, stdin=stdin)
    assert result.code == 0, result.err
    assert ESCAPE not in result.out + result.err
    return result.out


def start(*arguments: object, launcher: Sequence[str] = (sys.executable,)) -> subprocess.Popen:
    """`firth ARGUMENTS` as a process of its own."""
    return subprocess.Popen(
        [*launcher, "-m", "firth.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )


def wait_for_step(path: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.time() + 120
    while time.time() < deadline and process.poll() is None:
        rows = read_metrics(path)
        if rows and rows[-1]["step"] >= step:
            return
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f"step {step} was not reached: {process.communicate()[1]}")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, papers) -> Path:
    """About 80 kB of real text, a document a block."""
    path = tmp_path_factory.mktemp("corpus") / "papers.txt"
    path.write_text("\n\n".join(papers[:100]) + "\n", encoding="utf-8")
    assert 50_000 < path.stat().st_size < 100_000
    return path


def training(corpus: Path, output: Path, *more: object, steps: int) -> list[str]:
    """The arguments of a small pre-training run."""
    fixed = ["--size", "tiny", "--vocab", 600, "--documents", "block", "--steps", steps]
    settings = {
        "data.max_length": 64,
        "data.valid": 0.1,
        "data.valid_tokens": 2000,
        "model.max_length": 64,
        "training.batch_tokens": 512,
        "training.precision": "float32",
        "training.log_every": 5,
        "training.save_every": 10,
        "training.evaluate_every": 40,
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return list(map(str, ["pretrain", "bert", corpus, "-o", output, *fixed, *flags, *more]))


@dataclass
class Story:
    """A run that was killed, ended by SIGTERM, ended by SIGINT and then left to finish."""

    path: Path
    command: list[str]
    terminated: Result
    interrupted: Result
    finished: Result


STEPS = 240


@pytest.fixture(scope="module")
def story(tmp_path_factory, corpus) -> Story:
    path = tmp_path_factory.mktemp("a run") / "run"
    command = training(corpus, path, steps=STEPS)
    process = start(*command)
    wait_for_step(path, 15, process)
    process.kill()
    process.communicate()
    ended = []
    for number, step in ((signal.SIGTERM, 40), (signal.SIGINT, 80)):
        process = start(*command)
        wait_for_step(path, step, process)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        ended.append(Result(process.returncode, out, err))
    return Story(path, command, *ended, finished=run(*command))


# Pre-training, signals, resuming


def test_a_killed_run_goes_on_to_its_end(story):
    assert story.finished.code == 0, story.finished.err
    record = json.loads((story.path / "recipe.json").read_text())
    assert record["recipe"]["training"]["steps"] == STEPS
    rows = read_metrics(story.path)
    assert [row["step"] for row in rows if "loss" in row] == list(range(5, STEPS + 1, 5))
    assert [row["step"] for row in rows if "valid_loss" in row] == [*range(40, STEPS + 1, 40)]
    tokens = [row["tokens"] for row in rows if "loss" in row]
    assert tokens == sorted(tokens)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("which", "code", "step"), [("terminated", 143, 40), ("interrupted", 130, 80)]
)
def test_a_signal_saves_and_says_how_to_go_on(story, which, code, step):
    result = getattr(story, which)
    assert result.code == code, result.err
    assert result.out == ""
    last = result.err.strip().splitlines()[-1]
    assert "all is saved" in last
    assert last.endswith(f"To go on: {shlex.join(['firth', *story.command])}")
    assert f"of {STEPS}" in last
    assert "Traceback" not in result.err
    resumed = story.interrupted if which == "terminated" else story.finished
    at = int(last.split("after step ")[1].split()[0])
    assert at >= step
    assert f"resuming from step {at} of {STEPS}" in resumed.err


def test_results_go_to_stdout_and_logs_to_stderr(story):
    assert story.finished.out == f"{story.path}\n"
    for wanted in ("validation loss", "tok/s", "Next: firth fill"):
        assert wanted in story.finished.err
    for result in (story.terminated, story.interrupted, story.finished):
        assert ESCAPE not in result.out + result.err


def test_a_finished_run_stays_as_it_is(story):
    before = (story.path / "model.safetensors").read_bytes()
    metrics = (story.path / "metrics.jsonl").read_bytes()
    good(*story.command)
    assert (story.path / "model.safetensors").read_bytes() == before
    assert (story.path / "metrics.jsonl").read_bytes() == metrics


def test_files_of_a_run_have_the_rights_of_any_other(story, tmp_path):
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    model = next(path for path in story.path.rglob("model.safetensors"))
    assert model.stat().st_mode == expected
    assert {path.stat().st_mode for path in story.path.rglob("*.safetensors")} == {expected}


def test_a_run_directory_holds_no_pickle(story):
    files = [path for path in story.path.rglob("[!.]*") if path.is_file()]
    plain = {".json", ".jsonl", ".md", ".safetensors", ".tokens", ".words", ".documents", ""}
    assert {path.suffix for path in files} <= plain
    assert {p.name for p in files if not p.suffix} == {"last", "best"}
    assert [p for p in files if p.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04")] == []
    top = {path.name for path in story.path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.json"} <= top
    assert {"metrics.jsonl", "README.md", "checkpoints", "data"} <= top
    assert [name for name in top if name.endswith(".tmp")] == []


@pytest.mark.parametrize("recipe", ["bert", "modern-bert"])
def test_transformers_loads_the_run_with_the_same_logits(story, corpus, tmp_path, recipe):
    transformers = pytest.importorskip("transformers")
    path = story.path
    if recipe == "modern-bert":
        path = tmp_path / "run"
        command = training(corpus, path, "--model.num_layers", 4, steps=5)
        command[1] = recipe
        good(*command)
    model = transformers.AutoModelForMaskedLM.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    assert type(model).__name__.lower().startswith(recipe.replace("-", ""))
    texts = ["The [MASK] of the parser are naïve, aren't they?", "A corpus."]
    padded = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**padded).logits
    lm = firth.load(path, device="cpu", precision="float32")
    assert isinstance(lm, firth.LanguageModel)
    for i, one in enumerate(lm.logits(texts)):
        assert (
            padded["input_ids"][i][: len(one.tokens)].tolist()
            == [lm.tokenizer.encode(texts[i]).ids.tolist()][0]
        )
        np.testing.assert_allclose(one.values, theirs[i][: len(one.tokens)], atol=1e-5)


def test_pretrain_returns_the_model_that_load_gives(corpus, tmp_path):
    """Averaged weights, where they are kept, are the model."""
    from dataclasses import replace

    chosen = firth.recipe("bert", size="tiny", vocab_size=600)
    settings = replace(chosen.training, steps=6, batch_tokens=512, average=0.9, precision="float32")
    chosen = replace(chosen, training=settings, data=replace(chosen.data, valid=0.1))
    text = firth.Corpus.from_files(corpus, documents="block")
    lm = firth.pretrain(chosen, text, tmp_path / "run")
    loaded = firth.load(tmp_path / "run")
    assert isinstance(loaded, firth.LanguageModel)
    for name, tensor in lm.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name


def test_two_processes_give_the_validation_loss_of_one(corpus, tmp_path):
    losses = []
    one = training(corpus, tmp_path / "one", "--data.valid", 0.2, steps=20)
    good(*one)
    two = training(corpus, tmp_path / "two", "--data.valid", 0.2, steps=20)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    process = start(*two, launcher=[*launcher, "--master_port", str(port)])
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    for name in ("one", "two"):
        rows = read_metrics(tmp_path / name)
        assert [r["step"] for r in rows] == [5, 10, 15, 20, 20]
        losses.append(rows[-1]["valid_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert out == f"{tmp_path / 'two'}\n"  # the first process speaks for all
    assert err.count("validation loss") == 1
    assert err.count("parameters, ") == 1


# Settings that cannot be used


def test_other_settings_in_an_existing_run_are_refused(story, tiny_run):
    before = sorted(p.name for p in story.path.rglob("*"))
    for more, named in (
        (["--training.seed", "1"], "training.seed: 0 there, 1 now"),
        (["--vocab", "700"], "vocab_size: 600 there, 700 now"),
    ):
        result = run(*story.command, *more)
        assert result.code == 2
        assert "holds a run with other settings" in result.err
        assert named in result.err
    assert sorted(p.name for p in story.path.rglob("*")) == before


def test_another_corpus_in_an_existing_run_is_refused(story, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("Quite another text.\n\n" * 100, encoding="utf-8")
    command = [str(other) if word.endswith("papers.txt") else word for word in story.command]
    result = run(*command)
    assert result.code in (2, 3)
    assert "choose another" in result.err


def test_settings_of_an_attempt_that_never_began_are_forgotten(corpus, tmp_path, monkeypatch):
    """Ctrl-C while text is encoded, then the command with another vocabulary."""

    def stop(*_arguments, **_named):
        raise KeyboardInterrupt

    path = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr("firth.api.training_text.write_shards", stop)
        assert run(*training(corpus, path, steps=2)).code == 130
    good(*training(corpus, path, "--vocab", 300, steps=2))
    assert firth.Tokenizer.load(path).vocabulary.size == 300


def test_an_interruption_while_an_adapted_model_is_saved(tiny_run, tables, tmp_path, monkeypatch):
    save = firth.AdaptedModel.save

    def interrupted(model, *arguments, **named):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        save(model, *arguments, **named)

    monkeypatch.setattr(firth.AdaptedModel, "save", interrupted)
    result = run(*adapting(tiny_run, tables, tmp_path / "out", "frozen", "--epochs", 1))
    assert result.code == 130
    assert f"interrupted; {tmp_path / 'out'} is saved" in result.err
    assert firth.load(tmp_path / "out").predict(["The tide is in."])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_model_is_not_overwritten_by_what_is_made_of_it(tiny_run, tables, tmp_path):
    """`-o` names the run itself: its pre-trained weights would be lost."""
    shutil.copytree(tiny_run, tmp_path / "run")
    before = contents(tmp_path / "run")
    for output in (tmp_path / "run", tmp_path / "run" / ".." / "run"):
        result = run(*adapting(tmp_path / "run", tables, output, "frozen", "--epochs", 1))
        assert result.code == 2
        assert "-o" in result.err
    assert contents(tmp_path / "run") == before


def test_pre_training_does_not_overwrite_a_model_that_is_no_run(corpus, fine_tuned, tmp_path):
    shutil.copytree(fine_tuned, tmp_path / "model")
    before = contents(tmp_path / "model")
    result = run(*training(corpus, tmp_path / "model", steps=1))
    assert result.code == 2
    assert "-o" in result.err
    assert contents(tmp_path / "model") == before


@pytest.mark.parametrize("name", ["data", "tokenizer.json", "README.md"])
def test_a_run_does_not_take_the_place_of_other_files(name, corpus, tmp_path):
    """`-o .`, twice: what an attempt left behind is cleared away, the user's files are not."""
    mine = tmp_path / name / "mine.txt" if name == "data" else tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("my own words")
    for vocabulary in (300, 400):
        result = run(*training(corpus, tmp_path, "--vocab", vocabulary, steps=1))
        assert result.code == 2
        assert f"{name} is there already" in result.err
    assert contents(tmp_path) == {str(mine.relative_to(tmp_path)): b"my own words"}


def test_a_language_model_is_not_saved_over_an_adapted_one(tiny_run, fine_tuned, tmp_path):
    shutil.copytree(fine_tuned, tmp_path / "model")
    with pytest.raises(ConfigError, match="holds another model"):
        firth.load(tiny_run).save(tmp_path / "model")
    assert contents(tmp_path / "model") == contents(fine_tuned)


def test_a_saved_model_is_replaced_only_when_asked(tiny_run, fine_tuned, tmp_path):
    for number, origin in enumerate((tiny_run, fine_tuned)):
        loaded, path = firth.load(origin), tmp_path / str(number)
        loaded.save(path)
        before = contents(path)
        with pytest.raises(ConfigError, match=r"holds a model already.*overwrite=True"):
            loaded.save(path)
        assert contents(path) == before
        loaded.save(path, overwrite=True)
        assert contents(path) == before


def test_a_record_of_other_labels_is_refused(fine_tuned, tmp_path):
    """Another program has put its classifier into the directory since."""
    shutil.copytree(fine_tuned, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    names = list(config["id2label"].values())[::-1]
    config["id2label"] = dict(enumerate(names))
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"delete adaptation.json to load"):
        firth.load(tmp_path / "model")
    (tmp_path / "model" / "adaptation.json").unlink()
    assert firth.load(tmp_path / "model").task.labels == tuple(names)


def test_a_run_that_has_not_begun_can_be_inspected(tmp_path):
    one = tmp_path / "one.txt"
    one.write_text("One document, of which none can be held out.\n")
    assert run(*training(one, tmp_path / "run", steps=1)).code == 3
    assert "training\tnot begun" in good("inspect", tmp_path / "run")
    result = run("fill", tmp_path / "run", "A [MASK].")
    assert result.code == 1
    assert "training has not come to its end" in result.err


@pytest.mark.parametrize("name", ["empty.txt", "blank.txt"])
def test_a_corpus_without_text_is_said_to_be_empty(tmp_path, name):
    (tmp_path / name).write_text("" if name == "empty.txt" else " \n\n\t\n")
    result = run(*training(tmp_path / name, tmp_path / "run", steps=1))
    assert result.code == 3
    assert f"there is no text in {tmp_path / name}" in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), 5),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"
                      " memory: you tried to allocate 9 bytes"), 5),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), 5),
    ],
)  # fmt: skip
def test_lack_of_memory_ends_with_5(error, code, monkeypatch):
    def lack(_arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr("firth.cli.show.recipes", lack)
    assert run("recipes").code == code
    monkeypatch.setattr("firth.cli.show.recipes", lambda _arguments: [][0])
    with pytest.raises(IndexError):
        run("recipes")


def test_a_run_that_diverges_ends_with_4(corpus, tmp_path):
    command = training(corpus, tmp_path / "run", "--training.optimizer.lr", 1e6, steps=60)
    result = run(*command)
    assert result.code == 4
    assert "try a lower learning rate" in result.err
    assert result.out == ""


def test_a_budget_in_a_file_replaces_that_of_the_recipe(corpus, tmp_path):
    settings = tmp_path / "settings.toml"
    settings.write_text("[training]\ntokens = 1536\n")
    command = training(corpus, tmp_path / "run", "--config", settings, steps=1)
    at = command.index("--steps")
    good(*command[:at], *command[at + 2 :])
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert record["recipe"]["training"]["steps"] == 3


def test_a_budget_of_minutes_is_fixed_once(corpus, tmp_path, monkeypatch):
    """The number of steps that was measured stays that of the run, on a machine of any speed."""
    budgets, counts = [], iter((3, 5))
    monkeypatch.setattr(
        "firth.api.pretraining.steps_within",
        lambda minutes, *_, **__: budgets.append(minutes) or next(counts),
    )
    command = training(corpus, tmp_path / "run", steps=1)
    at = command.index("--steps")
    command = [*command[:at], *command[at + 2 :], "--minutes", "0.01"]
    good(*command)
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["training"]
    assert (record["steps"], record["minutes"]) == (3, None)
    assert read_metrics(tmp_path / "run")[-1]["step"] == 3
    again = run(*command)
    assert again.code == 0
    assert "resuming from step 3 of 3" in again.err
    assert budgets == [0.01]


def test_a_budget_of_minutes_is_measured(corpus, tmp_path):
    command = training(corpus, tmp_path / "run", steps=1)
    at = command.index("--steps")
    result = run(*command[:at], *command[at + 2 :], "--minutes", "0.01")
    assert "measuring throughput" in result.err
    steps = json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["training"][
        "steps"
    ]
    assert read_metrics(tmp_path / "run")[-1]["step"] == steps >= 1


def test_settings_are_checked_together(corpus, tmp_path):
    """A longer window for model and data: in any order."""
    longer = ["--data.max_length", 70, "--model.max_length", 70]
    good(*training(corpus, tmp_path / "run", *longer, steps=1))


def test_settings_may_stand_anywhere(corpus, tmp_path):
    command = training(corpus, tmp_path / "run", steps=1)
    good(*command[:2], "--training.seed", 1, *command[2:])
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["training"]["seed"]


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        (["--training.stepz", "3"], "did you mean 'steps'?"),
        (["--trainin.clip", "3"], "did you mean 'training'?"),
        (["--objective.rate", "high"], "expected float"),
        (["--size", "minii"], "did you mean 'mini'?"),
        (["--device", "gpu"], "cuda"),
        (["--threads", "0"], "threads"),
        (["--steps", "0"], "at least 1"),
        (["--minutes", "1"], "one budget"),
        (["stray.txt", "--documents", "page"], "page"),
    ],
)
def test_a_bad_setting_ends_with_2_and_a_hint(corpus, tmp_path, more, hint):
    result = run(*training(corpus, tmp_path / "run", *more, steps=2))
    assert result.code == 2, result.err
    assert hint in result.err
    assert "Traceback" not in result.err


def test_an_unknown_recipe_or_verb_ends_with_2_and_a_hint(corpus, tmp_path):
    command = training(corpus, tmp_path / "run", steps=2)
    command[1] = "brt"
    for result in (run(*command), run("pretrian", "bert")):
        assert result.code == 2
        assert "did you mean" in result.err
    assert run().code == 2
    assert run("pretrain").code == 2
    assert run("adapt", "--no-such-flag").code == 2


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """Real labelled sentences: train, dev and test tables of 60, 30 and 40 rows."""
    folder = tmp_path_factory.mktemp("tables")
    for part, count in (("train", 60), ("dev", 30), ("test", 40)):
        with gzip.open(DEMO_DATA / f"roles.{part}.tsv.gz", "rt", encoding="utf-8") as file:
            lines = [next(file) for _ in range(count + 1)]
        (folder / f"{part}.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


def test_a_missing_file_ends_with_3(tiny_run, tables, fine_tuned, tmp_path):
    absent, train = tmp_path / "absent.tsv", tables / "train.tsv"
    output = ("-o", tmp_path / "out", "finetune")
    for arguments in (
        ("pretrain", "bert", absent, "-o", tmp_path / "run"),
        ("adapt", tiny_run, absent, *output),
        ("adapt", tiny_run, train, "--text", "sentence", "--dev", absent, *output),
        ("predict", fine_tuned, absent),
        ("predict", fine_tuned, tmp_path / "absent.txt"),
        ("evaluate", fine_tuned, absent),
        ("embed", tiny_run, absent, "-o", tmp_path / "x.npy"),
        ("score", tiny_run, absent),
    ):
        result = run(*arguments)
        assert result.code == 3, (arguments, result.err)
        assert absent.stem in result.err


def test_a_missing_model_is_named(tmp_path):
    for arguments in (
        ("fill", tmp_path / "nothing", "[MASK]"),
        ("predict", tmp_path / "nothing"),
        ("inspect", tmp_path),
    ):
        result = run(*arguments)
        assert result.code == 1
        assert str(tmp_path) in result.err


def test_a_bad_column_ends_with_2_and_a_hint(tiny_run, tables, tmp_path):
    output = ("-o", tmp_path / "out", "finetune")
    for columns, hint in (
        (("--text", "sentense", "--label", "label"), "did you mean 'sentence'?"),
        (("--text", "sentence", "--label", "3"), "no column 3"),
    ):
        result = run("adapt", tiny_run, tables / "train.tsv", *columns, *output)
        assert result.code == 2
        assert hint in result.err


def test_the_wrong_kind_of_model_ends_with_2(tiny_run, fine_tuned, tables, tmp_path):
    for arguments in (
        ("predict", tiny_run, tables / "test.tsv"),
        ("evaluate", tiny_run, tables / "test.tsv"),
        ("fill", fine_tuned, "[MASK]"),
        ("score", fine_tuned, tables / "test.tsv"),
        ("adapt", fine_tuned, tables / "train.tsv", "-o", tmp_path / "out", "finetune"),
    ):
        assert run(*arguments).code == 2, arguments


# Adapting, predicting, evaluating


def adapting(tiny_run: Path, tables: Path, output: Path, *more: object) -> list[str]:
    files = [tables / "train.tsv", "--dev", tables / "dev.tsv", "--task", "classification"]
    columns = ["--text", "sentence", "--label", "label", "--seeds", 2]
    return list(map(str, ["adapt", tiny_run, *files, *columns, "-o", output, *more]))


@pytest.fixture(scope="module")
def fine_tuned(tiny_run, tables, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("adapted") / "roles"
    options = ["--json", "finetune", "--epochs", 5, "--lr", 1e-3, "--batch_size", 16]
    result = run(*adapting(tiny_run, tables, path, *options))
    assert result.code == 0, result.err
    (path / "result.json").write_text(result.out)
    return path


def check_adapted(result: dict, path: Path) -> None:
    assert result["output"] == str(path)
    assert result["seeds"] == 2
    assert set(result["dev"]) == {"accuracy", "macro_f1", "mcc"}
    for found in result["dev"].values():
        assert found["interval"] >= 0
        assert -1 <= found["mean"] <= 1
    record = json.loads((path / "adaptation.json").read_text())
    accuracies = [seed["metrics"]["accuracy"] for seed in record["seeds"]]
    assert result["dev"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))


def test_adapt_by_fine_tuning(fine_tuned):
    result = strict_json((fine_tuned / "result.json").read_text())
    check_adapted(result, fine_tuned)
    assert result["layer_shares"] is None
    assert result["degenerate_runs"] == 0


def test_adapt_with_frozen_features(tiny_run, tables, tmp_path):
    path = tmp_path / "frozen"
    command = adapting(tiny_run, tables, path, "--test", tables / "test.tsv")
    result = strict_json(good(*command, "--json", "frozen", "--epochs", 10))
    check_adapted(result, path)
    assert sum(result["layer_shares"]) == pytest.approx(1)
    measured = strict_json(good("evaluate", path, tables / "test.tsv", "--json"))
    assert measured["accuracy"] == result["test"]["accuracy"]


def test_adapt_without_json_prints_a_table(tiny_run, tables, tmp_path):
    command = adapting(tiny_run, tables, tmp_path / "out", "--test", tables / "test.tsv")
    out = good(*command, "frozen", "--epochs", 2)
    names = [line.split("\t")[0] for line in out.splitlines()]
    dev = ["dev accuracy", "dev macro_f1", "dev mcc"]
    assert names == [*dev, *(name.replace("dev", "test") for name in dev), "layer mix"]
    assert all("±" in line for line in out.splitlines()[:3])


def test_predict_agrees_with_evaluate(fine_tuned, tables):
    found = [
        strict_json(line)
        for line in good("predict", fine_tuned, tables / "test.tsv", "--json").splitlines()
    ]
    gold = [line.split("\t")[1] for line in (tables / "test.tsv").read_text().splitlines() if line][
        1:
    ]
    right = np.mean([one["label"] == label for one, label in zip(found, gold, strict=True)])
    measured = strict_json(good("evaluate", fine_tuned, tables / "test.tsv", "--json"))
    assert measured["accuracy"] == pytest.approx(right)
    assert measured["num_examples"] == 40
    assert measured["main"] == "accuracy"
    assert np.sum(measured["details"]["confusion"]) == 40
    for one in found:
        assert sum(one["probabilities"].values()) == pytest.approx(1)
    plain = dict(
        line.split("\t") for line in good("evaluate", fine_tuned, tables / "test.tsv").splitlines()
    )
    assert float(plain["accuracy"]) == pytest.approx(right, abs=1e-4)


def test_predict_reads_lines_tables_and_stdin_alike(fine_tuned, tables, tmp_path):
    rows = [line.split("\t")[0] for line in (tables / "test.tsv").read_text().splitlines()][1:9]
    rows[3], rows[5] = "a form\x0cfeed", "a line\u2028separator"
    lines = tmp_path / "new.txt"
    lines.write_text("\n".join(rows) + "\n", encoding="utf-8")
    table = tmp_path / "new.tsv"  # without labels
    table.write_text("sentence\n" + "\n".join(rows) + "\n", encoding="utf-8")
    from_lines = good("predict", fine_tuned, lines, "--json")
    assert len(from_lines.splitlines()) == 8
    assert good("predict", fine_tuned, table, "--json") == from_lines
    for other, name in ((lines, "New.TXT"), (lines, "new"), (table, "new.txt.tsv")):
        renamed = shutil.copy(other, tmp_path / name)
        assert good("predict", fine_tuned, renamed, "--json") == from_lines
    assert good("predict", fine_tuned, "-", "--json", stdin=lines.read_text()) == from_lines


def test_an_adapted_model_is_replaced_only_when_asked(tiny_run, tables, fine_tuned):
    before = (fine_tuned / "model.safetensors").read_bytes()
    result = run(*adapting(tiny_run, tables, fine_tuned, "finetune", "--epochs", 1))
    assert result.code == 2
    assert "--overwrite" in result.err
    assert (fine_tuned / "model.safetensors").read_bytes() == before
    new = fine_tuned.with_name("new")
    options = ("--overwrite", "finetune", "--epochs", 1, "--reset_layers", 0)
    for _ in range(2):
        assert run(*adapting(tiny_run, tables, new, *options)).code in (0, 4)


def test_what_cannot_be_written_is_said_before_the_work(tiny_run, tables, fine_tuned, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    lines = tmp_path / "lines.txt"
    lines.write_text("A text.\n")
    for arguments in (
        adapting(tiny_run, tables, file, "finetune"),
        adapting(tiny_run, tables, file / "below", "finetune"),
        ("embed", tiny_run, lines, "-o", tmp_path),
        ("embed", tiny_run, lines, "-o", file / "x.npy"),
        ("embed", tiny_run, lines, "-o", lines),
        ("embed", tiny_run, lines, "-o", file),
        ("evaluate", tiny_run, lines, "--target", lines, "--outputs", tmp_path),
        ("evaluate", tiny_run, lines, "--target", file, "--outputs", file),
        ("evaluate", tiny_run, lines, "--target", file, "--outputs", tiny_run / "config.json"),
    ):
        result = run(*arguments)
        assert result.code == 2, (arguments, result.err)
        assert "choose another" in result.err
        assert "step" not in result.err
    assert file.read_text() == "mine"
    units = tmp_path / "x.units.tsv"
    units.write_text("A text.\n")
    result = run("embed", tiny_run, units, "-o", tmp_path / "x.npy", "--unit", "word")
    assert (result.code, units.read_text()) == (2, "A text.\n")
    assert f"{units} is what is read" in result.err


def test_a_label_of_the_test_part_alone_is_said_before_training(tiny_run, tables, tmp_path):
    test = tmp_path / "test.tsv"
    test.write_text((tables / "test.tsv").read_text() + "A new kind.\tUNHEARD_OF\n")
    result = run(*adapting(tiny_run, tables, tmp_path / "out", "--test", test, "finetune"))
    assert result.code == 3
    assert "row 42 has 'UNHEARD_OF'" in result.err
    assert not (tmp_path / "out").exists()


def test_long_texts_are_said_to_be_cut(tiny_run, tables, tmp_path):
    command = adapting(tiny_run, tables, tmp_path / "out", "finetune", "--epochs", 1)
    result = run(*command, "--max_length", 12)
    found = re.search(r"(\d+) of \d+ training texts fill max_length, which is 12", result.err)
    assert found
    assert int(found[1]) > 50


def test_predict_prints_label_and_probability(fine_tuned, tables):
    labels = {line.split("\t")[1] for line in (tables / "train.tsv").read_text().splitlines()[1:]}
    out = good("predict", fine_tuned, tables / "test.tsv")
    assert len(out.splitlines()) == 40
    for line in out.splitlines():
        label, probability = line.split("\t")
        assert label in labels
        assert 0 < float(probability) <= 1


def test_files_that_are_laid_out_otherwise_than_the_training_file(fine_tuned, tables, tmp_path):
    expected = good("predict", fine_tuned, tables / "test.tsv")
    measured = good("evaluate", fine_tuned, tables / "test.tsv")
    rows = [line.split("\t") for line in (tables / "test.tsv").read_text().splitlines() if line]
    other = tmp_path / "other.tsv"
    other.write_text("n\tclass\tbody\n" + "".join(f"1\t{b}\t{a}\n" for a, b in rows[1:]))
    bare = tmp_path / "bare.tsv"
    bare.write_text("".join(f"1\t{b}\t{a}\n" for a, b in rows[1:]))
    for file, text, label in ((other, "body", "class"), (bare, 3, 2)):
        assert good("predict", fine_tuned, file, "--text", text) == expected
        assert good("evaluate", fine_tuned, file, "--text", text, "--label", label) == measured
    header = ("--header", "true", "--text", 3)
    assert good("predict", fine_tuned, other, *header) == expected
    assert good("evaluate", fine_tuned, other, *header, "--label", 2) == measured
    for options, said in (
        (("predict", fine_tuned, other), "no column 'sentence' among 'n', 'class', 'body'"),
        (("predict", fine_tuned, other, "--text-pair", 2), "this one is of single texts"),
        (("predict", fine_tuned, "-", "--text", 2), "are about columns, not lines"),
        (("evaluate", fine_tuned, other, "--suite", "blimp", "--text", 2), "labelled examples"),
    ):
        result = run(*options, stdin="A line.")
        assert result.code == 2
        assert said in result.err


def test_lines_are_no_input_for_a_pair_task(tiny_run, tmp_path):
    rows = ["first\tsecond\tlabel"]
    rows += [f"the result {i}\t{w} corpus\t{w}" for i in range(30) for w in ("a", "no")]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n")
    columns = ("--text", "first", "--text_pair", "second")
    out = ("-o", tmp_path / "out", "finetune", "--epochs", 3, "--lr", 1e-3)
    good("adapt", tiny_run, tmp_path / "pairs.tsv", *columns, *out)
    assert len(good("predict", tmp_path / "out", tmp_path / "pairs.tsv").splitlines()) == 60
    (tmp_path / "lines.txt").write_text("One text alone.\n")
    result = run("predict", tmp_path / "out", tmp_path / "lines.txt")
    assert result.code == 2
    assert "with the columns 'first' and 'second'" in result.err


@pytest.mark.parametrize(
    ("kind", "cells"), [("multi_label", ["a,b", "b", "", "a"]), ("regression", ["1", "-2.5", "30"])]
)
def test_other_kinds_of_labels(tiny_run, tmp_path, kind, cells):
    rows = [f"result {i} of {i % 4}\t{cells[i % len(cells)]}" for i in range(40)]
    table = tmp_path / "rows.tsv"
    table.write_text("\n".join(["text\tlabel", *rows]) + "\n")
    out = ("-o", tmp_path / "out", "frozen", "--epochs", 2)
    assert "dev " in good("adapt", tiny_run, table, "--kind", kind, *out)
    plain = good("predict", tmp_path / "out", table).splitlines()
    found = [
        strict_json(line)["label"]
        for line in good("predict", tmp_path / "out", table, "--json").splitlines()
    ]
    assert len(plain) == len(found) == 40
    if kind == "regression":
        assert list(map(float, plain)) == pytest.approx(found, abs=1e-4)
    else:
        assert plain == [",".join(labels) for labels in found]
    measured = strict_json(good("evaluate", tmp_path / "out", table, "--json"))
    assert measured["num_examples"] == 40
    assert measured["main"] == {"multi_label": "micro_f1", "regression": "spearman"}[kind]


# Vectors, blanks, scores


@pytest.fixture
def lines(tmp_path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lm(tiny_run) -> firth.LanguageModel:
    model = firth.load(tiny_run)
    assert isinstance(model, firth.LanguageModel)
    return model


def test_embed_sentences(tiny_run, lm, lines, tmp_path):
    out = good("embed", tiny_run, lines, "-o", tmp_path / "vectors.npy")
    vectors = np.load(tmp_path / "vectors.npy", allow_pickle=False)
    assert out == f"{tmp_path / 'vectors.npy'}\t3x128\n"
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, lm.embed(SENTENCES), atol=1e-6)
    good("embed", tiny_run, "-", "-o", tmp_path / "all.npy", "--layers", 0, 1, -1, stdin="A\nB")
    assert np.load(tmp_path / "all.npy").shape == (2, 3, 128)


@pytest.mark.parametrize("split", [False, True])
def test_embed_words(tiny_run, lm, lines, tmp_path, split):
    target = tmp_path / "words.npy"
    out = good("embed", tiny_run, lines, "-o", target, "--unit", "word", *["--split"] * split)
    vectors = np.load(target, allow_pickle=False)
    units = tmp_path / "words.units.tsv"
    assert out.split("\t")[2] == f"{units}\n"
    header, *rows = units.read_text(encoding="utf-8").splitlines()
    assert header.split("\t") == ["line", "start", "end", "unit"]
    assert vectors.shape == (len(rows), 128)
    assert vectors.dtype == np.float32
    for row in rows:
        line, begin, end, unit = row.split("\t")
        assert SENTENCES[int(line) - 1][int(begin) : int(end)] == unit
    texts = [text.split() for text in SENTENCES] if split else SENTENCES
    found = lm.embed(texts, unit="word")
    assert [row.split("\t")[3] for row in rows] == [unit for one in found for unit in one.units]
    np.testing.assert_allclose(vectors, np.concatenate([one.vectors for one in found]), atol=1e-6)


def test_embed_names_the_file_that_it_wrote(tiny_run, lines, tmp_path):
    for unit in ("sentence", "word"):
        out = good("embed", tiny_run, lines, "-o", tmp_path / f"some.{unit}", "--unit", unit)
        for part in (out.split("\t")[0], *out.strip().split("\t")[2:]):
            assert Path(part).is_file(), part


def test_embed_makes_the_folder_of_its_output(tiny_run, lines, tmp_path):
    good("embed", tiny_run, lines, "-o", tmp_path / "new" / "vectors.npy")
    assert np.load(tmp_path / "new" / "vectors.npy").shape == (3, 128)


def test_bytes_on_stdin_that_are_not_utf8_are_named(tiny_run, tmp_path):
    result = run("embed", tiny_run, "-", "-o", tmp_path / "x.npy", stdin=b"a caf\xe9\n")
    assert result.code == 3
    assert "stdin: byte 5 is 0xe9, expected UTF-8" in result.err


def test_no_candidates_for_a_blank_are_refused(tiny_run):
    result = run("fill", tiny_run, "The [MASK] was late.", "--top-k", 0)
    assert result.code == 2
    assert "top_k is 0" in result.err


def test_seeds_are_a_sequence(lm):
    with pytest.raises(ConfigError, match="seeds is 5; expected a sequence"):
        firth.adapt(lm, firth.Classification(), [], seeds=5)


def test_a_path_is_no_corpus(corpus, tmp_path):
    with pytest.raises(ConfigError, match="corpus is a str; expected"):
        firth.pretrain(firth.recipe("bert"), str(corpus), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_embed_without_layers_is_refused(tiny_run, lines, tmp_path):
    result = run("embed", tiny_run, lines, "-o", tmp_path / "x.npy", "--layers")
    assert result.code == 2
    assert "layer" in result.err


def test_embed_of_an_empty_file_gives_no_rows(tiny_run, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    for unit in ("sentence", "word"):
        good("embed", tiny_run, tmp_path / "empty.txt", "-o", tmp_path / "x.npy", "--unit", unit)
        assert np.load(tmp_path / "x.npy").shape == (0, 128)


def test_fill_needs_a_text_and_shows_it_as_it_is(tiny_run):
    none = run("fill", tiny_run)
    assert none.code == 2
    assert "no text was given" in none.err
    assert "Ó" in good("fill", tiny_run, "Ó [MASK]", "--json")


def test_fill(tiny_run, lm):
    text = "The [MASK] of the [MASK]."
    rows = [line.split("\t") for line in good("fill", tiny_run, text, "--top-k", 3).splitlines()]
    first, second = lm.fill(text, top_k=3)
    assert [row[1:] for row in rows] == [[c.token, c.text] for c in [*first, *second]]
    assert [float(row[0]) for row in rows] == pytest.approx(
        [c.probability for c in [*first, *second]], abs=1e-4
    )
    found = [
        strict_json(line)
        for line in good("fill", tiny_run, text, "A [MASK].", "--json").splitlines()
    ]
    assert [(one["text"], one["blank"]) for one in found] == [
        (text, 1),
        (text, 2),
        ("A [MASK].", 1),
    ]
    assert all(len(one["candidates"]) == 5 for one in found)
    result = run("fill", tiny_run, "No blank.")
    assert result.code == 2
    assert "[MASK]" in result.err


def test_score(tiny_run, lm, lines):
    expected = lm.score(SENTENCES)
    result = run("score", tiny_run, lines)
    assert result.code == 0
    assert len(result.out.splitlines()) == 3
    for line, one in zip(result.out.splitlines(), expected, strict=True):
        nats, _, text = line.split("\t")
        assert float(nats) == pytest.approx(one.total, abs=1e-3)
        assert text == one.text
    logs = np.concatenate([one.log_probabilities for one in expected])
    total = float(result.err.strip().split("perplexity ")[1])
    assert total == pytest.approx(np.exp(-logs.mean()), rel=1e-3)
    assert run("score", tiny_run, stdin="\n".join(SENTENCES)).out == result.out


def test_score_as_json_is_json_for_empty_lines_too(tiny_run, lines):
    rows = [strict_json(line) for line in good("score", tiny_run, lines, "--json").splitlines()]
    assert [row["text"] for row in rows] == SENTENCES
    for row in rows:
        assert len(row["tokens"]) == len(row["log_probabilities"])
        assert row["nats"] == pytest.approx(sum(row["log_probabilities"]), abs=0.01)


# Showing


def test_recipes():
    names = [line.split("\t")[0] for line in good("recipes").splitlines()]
    assert names == list(RECIPES)
    assert {"bert", "roberta", "spanbert", "gpt", "t5", "transformer", "hybrid"} <= set(names)
    assert set(strict_json(good("recipes", "--json"))) == set(names)
    for name in names:
        shown = good("recipes", "show", name, "--size", "tiny")
        setting, size = {"elmo": ("projection_size", 64)}.get(name, ("hidden_size", 128))
        assert f"model.{setting} = {size}  # " in shown
        for line in shown.splitlines():
            path, given, rest = line.removeprefix("# ").partition(" = ")
            if given and " " not in path and not path.endswith("type"):
                assert re.search(r"  # [^ ].*[^ .]$", rest), line  # each says what it means
        whole = strict_json(good("recipes", "show", name, "--size", "tiny", "--json"))
        assert whole["model"][setting] == size
        assert whole["name"] == name
    result = run("recipes", "show", "bart")
    assert result.code == 2
    assert "did you mean 'bert'?" in result.err


def test_every_setting_that_recipes_show_can_be_given(corpus, tmp_path):
    """What `recipes show` prints is what `pretrain` takes."""
    lines = [line.split("  # ")[0] for line in good("recipes", "show", "bert").splitlines()]
    shown = [line.split(" = ") for line in lines if " = " in line]
    values = {name: value for name, value in shown if not name.endswith("type") and value != "null"}
    command = ["pretrain", "bert", corpus, "-o", tmp_path / "run"]
    flags = [
        word for name, value in values.items() if name != "name" for word in (f"--{name}", value)
    ]
    result = run(*command, *flags, "--training.steps", 1, "--data.valid", "1.5")
    assert result.code == 2
    assert "valid is 1.5" in result.err  # all else was understood


def test_inspect(story, fine_tuned):
    facts = strict_json(good("inspect", story.path, "--json"))
    assert facts["steps"] == STEPS
    assert facts["recipe"] == "bert"
    assert facts["checkpoint step"] == STEPS
    assert [row["step"] for row in facts["validation"]] == [*range(40, STEPS + 1, 40)]
    lm = firth.load(story.path)
    assert isinstance(lm, firth.LanguageModel)
    count = sum(p.numel() for p in lm.model.parameters())
    assert facts["parameters"] == count
    plain = good("inspect", story.path).splitlines()
    assert f"parameters\t{count:,}" in plain
    assert "validation\tstep\ttokens\tminutes\tperplexity" in plain
    adapted = strict_json(good("inspect", fine_tuned, "--json"))
    assert adapted["adaptation"] == "FineTuning"
    assert [one["seed"] for one in adapted["seeds"]] == [0, 1]
    assert adapted["task"] == "Classification"
    labels = firth.load(fine_tuned).task.labels
    assert adapted["labels"] == list(labels)
    assert "\t".join(["labels", *labels]) in good("inspect", fine_tuned)
    table = good("inspect", fine_tuned)
    assert "seeds\tseed\taccuracy\tmacro_f1\tmcc\tsteps\tdegenerate\n\t0\t0." in table
    assert "{" not in table


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb):
    result = run(verb, "--help")
    assert result.code == 0
    assert f"firth {verb}" in result.out
    assert ESCAPE not in result.out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_colour_where_none_is_wanted(tiny_run, tables, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    command = adapting(tiny_run, tables, tmp_path / "out", "frozen", "--epochs", 1)
    result = run(*command, error=Terminal)
    assert result.code == 0
    assert "seed 0" in result.err
    assert ESCAPE not in result.err
