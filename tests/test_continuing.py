"""Going on from a trained model: what is kept of it."""

from dataclasses import replace

import pytest
import torch

import firth
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
