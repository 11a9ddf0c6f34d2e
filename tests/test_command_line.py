"""What the command line says of commands that cannot be meant so, and of files of other kinds."""

import errno
import json
import logging
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import firth
from firth.cli import main
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


def test_a_reader_that_has_seen_enough_is_no_error():
    for words in ("--help", "--version", "recipes"):
        command = [sys.executable, "-m", "firth.cli", words]
        with subprocess.Popen(command, stdout=-1, stderr=-1) as process:
            process.stdout.close()
            assert process.stderr.read() == b""
            process.stderr.close()
        assert process.returncode == 0
