"""What the command line says of commands that cannot be meant so, and of files of other kinds."""

import csv
import errno
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import firth
from firth.adaptation import ADAPTATIONS
from firth.cli import VERBS, main
from firth.cli.pretrain import resume_hint
from firth.config import read_toml
from firth.errors import DataError
from firth.protocols import Example
from firth.training import checkpoint

TEXTS = ["The tide is in.", "The boats, it is said, went out."]


@pytest.fixture
def said(capsys):
    """Runs a command, and gives its exit code, its output and what it said."""

    def command(*arguments: object) -> tuple[int, str, str]:
        code = main([*map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


@pytest.fixture
def tables(tmp_path):
    """The same texts in several formats."""
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    (tmp_path / "a.csv").write_text(
        "n,body\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(TEXTS))
    )
    (tmp_path / "a.tsv").write_text("".join(f"{i}\t{t}\n" for i, t in enumerate(TEXTS)))
    return tmp_path


def test_tables_are_embedded_and_scored_by_their_column(tiny_run, tables, said):
    expected = firth.load(tiny_run).embed(TEXTS)
    _, scored, _ = said("score", tiny_run, tables / "a.txt")
    for name, column in (("a.txt", ()), ("a.jsonl", ()), ("a.csv", ("body",)), ("a.tsv", (2,))):
        which = ("--column", *column) if column else ()
        code, _, err = said("embed", tiny_run, tables / name, "-o", tables / "x.npy", *which)
        assert code == 0, err
        np.testing.assert_array_equal(np.load(tables / "x.npy"), expected)
        assert said("score", tiny_run, tables / name, *which)[1] == scored
    code, _, err = said("score", tiny_run, tables / "a.csv")
    assert code == 2
    assert "no column 'text' among 'n', 'body'" in err
    (tables / "b.jsonl").write_text('{"text": 3}\n')
    code, _, err = said("score", tiny_run, tables / "b.jsonl")
    assert code == 3
    assert "row 1: 'text' is 3, expected a string" in err


def test_scores_are_printed_as_they_come(tiny_run, tables, said, monkeypatch):
    lines = [*TEXTS, "", TEXTS[0] * 30, *TEXTS]
    (tables / "long.txt").write_text("\n".join(lines) + "\n")
    _, whole, summary = said("score", tiny_run, tables / "long.txt")
    printed = []
    score = firth.LanguageModel.score

    def watched(model, texts, **how):
        printed.append((len(texts), sys.stdout.getvalue().count("\n")))
        return score(model, texts, **how)

    monkeypatch.setattr(firth.LanguageModel, "score", watched)
    monkeypatch.setattr("firth.cli.use._MOST_LINES", 2)
    monkeypatch.setattr("firth.cli.use._MOST_CHARACTERS", 200)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    code = main(["score", str(tiny_run), str(tables / "long.txt")])
    rows = sys.stdout.getvalue()
    assert code == 0
    assert printed == [(2, 0), (2, 2), (2, 4)]
    for one, other in zip(rows.splitlines(), whole.splitlines(), strict=True):
        (a, p, text), (b, q, same) = one.split("\t"), other.split("\t")
        assert text == same
        assert float(a) == pytest.approx(float(b), abs=2e-3)
        assert (p == q == "") or float(p) == pytest.approx(float(q), rel=1e-4)
    assert said("score", tiny_run, tables / "long.txt")[2] == 2 * summary


def test_long_work_says_how_far_it_is(tiny_run, tables, said, monkeypatch):
    (tables / "long.txt").write_text(TEXTS[0] * 40)
    assert "left" not in said("score", tiny_run, tables / "long.txt")[2]
    monkeypatch.setattr("firth.inference.progress.EVERY", 0.0)
    err = said("score", tiny_run, tables / "long.txt")[2]
    done, total = (
        [int(text.replace(",", "")) for text in part]
        for part in zip(
            *re.findall(r"([\d,]+) of ([\d,]+) tokens read, \d+ s left", err), strict=True
        )
    )
    assert len(set(total)) == 1
    assert done == sorted(set(done))
    assert 0 < done[-1] < total[0]


def test_all_layers_by_name(tiny_run, tables, said):
    said("embed", tiny_run, tables / "a.txt", "-o", tables / "x.npy", "--layers", "all")
    expected = firth.load(tiny_run).embed(TEXTS, layers="all")
    np.testing.assert_array_equal(np.load(tables / "x.npy"), expected)
    said("embed", tiny_run, tables / "a.txt", "-o", tables / "x.npy", "--layers", "0", "-1")
    np.testing.assert_array_equal(np.load(tables / "x.npy"), expected[:, [0, -1]])


def test_files_that_hold_no_lines(tiny_run, tables, said):
    code, _, err = said("score", tiny_run, tables)
    assert (code, err.strip()) == (3, f"firth score: {tables}: a folder, expected a file")
    (tables / "utf16.txt").write_text("tide", encoding="utf-16")
    code, _, err = said("score", tiny_run, tables / "utf16.txt")
    assert code == 3
    assert "begins as UTF-16" in err
    assert "iconv -f utf-16" in err
    (tables / "latin1.txt").write_bytes(b"caf\xe9")
    code, _, err = said("score", tiny_run, tables / "latin1.txt")
    assert "byte 3 is 0xe9" in err
    assert "to pre-train on it" in err


@pytest.mark.parametrize("option", ["--label", "-o", "--dev=dev.tsv", "--seeds", "--text-pair"])
def test_an_option_behind_the_adaptation_is_told_its_place(option, tiny_run, tables, said):
    code, _, err = said("adapt", tiny_run, tables / "a.tsv", "finetune", option, "2")
    assert code == 2
    assert f"{option} is no option of finetune; put it before finetune" in err


def test_names_may_be_those_of_adaptations(tiny_run, tables, said, monkeypatch):
    monkeypatch.chdir(tables)
    rows = "".join(f"text {i}\t{'ab'[i % 2]}\n" for i in range(24))
    (tables / "gradual.tsv").write_text("frozen\tlabel\n" + rows)
    options = ("--text", "frozen", "--label", "label")
    how = ("frozen", "--epochs", "1", "--restarts", "0")
    assert said("adapt", tiny_run, "gradual.tsv", "-o", "frozen", *options, *how)[0] in (0, 4)


def test_one_text_cannot_be_held_out(tables, said):
    (tables / "one.txt").write_text("A single text.\nOf two short lines.\n")
    command = ("pretrain", "bert", tables / "one.txt", "-o", tables / "run", "--steps", "1")
    code, _, err = said(*command)
    assert code == 3
    assert "none of 1 documents fell into the" in err
    for way in ("--documents line", "--valid FILE", "--data.valid 0.1"):
        assert way in err
    code, _, err = said(*command, "--minutes", "0")
    assert code == 2
    code, _, err = said(*command[:-2], "--minutes", "0")
    assert "minutes is 0.0, expected a number above 0" in err


@pytest.fixture
def one_step(tiny_run, tables, papers):
    """A command that pre-trains for a step."""
    (tables / "papers.txt").write_text("\n".join(papers[:20]))
    command = ("pretrain", "bert", tables / "papers.txt", "-o", tables / "run", "--steps", "1")
    settings = ("--documents", "line", "--data.valid", "0.2", "--data.max_length", "64")
    return (*command, *settings, "--start", tiny_run)


def test_no_room_for_a_checkpoint_is_exit_code_5(one_step, said, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    code, _, err = said(*one_step)
    assert code == 5, err
    assert "a checkpoint needs" in err
    monkeypatch.undo()
    assert said(*one_step)[0] == 0  # nothing was lost


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, 5), (errno.EIO, 1)])
def test_a_full_disk_is_exit_code_5(number, expected, one_step, said, monkeypatch):
    """Also where no one turned it into advice; other errors of a disk are failures."""

    def fails(*_arguments, **_named):
        raise OSError(number, "what the system says")

    monkeypatch.setattr(checkpoint, "save", fails)
    code, _, err = said(*one_step)
    assert code == expected
    assert "what the system says" in err


def test_held_out_sources_need_their_targets(tables, said):
    text = tables / "a.txt"
    command = ("pretrain", "transformer", text, "--target", text, "--valid", text)
    code, _, err = said(*command, "-o", tables / "run", "--steps", "1")
    assert code == 2
    assert "--valid needs --valid-target too" in err


def test_word_vectors_are_refused_before_the_text_is_read(tables, said):
    languages = (f"de={tables / 'a.txt'}", f"en={tables / 'a.txt'}")
    code, _, err = said("pretrain", "word2vec", *languages, "-o", tables / "run", "--epochs", "1")
    assert code == 2
    assert "word vectors are of one language each" in err
    code, _, err = said(
        "pretrain", "glove", tables / "a.txt", "-o", tables / "run", "--tokens", "99"
    )
    assert code == 2
    assert "GloVe goes through the counted pairs" in err
    assert not (tables / "run" / "data").exists()


def test_an_encoder_decoder_is_told_from_a_decoder(tables, said, papers):
    chosen = firth.recipe("t5", size="tiny", vocab_size=400).with_settings({"training.steps": 1})
    lm = firth.pretrain(chosen, firth.Corpus.from_texts(papers), tables / "t5")
    assert not lm.fills
    code, _, err = said("fill", tables / "t5", "A [MASK].")
    assert code == 2
    assert "this one writes texts for others; use generate instead" in err


def test_a_call_leaves_no_logging_behind(tiny_run, tables, said):
    logger = logging.getLogger("firth")
    before = logger.handlers[:], logger.level
    for _ in range(2):  # each says it on its own stderr
        command = ("pretrain", "bert", tables / "a.txt", "-o", tables / "run", "--steps", "1")
        _, _, err = said(*command, "--data.valid", "0.5", "--size", "tiny", "--start", tiny_run)
        assert "--size: no effect but on the learning rate" in err
    assert (logger.handlers, logger.level) == before


def test_settings_in_a_file_that_a_start_makes_idle_are_told(tiny_run, tables, said):
    (tables / "own.toml").write_text("[model]\nnum_layers = 6\n[tokenizer]\nvocab_size = 999\n")
    command = ("pretrain", "bert", tables / "a.txt", "-o", tables / "run", "--steps", "1")
    _, _, err = said(
        *command, "--data.valid", "0.5", "--start", tiny_run, "--config", tables / "own.toml"
    )
    assert "--model.num_layers, --tokenizer.vocab_size: no effect" in err


def test_a_file_of_another_recipe_is_refused_and_the_command_line_counts_last(tables, said):
    code, shown, _ = said("recipes", "show", "modern-bert", "--size", "tiny", "--vocab", "777")
    assert code == 0
    (tables / "r.toml").write_text(shown)
    command = (tables / "a.txt", "--config", tables / "r.toml", "--steps", "1")
    code, _, err = said("pretrain", "gpt", *command, "-o", tables / "run")
    assert code == 2
    assert "r.toml is of the recipe 'modern-bert' (name), and 'gpt' is asked for" in err
    more = ("--data.valid", "0.5", "--size", "mini", "--vocab", "300")
    _, _, err = said("pretrain", "modern-bert", *command, *more, "-o", tables / "run")
    assert "training a wordpiece tokenizer of 300 tokens" in err
    assert "r.toml: its shape is taken, not that of --size" in err


def test_empty_paths_and_folders_of_pairs_are_named(tiny_run, tables, said):
    run = tables / "run"
    for words, message in (
        (("pretrain", "bert", "", "-o", run, "--steps", "1"), "an empty path was given for a text"),
        (("pretrain", "bert", tables / "a.txt", "-o", "", "--steps", "1"), "an empty path"),
        (("embed", tiny_run, tables / "a.txt", "-o", ""), "vectors are written to a file"),
        (
            ("pretrain", "transformer", tables, "--target", tables, "-o", run, "--steps", "1"),
            "a folder, expected a file with a text a line",
        ),
    ):
        code, _, err = said(*words)
        assert code in (2, 3)
        assert message in err
    assert not run.exists()


def test_a_damaged_model_can_be_inspected_without_a_traceback(tiny_run, tmp_path, said):
    shutil.copytree(tiny_run, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    code, _, err = said("inspect", tmp_path / "run")
    assert code == 1
    assert "model.safetensors: cannot be read" in err


def test_a_reader_that_has_seen_enough_is_no_error():
    for words in ("--help", "--version", "recipes"):
        command = [sys.executable, "-m", "firth.cli", words]
        with subprocess.Popen(command, stdout=-1, stderr=-1) as process:
            process.stdout.close()
            assert process.stderr.read() == b""
            process.stderr.close()
        assert process.returncode == 0


def test_results_are_utf_8_whatever_the_locale(tiny_run):
    command = [sys.executable, "-m", "firth.cli", "score", tiny_run]
    with_latin = {**os.environ, "PYTHONIOENCODING": "latin-1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        command, input="Ọmọ ń jẹun.".encode(), capture_output=True, env=with_latin, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.decode().rstrip("\n").endswith("Ọmọ ń jẹun.")


def test_a_stdout_that_is_closed_or_full_is_no_traceback(tiny_run):
    for place, code in ((">&-", 0), ("> /dev/full", 5)):
        for words in ("--help", f"inspect {tiny_run}"):
            command = f"{sys.executable} -m firth.cli {words} {place}"
            found = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
            assert b"Traceback" not in found.stderr, found.stderr
            assert found.returncode == code, (command, found.stderr)


def test_a_dash_is_stdin_for_blanks_and_prompts(tiny_run, tables, said, papers, monkeypatch):
    def given(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    sentences = ["The [MASK] is in.", "A [MASK]."]
    _, expected, _ = said("fill", tiny_run, *sentences)
    given("\n".join(sentences) + "\n")
    assert said("fill", tiny_run, "-")[1] == expected
    chosen = firth.recipe("gpt", size="tiny", vocab_size=400).with_settings({"training.steps": 1})
    firth.pretrain(chosen, firth.Corpus.from_texts(papers), tables / "gpt")
    _, expected, _ = said("generate", tables / "gpt", "The tide", "We", "--max-tokens", 3)
    given("The tide\nWe\n")
    assert said("generate", tables / "gpt", "-", "--max-tokens", 3)[1] == expected
    given("The tide\n")
    monkeypatch.setattr(
        "firth.api.language_model.LanguageModel.generate",
        lambda _lm, texts, **_how: [SimpleNamespace(text=f"{text}\nrises") for text in texts],
    )
    assert said("generate", tables / "gpt", "-", "--max-tokens", 3)[1] == "The tide rises\n"


def test_the_first_of_several_processes_speaks_for_all(said, tables, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    command = ("pretrain", "bert", "-o", tables / "run", "--steps", 1)
    code, _, err = said(*command, tables / "a.txt", "--data.packing", "none")
    assert (code, err) == (2, "")
    code, _, err = said(*command, tables / "none.txt")  # a file that this process alone may lack
    assert (code, "none.txt" in err) == (3, True)


@pytest.mark.parametrize(
    ("world", "local", "start"),
    [
        ("1", "1", "firth pretrain"),
        ("4", "4", "torchrun --nproc-per-node 4 -m firth.cli pretrain"),
        ("8", "4", "torchrun --nnodes 2 --nproc-per-node 4 -m firth.cli pretrain"),
    ],
)
def test_the_line_that_resumes_can_be_run(world, local, start, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    hint = resume_hint(["bert", "my text.txt", "-o", "run"])
    assert hint == f"{start} bert 'my text.txt' -o run"


def test_a_file_of_any_name_is_lines(tiny_run, tables, said):
    expected = said("score", tiny_run, tables / "a.txt")[1]
    shutil.copy(tables / "a.txt", tables / "plain")
    assert said("score", tiny_run, tables / "plain")[1] == expected
    os.mkfifo(tables / "pipe")
    with subprocess.Popen(f"cat {tables / 'a.txt'} > {tables / 'pipe'}", shell=True):
        assert said("score", tiny_run, tables / "pipe")[1] == expected


def test_what_was_written_is_not_replaced_unasked(tiny_run, tables, said):
    (tables / "mine").write_text("mine")
    command = ("evaluate", tiny_run, tables / "a.txt", "--target", tables / "a.txt")
    code, _, err = said(*command, "--outputs", tables / "mine")
    assert (code, (tables / "mine").read_text()) == (2, "mine")
    assert "is there already; choose another name, or give --overwrite" in err
    _, _, err = said(*command, "--outputs", tables / "mine", "--overwrite")
    assert "is no encoder-decoder" in err  # so the file itself was no obstacle


def test_no_units_are_left_beside_other_vectors(tiny_run, tables, said):
    target = tables / "v.npy"
    said("embed", tiny_run, tables / "a.txt", "-o", target, "--unit", "word")
    assert (tables / "v.units.tsv").is_file()
    said("embed", tiny_run, tables / "a.txt", "-o", target)
    assert not (tables / "v.units.tsv").exists()
    (tables / "v.units.tsv").write_text("mine")
    assert said("embed", tiny_run, tables / "a.txt", "-o", target)[0] == 0
    assert (tables / "v.units.tsv").read_text() == "mine"
    command = ("embed", tiny_run, tables / "a.txt", "-o", tables / "w.npy", "--unit", "token")
    code, _, err = said(*command, "--pooling", "max")
    assert (code, "pooling 'max' is of sentences" in err) == (2, True)


@pytest.mark.parametrize(
    ("more", "hint"),
    [
        (("--training.steps", "2"), "--training.steps and --steps are the same setting"),
        (("--tokenizer.vocab-size=9", "--vocab", "9"), "vocab_size and --vocab are the same"),
        (("--column", "body"), "--column body is about tables"),
        (("--target", "a.txt"), "the recipe bert learns from plain text, and this corpus is pairs"),
        (("--training.optimizer", "Muon"), "to choose Muon give it as optimizer.type"),
        (("--training.compile", "yes"), "is 'yes', expected true or false"),
        (("--output", "a.txt"), "a.txt is a file, expected the name of a directory"),
    ],
)
def test_settings_that_cannot_be_meant_so(more, hint, tables, said, monkeypatch):
    monkeypatch.chdir(tables)
    code, _, err = said("pretrain", "bert", "a.txt", "-o", "run", "--steps", "1", *more)
    assert (code, hint in err) == (2, True), err


def test_pairs_are_asked_for_before_files_are_read(tables, said):
    command = ("pretrain", "transformer", tables / "none.en", "-o", tables / "run", "--steps", 1)
    code, _, err = said(*command)
    assert (code, "give the targets too" in err) == (2, True)


def test_a_warm_up_longer_than_the_run_is_said(one_step, said):
    _, _, err = said(*one_step, "--training.schedule.warmup", "200")
    assert "the warm-up takes 200 steps, and the run has 1" in err


def test_held_out_text_of_the_corpus_is_said_to_be_that(one_step, tables, said):
    text = tables / "papers.txt"
    _, _, err = said(*one_step, "--valid", text, "--data.smoothing", "0.5")
    assert f"{text}: in the corpus and in the held-out text" in err
    assert "data.valid has no effect: the held-out text is given" in err
    assert "data.smoothing has no effect: the text is of one language" in err


def test_adaptations_say_which_settings_are_idle(tiny_run, tables, said):
    rows = "".join(f"text {i}\t{'ab'[i % 2]}\n" for i in range(24))
    (tables / "b.tsv").write_text("text\tlabel\n" + rows)
    command = ("adapt", tiny_run, tables / "b.tsv", "-o", tables / "out", "--overwrite")
    short = ("--epochs", "1", "--restarts", "0")
    for how, idle in (
        (("finetune", "--min-steps", "9"), "min_steps has no effect: epochs are given"),
        (("frozen", "--hidden-size", "9"), "hidden_size has no effect: task_network is the head"),
        (("frozen", "--layers", "last", "--mix-penalty", "1"), "mix_penalty has no effect"),
        (("gradual", "--no-slanted", "--cut", "0.5"), "cut has no effect: the rate is constant"),
        (("gradual", "--pooling", "mean"), "pooling has no effect: concat_pooling is on"),
        (("finetune", "--task-network", "rnn", "--pooling", "last"), "pooling has no effect"),
    ):
        _, _, err = said(*command, *how, *short)
        assert idle in err
        assert err.count("has no effect") == 1
    code, _, err = said(*command, "--spans", "true", "finetune")
    assert (code, "--spans is for --task tagging, and this is classification" in err) == (2, True)
    headed = ("--header", "false", "--text", "1", "--label", "2")
    _, _, err = said(*command, *headed, "finetune", *short)
    assert "3 labels: a, b, label" in err  # the first row is an example then


def test_a_foreign_record_is_told_from_that_of_a_run(tables, said):
    (tables / "recipe.json").write_text("{}")
    code, _, err = said("inspect", tables)
    assert (code, "recipe.json is not of a run of firth" in err) == (1, True)


@pytest.mark.parametrize("wanted", ["xterm", "dumb"])
def test_usage_has_colours_unless_none_are_wanted(wanted, tiny_run, said, monkeypatch):
    seen = []
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("tyro.cli", lambda *_, **__: seen.append(os.environ["TERM"]) or sys.exit(0))
    if wanted == "dumb":
        monkeypatch.setenv("NO_COLOR", "1")
    else:
        monkeypatch.delenv("NO_COLOR", raising=False)
    with pytest.raises(SystemExit):
        said("score", tiny_run)
    assert (seen, os.environ["TERM"]) == ([wanted], "xterm")


def test_sizes_are_of_a_recipe(said):
    code, _, err = said("recipes", "--size", "tiny")
    assert (code, "--size and --vocab are of one recipe" in err) == (2, True)


def test_units_are_a_table_that_others_read(tiny_run, tables, said):
    (tables / "q.txt").write_text('He said "the tide".\nAnd left.\n')
    code, _, err = said(
        "embed", tiny_run, tables / "q.txt", "-o", tables / "q.npy", "--unit", "word"
    )
    assert code == 0, err
    with (tables / "q.units.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == len(np.load(tables / "q.npy"))
    words = ["He", "said", '"', "the", "tide", '"', ".", "And", "left", "."]
    assert [row["unit"] for row in rows] == words
    assert [row["line"] for row in rows] == ["1"] * 7 + ["2"] * 3


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_says_what_it_is(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("NO_COLOR", "1")
    kinds = [(verb, kind) for kind in ADAPTATIONS] if verb == "adapt" else []
    for words in [(verb,), *kinds]:
        with pytest.raises(SystemExit) as stop:
            main([*words, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert "--help" in shown
        assert re.findall(r"│ +(?:-[^│]+  )?\((?:default|required|repeatable).*", shown) == []


def test_what_recipes_show_is_a_file_of_settings(said, tmp_path):
    for name in ("modern-bert", "elmo", "transformer", "word2vec"):
        code, shown, _ = said("recipes", "show", name)
        (tmp_path / "shown.toml").write_text(shown)
        assert code == 0
        chosen = firth.recipe(name).with_settings(read_toml(tmp_path / "shown.toml"))
        assert chosen == firth.recipe(name)


def test_settings_that_stay_as_they_are_are_not_idle(caplog):
    recipe = firth.recipe("modern-bert")
    recipe.with_settings({"model.position_offset": 0, "training.schedule.floor": 0.0})
    assert not caplog.records
    recipe.with_settings({"model.position_offset": 2})
    assert len(caplog.records) == 1


def test_a_tokenizer_is_taken_over(tiny_run, papers, tmp_path, said):
    (tmp_path / "a.txt").write_text("\n".join(papers[:80]))
    command = ("pretrain", "bert", tmp_path / "a.txt", "-o", tmp_path / "run", "--size", "tiny")
    small = ("--steps", "1", "--training.batch_tokens", "256", "--documents", "line")
    more = ("--data.valid", "0.2", "--tokenizer", tiny_run, "--vocab", "99")
    code, _, err = said(*command, *small, *more)
    assert code == 0, err
    assert "--vocab: no effect, the tokenizer is given" in err
    own, other = (firth.Tokenizer.load(path) for path in (tmp_path / "run", tiny_run))
    assert own.content_hash == other.content_hash


def test_what_a_document_is_and_that_few_are_held_out_is_said(papers, tmp_path, said):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(papers[:40]))
    command = ("pretrain", "bert", tmp_path / "a.txt", tmp_path / "b.txt", "--size", "tiny")
    small = ("--steps", "1", "--training.batch_tokens", "256", "--data.valid", "0.1")
    code, _, err = said(*command, *small, "-o", tmp_path / "run")
    assert code == 0, err
    assert "one document a block, in 2 files (--documents)" in err
    assert "documents are held out, which may be unlike the others" in err
    _, _, err = said(*command, *small, "-o", tmp_path / "lines", "--documents", "line")
    assert "one document" not in err


def test_an_index_is_no_text(tmp_path, said):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "words.txt").write_text("tide\n")
    (tmp_path / "index" / "manifest.json").write_text('{"sizes": {"words.txt": 5}}')
    code, _, err = said(
        "pretrain", "bert", tmp_path / "index", "-o", tmp_path / "run", "--steps", "1"
    )
    assert code == 3
    assert "an index of words, no text" in err


def test_epochs_that_are_few_steps_are_named_and_a_long_run_tells_how_it_goes(
    tiny_run, tables, said, monkeypatch
):
    monkeypatch.setattr("firth.adaptation.fitting._QUIET", 0.0)
    rows = "".join(f"text {i}\t{'ab'[i % 2]}\n" for i in range(40))
    (tables / "b.tsv").write_text("text\tlabel\n" + rows)
    command = ("adapt", tiny_run, tables / "b.tsv", "--test", tables / "b.tsv", "--overwrite")
    for seeds in (1, 2):
        how = ("--seeds", seeds, "finetune", "--epochs", "3", "--restarts", "0")
        code, out, err = said(*command, "-o", tables / "out", *how)
        assert code in (0, 4), err
        assert "3 epochs of 35 examples are 6 steps" in err
        assert "seed 0: step 4 of 6  loss " in err
        assert code == 4 or ("of the seed that is best on dev" in out) == (seeds > 1)
    _, _, err = said(*command, "-o", tables / "out", "finetune", "--min-steps", "4")
    assert "epochs of" not in err


def test_tags_of_another_kind_are_refused(tiny_run):
    words = ("the", "tide", "turns")
    examples = [Example(texts=(words,), label=("DET", "NOUN", "VERB"))] * 12
    how = firth.FineTuning(epochs=1, restarts=0)
    adapted = firth.adapt(firth.load(tiny_run), firth.Tagging(), examples, how, dev=examples)
    with pytest.raises(DataError, match=r"the tags are B-PER, O, and the model knows DET, NOUN"):
        adapted.evaluate([Example(texts=(words,), label=("O", "B-PER", "O"))])
    assert adapted.evaluate([Example(texts=(words,), label=("DET", "X", "X"))]).num_examples == 1


def test_prompts_beside_a_dash_and_strings_that_end_a_text(said, tmp_path, papers):
    (tmp_path / "a.txt").write_text("\n".join(papers))
    command = ("pretrain", "gpt", tmp_path / "a.txt", "-o", tmp_path / "run", "--size", "tiny")
    code, _, err = said(*command, "--vocab", 600, "--steps", 2)
    assert code == 0, err
    code, _, err = said("generate", tmp_path / "run", "-", "The results")
    assert code == 2
    assert "give it alone" in err
    how = ("--max-tokens", 12)
    _, whole, _ = said("generate", tmp_path / "run", "The results", *how)
    end = whole.rstrip("\n")[-2:]
    _, cut, _ = said(
        "generate", tmp_path / "run", "--stop", "@@", "--stop", end, "The results", *how
    )
    assert cut.rstrip("\n") == whole[: whole.index(end, len("The results"))]
    _, several, _ = said("generate", tmp_path / "run", "The\nresults", "We", *how)
    assert len(several.splitlines()) == 2
    assert several.startswith("The results")


def test_stdin_in_another_encoding_is_told_how_to_be_converted(said, tiny_run, monkeypatch):
    for encoding in ("utf-16", "latin1"):
        data = io.BytesIO("café".encode(encoding))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(data))
        code, _, err = said("score", tiny_run, "-")
        assert code == 3
        assert f"iconv -f {encoding} -t utf-8" in err


def test_the_second_stage_of_ulmfit_asks_for_the_first(said, tmp_path):
    (tmp_path / "a.txt").write_text("The tide is in.\n")
    _, _, err = said("pretrain", "ulmfit", tmp_path / "a.txt", "-o", tmp_path / "run", "--steps", 1)
    assert "give the model of the first with --start" in err
