"""The run directory: one text, one writer, and nothing of it in the corpus."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import firth
from firth.api.run_directory import only_writer
from firth.errors import CheckpointError, ConfigError, DataError
from firth.text.files import find_files
from firth.training import State, Training, checkpoint
from tests.sources import tiny_bert

ROOT = Path(__file__).resolve().parents[1]


def recipe(steps: int = 4) -> firth.Recipe:
    chosen = firth.recipe("bert", size="tiny", vocab_size=300)
    return chosen.with_settings({"training.steps": steps, "training.batch_tokens": 512})


def letters(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("a.txt", "b.txt"):
        lines = (f"{name} has line {i} of a letter about the weather." for i in range(300))
        (folder / name).write_text("\n\n".join(lines), encoding="utf-8")
    return folder


def train(corpus: Path, run: Path, **more) -> None:
    firth.pretrain(recipe(), firth.Corpus.from_files(corpus, documents="block"), run, **more)


def test_a_run_inside_its_corpus_is_no_part_of_it(tmp_path):
    folder = letters(tmp_path / "letters")
    train(folder, folder / "run")
    assert (folder / "run" / "metrics.jsonl").is_file()
    train(folder, folder / "run")  # which it could not do if its own files were text
    assert [file.name for file in find_files([folder])] == ["a.txt", "b.txt"]
    assert [file.name for file in find_files([str(folder / "**" / "*")])] == ["a.txt", "b.txt"]
    named = find_files([str(folder / "run" / "*.jsonl")])
    assert [file.name for file in named] == ["metrics.jsonl"]


def test_a_recipe_of_another_kind_hides_nothing(tmp_path):
    folder = letters(tmp_path / "cooking")
    (folder / "recipe.json").write_text('{"soup": "onions"}', encoding="utf-8")
    assert len(find_files([tmp_path])) == 2


def test_a_run_is_not_put_among_its_own_text(tmp_path):
    folder = letters(tmp_path / "letters")
    with pytest.raises(ConfigError, match=r"a\.txt lies in .*letters.*choose another"):
        train(folder, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("deleted", [(), ("train",), ("train", "valid")])
def test_a_begun_run_does_not_go_on_with_other_text(tmp_path, deleted):
    """Not even where the token files, which also know their text, are gone."""
    folder, run = letters(tmp_path / "letters"), tmp_path / "run"
    train(folder, run)
    weights = (run / "model.safetensors").read_bytes()
    for part in deleted:
        for file in (run / "data" / part).iterdir():
            file.unlink()
        (run / "data" / part).rmdir()
    (folder / "c.txt").write_text("Another letter.", encoding="utf-8")
    with pytest.raises(DataError, match=r"other text \(train, valid\).*choose another"):
        train(folder, run)
    assert (run / "model.safetensors").read_bytes() == weights
    (folder / "c.txt").unlink()
    train(folder, run)


def test_an_attempt_that_never_began_leaves_no_tokenizer_to_other_text(tmp_path, monkeypatch):
    def stop(*_arguments, **_named):
        raise KeyboardInterrupt

    folder, run = letters(tmp_path / "letters"), tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr("firth.api.training_text.write_shards", stop)
        with pytest.raises(KeyboardInterrupt):
            train(folder, run)
    before = (run / "tokenizer.json").read_bytes()
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8").replace("letter", "Brief")
        file.write_text(text, encoding="utf-8")
    train(folder, run)
    assert (run / "tokenizer.json").read_bytes() != before


def test_a_start_that_learned_nothing_takes_other_training(tmp_path, monkeypatch):
    def stop(*_arguments, **_named):
        raise KeyboardInterrupt

    folder, run = letters(tmp_path / "letters"), tmp_path / "run"
    corpus = firth.Corpus.from_files(folder, documents="block")
    with monkeypatch.context() as context:
        context.setattr("firth.api.pretraining.train", stop)
        with pytest.raises(KeyboardInterrupt):
            train(folder, run)
    before = {file: file.stat().st_mtime_ns for file in (run / "data").rglob("*") if file.is_file()}
    other = recipe().with_settings({"training.optimizer.lr": 1e-4})
    firth.pretrain(other, corpus, run)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    with pytest.raises(ConfigError, match=r"other settings \(training.optimizer.lr"):
        train(folder, run)


def test_a_finished_model_is_kept_also_without_its_checkpoints(tmp_path):
    folder, run = letters(tmp_path / "letters"), tmp_path / "run"
    train(folder, run)
    shutil.rmtree(run / "checkpoints")
    names = ("model.safetensors", "tokenizer.json", "metrics.jsonl")
    before = {name: (run / name).read_bytes() for name in names}
    train(folder, run)  # it is done
    assert not (run / "checkpoints").exists()
    other = recipe().with_settings({"model.dropout": 0.1})
    with pytest.raises(ConfigError, match=r"other settings \(model\.dropout"):
        firth.pretrain(other, firth.Corpus.from_files(folder, documents="block"), run)
    assert {name: (run / name).read_bytes() for name in before} == before


def test_a_run_needs_a_budget(tmp_path):
    endless = recipe().with_settings({"training.steps": None})
    with pytest.raises(ConfigError, match="no budget; give one of steps, tokens, epochs, minutes"):
        firth.pretrain(endless, firth.Corpus.from_texts(["a b"]), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_other_optimizers_is_refused(tmp_path):
    """Moments are known by the names of their parameters, not by their places."""
    model, training = tiny_bert(), Training(steps=1, layer_decay=2.0)
    state = State.begin(model, training)
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    for optimizer in state.optimizers:
        optimizer.step()
    path = checkpoint.save(tmp_path, state, {})
    one = State.begin(model, Training(steps=1))
    checkpoint.restore(path, one)  # one optimizer in place of three
    before = {p: s["exp_avg"] for o in state.optimizers for p, s in o.state.items()}
    for p, moments in one.optimizers[0].state.items():
        assert torch.equal(moments["exp_avg"], before[p])
    assert len(one.optimizers[0].state) == len(before)
    fewer = replace(state, optimizers=state.optimizers[:1])
    with pytest.raises(CheckpointError, match=r"no optimizer trains .*'layers\.0"):
        checkpoint.restore(path, fewer)
    saved = load_file(path / "optimizer.safetensors")
    name = next(key for key, t in saved.items() if t.ndim == 2)
    save_file({**saved, name: saved[name].T.contiguous()}, path / "optimizer.safetensors")
    with pytest.raises(CheckpointError, match="has another shape"):
        checkpoint.restore(path, one)


def test_other_marked_spans_are_other_text(tmp_path):
    folder, run = letters(tmp_path / "letters"), tmp_path / "run"
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("the weather\n", encoding="utf-8")
    chosen = recipe().with_settings({"data.spans": str(phrases), "objective.units": "entity"})
    corpus = firth.Corpus.from_files(folder, documents="block")
    firth.pretrain(chosen, corpus, run)
    phrases.write_text("a letter\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"other text \(spans\)"):
        firth.pretrain(chosen, corpus, run)


def test_two_processes_do_not_train_in_one_directory(tmp_path):
    folder, run = letters(tmp_path / "letters"), tmp_path / "run"
    hold = (
        "import sys, time; from pathlib import Path\n"
        "from firth.api.run_directory import only_writer\n"
        "with only_writer(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", hold, str(run)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process is training in"):
            train(folder, run)
        assert list(run.iterdir()) == []
        other.kill()  # which leaves no lock behind
    train(folder, run)
    assert (run / "model.safetensors").is_file()


def test_a_directory_can_be_held_again(tmp_path):
    for _ in range(2):
        with only_writer(tmp_path / "new"):
            pass
    assert not (tmp_path / "new").exists()  # nothing came of it
    (tmp_path / "empty").mkdir()
    with only_writer(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").exists()


def test_a_checkpoint_replaces_those_of_a_course_given_up(tmp_path):
    """Someone points `last` to an earlier step, to go on from there."""
    training = Training(steps=100)
    state = State.begin(tiny_bert(), training)
    for state.step in (10, 20, 30):
        checkpoint.save(tmp_path, state, {}, best=state.step == 10)
    folder = tmp_path / "checkpoints"
    (folder / "last").write_text("step-00000020", encoding="utf-8")
    state.step = 25
    checkpoint.save(tmp_path, state, {})
    found = checkpoint.find(tmp_path)
    assert found is not None
    assert found.name == "step-00000025"
    kept = sorted(path.name for path in folder.glob("step-*"))
    assert kept == ["step-00000010", "step-00000020", "step-00000025"]


def test_the_remains_of_a_killed_checkpoint_are_gone_before_room_is_asked_for(
    tmp_path, monkeypatch
):
    folder = tmp_path / "checkpoints"
    left = folder / "step-00000010.part"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    seen = []
    monkeypatch.setattr(checkpoint, "need_space", lambda *_: seen.append(left.exists()))
    checkpoint.save(tmp_path, State.begin(tiny_bert(), Training(steps=20)), {})
    assert seen == [False]


@pytest.mark.parametrize("name", ["bert", "gpt", "hybrid"])
def test_the_texts_of_the_log_fit_a_short_window(name, papers, tmp_path):
    recipe = firth.recipe(name, size="tiny", vocab_size=600).with_settings(
        {
            "training.steps": 1,
            "training.batch_tokens": 64,
            "model.max_length": 8,
            "data.max_length": 8,
            "data.valid": 0.2,
            "data.valid_tokens": 64,
        }
    )
    corpus = firth.Corpus.from_texts(papers[:40])
    assert firth.pretrain(recipe, corpus, tmp_path / "run").max_length == 8


def test_a_tokenizer_that_was_given_once_is_not_kept_for_a_run_that_never_began(
    tmp_path, monkeypatch
):
    def stop(*_arguments, **_named):
        raise KeyboardInterrupt

    folder, run = letters(tmp_path / "letters"), tmp_path / "run"
    corpus = firth.Corpus.from_files(folder, documents="block")
    given = firth.Tokenizer.train(corpus, "word", vocab_size=120)
    own = firth.Tokenizer.train(corpus, "bpe", vocab_size=280)
    for attempt in (given, own, None):
        with monkeypatch.context() as context:
            context.setattr("firth.api.pretraining.train", stop)
            with pytest.raises(KeyboardInterrupt):
                train(folder, run, tokenizer=attempt)
        kept = firth.Tokenizer.load(run)
        assert attempt is None or kept.content_hash == attempt.content_hash
    assert not kept.whole_words
    assert kept.vocabulary.size > 280
    train(folder, run)
    assert "(WordPiece)" in (run / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="has a tokenizer of its own"):
        train(folder, run, tokenizer=own)


UNFINISHED = {
    "bert-nsp": {"training.average": 0.9},
    "gpt2": {},
    "elmo": {},
    "awd-lstm": {"training.nonmonotone": 1},
}


@pytest.mark.parametrize("name", UNFINISHED)
def test_a_stopped_run_is_the_model_of_its_last_checkpoint(tmp_path, name, caplog):
    """The last checkpoint of a whole run has the weights that it ends with."""
    run = tmp_path / "run"
    chosen = firth.recipe(name, size="tiny", vocab_size=300).with_settings(
        {"training.steps": 6, "training.evaluate_every": 2, **UNFINISHED[name]}
    )
    corpus = firth.Corpus.from_files(letters(tmp_path / "letters"), documents="block")
    texts = ["A letter about the weather.", "One line of it, unseen."]
    lm = firth.pretrain(chosen, corpus, run)
    expected = lm.score(texts)
    for end in ("model.safetensors", "config.json"):
        (run / end).unlink()
    loaded = firth.load(run)
    assert isinstance(loaded, firth.LanguageModel)
    assert "training is at step 6 of 6" in caplog.text
    for one, other in zip(loaded.score(texts), expected, strict=True):
        assert one.tokens == other.tokens
        assert one.log_probabilities.tolist() == other.log_probabilities.tolist()
    assert loaded.max_length == lm.max_length


def test_a_stopped_run_without_a_whole_model_is_refused(tmp_path):
    corpus = firth.Corpus.from_files(letters(tmp_path / "letters"), documents="block")
    vectors, run = tmp_path / "vectors", tmp_path / "run"
    chosen = firth.recipe("word2vec", size="tiny", vocab_size=300)
    firth.pretrain(chosen.with_settings({"training.epochs": 1.0}), corpus, vectors)
    train(tmp_path / "letters", run)
    for folder in (vectors, run):
        (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="word vectors are complete only there"):
        firth.load(vectors)
    (run / "checkpoints" / "step-00000004" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="step-00000004: does not fit the model"):
        firth.load(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="nor to its first checkpoint"):
        firth.load(run)
