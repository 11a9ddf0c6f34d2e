"""Saving a model over another one: all of it or nothing, and nothing of the old one beside it."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import firth
from firth.atomic import need_writable, write_text
from firth.errors import CheckpointError, ConfigError, ResourceError
from firth.interop import huggingface
from firth.interop.huggingface import save_model
from firth.locks import only_process
from firth.models import GPT
from tests.reference import transformers
from tests.test_decoders import SHAPES


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_failed_overwrite_leaves_the_old_model_whole(tiny_run, tmp_path, monkeypatch):
    lm = firth.load(tiny_run)
    lm.save(tmp_path / "model")
    before = files(tmp_path / "model")
    other = firth.LanguageModel(lm.model, firth.Tokenizer.train(["other words"] * 3))

    def full(*_args):
        raise ResourceError("the disk is full")

    monkeypatch.setattr(huggingface, "write_tensors", full)
    with pytest.raises(ResourceError, match="full"):
        other.save(tmp_path / "model", overwrite=True)
    assert files(tmp_path / "model") == before
    assert {path.name for path in (tmp_path / "model").iterdir()} == before.keys()


def test_files_of_the_old_model_do_not_stay_and_others_do(tiny_run, tmp_path):
    firth.load(tiny_run).save(tmp_path / "model")
    old = ("generation_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
    shards = ("model-00001-of-00002.safetensors", "model.safetensors.index.json")
    for name in (*old, *shards, "notes.txt", "licence.md"):
        (tmp_path / "model" / name).write_text("{}")
    lm = firth.load(tiny_run)
    lm.save(tmp_path / "model", overwrite=True)
    left = files(tmp_path / "model").keys()
    assert not left & {*old, *shards}
    assert {"notes.txt", "licence.md", "model.safetensors", "tokenizer.json"} <= left
    again = firth.load(tmp_path / "model")
    assert np.array_equal(again.embed(["The tide."]), lm.embed(["The tide."]))


def test_a_run_is_not_replaced(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"another model \(recipe.json\)"):
        firth.load(tiny_run).save(tmp_path / "run", overwrite=True)


@pytest.mark.parametrize("name", ["tokenizer.json", "file"])
def test_what_is_no_model_is_not_replaced_either(name, tiny_run, tmp_path):
    (tmp_path / name).write_text("{}")
    target = tmp_path / "file" if name == "file" else tmp_path
    with pytest.raises(ConfigError):
        firth.load(tiny_run).save(target)
    assert (tmp_path / name).read_text() == "{}"


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tiny_run, tmp_path):
    lm = firth.load(tiny_run)
    lm.save(tmp_path)
    words = [f"w{i}" for i in range(lm.model.config.vocab_size)]
    firth.Tokenizer.of_words(words).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokens and the model .* resize_token_embeddings"):
        firth.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"model_type": "firth"}'])
def test_settings_without_a_model_are_refused(content, tiny_run, tmp_path):
    firth.load(tiny_run).save(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises((ConfigError, CheckpointError), match=r"config.json"):
        firth.load(tmp_path)


def test_all_tokens_that_end_a_text_are_kept(papers, tmp_path):
    """Llama 3 ends a turn with one token and a text with another."""
    tokenizer = firth.Tokenizer.train(papers, "bpe", 300)
    torch.manual_seed(0)
    model = GPT(replace(SHAPES["llama"], vocab_size=tokenizer.vocabulary.size)).eval()
    tokenizer.save(tmp_path / "model")
    save_model(tmp_path / "model", model, vocabulary=tokenizer.vocabulary, firth={})
    plain = firth.load(tmp_path / "model").generate("The", max_tokens=12)
    other = next(token for token in plain.tokens[1:] if token != plain.tokens[0])
    ids = {tokenizer.token(i): i for i in range(tokenizer.vocabulary.size)}
    ends = [tokenizer.vocabulary.last, ids[other]]
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    lm = firth.load(tmp_path / "model")
    lm.save(tmp_path / "again")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "again").eos_token_id == ends
    for one in (lm, firth.load(tmp_path / "again")):
        assert one.generate("The", max_tokens=12).ended == "end"
        for beams in (1, 2):
            assert other not in one.generate("The", max_tokens=12, beams=beams).tokens


def test_links_stay_and_devices_are_no_files(tmp_path):
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to("there")
    need_writable(tmp_path / "link")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(ConfigError, match="a device or a pipe"):
            need_writable(name)


@pytest.mark.parametrize("closed", ["", "there"])
def test_a_file_needs_to_be_writable_and_its_folder_too(closed, tmp_path, monkeypatch):
    (tmp_path / "there").write_text("old")
    need_writable(tmp_path / "there")
    shut = tmp_path / closed  # what root may write to all the same
    monkeypatch.setattr("firth.atomic.os.access", lambda path, _mode: Path(path) != shut)
    with pytest.raises(ResourceError, match=f"no permission to write to {re.escape(str(shut))};"):
        need_writable(tmp_path / "there")


def test_a_folder_that_vanishes_as_it_is_locked_is_made_again(tmp_path, monkeypatch):
    vanished, original = [], os.open

    def opened(path, *arguments):
        if path == tmp_path / "run" and not vanished:
            vanished.append(path)
            path.rmdir()
        return original(path, *arguments)

    monkeypatch.setattr("firth.locks.os.open", opened)
    with only_process(tmp_path / "run") as held:
        assert held
        assert len(vanished) == 1
    assert not (tmp_path / "run").exists()
