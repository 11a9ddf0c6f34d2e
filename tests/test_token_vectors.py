"""Language models whose tokens begin with word vectors."""

import numpy as np
import pytest
import torch

import firth
from firth.api.word_vectors import vocabulary_vectors
from firth.cli import main
from firth.errors import ConfigError, DataError, UnsupportedError
from firth.interop.word_vectors import write_word_vectors
from firth.text.token_vectors import centred_directions, token_vectors

WORDS = ["the", "cat", "dog", "unbelievable", "happen", "catcher"]
TEXT = ["the cat sat on the mat. The dog is under the table, and unbelievable things happen"] * 20
SIZES = {"wordpiece": 80, "bpe": 330, "unigram": 50, "word": 30}


def tokenizer_of(kind: str, **how) -> firth.Tokenizer:
    return firth.Tokenizer.train(TEXT, kind=kind, vocab_size=SIZES[kind], **how)


def vectors_of(words: list[str], size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((len(words), size)).astype(np.float32)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "word"])
def test_a_whole_word_has_its_own_vector(kind):
    """Behind a space and at the start of a text, where byte-level BPE has other tokens."""
    tokenizer, vectors = tokenizer_of(kind), vectors_of(WORDS)
    ids, rows = token_vectors(tokenizer, WORDS, vectors, lowercase=True)
    assert (np.diff(ids) > 0).all()
    assert not {*ids.tolist()} & {*tokenizer.vocabulary.special}
    found = dict(zip(ids.tolist(), rows, strict=True))
    tried = 0
    for text in ("the", "The", "x the", "x cat", "x dog", "x unbelievable"):
        encoded = tokenizer.encode_ids([text.split()], special_tokens=False)[0]
        own = encoded[1:] if text.startswith("x ") else encoded
        if len(own) == 1:
            word = text.removeprefix("x ").lower()
            np.testing.assert_array_equal(found[int(own[0])], vectors[WORDS.index(word)])
            tried += 1
    assert tried >= 3


def test_a_piece_has_the_mean_over_its_words_by_rank():
    words = ["the", "hate", "heat", "qqq"]
    tokenizer = tokenizer_of("wordpiece")
    pieces = [tokenizer.encode(w).ids[1:-1].tolist() for w in words]
    assert [len(own) > 1 for own in pieces] == [False, True, True, False]
    assert {*pieces[1]} & {*pieces[2]}
    assert pieces[3] == [tokenizer.vocabulary.unknown]
    vectors = vectors_of(words)
    ids, rows = token_vectors(tokenizer, words, vectors, lowercase=False)
    found = dict(zip(ids.tolist(), rows, strict=True))
    assert found.keys() == {*pieces[0], *pieces[1], *pieces[2]}
    np.testing.assert_array_equal(found[pieces[0][0]], vectors[0])
    for piece in {*pieces[1], *pieces[2]}:
        counts = np.array([own.count(piece) for own in pieces])
        weights = counts / np.array([1, 2, 3, 4])
        np.testing.assert_allclose(found[piece], weights @ vectors / weights.sum(), rtol=1e-5)


def test_case_counts_where_the_words_have_it():
    tokenizer = tokenizer_of("word")
    for lowercase, forms in ((False, {"the"}), (True, {"the", "The"})):
        ids, _ = token_vectors(tokenizer, ["the"], vectors_of(["the"]), lowercase=lowercase)
        assert set(map(tokenizer.token, ids)) == forms


def test_words_without_a_vector_say_nothing():
    vectors = vectors_of(WORDS)
    vectors[WORDS.index("cat")] = 0
    ids, _ = token_vectors(tokenizer_of("word"), WORDS, vectors, lowercase=True)
    assert "cat" not in {tokenizer_of("word").token(int(i)) for i in ids}
    ids, rows = token_vectors(tokenizer_of("word"), ["кот"], vectors[:1], lowercase=True)
    assert rows.shape == (len(ids), 8) == (0, 8)


def test_directions_are_centred_and_projected():
    vectors = vectors_of([str(i) for i in range(50)], 6) * [5, 4, 3, 2, 0.1, 0.1] + 7
    kept = centred_directions(vectors, 4)
    assert kept.shape == (50, 4)
    np.testing.assert_allclose(np.linalg.norm(kept, axis=1), 1, rtol=1e-5)
    around = vectors - vectors.mean(0)
    around /= np.linalg.norm(around, axis=1, keepdims=True)
    np.testing.assert_allclose(kept @ kept.T, around @ around.T, atol=0.02)  # angles stay
    same = np.ones((3, 4), np.float32)
    assert not centred_directions(same, 4).any()
    np.testing.assert_allclose(centred_directions(vectors, 9), around, atol=1e-5)


QUICK = {
    "training.steps": 1,
    "training.batch_tokens": 256,
    "training.optimizer.lr": 1e-12,
    "data.max_length": 32,
    "data.valid": 0.2,
    "data.valid_tokens": 500,
}


@pytest.fixture(scope="module")
def corpus(papers) -> firth.Corpus:
    return firth.Corpus.from_texts(papers[:60])


@pytest.fixture(scope="module")
def vectors(papers, tmp_path_factory):
    """Random vectors, narrower than the models, for words of the corpus."""
    words = [w for w in dict.fromkeys(" ".join(papers[:60]).lower().split()) if w.isalpha()]
    path = tmp_path_factory.mktemp("vectors") / "own.vec"
    write_word_vectors(path, words, vectors_of(words, 24))
    return firth.load(path)


@pytest.mark.parametrize("name", ["bert", "modern-bert", "gpt", "t5", "awd-lstm"])
def test_every_kind_of_model_begins_with_them(name, corpus, vectors, tmp_path, caplog):
    caplog.set_level("INFO")
    recipe = firth.recipe(name, size="tiny", vocab_size=600)
    settings = QUICK | ({"data.max_length": 16} if name == "awd-lstm" else {})
    if hasattr(recipe.training.optimizer, "rest"):
        settings |= {"training.optimizer.rest.lr": 1e-12}
    recipe = recipe.with_settings(settings)
    plain = firth.pretrain(recipe, corpus, tmp_path / "plain")
    lm = firth.pretrain(
        recipe, corpus, tmp_path / "run", tokenizer=plain.tokenizer, vectors=vectors
    )
    before, after = (
        getattr(m.model.embeddings, "tokens", m.model.embeddings).weight.detach()
        for m in (plain, lm)
    )
    words, known = vocabulary_vectors(vectors)
    ids, rows = token_vectors(lm.tokenizer, words, known, lowercase=True)
    assert f"{len(ids):,} of {lm.tokenizer.vocabulary.size:,} tokens begin with" in caplog.text
    assert len(ids) > 200
    others = np.setdiff1d(np.arange(len(after)), ids)
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-5)
    torch.testing.assert_close(after[:, 24:], before[:, 24:], rtol=0, atol=1e-5)
    usual = before[ids, :24].norm(dim=1).mean()
    expected = usual * torch.from_numpy(centred_directions(rows, 24))
    torch.testing.assert_close(after[ids, :24], expected, rtol=1e-3, atol=1e-5)


def test_vectors_of_pieces_bring_their_tokenizer(corpus, tiny_run, tmp_path):
    """Skip-gram over the tokens themselves."""
    pytest.importorskip("numba")
    words = firth.recipe("word2vec", size="tiny", vocab_size=600).with_settings(
        {
            "tokenizer.kind": "wordpiece",
            "tokenizer.lowercase": False,
            "training.epochs": 1,
            "data.valid": 0.2,
        }
    )
    pieces = firth.pretrain(words, corpus, tmp_path / "pieces")
    assert not pieces.tokenizer.whole_words
    recipe = firth.recipe("bert", size="tiny", vocab_size=300).with_settings(QUICK)
    lm = firth.pretrain(recipe, corpus, tmp_path / "run", vectors=pieces)
    assert lm.tokenizer.content_hash == pieces.tokenizer.content_hash
    theirs = pieces.model.embeddings.tokens.weight.detach()
    ids = np.flatnonzero(theirs.numpy().any(1))
    assert len(ids) > 500
    directions = torch.from_numpy(centred_directions(theirs[ids].numpy(), 128))
    ours = lm.model.embeddings.tokens.weight.detach()[ids]
    cosines = torch.cosine_similarity(ours, directions)
    assert cosines.min() > 0.999
    given = firth.load(tiny_run).tokenizer
    with pytest.raises(ConfigError, match=r"of pieces of words .600 tokens., and the tokenizer"):
        firth.pretrain(recipe, corpus, tmp_path / "none", vectors=pieces, tokenizer=given)


def test_a_run_is_taken_up_with_the_same_vectors_alone(corpus, vectors, tmp_path):
    recipe = firth.recipe("bert", size="tiny", vocab_size=600).with_settings(QUICK)
    once = firth.pretrain(recipe, corpus, tmp_path / "run", vectors=vectors)
    again = firth.pretrain(recipe, corpus, tmp_path / "run", vectors=vectors)
    assert once.weights_hash == again.weights_hash
    with pytest.raises(ConfigError, match=r"other settings .*vectors"):
        firth.pretrain(recipe, corpus, tmp_path / "run")
    words, rows = vocabulary_vectors(vectors)
    write_word_vectors(tmp_path / "other.vec", words, rows[::-1])
    other = firth.load(tmp_path / "other.vec")
    with pytest.raises(ConfigError, match=r"went on from other weights than .*other\.vec"):
        firth.pretrain(recipe, corpus, tmp_path / "run", vectors=other)


def test_vectors_that_do_not_suit(tiny_run, corpus, vectors, tmp_path):
    bert = firth.recipe("bert", size="tiny", vocab_size=600).with_settings(QUICK)
    elmo = firth.recipe("elmo", size="tiny").with_settings({"training.steps": 1})
    static = firth.recipe("word2vec", size="tiny").with_settings({"training.epochs": 1})
    lm = firth.load(tiny_run)
    for recipe, given, error, message in (
        (bert, {"vectors": lm}, UnsupportedError, "depend on the context"),
        (bert, {"vectors": "own.vec"}, ConfigError, "expected a model of word vectors"),
        (bert, {"vectors": vectors, "start": lm}, ConfigError, "not both"),
        (elmo, {"vectors": vectors}, ConfigError, "elmo spells words"),
        (static, {"vectors": vectors}, ConfigError, "learns word vectors"),
    ):
        with pytest.raises(error, match=message):
            firth.pretrain(recipe, corpus, tmp_path / "none", **given)
        assert not (tmp_path / "none").exists()
    write_word_vectors(tmp_path / "ru.vec", ["кот", "дом"], vectors_of(["a", "b"]))
    with pytest.raises(DataError, match=r"none of the 2 words .* same language"):
        firth.pretrain(bert, corpus, tmp_path / "ru", vectors=firth.load(tmp_path / "ru.vec"))


def test_the_command_line_takes_a_file(vectors, papers, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(papers[:30]), encoding="utf-8")
    command = ["pretrain", "bert", str(text), "-o", str(tmp_path / "run"), "--documents", "block"]
    command += ["--size", "tiny", "--vocab", "600", "--vectors", str(vectors.path)]
    for name, value in QUICK.items():
        command += [f"--{name}", str(value)]
    assert main(command) == 0
    assert f"tokens begin with vectors of {vectors.path}" in capsys.readouterr().err
