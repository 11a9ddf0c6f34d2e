"""Vectors, scores and blanks: batched, windowed and pooled as computed by hand."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import firth
from firth.errors import ConfigError, UnsupportedError
from firth.inference import scoring
from firth.inference.embedding import embed_sentences, token_states
from firth.inference.forward import Engine, windows
from firth.inference.samples import _with_blank, filled_blanks
from firth.inference.scoring import score_masked
from firth.models import AWDLSTMConfig, Bert, BertConfig, GPTConfig, build
from firth.models.bert import modern
from firth.models.mix import Pooling
from firth.protocols import Batch, Encoding

SENTENCES = [
    "The results of our experiments are shown in the table below.",
    "",
    "Parsing.",
    "We use a corpus of 10,000 sentences, which were annotated by two linguists (see section 3).",
    "naïve café, don't – 日本 🙂 !?",
    "Translation",
]


@pytest.fixture(scope="module")
def lm(tiny_run) -> firth.LanguageModel:
    model = firth.load(tiny_run, device="cpu", precision="float32")
    assert isinstance(model, firth.LanguageModel)
    return model


@pytest.fixture(scope="module")
def long_text(lm, papers) -> str:
    """A text that takes four windows."""
    words = " ".join(papers[:3]).split()
    encoding = lm.tokenizer.encode(words)
    return " ".join(words[: encoding.words[round(2.2 * lm.max_length)]])


def direct(lm: firth.LanguageModel, ids: np.ndarray) -> list[np.ndarray]:
    """Every layer's states of one sequence of ids, from the bare model."""
    batch = Batch(input_ids=torch.from_numpy(ids), starts=torch.tensor([0, len(ids)]))
    with torch.inference_mode():
        return [state.numpy() for state in lm.model(batch, hidden_states=True).hidden_states]


def direct_log_probabilities(lm: firth.LanguageModel, ids: np.ndarray, at: int) -> np.ndarray:
    """(V) log probabilities at one position of a sequence."""
    with torch.inference_mode():
        hidden = torch.from_numpy(direct(lm, ids)[-1][at : at + 1])
        return torch.log_softmax(lm.model.logits(hidden), -1)[0].numpy()


def numbered(length: int, opened: bool = True, closed: bool = True) -> Encoding:
    """An encoding whose ids are their own positions, with special tokens at its ends or without."""
    words = np.zeros(length, np.int64)
    words[:opened] = words[length - closed :] = -1
    return Encoding(
        text="",
        ids=np.arange(length),
        tokens=[""] * length,
        offsets=np.zeros((length, 2), np.int64),
        words=words,
    )


# Windows


@given(st.lists(st.integers(2, 300), min_size=1, max_size=4), st.integers(3, 60))
def test_windows_partition_the_tokens_and_give_them_context(lengths, max_length):
    found = windows([numbered(length) for length in lengths], max_length)
    quarter = (max_length - 2) // 4
    for text, length in enumerate(lengths):
        own = [window for window in found if window.text == text]
        answered = np.concatenate([np.arange(window.begin, window.end) for window in own])
        assert np.array_equal(answered, np.arange(length))
        assert (len(own) == 1) == (length <= max_length)
        for window in own:
            ids, tokens = window.ids, np.arange(window.begin, window.end)
            places = tokens - window.offset
            assert len(ids) <= max_length
            assert (ids[0], ids[-1]) == (0, length - 1)
            assert np.array_equal(ids[places], tokens)
            inside = (tokens > 0) & (tokens < length - 1)
            left, right = np.minimum(tokens - 1, quarter), np.minimum(length - 2 - tokens, quarter)
            assert (places - 1 >= left)[inside].all()
            assert (len(ids) - 2 - places >= right)[inside].all()


@pytest.mark.parametrize(("opened", "closed"), [(False, False), (False, True), (True, False)])
def test_windows_repeat_special_tokens_only(opened, closed):
    """GPT-2's texts have none, T5's have one at the end."""
    found = windows([numbered(202, opened, closed)], 52)
    answered = np.concatenate([np.arange(window.begin, window.end) for window in found])
    assert np.array_equal(answered, np.arange(202))
    for window in found:
        inner = window.ids[opened : len(window.ids) - closed]
        assert len(window.ids) == 52
        assert np.array_equal(np.diff(inner), np.ones(len(inner) - 1))
        assert (window.ids[0] == 0) or not opened
        assert (window.ids[-1] == 201) or not closed
        tokens = np.arange(window.begin, window.end)
        assert np.array_equal(window.ids[tokens - window.offset], tokens)


def test_windows_overlap_by_half_at_least():
    found = windows([numbered(202)], 52)
    for one, next_one in pairwise(found):
        assert len(set(one.ids[1:-1]) & set(next_one.ids[1:-1])) >= 25
    assert len(found) == 7  # 200 ordinary tokens, 50 a window, 25 a step


@given(st.integers(2, 300), st.integers(3, 60))
def test_windows_of_models_that_read_one_way_look_there(length, max_length):
    """Behind the first window each token has half a window before it; mirrored for the others."""
    half = max_length - 2 - max(1, (max_length - 2) // 2)
    for context in ("left", "right"):
        found = windows([numbered(length)], max_length, context=context)
        answered = np.concatenate([np.arange(window.begin, window.end) for window in found])
        assert np.array_equal(answered, np.arange(length))
        for window in found:
            tokens = np.arange(max(1, window.begin), min(length - 1, window.end))
            places = tokens - window.offset
            assert np.array_equal(window.ids[places], tokens)
            before, behind = places - 1, len(window.ids) - 2 - places
            if context == "left":
                assert (before >= np.minimum(tokens - 1, half)).all()
            else:
                assert (behind >= np.minimum(length - 2 - tokens, half)).all()


def test_borders_of_windows():
    ends = {
        "both": [38, 63, 88, 113, 138, 163, 202],
        "left": [51, 76, 101, 126, 151, 176, 202],
        "right": [26, 51, 76, 101, 126, 151, 202],
    }
    for context, expected in ends.items():
        found = windows([numbered(202)], 52, context=context)
        assert [window.end for window in found] == expected
        assert [window.begin for window in found] == [0, *expected[:-1]]


NARROW = {"hidden_size": 32, "num_layers": 2, "max_length": 64}
HEADS = {"num_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("kind", ["gpt", "hybrid", "awd-lstm", "awd-lstm, backward"])
def test_words_that_are_not_read_change_nothing(kind, papers):
    """A causal model's vectors stay as they were when words are appended; a backward one's when
    they are put before the text. Only the last windows may lie elsewhere."""
    tokenizer = firth.Tokenizer.train(papers[:20], "word", 400)
    size, backward = tokenizer.vocabulary.size, "backward" in kind
    config = (
        AWDLSTMConfig(vocab_size=size, embedding_size=32, backward=backward, **NARROW)
        if kind.startswith("awd")
        else GPTConfig(vocab_size=size, bidirectional=kind == "hybrid", **NARROW, **HEADS)
    )
    torch.manual_seed(0)
    network = build(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = firth.LanguageModel(network, tokenizer, precision="float32")
    words = [word for word in " ".join(papers[:3]).split() if word.isalpha()][:150]
    turn = -1 if backward else 1

    def vectors(count: int) -> np.ndarray:
        """Of the first words that are read, in the order of reading."""
        return model.embed([words[::turn][:count][::turn]], unit="word")[0].vectors[::turn]

    room = 64 - 2
    whole = vectors(room)
    changed = np.abs(vectors(room + 1)[:room] - whole).max(axis=1)
    if kind == "hybrid":
        assert changed.max() > 0.1
        return
    assert changed.max() < 1e-5
    long, longer = vectors(120), vectors(125)
    np.testing.assert_allclose(long[:room], whole, atol=1e-5)
    same = room + room // 2  # behind it the windows that end with the text begin
    np.testing.assert_allclose(longer[:same], long[:same], atol=1e-5)


# Sentences


def test_batched_embeddings_equal_those_one_by_one(lm, long_text):
    texts = [*SENTENCES, long_text]
    together = lm.embed(texts)
    alone = np.concatenate([lm.embed([text]) for text in texts])
    assert together.shape == (len(texts), lm.model.config.hidden_size)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - together[3]).max() > 0.1  # texts do differ


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_pooling_equals_a_hand_computation(lm, pooling):
    states = [one.values[-1] for one in lm.hidden_states(SENTENCES)]
    by_hand = {"mean": lambda x: x.mean(0), "max": lambda x: x.max(0)}
    by_hand |= {"first": lambda x: x[0], "last": lambda x: x[-1]}
    expected = np.stack([by_hand[pooling](state) for state in states])
    np.testing.assert_allclose(lm.embed(SENTENCES, pooling=pooling), expected, atol=1e-5)


def test_a_long_text_is_pooled_over_its_windows(lm, long_text):
    pieces = windows([lm.tokenizer.encode(long_text)], lm.max_length)
    assert len(pieces) == 4
    states = [direct(lm, piece.ids)[-1] for piece in pieces]
    counts = np.array([piece.end - piece.begin for piece in pieces])
    means = np.stack([state.mean(0) for state in states])
    expected = {
        "mean": (counts[:, None] * means).sum(0) / counts.sum(),
        "max": np.max([state.max(0) for state in states], axis=0),
        "first": states[0][0],
        "last": states[-1][-1],
    }
    for pooling, vector in expected.items():
        found = lm.embed(["Short.", long_text], pooling=pooling)
        np.testing.assert_allclose(found[1], vector, atol=1e-5)
        np.testing.assert_allclose(found[0], lm.embed(["Short."], pooling=pooling)[0], atol=1e-5)


def test_vectors_are_float32(lm, long_text):
    assert lm.embed(["Short."]).dtype == np.float32
    assert lm.embed(["Short.", long_text]).dtype == np.float32
    for unit in ("word", "token"):
        assert lm.embed(["Short."], unit=unit)[0].vectors.dtype == np.float32


# Layers


def test_layers(lm):
    num_layers = len(lm.model.layers)
    states = lm.hidden_states(SENTENCES)
    everything = lm.embed(SENTENCES, layers="all")
    assert everything.shape == (len(SENTENCES), num_layers + 1, lm.model.config.hidden_size)
    expected = np.stack([one.values.mean(1) for one in states])
    np.testing.assert_allclose(everything, expected, atol=1e-5)
    for layer in range(num_layers + 1):
        for same in (layer, layer - num_layers - 1):
            one = lm.embed(SENTENCES, layers=same)
            np.testing.assert_allclose(one, everything[:, layer], atol=1e-5)
    some = lm.embed(SENTENCES, layers=[-1, 0])
    np.testing.assert_allclose(some, everything[:, [num_layers, 0]], atol=1e-5)
    assert lm.embed(SENTENCES, layers=[-1]).shape == (len(SENTENCES), 1, everything.shape[2])
    assert np.abs(everything[:, 0] - everything[:, 1]).max() > 0.1


def test_layers_may_be_numpy_numbers(lm):
    everything = lm.embed(SENTENCES, layers="all")
    for layers in (np.array([0, -1]), [np.int64(0), np.int32(2)], range(0, 3, 2)):
        np.testing.assert_allclose(
            lm.embed(SENTENCES, layers=layers), everything[:, [0, 2]], atol=1e-5
        )
    assert lm.embed(SENTENCES, layers=np.int64(1)).shape == (len(SENTENCES), 128)


@pytest.mark.parametrize("layers", [-1.0, "last", [0.0, 1.0], np.array([0.5]), None])
def test_layers_that_are_no_numbers_are_refused(lm, layers):
    with pytest.raises(ConfigError, match=r"layers is .*; expected a whole number, several"):
        lm.embed(SENTENCES, layers=layers)


def test_layers_of_words_and_tokens(lm):
    for unit in ("word", "token"):
        everything = lm.embed(SENTENCES[:1], unit=unit, layers="all")[0].vectors
        last = lm.embed(SENTENCES[:1], unit=unit)[0].vectors
        first = lm.embed(SENTENCES[:1], unit=unit, layers=0)[0].vectors
        np.testing.assert_allclose(everything[:, -1], last, atol=1e-6)
        np.testing.assert_allclose(everything[:, 0], first, atol=1e-6)


def test_the_last_layer_of_a_pre_norm_model_is_its_output(lm):
    torch.manual_seed(0)
    config = replace(modern(lm.model.config), num_layers=4, local_window=8)
    model = firth.LanguageModel(
        Bert(config, pooler=False).eval(), lm.tokenizer, precision="float32"
    )
    last = model.embed(SENTENCES)
    np.testing.assert_allclose(model.embed(SENTENCES, layers=4), last, atol=1e-6)
    np.testing.assert_allclose(model.embed(SENTENCES, layers="all")[:, -1], last, atol=1e-6)
    states = model.hidden_states(SENTENCES)
    np.testing.assert_allclose(np.stack([s.values[-1].mean(0) for s in states]), last, atol=1e-6)


# Words and tokens

WORD_LISTS = [
    ["The", "parser", "'s", "results", ",", "however", ",", "don't", "matter", "."],
    ["naïve", "cafe\u0301", "日本語", "🙂🙂", "...", "(!)", "x" * 40, "Straße"],
    ["one", "", "two", "", ""],
    ["", "New York", "of"],
    [""],
]


@pytest.mark.parametrize("words", WORD_LISTS)
def test_one_vector_for_each_of_the_users_words(lm, words):
    (found,) = lm.embed([words], unit="word")
    (tokens,) = lm.hidden_states([words])
    encoding = lm.tokenizer.encode(words)
    assert found.units == words
    assert found.offsets.dtype == np.int64
    text = " ".join(words)
    assert [text[a:b] for a, b in found.offsets] == words
    assert found.vectors.shape == (len(words), lm.model.config.hidden_size)
    for i, word in enumerate(words):
        own = tokens.values[-1][encoding.words == i]
        assert (len(own) == 0) == (word == "")
        expected = own.mean(0) if len(own) else np.zeros(found.vectors.shape[1])
        np.testing.assert_allclose(found.vectors[i], expected, atol=1e-5)


def test_a_text_without_words(lm):
    for text in ([], ""):
        (found,) = lm.embed([text], unit="word")
        assert found.units == []
        assert found.vectors.shape == (0, lm.model.config.hidden_size)
        assert found.offsets.shape == (0, 2)
        assert found.offsets.dtype == np.int64


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=12))
def test_word_offsets_rebuild_any_words(lm, words):
    (found,) = lm.embed([words], unit="word")
    text = " ".join(words)
    assert [text[a:b] for a, b in found.offsets] == found.units == words
    assert np.isfinite(found.vectors).all()


def test_words_of_a_string_are_those_of_the_pre_tokenizer(lm):
    text = "Don't translate naïve café-goers, ok?"
    (found,) = lm.embed([text], unit="word")
    expected = ["Don", "'", "t", "translate", "naïve", "café", "-", "goers", ",", "ok", "?"]
    assert found.units == expected
    assert [text[a:b] for a, b in found.offsets] == expected


def untrained(tokenizer: firth.Tokenizer) -> firth.LanguageModel:
    """An encoder of one layer with a tokenizer."""
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 1, "intermediate_size": 16}
    config = BertConfig(vocab_size=tokenizer.vocabulary.size, **shape)
    return firth.LanguageModel(Bert(config, pooler=False).eval(), tokenizer, precision="float32")


def test_white_space_is_no_word_in_a_byte_level_vocabulary(papers):
    tokenizer = firth.Tokenizer.train(papers[:40], "bpe", 400)
    model = untrained(tokenizer)
    text = "Two  blanks,\ta tab: 日本\n"
    (found,) = model.embed([text], unit="word")
    assert found.units == ["Two", "blanks", ",", "a", "tab", ":", "日本"]
    assert [text[a:b] for a, b in found.offsets] == found.units


def test_a_word_that_the_tokenizer_cuts_in_two_has_one_row(papers):
    """Unigram has a word for the space before what it does not know, beside that itself."""
    tokenizer = firth.Tokenizer.train(papers[:60], "unigram", 400)
    model = untrained(tokenizer)
    text = "x y <b"
    assert tokenizer.encode(text).tokens[4:-1] == ["y", "▁", "<unk>", "b"]
    (found,) = model.embed([text], unit="word")
    assert found.units == ["x", "y", "<", "b"]
    assert found.offsets.tolist() == [[0, 1], [2, 3], [4, 5], [5, 6]]
    states = model.hidden_states([text])[0].values[-1]
    np.testing.assert_allclose(found.vectors[2], states[5:7].mean(0), atol=1e-6)
    np.testing.assert_allclose(found.vectors[3], states[7], atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "max", "first", "last"])
def test_a_text_without_tokens_is_the_vector_zero(lm, pooling, monkeypatch):
    """Tokenizers of GPT-2 add none, so that an empty text has none at all."""
    expected = lm.embed(["A text."], pooling=pooling)
    encode = lm.tokenizer.encode_batch

    def bare(texts):
        nothing = {"ids": np.zeros(0, np.int64), "tokens": [], "words": np.zeros(0, np.int64)}
        empty = Encoding(text="", offsets=np.zeros((0, 2), np.int64), **nothing)
        return [encode([text])[0] if text else empty for text in texts]

    monkeypatch.setattr(type(lm.tokenizer), "encode_batch", lambda _self, texts: bare(texts))
    found = lm.embed(["", "A text.", ""], pooling=pooling)
    np.testing.assert_allclose(found[1:2], expected, atol=1e-6)
    assert not found[[0, 2]].any()
    assert lm.embed([""], layers="all").shape == (1, 3, 128)
    assert lm.embed([""], unit="word")[0].vectors.shape == (0, 128)
    assert lm.score([""])[0].total == 0


def test_tokens_have_their_own_states(lm):
    (found,) = lm.embed(SENTENCES[:1], unit="token")
    (states,) = lm.hidden_states(SENTENCES[:1])
    assert found.units == states.tokens[1:-1]
    assert np.array_equal(found.offsets, states.offsets[1:-1])
    np.testing.assert_allclose(found.vectors, states.values[-1][1:-1], atol=1e-5)


# Long texts


def test_long_texts_drop_no_word(lm, long_text):
    words = long_text.split()
    (found,) = lm.embed([words], unit="word")
    assert found.units == words
    assert (np.abs(found.vectors).max(axis=1) > 0.1).all()


def test_tokens_of_long_texts_have_the_states_of_their_window(lm, long_text):
    encoding = lm.tokenizer.encode(long_text)
    short = lm.tokenizer.encode(SENTENCES[0])
    found, unwindowed = token_states(lm.engine, [encoding, short])
    assert found.shape == (len(encoding.ids), 1, lm.model.config.hidden_size)
    for window in windows([encoding], lm.max_length):
        state = direct(lm, window.ids)[-1]
        for token in range(window.begin, window.end):
            np.testing.assert_allclose(found[token, 0], state[token - window.offset], atol=1e-5)
    np.testing.assert_allclose(unwindowed[:, 0], direct(lm, short.ids)[-1], atol=1e-5)


def test_no_position_is_used_that_pre_training_never_saw(lm):
    """Sequences of training ended at 64 tokens: rows of the position table beyond are random."""
    text = " ".join(["parsing"] * 90)
    assert 64 < len(lm.tokenizer.encode(text).ids) <= lm.model.config.max_length
    before = lm.embed([text])
    table = lm.model.embeddings.positions.weight
    kept = table.detach().clone()
    try:
        with torch.no_grad():
            table[64:] += torch.randn(table[64:].shape, generator=torch.manual_seed(0))
        after = lm.embed([text])
    finally:
        with torch.no_grad():
            table.copy_(kept)
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_the_window_of_the_tokenizer_is_that_of_the_model(lm, tiny_run):
    settings = json.loads((tiny_run / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == lm.max_length == 64


# Arrays


def test_logits_and_hidden_states_have_a_row_for_each_token(lm):
    config = lm.model.config
    logits, states = lm.logits(SENTENCES), lm.hidden_states(SENTENCES)
    for text, scores, layers in zip(SENTENCES, logits, states, strict=True):
        encoding = lm.tokenizer.encode(text)
        count = len(encoding.ids)
        assert scores.tokens == layers.tokens == encoding.tokens
        assert scores.values.shape == (count, config.vocab_size)
        assert layers.values.shape == (config.num_layers + 1, count, config.hidden_size)
        assert scores.offsets.shape == (count, 2)
        assert scores.values.dtype == layers.values.dtype == np.float32
        expected = direct(lm, encoding.ids)
        np.testing.assert_allclose(layers.values, np.stack(expected), atol=1e-5)
        with torch.inference_mode():
            by_hand = lm.model.logits(torch.from_numpy(expected[-1])).numpy()
        np.testing.assert_allclose(scores.values, by_hand, atol=1e-4)


def test_no_texts_give_no_rows(lm):
    assert lm.embed([]).shape == (0, lm.model.config.hidden_size)
    assert lm.embed([], unit="word") == []
    assert lm.logits([]) == lm.hidden_states([]) == lm.score([]) == lm.fill([]) == []


# Scores


def test_scores_equal_a_loop_over_the_tokens(lm):
    for text, found in zip(SENTENCES, lm.score(SENTENCES), strict=True):
        encoding = lm.tokenizer.encode(text)
        expected = []
        for at in range(1, len(encoding.ids) - 1):
            masked = encoding.ids.copy()
            masked[at] = lm.tokenizer.vocabulary.mask
            expected.append(direct_log_probabilities(lm, masked, at)[encoding.ids[at]])
        assert found.text == text
        assert found.tokens == encoding.tokens[1:-1]
        np.testing.assert_allclose(found.log_probabilities, expected, atol=1e-5)
        assert found.total == pytest.approx(float(np.sum(expected)), abs=1e-4)
        if expected:
            assert found.perplexity == pytest.approx(np.exp(-np.mean(expected)), rel=1e-4)


def test_long_texts_are_scored_in_windows(lm):
    encoding = lm.tokenizer.encode(SENTENCES[3])
    short = Engine(lm.model, lm.engine.device, torch.float32, max_length=12)
    (found,) = score_masked(short, lm.tokenizer, [encoding])
    assert len(found.tokens) == len(encoding.ids) - 2
    pieces = windows([encoding], 12)
    assert len(pieces) >= 4
    expected = np.zeros(len(encoding.ids))
    for window in pieces:
        for token in range(max(1, window.begin), min(window.end, len(encoding.ids) - 1)):
            masked = window.ids.copy()
            masked[token - window.offset] = lm.tokenizer.vocabulary.mask
            scores = direct_log_probabilities(lm, masked, token - window.offset)
            expected[token] = scores[encoding.ids[token]]
    np.testing.assert_allclose(found.log_probabilities, expected[1:-1], atol=1e-5)


def test_scores_do_not_depend_on_how_many_texts_are_copied_together(lm, monkeypatch):
    texts = [*SENTENCES, "", "One more text.", *SENTENCES]
    whole = lm.score(texts)
    monkeypatch.setattr("firth.inference.scoring._TOGETHER", 100)
    for one, other in zip(whole, lm.score(texts), strict=True):
        assert one.text == other.text
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-5)
    assert lm.score([]) == []


def test_scores_are_computed_in_pieces_whatever_the_length(lm, monkeypatch):
    """Of a single text, too, few copies are held at a time, and few rows over the vocabulary."""
    (whole,) = lm.score(SENTENCES[3:4])
    size, length = lm.tokenizer.vocabulary.size, len(whole.tokens) + 2
    copies, rows = [], []

    def run(self, ids, compute, **how):
        copies.append(sum(map(len, ids)))
        return original(self, ids, compute, **how)

    def scores(engine, states, original=scoring.blank_scores):
        rows.append(len(states))
        return original(engine, states)

    original = Engine.run
    monkeypatch.setattr(Engine, "run", run)
    monkeypatch.setattr(scoring, "blank_scores", scores)
    monkeypatch.setattr(scoring, "_TOGETHER", 5 * length)
    monkeypatch.setattr(scoring, "_CHUNK_SCORES", 3 * size)
    (found,) = lm.score(SENTENCES[3:4])
    np.testing.assert_allclose(found.log_probabilities, whole.log_probabilities, atol=1e-5)
    assert len(copies) == -(-len(whole.tokens) // 5)
    assert max(copies) <= 5 * length
    assert max(rows) == 3
    assert sum(rows) == len(whole.tokens)


def test_a_text_of_words_scores_as_its_string(lm):
    words = ["We", "use", "a", "corpus", "."]
    one, same = lm.score([words, " ".join(words)])
    np.testing.assert_allclose(one.log_probabilities, same.log_probabilities, atol=1e-6)


# Blanks


def ordinary_probabilities(lm: firth.LanguageModel, text: str) -> np.ndarray:
    """(blanks, V): the softmax at each blank, special tokens left out."""
    (scores,) = lm.logits([text])
    vocabulary = lm.tokenizer.vocabulary
    at = lm.tokenizer.encode(text).ids == vocabulary.mask
    logits = scores.values[at].astype(np.float64)
    logits[:, list(vocabulary.special)] = -np.inf
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_a_blank_gets_the_softmax_over_ordinary_tokens(lm):
    text = "The [MASK] of our system are shown."
    vocabulary = lm.tokenizer.vocabulary
    (expected,) = ordinary_probabilities(lm, text)
    everything = lm.fill(text, top_k=vocabulary.size)
    assert len(everything) == vocabulary.size - len(vocabulary.special)
    probabilities = np.array([one.probability for one in everything])
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert (np.diff(probabilities) <= 0).all()
    ids = {lm.tokenizer.token(i): i for i in range(vocabulary.size)}
    by_token = [expected[ids[one.token]] for one in everything]
    np.testing.assert_allclose(probabilities, by_token, atol=1e-6)
    best = everything[0]
    assert best.text == text.replace("[MASK]", best.token)
    assert lm.fill(text, top_k=3) == everything[:3]


def test_several_blanks_are_filled_one_by_one(lm):
    texts = ["[MASK] use [MASK] corpus.", "A [MASK] here.", "We [MASK] and [MASK] and [MASK]."]
    found = lm.fill(texts, top_k=2)
    assert [isinstance(one[0], list) for one in found] == [True, False, True]
    for text, blanks in zip(texts, found, strict=True):
        blanks = blanks if isinstance(blanks[0], list) else [blanks]
        expected = ordinary_probabilities(lm, text)
        assert len(blanks) == len(expected) == text.count("[MASK]")
        pieces = text.split("[MASK]")
        for i, (candidates, probabilities) in enumerate(zip(blanks, expected, strict=True)):
            assert [c.probability for c in candidates] == pytest.approx(
                np.sort(probabilities)[::-1][:2], abs=1e-6
            )
            before, after = "[MASK]".join(pieces[: i + 1]), "[MASK]".join(pieces[i + 1 :])
            for candidate in candidates:
                assert candidate.text.startswith(before)
                assert candidate.text.endswith(after)
                middle = candidate.text[len(before) : len(candidate.text) - len(after)]
                assert middle == candidate.token.removeprefix("##")


def test_a_piece_of_a_word_goes_on_with_the_word_before_a_blank(lm):
    for text in ("We walk[MASK] home", "We walk [MASK] home"):
        found = lm.fill(text, top_k=lm.tokenizer.vocabulary.size)
        pieces = [one for one in found if one.token.startswith("##")]
        assert len(pieces) > 20
        for one in pieces:
            assert one.text == f"We walk{one.token.removeprefix('##')} home"


def test_blanks_of_a_log_are_in_the_text_as_it_is(lm):
    """Token ids with one masked, not a text that would be cut into other tokens."""
    ids = np.array(lm.tokenizer.encode("unhappily coreferential", special_tokens=False).ids)
    assert any(lm.tokenizer.token(i).startswith("##") for i in ids)
    for at in range(len(ids)):
        found = _with_blank(lm.tokenizer, ids, at)
        expected = ids.copy()
        expected[at] = lm.tokenizer.vocabulary.mask
        assert found.ids[1:-1].tolist() == expected.tolist()
    (line,) = filled_blanks(lm.engine, lm.tokenizer, [ids], np.random.default_rng(0))
    assert "[MASK]" in line
    assert "(was: " in line


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram", "word"])
def test_a_filled_blank_stays_apart_from_the_words_around_it(papers, kind):
    """Whatever the vocabulary, a candidate that is a word by itself is set between blanks."""
    tokenizer = firth.Tokenizer.train(papers[:40], kind, 400)
    torch.manual_seed(0)
    model = untrained(tokenizer)
    mask = tokenizer.token(tokenizer.vocabulary.mask)
    for text in ("The {} results", "{} results", "We see ({}), and {}", "All {}"):
        found = model.fill(text.format(mask, mask), top_k=400)
        blanks = found if isinstance(found[0], list) else [found]
        for i, candidates in enumerate(blanks):
            assert not any(one.token[1:] and one.token[0] in "Ġ▁" for one in candidates)
            filled = {one.text for one in candidates if one.token == "of"}
            words = [mask] * len(blanks)
            words[i] = "of"
            assert filled == {text.format(*words)}


# Requests that cannot be served


def test_a_text_without_a_blank_is_refused(lm):
    with pytest.raises(UnsupportedError, match=r"no blank; write \[MASK\]"):
        lm.fill("Nothing to fill.")
    with pytest.raises(UnsupportedError, match="the model takes 64; shorten it"):
        lm.fill("[MASK]" + " of" * 100)


@pytest.mark.parametrize("use", ["embed", "score", "logits", "hidden_states"])
def test_a_string_instead_of_a_list_is_refused(lm, use):
    with pytest.raises(ConfigError, match="expected a list of texts"):
        getattr(lm, use)("A string.")


@pytest.mark.parametrize("layers", [3, -4, [0, 7]])
def test_a_layer_that_does_not_exist_is_refused(lm, layers):
    with pytest.raises(ConfigError, match="does not exist"):
        lm.embed(SENTENCES, layers=layers)


def test_an_unknown_unit_or_pooling_is_refused(lm):
    with pytest.raises(ConfigError, match="expected sentence, word or token"):
        lm.embed(SENTENCES, unit="paragraph")
    with pytest.raises(ConfigError, match="pooling 'cls'; expected one of first, mean, max, last"):
        lm.embed(SENTENCES, pooling="cls")
    np.testing.assert_array_equal(lm.embed(SENTENCES, layers=np.int64(-1)), lm.embed(SENTENCES))


def test_logits_of_a_text_longer_than_the_window_are_refused(lm, long_text):
    for use in (lm.logits, lm.hidden_states):
        with pytest.raises(ConfigError, match="the model's window is"):
            use([long_text])


# Precision


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return (one * other).sum(-1) / norms


def test_bfloat16_is_close_to_float32(lm, long_text):
    coarse = Engine.of(lm.model, "bfloat16", lm.max_length)
    assert coarse.dtype == torch.bfloat16
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    encodings = lm.tokenizer.encode_batch([*SENTENCES, long_text])
    found = embed_sentences(coarse, encodings)[:, 0]
    exact = embed_sentences(lm.engine, encodings)[:, 0]
    assert not np.array_equal(found, exact)
    assert cosines(found, exact).min() > 0.999
    tokens = zip(token_states(coarse, encodings), token_states(lm.engine, encodings), strict=True)
    assert min(cosines(a, b).min() for a, b in tokens) > 0.999
