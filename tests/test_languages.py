"""Several languages in one run: their shares, what is shown, and perplexity of each."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import firth
from firth.errors import ConfigError, DataError
from firth.text.batches import PackedSequences
from firth.text.languages import (
    JoinedLanguages,
    MultilingualCorpus,
    smoothed_shares,
    write_languages,
)
from firth.text.shards import write_shards
from firth.text.tokenizers import Tokenizer
from firth.training.tracking import read_metrics
from tests.sources import VOCABULARY, ListSource, random_documents
from tests.test_end_to_end import good, run


def test_shares_are_the_published_ones():
    """BERT, `multilingual.md`: English is shown a hundred, not a thousand, times as Icelandic."""
    np.testing.assert_allclose(smoothed_shares([3, 1], 1.0), [0.75, 0.25])
    np.testing.assert_allclose(smoothed_shares([3, 1], 0.0), [0.5, 0.5])
    expected = np.array([0.99**0.7, 0.01**0.7])
    np.testing.assert_allclose(smoothed_shares([99, 1], 0.7), expected / expected.sum())
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
    assert joined.describe() == "en 97.1% (shown 92.1%), fr 2.9% (shown 7.9%)"
    assert JoinedLanguages(parts, 1.0).describe() == "en 97.1%, fr 2.9%"
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


def manifests(run):
    return sorted((run / "data" / "train").glob("*/manifest.json"))


def test_a_multilingual_run(tmp_path, papers):
    """Two languages, the second one spelled backwards: perplexity of each, and baselines."""
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
    shares = re.search(r"ne (\S+)% \(shown (\S+)%\)", card)
    assert shares is not None
    own, shown = (float(share) / 100 for share in shares.groups())
    assert shown == pytest.approx(smoothed_shares([1 - own, own], 0.7)[1], abs=0.001)
    assert 0.15 < own < shown
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("good\tbad\nwe use these\twe use this\n", encoding="utf-8")
    report = json.loads(
        good("evaluate", tmp_path / "run", pairs, "--suite", "pairs", "--pseudo", "--json")
    )
    assert "5-gram" in report["details"]["baselines"]
    tokens = sum(json.loads(p.read_text())["num_tokens"] for p in manifests(tmp_path / "run"))
    assert f"train tokens\t{tokens:,}\n" in good("inspect", tmp_path / "run")
    refused = run("pretrain", "bert", named[0], "other.txt", "-o", tmp_path / "no", *budget)
    assert refused.code == 2
    assert "other.txt: expected a language before it" in refused.err
    for valid, message in (
        (named[:1], "1 language was given"),
        ([named[0], named[1].replace("ne=", "xx=")], "the held-out text en, xx; expected the same"),
    ):
        refused = run("pretrain", "bert", *named, "--valid", *valid, "-o", tmp_path / "no", *budget)
        assert refused.code == 2
        assert message in refused.err


def test_a_run_keeps_its_languages(tmp_path, papers):
    """Another set of languages, or text without a name, is refused, whichever came first."""
    text = {name: firth.Corpus.from_texts(papers[i : i + 8]) for i, name in ((0, "a"), (8, "b"))}
    text["c"] = firth.Corpus.from_texts(papers[16:24])
    recipe = firth.recipe("bert", size="tiny", vocab_size=300).with_settings(
        {"training.steps": 2, "training.batch_tokens": 512, "data.valid": 0.3}
    )
    both = MultilingualCorpus.of({"a": text["a"], "b": text["b"]})
    firth.pretrain(recipe, both, tmp_path / "run", valid=both)
    begun = (tmp_path / "run" / "metrics.jsonl").read_text()
    more = MultilingualCorpus.of(text)
    for other, named in ((more, "train of c, valid of c"), (text["a"], "train, train of a, ")):
        with pytest.raises(DataError, match=rf"other text \({named}"):
            firth.pretrain(recipe, other, tmp_path / "run", valid=other)
    firth.pretrain(recipe, text["a"], tmp_path / "plain", valid=text["b"])
    with pytest.raises(DataError, match=r"other text \(train, train of a, "):
        firth.pretrain(recipe, both, tmp_path / "plain", valid=both)
    firth.pretrain(recipe, both, tmp_path / "run", valid=both)  # goes on, being at its end
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == begun


def test_tokens_of_several_languages_lie_end_to_end(tmp_path):
    tokenizer = Tokenizer.train(["a b c d e f"], "word", 20, min_frequency=1)
    texts = {"x": ["a b", "c"], "y": ["d e f"], "z": ["f a"]}
    parts = {
        name: write_shards(firth.Corpus.from_texts(t), tokenizer, tmp_path / name, workers=1)
        for name, t in texts.items()
    }
    joined = JoinedLanguages(parts, 1.0)
    whole = tokenizer.encode_ids(["a b c d e f f a"], special_tokens=False)[0]
    for begin in range(9):
        for end in range(begin, 9):
            np.testing.assert_array_equal(joined.tokens(begin, end), whole[begin:end])
            assert joined.opens_word(begin, end).sum() == end - begin
    assert joined.document_starts.tolist() == [0, 2, 3, 6, 8]
    np.testing.assert_allclose(joined.visits, 1.0)


@given(st.integers(0, 100), st.integers(1, 3))
def test_no_batch_is_empty_however_small(seed, times):
    """Budgets of one to three sequences, and documents that epochs show or leave out."""
    documents = random_documents(seed, 12, longest=15)
    visits = np.random.default_rng(seed).uniform(0.3, 2.5, 12)
    packed = PackedSequences(
        ListSource(documents),
        VOCABULARY,
        max_length=16,
        batch_tokens=16 * times,
        seed=seed,
        visits=visits,
    )
    for step in range(4 * packed.steps_per_epoch):
        assert len(packed.sequences(step).ids) > 0


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
    with pytest.raises(ConfigError, match="halves of next-sentence pairs"):
        firth.pretrain(firth.recipe("bert-nsp", size="tiny"), corpus, tmp_path / "run")
    with pytest.raises(ConfigError, match="the held-out text of no name"):
        firth.pretrain(recipe, corpus, tmp_path, valid=firth.Corpus.from_texts(papers[9:12]))
    with pytest.raises(ConfigError, match="pairs of texts"):
        firth.pretrain(firth.recipe("transformer"), corpus, tmp_path / "run")
    with pytest.raises(ConfigError, match="two or more"):
        MultilingualCorpus.of({"a": firth.Corpus.from_texts(papers[:5])})
    with pytest.raises(ConfigError, match="expected a name of letters"):
        MultilingualCorpus.of({"a": corpus.parts[0][1], "../b": corpus.parts[1][1]})


def test_a_language_without_text_is_named(tmp_path):
    some = firth.Corpus.from_texts([f"ein Satz, Nummer {i}" for i in range(500)])
    none = MultilingualCorpus.of({"de": some, "tr": firth.Corpus.from_texts(["  "])})
    with pytest.raises(DataError, match=r"language tr: .*no text"):
        list(none.smoothed(0.7))
    few = MultilingualCorpus.of({"de": some, "tr": firth.Corpus.from_texts(["bir", "iki"])})
    _, held_out = few.split(valid=0.01, seed=0)
    tokenizer = firth.Tokenizer.train(list(some), "word", 100)
    with pytest.raises(DataError, match="language tr: "):
        write_languages(held_out, tokenizer, tmp_path)
