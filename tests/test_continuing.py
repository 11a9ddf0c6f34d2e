"""Going on from a trained model: what is kept of it."""

import shutil
from dataclasses import replace

import pytest
import torch

import firth
from firth.cli import main
from firth.errors import ConfigError
from firth.models import Bert


@pytest.fixture(scope="module")
def corpus(papers) -> firth.Corpus:
    return firth.Corpus.from_texts(papers[:60])


QUICK = {
    "training.steps": 1,
    "training.batch_tokens": 256,
    "training.optimizer.lr": 1e-6,
    "data.max_length": 32,
    "data.valid": 0.2,
    "data.valid_tokens": 500,
}


def test_the_window_does_not_shrink(tiny_run, corpus, tmp_path):
    """Positions that were learned before are not lost where training goes on with shorter text."""
    start = firth.load(tiny_run)
    assert start.max_length == 64
    recipe = firth.recipe("bert", size="tiny").with_settings(QUICK)
    model = firth.pretrain(recipe, corpus, tmp_path / "run", start=start)
    assert model.max_length == firth.load(tmp_path / "run").max_length == 64
    assert model.tokenizer.vocabulary == start.tokenizer.vocabulary
    longer = recipe.with_settings({"data.max_length": 96})
    assert firth.pretrain(longer, corpus, tmp_path / "longer", start=start).max_length == 96


def test_a_pooler_is_left_behind_where_nothing_trains_it(tiny_run, corpus, tmp_path):
    trained = firth.load(tiny_run)
    torch.manual_seed(0)
    body = Bert(replace(trained.model.config), pooler=True)
    body.load_state_dict(trained.model.state_dict(), strict=False)
    start = firth.LanguageModel(body, trained.tokenizer)
    recipe = firth.recipe("bert", size="tiny").with_settings(QUICK)
    model = firth.pretrain(recipe, corpus, tmp_path / "run", start=start)
    assert not any("pooler" in name for name in model.model.state_dict())
    moved = model.model.embeddings.tokens.weight - body.embeddings.tokens.weight
    assert moved.abs().max() < 1e-4


@pytest.mark.parametrize("name", ["bert-nsp", "spanbert"])
def test_heads_of_the_objective_begin_at_random(name, tiny_run, corpus, tmp_path, caplog):
    """A run keeps no boundary head, and a plain BERT has none: both can be gone on from."""
    caplog.set_level("INFO")
    start = firth.load(tiny_run)
    recipe = firth.recipe(name, size="tiny").with_settings(QUICK)
    once = firth.pretrain(recipe, corpus, tmp_path / "once", start=start)
    head = "pair_head" if name == "bert-nsp" else "boundary_head"
    assert f"{head}" in caplog.text
    assert "begins at random" in caplog.text
    moved = once.model.embeddings.tokens.weight - start.model.embeddings.tokens.weight
    assert moved.abs().max() < 1e-4
    again = firth.pretrain(recipe, corpus, tmp_path / "again", start=once)
    assert again.model.config.hidden_size == start.model.config.hidden_size


def test_a_decoder_becomes_a_hybrid(corpus, tmp_path):
    small = {**QUICK, "training.optimizer.rest.lr": 1e-6}
    decoder = firth.recipe("gpt", size="tiny", vocab_size=300).with_settings(small)
    start = firth.pretrain(decoder, corpus, tmp_path / "gpt")
    hybrid = firth.recipe("hybrid", size="tiny").with_settings(small)
    model = firth.pretrain(hybrid, corpus, tmp_path / "hybrid", start=start)
    assert model.model.config == replace(start.model.config, bidirectional=True)


def test_settings_that_a_start_overrules_are_named(tiny_run, papers, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(papers[:30]), encoding="utf-8")
    command = ["pretrain", "bert", str(text), "-o", str(tmp_path / "run"), "--start", str(tiny_run)]
    command += ["--size", "mini", "--model.num_layers", "9", "--model.dropout", "0.2"]
    for name, value in QUICK.items():
        command += [f"--{name}", str(value)]
    assert main([*command, "--documents", "block"]) == 0
    said = capsys.readouterr().err
    assert "--size: no effect but on the learning rate" in said
    assert "--model.num_layers: no effect" in said


def test_rows_beyond_the_tokenizer_are_kept(tiny_run, corpus, tmp_path):
    """As those of T5, whose table was made longer than its vocabulary."""
    trained = firth.load(tiny_run)
    size = trained.tokenizer.vocabulary.size
    body = Bert(replace(trained.model.config, vocab_size=size + 28))
    start = firth.LanguageModel(body, trained.tokenizer)
    recipe = firth.recipe("bert", size="tiny").with_settings(QUICK)
    model = firth.pretrain(recipe, corpus, tmp_path / "run", start=start)
    assert model.model.config.vocab_size == size + 28
    with torch.no_grad():
        model.model.head.bias[size:] = 50.0  # what no token has is never chosen
    assert len(model.fill(f"the {model.tokenizer.token(4)} of", top_k=5)) == 5
    short = Bert(replace(trained.model.config, vocab_size=size - 1))
    with pytest.raises(ConfigError, match=f"{size} tokens, .* and the model {size - 1};"):
        firth.pretrain(
            recipe, corpus, tmp_path / "short", start=firth.LanguageModel(short, trained.tokenizer)
        )
    wordless = firth.LanguageModel(body, firth.Tokenizer.of_words([]))
    with pytest.raises(ConfigError, match="has no words"):
        firth.pretrain(recipe, corpus, tmp_path / "wordless", start=wordless)


def test_what_is_given_is_checked_before_anything_is_written(tiny_run, corpus, tmp_path):
    recipe = firth.recipe("bert", size="tiny").with_settings(QUICK)
    start = firth.load(tiny_run)
    other = firth.Tokenizer.train(["another vocabulary"] * 9, vocab_size=60)
    words = firth.recipe("fasttext", size="tiny").with_settings({"training.epochs": 1})
    for chosen, given, message in (
        (recipe, {"start": tiny_run}, "expected a language model"),
        (recipe, {"tokenizer": str(tiny_run)}, "expected a firth.Tokenizer"),
        (recipe, {"start": start, "tokenizer": other}, "is not that of"),
        (words, {"tokenizer": start.tokenizer}, "spells whole words"),
        (firth.recipe("elmo", size="tiny"), {"tokenizer": start.tokenizer}, "spells whole words"),
    ):
        with pytest.raises(ConfigError, match=message):
            firth.pretrain(chosen, corpus, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
    model = firth.pretrain(
        recipe, corpus, tmp_path / "run", start=start, tokenizer=firth.Tokenizer.load(tiny_run)
    )
    assert model.tokenizer.content_hash == start.tokenizer.content_hash


def test_a_start_is_known_by_its_weights_not_by_its_name(tiny_run, corpus, tmp_path):
    recipe = firth.recipe("bert", size="tiny").with_settings(QUICK)
    shutil.copytree(tiny_run, tmp_path / "moved")
    first = firth.pretrain(recipe, corpus, tmp_path / "run", start=firth.load(tiny_run))
    moved = firth.load(tmp_path / "moved")
    again = firth.pretrain(recipe, corpus, tmp_path / "run", start=moved)
    assert again.weights_hash == first.weights_hash
    with pytest.raises(ConfigError, match="went on from other weights"):
        firth.pretrain(recipe, corpus, tmp_path / "run", start=first)
