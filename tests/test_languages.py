"""Several languages in one run: their shares, what is shown, and perplexity of each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import firth
from firth.errors import ConfigError
from firth.text.batches import PackedSequences
from firth.text.languages import JoinedLanguages, MultilingualCorpus, smoothed_shares
from firth.text.shards import write_shards
from firth.text.tokenizers import Tokenizer
from firth.training.tracking import read_metrics
from tests.sources import VOCABULARY, ListSource, random_documents
from tests.test_end_to_end import good, run


def test_shares_are_the_published_ones():
    """English falls from 21 % to less, Icelandic rises a hundredfold (BERT, `multilingual.md`)."""
    np.testing.assert_allclose(smoothed_shares([3, 1], 1.0), [0.75, 0.25])
    np.testing.assert_allclose(smoothed_shares([3, 1], 0.0), [0.5, 0.5])
    expected = np.array([0.99**0.7, 0.01**0.7])
    np.testing.assert_allclose(smoothed_shares([99, 1], 0.7), expected / expected.sum())
    # "English is sampled 1000x more than Icelandic without smoothing, and 100x with it": about so.
    before, after = smoothed_shares([1000, 1], 1.0), smoothed_shares([1000, 1], 0.7)
    assert before[0] / before[1] == pytest.approx(1000)
    assert 100 < after[0] / after[1] < 130
    with pytest.raises(ConfigError, match=r"data\.smoothing is 1\.5"):
        smoothed_shares([1, 2], 1.5)


@given(st.integers(0, 1000), st.floats(0.2, 4.0))
def test_pieces_are_shown_as_often_as_asked(seed, rate):
    """Over epochs the count of each document stays within one of its visits, and nothing is cut."""
    documents = random_documents(seed, 30, longest=14)
    visits = np.where(np.arange(30) % 2, rate, 1.0)
    packed = PackedSequences(
        ListSource(documents), VOCABULARY, max_length=16, batch_tokens=64, seed=seed, visits=visits
    )
    seen = np.zeros(30)
    for epoch in range(1, 4):
        steps = range((epoch - 1) * packed.steps_per_epoch, epoch * packed.steps_per_epoch)
        for step in steps:
            one = packed.sequences(step)
            assert len(one.starts) > 1
            assert one.documents is not None
            seen += np.bincount(one.documents, minlength=30)
        assert np.abs(seen - visits * epoch).max() <= 1 + 1e-9
    assert (seen[::2] == 3).all()


def test_batches_hold_the_smoothed_shares(tmp_path):
    large = [f"word{i % 50} and more of it" for i in range(2000)]
    small = [f"mot{i % 50} et plus" for i in range(100)]
    tokenizer = Tokenizer.train(large + small, "word", 200)
    parts = {
        name: write_shards(firth.Corpus.from_texts(texts), tokenizer, tmp_path / name, workers=1)
        for name, texts in (("en", large), ("fr", small))
    }
    joined = JoinedLanguages(parts, 0.7)
    sizes = np.array([parts["en"].num_tokens, parts["fr"].num_tokens])
    np.testing.assert_allclose(joined.shares, smoothed_shares(sizes, 0.7))
    packed = PackedSequences(
        joined,
        tokenizer.vocabulary,
        max_length=32,
        batch_tokens=256,
        seed=0,
        visits=joined.document_visits,
    )
    counts = np.zeros(tokenizer.vocabulary.size)
    for step in range(4 * packed.steps_per_epoch):
        one = packed.sequences(step)
        assert abs(len(one.ids) - 256) < 64
        counts += np.bincount(one.ids, minlength=len(counts))
    french = tokenizer.encode_ids(["et plus"], special_tokens=False)[0]
    english = tokenizer.encode_ids(["more of"], special_tokens=False)[0]
    shown = counts[french].sum() / 2 * 3, counts[english].sum() / 2 * 5  # tokens a document
    assert shown[0] / sum(shown) == pytest.approx(joined.shares[1], rel=0.1)
    expected = joined.token_counts / joined.token_counts.sum()
    found = counts * (np.arange(len(counts)) > 4)  # without special tokens
    np.testing.assert_allclose(found / found.sum(), expected, atol=0.01)


def test_the_vocabulary_sees_the_same_shares():
    corpus = MultilingualCorpus.of(
        {
            "b": firth.Corpus.from_texts([f"b{i:05d}" for i in range(900)]),
            "a": firth.Corpus.from_texts([f"a{i:05d}" for i in range(100)]),
        }
    )
    assert corpus.languages == ("a", "b")
    texts = list(corpus.smoothed(0.5))
    share = sum(text[0] == "a" for text in texts) / len(texts)
    assert share == pytest.approx(smoothed_shares([100, 900], 0.5)[0], abs=0.01)
    assert set(texts) == set(corpus.smoothed(1.0))
    assert len(list(corpus.smoothed(1.0))) == 1000


def test_a_multilingual_run(tmp_path, papers):
    """Two languages, the second one spelled backwards: perplexity of each, and exact resume."""
    files = {"en": papers[:60], "ne": [text[::-1] for text in papers[60:80]]}
    for name, texts in files.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(texts), encoding="utf-8")
    named = [f"{name}={tmp_path / name}.txt" for name in files]
    budget = ("--size", "tiny", "--vocab", "600", "--documents", "line", "--steps", "30")
    settings = ("--data.valid", "0.2", "--training.batch_tokens", "1024")
    good("pretrain", "bert", *named, "-o", tmp_path / "run", *budget, *settings)
    rows = read_metrics(tmp_path / "run")
    last = [row for row in rows if "valid_loss" in row][-1]
    each = [last["valid_perplexity_en"], last["valid_perplexity_ne"]]
    assert last["valid_perplexity"] == pytest.approx(np.sqrt(each[0] * each[1]))
    assert each[0] != each[1]
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"by language: en {each[0]:.2f}, ne {each[1]:.2f}" in card
    assert "ne 2" in card.replace("\n", " ")  # about a quarter of the text
    refused = run("pretrain", "bert", named[0], "other.txt", "-o", tmp_path / "no", *budget)
    assert refused.code == 2
    assert "other.txt: expected a language before it" in refused.err
    refused = run("pretrain", "bert", *named, "--valid", named[0], "-o", tmp_path / "no", *budget)
    assert "languages" in refused.err


def test_what_does_not_go_together_is_said(tmp_path, papers):
    corpus = MultilingualCorpus.of(
        {"a": firth.Corpus.from_texts(papers[:5]), "b": firth.Corpus.from_texts(papers[5:9])}
    )
    recipe = firth.recipe("bert", size="tiny")
    for settings, message in (
        ({"data.packing": "full"}, "data.packing to be documents"),
        ({"data.spans": "names"}, "text of one language"),
        ({"data.smoothing": 2.0}, "data.smoothing is 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            firth.pretrain(recipe.with_settings(settings), corpus, tmp_path / "run")
    with pytest.raises(ConfigError, match="the held-out text of no name"):
        firth.pretrain(recipe, corpus, tmp_path, valid=firth.Corpus.from_texts(papers[9:12]))
    with pytest.raises(ConfigError, match="pairs of texts"):
        firth.pretrain(firth.recipe("transformer"), corpus, tmp_path / "run")
    with pytest.raises(ConfigError, match="two or more"):
        MultilingualCorpus.of({"a": firth.Corpus.from_texts(papers[:5])})
    with pytest.raises(ConfigError, match="expected a name of letters"):
        MultilingualCorpus.of({"a": corpus.parts[0][1], "../b": corpus.parts[1][1]})
