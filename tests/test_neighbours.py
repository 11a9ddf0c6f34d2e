"""Contextual neighbours: the index is the embeddings, the search is exact, stale files are seen."""

import json
import time
import unicodedata
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import firth
from firth.api.language_model import show_words
from firth.api.neighbours import marked_word, weights_hash
from firth.api.word_vectors import vocabulary_vectors
from firth.cli import main
from firth.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from firth.inference import index_building
from firth.inference.embedding import word_vectors
from firth.inference.isotropy import Isotropy, cosine_of_random_pairs
from firth.inference.neighbours import (
    FEWEST,
    cosines,
    nearest_occurrences,
    static_neighbours,
)
from firth.inference.word_index import FACT_FILES, ROW_FILES, WordIndex
from firth.inference.word_similarity import nearest_words
from firth.models import (
    ElmoConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    GPTConfig,
    Static,
    StaticConfig,
    build,
)
from firth.text.sentences import LONGEST, sentence_spans

CONTEXTS = {
    "river": "They walked along the {} of the deep river and saw {}.",
    "money": "He paid his {} the interest on a loan of {} dollars.",
}
FILLERS = ("seven", "green", "old", "many", "good", "paper", "small", "nine", "new", "eight")


@pytest.fixture(scope="module")
def lm(tiny_run) -> firth.LanguageModel:
    model = firth.load(tiny_run, device="cpu", precision="float32")
    assert isinstance(model, firth.LanguageModel)
    return model


@pytest.fixture(scope="module")
def corpus(papers) -> firth.Corpus:
    return firth.Corpus.from_texts(papers[:12])


@pytest.fixture(scope="module")
def index(lm, corpus, tmp_path_factory) -> WordIndex:
    return lm.index_words(corpus, tmp_path_factory.mktemp("index") / "words")


def bytes_of(index: WordIndex, *names: str) -> dict[str, bytes]:
    return {name: (index.path / name).read_bytes() for name in names}


# Sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("He said: “Go!” Then he went.", ["He said: “Go!”", "Then he went."]),
        ("Dr. Who met J. R. Firth. He left.", ["Dr. Who met J. R. Firth.", "He left."]),
        ("It was approx. ten, e.g. here.", ["It was approx. ten, e.g. here."]),
        ("you see ?\nyes i do .", ["you see ?", "yes i do ."]),
        ("A wrapped line that\ngoes on. End", ["A wrapped line that\ngoes on.", "End"]),
        ("A Title\nThe text.\n\nand more", ["A Title", "The text.", "and more"]),
        ("这是一句。那是！好", ["这是一句。", "那是！", "好"]),
        ("यह है। वह था।", ["यह है।", "वह था।"]),
        ("  \n ", []),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert [text[a:b] for a, b in sentence_spans(text)] == expected


@pytest.mark.parametrize("text", [" " * 200_000 + "a", "." * 200_000 + "a"])
def test_long_runs_of_one_character_are_read_in_time(text):
    """Looked at from each place of the run, the dots would take a minute or more."""
    begin = time.process_time()
    assert len(sentence_spans(text)) >= 1
    assert time.process_time() - begin < 5


def test_sentences_lose_no_word_and_are_not_too_long(papers):
    text = "\n".join(papers[:30]) + " word" * 2 * LONGEST + " x" + "y" * 2 * LONGEST
    spans = sentence_spans(text)
    assert max(b - a for a, b in spans) <= LONGEST
    assert "".join("".join(text[a:b] for a, b in spans).split()) == "".join(text.split())
    assert all(a[1] <= b[0] for a, b in pairwise(spans))


# The index


def test_index_is_the_embedding_of_every_word(lm, corpus, index):
    row = sentence = 0
    for number, document in enumerate(corpus):
        for begin, end in sentence_spans(document):
            text = document[begin:end]
            found = lm.embed([text], unit="word")[0]
            kept = [i for i, unit in enumerate(found.units) if any(map(str.isalnum, unit))]
            if not kept:
                continue
            assert index.sentence(sentence) == (text, number, begin)
            part = slice(row, row + len(kept))
            np.testing.assert_allclose(
                index.vectors[part], found.vectors[kept], rtol=2e-3, atol=2e-4
            )
            assert index.places[part, 0].tolist() == [sentence] * len(kept)
            assert index.places[part, 1].tolist() == kept
            np.testing.assert_array_equal(index.places[part, 2:], found.offsets[kept])
            words = [index.words[i] for i in index.types[part]]
            assert words == [found.units[i].casefold() for i in kept]
            row, sentence = row + len(kept), sentence + 1
    assert row == index.num_rows > 500


def test_layers_are_averaged(lm, corpus, tmp_path):
    index = lm.index_words(corpus, tmp_path / "index", layers=(0, -1))
    text, _, _ = index.sentence(0)
    found = lm.embed([text], unit="word", layers=(0, -1))[0].vectors.mean(axis=1)
    word = index.places[0, 1]
    np.testing.assert_allclose(index.vectors[0], found[word], rtol=2e-3, atol=2e-4)
    assert index.manifest["layers"] == [0, 2]
    near = lm.neighbours(text[: index.places[0, 2]] + _marked(text, index, 0), index)
    assert near.occurrences[0].cosine == pytest.approx(1, abs=1e-3)


def _marked(text: str, index: WordIndex, row: int) -> str:
    begin, end = index.places[row, 2:].tolist()
    return f"[{text[begin:end]}]{text[end:]}"


def test_little_text_at_a_time_gives_the_same_index(lm, corpus, index, tmp_path, monkeypatch):
    chunks = []

    def recorded(sentences, characters, cut=index_building._chunks):
        for chunk in cut(sentences, 300):
            chunks.append(sum(len(one.text) for one in chunk))
            yield chunk

    monkeypatch.setattr(index_building, "_chunks", recorded)
    other = lm.index_words(corpus, tmp_path / "index")
    assert len(chunks) > 20
    assert max(chunks) < 300 + LONGEST
    names = [name for name in ROW_FILES if name != "vectors.f16"]
    assert bytes_of(other, *names) == bytes_of(index, *names)
    np.testing.assert_allclose(other.vectors, index.vectors, rtol=2e-3, atol=2e-4)


def test_a_stopped_build_goes_on(lm, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(index_building, "NOTE_EVERY", 2)
    monkeypatch.setattr(index_building, "CHUNK_CHARACTERS", 400)
    cut = index_building._chunks
    monkeypatch.setattr(index_building, "_chunks", lambda sentences, _: cut(sentences, 400))
    whole = lm.index_words(corpus, tmp_path / "whole")
    calls = []

    def broken(encoding, states, words):
        calls.append(encoding.text)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return word_vectors(encoding, states, words)

    monkeypatch.setattr("firth.api.neighbours.word_vectors", broken)
    with pytest.raises(KeyboardInterrupt):
        lm.index_words(corpus, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    before = list(calls)
    resumed = lm.index_words(corpus, tmp_path / "index")
    again = calls[len(before) :]
    assert bytes_of(resumed, *ROW_FILES, *FACT_FILES) == bytes_of(whole, *ROW_FILES, *FACT_FILES)
    assert 0 < len(set(before) & set(again)) < len(set(before)) / 2  # little was done twice
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "whole"]


def test_a_build_that_is_killed_at_its_end_has_nothing_to_read_again(
    lm, corpus, index, tmp_path, monkeypatch
):
    def killed(path, sync=index_building.sync):
        if path.name == "norms.f32":
            raise KeyboardInterrupt
        sync(path)

    with monkeypatch.context() as patched:
        patched.setattr(index_building, "sync", killed)
        with pytest.raises(KeyboardInterrupt):
            lm.index_words(corpus, tmp_path / "index")
    monkeypatch.setattr("firth.api.neighbours.word_vectors", None)
    found = lm.index_words(corpus, tmp_path / "index")
    assert bytes_of(found, *ROW_FILES) == bytes_of(index, *ROW_FILES)
    assert not (tmp_path / "index" / "progress.json").exists()


def test_two_builds_of_one_index_do_not_mix(lm, corpus, index, tmp_path, monkeypatch):
    """The second is told of the first, at any moment of it, and the first goes on undisturbed."""
    refused = []

    def disturbed(*arguments):
        if len(refused) < 2:
            with pytest.raises(ConfigError, match="another process is building"):
                lm.index_words(corpus, tmp_path / "index")
            refused.append(True)
        return word_vectors(*arguments)

    monkeypatch.setattr("firth.api.neighbours.word_vectors", disturbed)
    found = lm.index_words(corpus, tmp_path / "index")
    assert len(refused) == 2
    assert bytes_of(found, *ROW_FILES) == bytes_of(index, *ROW_FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_rows_that_another_program_wrote_are_seen(lm, corpus, tmp_path, monkeypatch):
    """Where the disk has no locks."""

    def disturbed(*arguments):
        with (tmp_path / "index.part" / "places.u32").open("ab") as file:
            file.write(b"\0" * 16)
        monkeypatch.setattr("firth.api.neighbours.word_vectors", word_vectors)
        return word_vectors(*arguments)

    monkeypatch.setattr("firth.api.neighbours.word_vectors", disturbed)
    with pytest.raises(CheckpointError, match=r"places\.u32: found .* bytes, expected .* delete"):
        lm.index_words(corpus, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_what_was_begun_for_other_text_is_thrown_away(lm, corpus, index, tmp_path, monkeypatch):
    part = tmp_path / "index.part"
    part.mkdir()
    for name in ROW_FILES:
        (part / name).write_bytes(b"\0" * 4096)
    sizes = dict.fromkeys(ROW_FILES, 4096)
    progress = {"identity": {"corpus": "other"}, "read": 5, "sizes": sizes}
    (part / "progress.json").write_text(json.dumps(progress))
    found = lm.index_words(corpus, tmp_path / "index")
    assert bytes_of(found, *ROW_FILES) == bytes_of(index, *ROW_FILES)


@pytest.mark.parametrize("what", ["corpus", "layers", "split", "filter", "model"])
def test_a_stale_index_is_refused(what, lm, papers, corpus, index):
    how = {
        "corpus": {"corpus": firth.Corpus.from_texts(papers[:13])},
        "layers": {"layers": 0},
        "split": {"split": True},
        "filter": {"min_count": 3},
        "model": {},
    }[what]
    model = lm
    if what == "model":
        model = replace(lm, model=build(lm.model.config).eval())
    with pytest.raises(DataError, match=f"{what}: found.*delete the folder"):
        model.index_words(how.pop("corpus", corpus), index.path, **how)
    if what == "model":
        with pytest.raises(DataError, match="built from another model"):
            model.neighbours("a [word]", index)


def test_an_index_is_opened_and_not_built_again(lm, corpus, index, monkeypatch):
    monkeypatch.setattr("firth.api.neighbours.word_vectors", None)
    assert lm.index_words(corpus, index.path).manifest == index.manifest
    assert weights_hash(lm.model) == index.manifest["model"]


def test_a_damaged_index_is_refused(lm, tmp_path):
    corpus = firth.Corpus.from_texts(["The tide turned. The ship was late."])
    path = lm.index_words(corpus, tmp_path / "index").path
    with (path / "vectors.f16").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match=r"vectors\.f16: .* bytes, expected"):
        WordIndex.open(path)
    (path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 99, expected 1"):
        WordIndex.open(path)
    with pytest.raises(CheckpointError, match="no index of words"):
        WordIndex.open(tmp_path)


def test_words_of_the_user(lm, tmp_path):
    lines = "The state-of-the-art  results , \n  don't   count\n"
    corpus = firth.Corpus.from_texts([lines])
    index = lm.index_words(corpus, tmp_path / "index", split=True)
    assert [index.words[i] for i in index.types] == [
        *("the", "state-of-the-art", "results", "don't", "count"),
    ]
    found = lm.embed([["The", "state-of-the-art", "results", ","]], unit="word")[0]
    np.testing.assert_allclose(index.vectors[:3], found.vectors[:3], rtol=2e-3, atol=2e-4)
    for text in ("The [state-of-the-art] results ,", ["The", "[state-of-the-art]", "results", ","]):
        (best, *_) = lm.neighbours(text, index, directions="off").occurrences
        assert (best.word, best.word_index) == ("state-of-the-art", 1)
        assert best.cosine == pytest.approx(1, abs=1e-3)
    last = nearest_occurrences(index, index.vectors[4].astype(np.float32), top_k=1)[0]
    text = lines.strip()
    assert text[last.document_start :] == "count" == last.sentence[last.start : last.end]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({}, "the tide rose the ship fell the tide ran the old ship"),
        ({"words": ("TIDE",)}, "tide tide"),
        ({"min_count": 2}, "the tide the ship the tide the ship"),
        ({"min_count": 2, "skip_frequent": 1}, "tide ship tide ship"),
        ({"punctuation": True}, "the tide rose . the ship fell ! the tide ran . the old ship"),
        ({"punctuation": True, "min_count": 2}, "the tide . the ship the tide . the ship"),
    ],
)
def test_which_words_are_indexed(how, expected, lm, tmp_path):
    corpus = firth.Corpus.from_texts(
        ["The tide rose. The ship fell! The Tide ran.", "The old ship"]
    )
    index = lm.index_words(corpus, tmp_path / "index", **how)
    assert " ".join(index.words[i] for i in index.types) == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_count": 0}, "min_count is 0; expected at least 1"),
        ({"skip_frequent": -1}, "skip_frequent is -1; expected at least 0"),
        ({"words": ("tide",), "min_count": 2}, "beside words, min_count has no effect"),
        ({"words": ("tide",), "skip_frequent": 3}, "beside words, skip_frequent has no effect"),
    ],
)
def test_settings_that_choose_no_words(wrong, message):
    with pytest.raises(ConfigError, match=message):
        index_building.WordFilter(**wrong)
    assert index_building.WordFilter(words=("tide",), min_count=1, skip_frequent=0)


def test_words_that_do_not_occur(lm, corpus, index, tmp_path):
    with pytest.raises(DataError, match="none of the words to index occurs"):
        lm.index_words(corpus, tmp_path / "index", words=("zebra",))
    with pytest.raises(ConfigError, match="words is 'tide', expected tuple"):
        lm.index_words(corpus, tmp_path / "index", words="tide")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="'zebra' does not occur"):
        lm.neighbours("a [zebra] here", index, among="same")
    assert lm.neighbours("a [zebra] here", index, among="other").occurrences


def test_decomposed_and_composed_letters_are_one_word(lm, tmp_path):
    text = unicodedata.normalize("NFD", "The café is old. A CAFÉ!")
    corpus = firth.Corpus.from_texts([text, "Our café"])
    index = lm.index_words(corpus, tmp_path / "all")
    assert index.words.count("café") == 1
    few = lm.index_words(corpus, tmp_path / "few", words=("café",))
    assert few.num_rows == 3
    for query in ("a [café] here", unicodedata.normalize("NFD", "a [café] here")):
        found = lm.neighbours(query, index, among="same", one_a_sentence=False).occurrences
        words = sorted(unicodedata.normalize("NFC", one.word) for one in found)
        assert words == ["CAFÉ", "café", "café"]
        for one in found:
            assert one.sentence[one.start : one.end] == one.word


def test_an_index_takes_no_folder_that_is_in_use(lm, corpus, tmp_path, monkeypatch):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, ".", "notes.txt"):
        with pytest.raises(ConfigError, match="is no index of words"):
            lm.index_words(corpus, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert lm.index_words(corpus, tmp_path / "empty", words=("the",)).num_rows


def test_numbers_that_are_too_large_for_the_index(lm, corpus, tmp_path):
    large = build(lm.model.config).eval()
    large.load_state_dict(lm.model.state_dict())
    with torch.no_grad():
        for parameter in large.layers[-1].parameters():
            parameter *= 1e6
    with pytest.raises(UnsupportedError, match="choose another layer"):
        replace(lm, model=large).index_words(corpus, tmp_path / "index")


MODELS = {
    "gpt": GPTConfig(
        vocab_size=1000, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64
    ),
    "hybrid": GPTConfig(
        vocab_size=1000,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=64,
        bidirectional=True,
    ),
    "t5": EncoderDecoderConfig(
        vocab_size=1000, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_neighbours(name, lm, corpus, tmp_path):
    torch.manual_seed(0)
    model = MODELS[name]
    network = EncoderDecoder(model) if isinstance(model, EncoderDecoderConfig) else build(model)
    other = firth.LanguageModel(network.eval(), lm.tokenizer, precision="float32")
    index = other.index_words(corpus, tmp_path / "index", layers="all")
    # Behind some words, so that a decoder has seen something that is not in other sentences.
    row = int(np.flatnonzero(index.places[:, 1] > 5)[50])
    text, _, _ = index.sentence(int(index.places[row, 0]))
    marked = text[: index.places[row, 2]] + _marked(text, index, row)
    (best, *_) = other.neighbours(marked, index).occurrences
    assert best.sentence == text
    assert best.cosine == pytest.approx(1, abs=1e-3)


def words_model(config, papers: list[str]) -> firth.LanguageModel:
    tokenizer = firth.Tokenizer.train(papers[:20], "word", 400)
    torch.manual_seed(0)
    config = replace(config, vocab_size=tokenizer.vocabulary.size)
    model = build(config).eval()
    without_special_rows(model, tokenizer)
    return firth.LanguageModel(model, tokenizer, precision="float32")


@torch.no_grad()
def without_special_rows(model, tokenizer: firth.Tokenizer) -> None:
    """As training leaves static vectors: special tokens, the unknown one too, have zeros."""
    if isinstance(model, Static):
        model.embeddings.tokens.weight[list(tokenizer.vocabulary.special)] = 0


def test_elmo_has_neighbours_among_words_it_never_saw(papers, corpus, tmp_path):
    config = ElmoConfig(
        vocab_size=400,
        output_size=50,
        projection_size=8,
        cell_size=16,
        filters=((1, 8), (2, 8)),
        samples=0,
    )
    lm = words_model(config, papers)
    index = lm.index_words(corpus, tmp_path / "index", layers="all")
    text = "The [zorkmid] of our xyzzy is shown ."
    with_word = firth.Corpus.from_texts([*corpus.texts, text.replace("[", "").replace("]", "")])
    assert lm.neighbours(text, index).occurrences[0].cosine < 0.999
    other = lm.index_words(with_word, tmp_path / "other", layers="all")
    (best, *_) = lm.neighbours(text, other).occurrences
    assert best.word == "zorkmid"
    assert best.cosine == pytest.approx(1, abs=1e-3)


def test_static_vectors_are_the_same_in_every_context(papers, corpus, index, lm, tmp_path):
    static = words_model(StaticConfig(vocab_size=400, hidden_size=16), papers)
    own = static.index_words(corpus, tmp_path / "index", layers="all")
    found = static.neighbours("The [coreference] of it", own, top_k=3, directions="off")
    assert {one.word.lower() for one in found.occurrences} == {"coreference"}
    assert [one.cosine for one in found.occurrences] == pytest.approx([1, 1, 1], abs=1e-3)
    words, vectors = vocabulary_vectors(static)
    expected = nearest_words(words, vectors, "coreference", 3)
    beside = lm.neighbours("The [coreference] of it", index, top_k=3, static=static)
    assert beside.static == expected
    assert lm.neighbours("a [zorkmid]", index, static=static).static == []
    with pytest.raises(ConfigError, match="the model has no vector for the marked word 'zorkmid'"):
        static.neighbours("a [zorkmid]", own)


def test_static_words_are_looked_up_as_the_model_does(lm, index):
    """By its own normalisation, and unseen ones by their n-grams."""
    texts = ["die straße ist alt", "eine gasse"]
    tokenizer = firth.Tokenizer.train(texts, "word", 20, lowercase=True, min_frequency=1)
    for buckets in (0, 50):
        size = tokenizer.vocabulary.size
        config = StaticConfig(vocab_size=size, hidden_size=8, buckets=buckets)
        static = firth.LanguageModel(build(config), tokenizer)
        without_special_rows(static.model, tokenizer)
        show_words(static.model, tokenizer)
        found = lm.neighbours("die [Straße]", index, static=static, top_k=30).static
        assert "straße" not in dict(found)
        assert "gasse" in dict(found)
        unseen = lm.neighbours("die [Avenue]", index, static=static).static
        assert bool(unseen) == bool(buckets)


@pytest.mark.parametrize("texts", [["the coreference is by it"], ["a coreference"] * 12])
def test_cosines_are_no_rounding_errors(texts, papers, tmp_path):
    """One row, or rows that are all the same: the correction would leave nothing of them."""
    static = words_model(StaticConfig(vocab_size=400, hidden_size=16), papers)
    corpus = firth.Corpus.from_texts(texts)
    for repeats in (1, 3):
        many = firth.Corpus.from_texts(corpus.texts * repeats)
        own = static.index_words(many, tmp_path / f"index-{repeats}", words=("coreference",))
        found = static.neighbours("a [coreference]", own, one_a_sentence=False).occurrences
        plain = own.num_rows < FEWEST * (1 + own.automatic)
        assert [one.cosine for one in found] == pytest.approx([1.0 if plain else 0.0] * len(found))


# The search


def test_search_is_that_by_brute_force(index):
    rows = index.vectors.astype(np.float64)
    query = rows[100] + 0.3 * rows[7]
    plain = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    np.testing.assert_allclose(cosines(index, query, directions="off"), plain, atol=1e-4)
    for remove in (0, 1, 5, "auto"):
        number = index.automatic if remove == "auto" else remove
        mean = rows.mean(axis=0)
        _, _, directions = np.linalg.svd(rows - mean, full_matrices=False)
        away = np.eye(rows.shape[1]) - directions[:number].T @ directions[:number]
        left, wanted = (rows - mean) @ away, (query - mean) @ away
        expected = left @ wanted / np.linalg.norm(left, axis=1) / np.linalg.norm(wanted)
        found = cosines(index, query, directions=remove)
        np.testing.assert_allclose(found, expected, atol=2e-3)
    assert index.automatic == 1
    np.testing.assert_array_equal(
        cosines(index, query, directions=np.int64(5)), cosines(index, query, directions=5)
    )


def test_nearest_come_first_and_once_a_sentence(index):
    query = index.vectors[100].astype(np.float32)
    scores = cosines(index, query)
    every = nearest_occurrences(index, query, top_k=50, one_a_sentence=False)
    assert [one.cosine for one in every] == pytest.approx(np.sort(scores)[::-1][:50], abs=1e-6)
    best: dict[str, float] = {}
    for row in np.argsort(-scores):
        best.setdefault(index.sentence(int(index.places[row, 0]))[0], float(scores[row]))
    found = nearest_occurrences(index, query, top_k=30)
    nearest = pytest.approx(list(best.values())[:30], abs=1e-6)  # order among equals is free
    assert [one.cosine for one in found] == nearest
    assert len({one.sentence for one in found}) == 30
    for one in found:
        assert one.cosine == pytest.approx(best[one.sentence], abs=1e-6)
        assert one.sentence[one.start : one.end] == one.word
    everything = nearest_occurrences(index, query, top_k=10**6)
    assert {one.sentence for one in everything} == set(best)


def test_same_word_and_other_words(lm, index):
    text = "The results of our [model] are in the table."
    same = lm.neighbours(text, index, among="same", top_k=8).occurrences
    assert {one.word.lower() for one in same} == {"model"}
    other = lm.neighbours(text, index, among="other", top_k=8).occurrences
    assert "model" not in {one.word.lower() for one in other}
    with pytest.raises(ConfigError, match="needs to know the word"):
        nearest_occurrences(index, np.ones(index.dimensions), among="same")
    with pytest.raises(ConfigError, match="among is 'others'; expected all, same or other"):
        lm.neighbours(text, index, among="others")
    with pytest.raises(ConfigError, match="top_k is 0"):
        lm.neighbours(text, index, top_k=0)
    with pytest.raises(ConfigError, match="directions is 4000; expected auto, off"):
        lm.neighbours(text, index, directions=4000)
    with pytest.raises(ConfigError, match="the vector has 3 numbers"):
        nearest_occurrences(index, np.ones(3))


@pytest.mark.parametrize("directions", ["auto", "off"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_occurrences_in_the_same_context_come_first(context, directions, lm, tmp_path):
    sentences = [
        form.format("bank", filler) for filler in FILLERS[1:] for form in CONTEXTS.values()
    ]
    index = lm.index_words(firth.Corpus.from_texts(sentences), tmp_path / "index")
    query = CONTEXTS[context].format("[bank]", FILLERS[0])
    found = lm.neighbours(query, index, among="same", top_k=18, directions=directions)
    expected = {CONTEXTS[context].format("bank", filler) for filler in FILLERS[1:]}
    assert {one.sentence for one in found.occurrences[:9]} == expected
    assert found.occurrences[8].cosine > found.occurrences[9].cosine + 0.05


def test_static_neighbours_are_the_means_over_occurrences(index):
    rows, types = index.vectors.astype(np.float64), index.types
    counts = np.bincount(types)
    words = [index.words[i] for i in np.flatnonzero(counts >= 5)]
    means = np.stack([rows[types == i].mean(axis=0) for i in np.flatnonzero(counts >= 5)])
    assert index.static[0] == words
    np.testing.assert_allclose(index.static[1], means, rtol=1e-4, atol=1e-5)
    units = means / np.linalg.norm(means, axis=1, keepdims=True)
    similar = units @ units[words.index("the")]
    order = [i for i in np.argsort(-similar) if words[i] != "the"][:5]
    found = static_neighbours(index, "The", top_k=5, directions="off")
    assert [word for word, _ in found] == [words[i] for i in order]
    assert [cosine for _, cosine in found] == pytest.approx(similar[order], abs=1e-4)
    assert static_neighbours(index, "zebra") == []


# Anisotropy


def test_correction_makes_random_pairs_orthogonal(index):
    assert index.manifest["random_cosine"] > 0.1
    assert abs(index.manifest["random_cosine_corrected"]) < 0.02


def test_mean_and_directions_are_found_in_a_stream():
    torch.manual_seed(0)
    spread = torch.tensor([9.0, 5.0, 1, 1, 1, 1])
    rows = torch.randn(4000, 6) * spread + torch.tensor([100.0, -50, 3, 0, 0, 0])
    found = Isotropy.of(rows.split(333), keep=3)
    torch.testing.assert_close(found.mean, rows.mean(0), atol=1e-3, rtol=0)
    _, _, directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    for ours, theirs in zip(found.directions[:2], directions[:2], strict=True):
        assert abs(float(ours @ theirs)) == pytest.approx(1, abs=1e-4)
    left = found.correct(rows, 2)
    assert float(left.mean(0).abs().max()) < 1e-3
    assert float((left @ found.directions[:2].T).abs().max()) < 1e-2
    variances = left.var(0).sort(descending=True).values
    torch.testing.assert_close(variances[:4], torch.ones(4), atol=0.1, rtol=0)
    assert cosine_of_random_pairs(rows) > 0.95
    assert abs(cosine_of_random_pairs(left)) < 0.05


# The mark


def test_the_mark_is_taken_off():
    assert marked_word("open a [bank] account") == ("open a bank account", (7, 11))
    words = ["open", "a", "[bank]", "account"]
    assert marked_word(words) == (["open", "a", "bank", "account"], (7, 11))
    assert marked_word(["a", "[New", "York]", "bar"]) == (["a", "New", "York", "bar"], (2, 10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("open a bank account", "no word is marked in 'open a bank account'; put square brackets"),
        ("open a [bank] [account]", "2 words are marked"),
        ("open a [] account", "the mark is empty"),
        ("open a [ ] account", "the mark is empty"),
        ("open a b[an]k account", "a part of the word 'bank'"),
        ("open a [bank acc]ount", "a part of the word 'account'"),
        (["open", "a", "[bank", "acc]ount"], "a part of the word 'account'"),
        (["open", "a", "bank"], "no word is marked"),
    ],
)
def test_a_wrong_mark_is_explained(text, message, lm, index):
    with pytest.raises(ConfigError) as error:
        lm.neighbours(text, index)
    assert message in str(error.value)


def test_a_marked_word_without_a_token(lm, papers, tmp_path):
    tokenizer = firth.Tokenizer.train(papers[:20], "wordpiece", 1000, strip_accents=True)
    other = replace(lm, tokenizer=tokenizer)
    text = "naïve \u0301 words \u0301"  # an accent by itself
    index = other.index_words(firth.Corpus.from_texts([text]), tmp_path / "index", split=True)
    assert [index.words[i] for i in index.types] == ["naïve", "words"]
    with pytest.raises(ConfigError, match="keeps nothing of the marked word"):
        other.neighbours("naïve [\u0301]", index)


def test_a_mark_of_several_words_takes_their_mean(lm, index):
    found = lm.embed(["open a bank account here"], unit="word")[0].vectors[2:4].mean(axis=0)
    ours = lm.neighbours("open a [bank account] here", index, directions="off").occurrences
    theirs = nearest_occurrences(index, found, directions="off")
    assert [one.sentence for one in ours] == [one.sentence for one in theirs]


# The command line


@pytest.fixture(scope="module")
def texts(papers, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "papers.txt"
    path.write_text("\n\n".join(papers[:12]), encoding="utf-8")
    return path


TEXT = "The results of our [model] are in the table."


def test_command_prints_a_concordance(tiny_run, texts, tmp_path, capsys):
    arguments = ["neighbours", str(tiny_run), str(texts), TEXT, "--device", "cpu"]
    arguments += ["--top-k", "4", "--width", "80", "--index", str(tmp_path / "index")]
    assert main(arguments) == 0
    first = capsys.readouterr()
    lines = first.out.splitlines()
    assert lines[0] == TEXT
    assert len({line.index("[") for line in lines[2:6]}) == 1  # the words stand in a column
    values = [float(line.split()[0]) for line in lines[2:6]]
    assert values == sorted(values, reverse=True)
    assert max(map(len, lines[2:6])) <= 80
    assert lines[7].startswith("without context: ")
    assert "mean cosine of random pairs 0." in first.err
    assert main([*arguments, "--json"]) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["word"] == "model"
    assert [round(one["cosine"], 3) for one in record["occurrences"]] == values
    for one in record["occurrences"]:
        assert one["sentence"][one["start"] : one["end"]] == one["word"]
    assert len(record["static"]) == 4


def test_command_reads_only_what_it_needs(tiny_run, texts, capsys, monkeypatch):
    read = []
    original = index_building._Writer.add

    def add(self, chunk, embed, selection):
        def counted(sentences):
            read.extend(sentences)
            return embed(sentences)

        return original(self, chunk, counted, selection)

    monkeypatch.setattr(index_building._Writer, "add", add)
    arguments = ["neighbours", str(tiny_run), str(texts), TEXT, "--device", "cpu", "--same-word"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert read
    assert all("model" in sentence.casefold() for sentence in read)
    assert "[model]" in out
    assert "without context" not in out


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["no mark here"], 2, "no word is marked"),
        ([], 2, "no text was given"),
        ([TEXT, "--same-word", "--other-words"], 2, "exclude each other"),
        ([TEXT, "--words", "zebra"], 3, "none of the words to index"),
        (["a [well-known] fact", "--same-word"], 2, "3 words to this model's tokenizer"),
    ],
)
def test_command_explains_what_is_wrong(more, code, message, tiny_run, texts, capsys):
    assert main(["neighbours", str(tiny_run), str(texts), *more, "--device", "cpu"]) == code
    assert message in capsys.readouterr().err
