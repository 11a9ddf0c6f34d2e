"""What is done with word vectors: files, neighbours, judgements of similarity, translation."""

import gzip
import json
import math

import numpy as np
import pytest
import torch

import firth
from firth.api.word_vectors import tokenizer_of, vocabulary_vectors
from firth.cli import main
from firth.errors import CheckpointError, ConfigError, DataError, UnsupportedError
from firth.inference.bilingual import (
    build_dictionary,
    ibm_model_1,
    pairs_with_vectors,
    precision_at_1,
    rotation,
    translate,
)
from firth.inference.word_similarity import analogy, nearest_words
from firth.interop.word_vectors import read_word_vectors, write_word_vectors
from firth.models import Static
from firth.protocols import Report
from firth.tasks.word_similarity import read_similarity_sets, similarity_report

WORDS = ["the", "Häuser", "中文", "don't", "x_1", "naïve"]


@pytest.fixture
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(len(WORDS), 7)) * 10.0 ** rng.integers(-6, 6, (1, 7))).astype("f4")


@pytest.mark.parametrize("name", ["v.vec", "v.txt", "v.bin"])
def test_files_give_back_every_bit(name, vectors, tmp_path):
    write_word_vectors(tmp_path / name, WORDS, vectors)
    words, found = read_word_vectors(tmp_path / name)
    assert words == WORDS
    np.testing.assert_array_equal(found, vectors)


@pytest.mark.parametrize(("name", "binary"), [("v.vec", False), ("v.bin", True)])
def test_gensim_reads_what_we_write_and_we_what_it_writes(name, binary, vectors, tmp_path):
    keyed = pytest.importorskip("gensim.models.keyedvectors").KeyedVectors
    write_word_vectors(tmp_path / name, WORDS, vectors)
    theirs = keyed.load_word2vec_format(tmp_path / name, binary=binary)
    assert theirs.index_to_key == WORDS
    np.testing.assert_allclose(theirs.vectors, vectors, rtol=1e-6)
    theirs.save_word2vec_format(str(tmp_path / f"theirs-{name}"), binary=binary)
    words, found = read_word_vectors(tmp_path / f"theirs-{name}")
    assert words == WORDS
    np.testing.assert_allclose(found, vectors, rtol=1e-6)


def test_files_of_glove_have_no_first_line(tmp_path):
    (tmp_path / "glove.txt").write_text("the 0.5 -1 2e-3\nof 1 2 3\na b 4 5 6\nthe 9 9 9\n")
    words, found = read_word_vectors(tmp_path / "glove.txt")
    assert words == ["the", "of", "a b"]
    np.testing.assert_allclose(found, [[0.5, -1, 2e-3], [1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("v.vec", b"2 3\nthe 1 2 3\n", "its first line says 2"),
        ("v.vec", b"2 3\nthe 1 2 3\nof 1 2\n", "line 3"),
        ("v.vec", b"the cat sat on\n", "line 1"),
        ("v.vec", b"1 3\nthe 1 nan 3\n", "line 2 .*3 finite numbers"),
        ("v.txt", b"the 1 2 3\nof 1 -inf 3\n", "line 2 .*3 finite numbers"),
        ("v.bin", b"1 2\nthe " + np.array([1, np.nan], "<f4").tobytes(), "of 'the' .word 1"),
        ("v.vec", b"", "no word vectors"),
        ("v.bin", b"2 3\nthe " + bytes(12), "ends after 1 of 2"),
        ("v.bin", b"99999999999 300\nthe " + bytes(12), "ends after 0 of 99,999,999,999"),
        ("v.bin", b"1 0\nthe ", "of 0 dimensions"),
        ("v.bin", b"1 99999999999999999999\nthe ", "of 99999999999999999999 dimensions"),
        ("v.vec", b"1 99999999999999999999\nthe 1\n", "of 99999999999999999999 dimensions"),
        ("v.vec", b"2 2\na 1 0 2\nb 0 1 1\n", "line 2 is 'a 1 0 2'; expected a word and 2"),
        ("v.txt", b"a 1 0\nb 0 1 5\n", "line 2"),
        ("v.bin", b"1 1\na " + bytes(4) + b"\nb " + bytes(4) + b"\n", "6 bytes follow the 1 words"),
        ("v.bin", b"hello\n", "numbers of words and dimensions"),
    ],
)
def test_damaged_files_are_refused(name, content, found, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=found):
        read_word_vectors(tmp_path / name)


def test_what_is_no_word_is_left_out(tmp_path, caplog):
    """The program word2vec cuts long words within a letter; others write an empty one."""
    rows = [(b"caf\xe9", 1.0), (b"caf\xe8", 2.0), (b"tea", 3.0)]
    data = b"".join(word + b" " + np.float32(x).tobytes() + b"\n" for word, x in rows)
    (tmp_path / "v.BIN").write_bytes(b"3 1\n" + data)
    words, found = read_word_vectors(tmp_path / "v.BIN")
    assert (words, found.tolist()) == (["tea"], [[3.0]])
    assert "2 words are empty or not UTF-8" in caplog.text
    (tmp_path / "v.vec").write_text("2 2\n 1 0\nb 0 1\n")
    lm = firth.load(tmp_path / "v.vec")
    assert lm.save_word_vectors(tmp_path / "o.vec") == 1
    (tmp_path / "spaces.vec").write_text("2 2\na b 1 0\nc d 0 1\n")
    with pytest.raises(DataError, match="no word to write"):
        firth.load(tmp_path / "spaces.vec").save_word_vectors(tmp_path / "o.vec")


def test_a_text_that_begins_with_an_empty_line_is_not_replaced(tmp_path, vectors):
    write_word_vectors(tmp_path / "v.vec", WORDS, vectors)
    lm = firth.load(tmp_path / "v.vec")
    diary = "\nDiary\n\nmany lines\n"
    (tmp_path / "notes.txt").write_text(diary)
    with pytest.raises(ConfigError, match="holds no word vectors"):
        lm.save_word_vectors(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == diary
    (tmp_path / "empty.txt").touch()
    assert lm.save_word_vectors(tmp_path / "empty.txt") == len(WORDS)


def test_a_word_without_a_vector_is_no_answer():
    target = np.array([[-1, 0.1], [-0.9, -0.2], [0, 0]])
    source = np.array([[1, 0], [0.9, 0.1]])
    for csls in (0, 2):
        assert 2 not in translate(source, target, csls=csls)
    assert translate(source, target, csls=0).tolist() == [1, 0]
    with pytest.raises(DataError, match="no target word has a vector"):
        translate(source, 0 * target)
    found = nearest_words(["a", "b", "none"], target, source[0], top_k=3)
    assert [word for word, _ in found] == ["b", "a"]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes((793712314).to_bytes(4, "little") + bytes(50))
    with pytest.raises(UnsupportedError, match="fastText"):
        read_word_vectors(tmp_path / "model.bin")
    with pytest.raises(DataError, match="cannot be written"):
        write_word_vectors(tmp_path / "v.vec", ["a b"], np.zeros((1, 2)))
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ConfigError, match="word vectors"):
        firth.load(tmp_path / "notes.md")
    with pytest.raises(CheckpointError, match="no such directory"):
        firth.load(tmp_path / "none.vec")


@pytest.mark.parametrize("words", [WORDS, ["the", "don't", "stop"], ["中文", "是"]])
def test_a_file_loads_as_a_model(words, tmp_path, vectors):
    rows = np.tile(vectors, (2, 1))[: len(words)]
    write_word_vectors(tmp_path / "v.vec", words, rows)
    lm = firth.load(tmp_path / "v.vec")
    assert isinstance(lm, firth.LanguageModel)
    assert [vocabulary_vectors(lm)[0], len(lm.model.layers)] == [words, 0]
    found = lm.embed([words, [*words[::-1], "unseen"]], unit="word")
    np.testing.assert_array_equal(found[0].vectors, rows)
    np.testing.assert_array_equal(found[1].vectors, [*rows[::-1], 0 * rows[0]])
    if "stop" in words:  # a vocabulary without capitals
        np.testing.assert_array_equal(lm.embed(["Stop THE"], unit="word")[0].vectors[0], rows[2])
    lm.save(tmp_path / "run")
    again = firth.load(tmp_path / "run").embed([words], unit="word")[0].vectors
    np.testing.assert_array_equal(again, rows)
    with pytest.raises(UnsupportedError):
        lm.logits(["the"])


def test_words_are_found_in_composed_form(tmp_path):
    """Unicode's composition changes them on the way to the vocabulary."""
    words = ["\u0958ab", "cafe\u0301", "\u212b", "caf\u00e9", "plain"]
    rows = np.arange(1, 11, dtype="f4").reshape(5, 2)
    write_word_vectors(tmp_path / "v.vec", words, rows)
    lm = firth.load(tmp_path / "v.vec")
    found = lm.embed([words, " ".join(words)], unit="word")
    for one in found:  # of two spellings of a word the first counts
        np.testing.assert_array_equal(one.vectors, rows[[0, 1, 2, 1, 4]])


@pytest.mark.parametrize(
    ("words", "text", "units"),
    [
        (
            ["the", "don't", "stop", "late"],
            "don't stop late.",
            ["don", "'", "t", "stop", "late", "."],
        ),
        (["can't", "don't", "stop"], "don't stop", ["don't", "stop"]),  # most would be torn
        (["中文", "是", "报纸"], "中文 是", ["中文", "是"]),
    ],
)
def test_texts_are_cut_as_suits_most_words(words, text, units, tmp_path):
    write_word_vectors(tmp_path / "v.vec", words, np.ones((len(words), 2)))
    (found,) = firth.load(tmp_path / "v.vec").embed([text], unit="word")
    assert found.units == units
    assert found.vectors.any(axis=1).tolist() == [unit in words for unit in units]


def test_special_tokens_of_a_file_get_no_vectors(tmp_path, caplog):
    words = ["[UNK]", "[CLS]", "cat"]
    write_word_vectors(tmp_path / "v.vec", words, np.ones((3, 2)))
    lm = firth.load(tmp_path / "v.vec")
    assert "vectors of special tokens are left out" in caplog.text
    states = lm.hidden_states(["cat dog"])[0].values[0]
    assert states.any(axis=1).tolist() == [False, True, False, False]
    assert vocabulary_vectors(lm)[0] == ["cat"]


def test_words_that_no_format_holds_are_left_out(tmp_path, caplog):
    (tmp_path / "glove.txt").write_text("the 0.5 -1\na b 4 5\n")
    lm = firth.load(tmp_path / "glove.txt")
    assert lm.save_word_vectors(tmp_path / "v.bin") == 1
    assert "1 words with white space" in caplog.text
    assert read_word_vectors(tmp_path / "v.bin")[0] == ["the"]


def test_nearest_words_and_analogies():
    words = ["king", "queen", "man", "woman", "tree"]
    vectors = np.array([[2, 2, 0], [2, -2, 0], [0, 1, 0.5], [0, -1, 0.5], [-1, 0, 3]], "f4")
    found = nearest_words(words, vectors, "king", 2)
    assert found[0] == ("man", pytest.approx(2 / math.sqrt(8 * 1.25)))
    assert [word for word, _ in found] == ["man", "queen"]
    assert nearest_words(words, vectors, np.array([0, -3, 0.1]), 1)[0][0] == "woman"
    left = [word for word, _ in nearest_words(words, vectors, np.ones(3), 9, without=["tree"])]
    assert left == ["king", "man", "queen", "woman"]
    assert analogy(words, vectors, "man", "king", "woman", 1)[0][0] == "queen"
    with pytest.raises(ConfigError, match="emperor"):
        analogy(words, vectors, "man", "emperor", "woman")
    with pytest.raises(ConfigError, match="norm 0"):
        nearest_words(words, vectors, np.zeros(3))
    with pytest.raises(ConfigError, match="'tree' has no vector"):
        analogy(words, vectors * np.array([[1], [1], [1], [1], [0]]), "man", "tree", "woman")


def test_similarity_counts_the_pairs_that_are_known(tmp_path):
    (tmp_path / "set.txt").write_text("a b 3\na\tc\t2\r\nb c 1\na unknown 9\n\n")
    (tmp_path / "other.txt").write_text("unknown a 1\nunknown b 2\n")
    (tmp_path / "equal.txt").write_text("a b 1\na c 1\n")
    rows = {"a": [1, 0], "b": [0.9, 0.1], "c": [0.5, 0.5]}
    report = similarity_report(
        read_similarity_sets(tmp_path), lambda words: np.array([rows.get(w, [0, 0]) for w in words])
    )
    assert report.details["sets"]["set"] == {
        "pairs": 4,
        "covered": 3,
        "coverage": 0.75,
        "spearman": pytest.approx(0.5),  # cosines: ab, bc, ac; judgements: ab, ac, bc
    }
    for name in ("other", "equal"):  # nothing correlates, which is not the same as 0
        assert report.details["sets"][name]["spearman"] is None
    assert report.metrics == {"spearman": pytest.approx(0.5), "coverage": pytest.approx(1.75 / 3)}
    with pytest.raises(DataError, match="equal, other, set: in no set are two pairs"):
        similarity_report(read_similarity_sets(tmp_path), lambda words: np.zeros((len(words), 2)))
    for line in ("a b\n", "a b nan\n"):
        (tmp_path / "set.txt").write_text(line)
        with pytest.raises(DataError, match="line 1"):
            read_similarity_sets(tmp_path)


def test_similarity_sets_are_found_packed_and_in_folders(tmp_path):
    for folder, pairs in (("en", "a b 3\na c 2\n"), ("de", "b c 1\na b 0\na c 5\n")):
        (tmp_path / folder).mkdir()
        with gzip.open(tmp_path / folder / "set.txt.gz", "wt") as file:
            file.write(pairs)
    found = {one.name: len(one.first) for one in read_similarity_sets(tmp_path)}
    assert found == {"de/set.txt.gz": 3, "en/set.txt.gz": 2}
    assert read_similarity_sets(tmp_path / "en")[0].name == "set"
    by_glob = read_similarity_sets(str(tmp_path / "*" / "set.*"))
    assert [one.name for one in by_glob] == ["de/set.txt.gz", "en/set.txt.gz"]
    (tmp_path / "pairs.csv").write_text("a,b,1\n")
    with pytest.raises(DataError, match=r"no \.txt or \.tsv file"):
        read_similarity_sets(tmp_path / "pairs.csv")


def test_packed_binary_vectors_are_read(tmp_path):
    words, vectors = ["the", "cat"], np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    write_word_vectors(tmp_path / "v.bin", words, vectors)
    (tmp_path / "v.bin.gz").write_bytes(gzip.compress((tmp_path / "v.bin").read_bytes()))
    found, rows = read_word_vectors(tmp_path / "v.bin.gz")
    assert found == words
    np.testing.assert_array_equal(rows, vectors)


@pytest.fixture(scope="module")
def wiki_run(shared, tmp_path_factory):
    """Skip-gram on about 400,000 words of Simple English Wikipedia."""
    zstandard = pytest.importorskip("zstandard")
    source = shared / "data" / "english-10m" / "simple_wiki.train.txt.zst"
    with source.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file).read(2_400_000)
    folder = tmp_path_factory.mktemp("wiki")
    (folder / "text.txt").write_bytes(text.rpartition(b"\n")[0])
    chosen = firth.recipe("word2vec").with_settings(
        {"model.hidden_size": 64, "objective.lr": 0.05, "training.epochs": 6}
    )
    corpus = firth.Corpus.from_files(folder / "text.txt", documents="line")
    firth.pretrain(chosen, corpus, folder / "run")
    return folder / "run"


def test_vectors_of_real_text_agree_with_people(wiki_run, shared):
    lm = firth.load(wiki_run)
    sets = shared / "data" / "word-similarity"
    learned: Report = lm.word_similarity(sets)
    torch.manual_seed(0)
    untrained = firth.LanguageModel(Static(lm.model.config), lm.tokenizer)
    random = untrained.word_similarity(sets)
    for name in ("EN-MEN-TR-3k", "EN-WS-353-ALL"):
        both = [report.details["sets"][name]["spearman"] for report in (learned, random)]
        assert both[0] > 0.2
        assert both[0] > both[1] + 0.1  # pairs of a word with itself help random ones too
    assert len(learned.details["sets"]) == 13
    assert learned.details["sets"]["EN-MEN-TR-3k"]["coverage"] > 0.5


def test_the_command_line(wiki_run, shared, tmp_path, capsys):
    sets = shared / "data" / "word-similarity" / "EN-WS-353-ALL.txt"
    assert main(["evaluate", str(wiki_run), str(sets), "--suite", "word-similarity"]) == 0
    plain = capsys.readouterr().out
    command = ["evaluate", str(wiki_run), str(sets), "--suite", "word-similarity", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert f"spearman\t{report['spearman']:.4f}" in plain
    assert main([*command, "--limit", "5"]) == 2
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "one.txt").write_text("water river 9\nwater city 1\n")
    (tmp_path / "sets" / "two.txt").write_text("gavagai river 9\nqwertz city 1\n")
    folder = str(tmp_path / "sets")
    assert main(["evaluate", str(wiki_run), folder, "--suite", "word-similarity"]) == 0
    assert "two\t2\t0\tundefined\n" in capsys.readouterr().out
    for notes in ("my own notes\n", "Chapter 1\nIt was late.\n", "1 2\n3\n", "7 8 9\n"):
        (tmp_path / "notes.txt").write_text(notes)
        assert main(["export", str(wiki_run), str(tmp_path / "notes.txt")]) == 2
        assert "notes.txt is there already and holds no word vectors" in capsys.readouterr().err
        assert (tmp_path / "notes.txt").read_text() == notes
    for vectors in ("", "the 1 2\nof 3 4\n", "1 2\nthe 3 4\n"):
        (tmp_path / "v.txt").write_text(vectors)
        assert main(["export", str(wiki_run), str(tmp_path / "v.txt")]) == 0
    assert main(["export", str(tmp_path / "v.txt"), str(tmp_path / "v.txt")]) == 2
    assert "v.txt is what is read" in capsys.readouterr().err
    for name in ("v.vec", "v.bin", "v.bin", "v.vec"):  # such a file may be replaced
        assert main(["export", str(wiki_run), str(tmp_path / name)]) == 0
    words, vectors = read_word_vectors(tmp_path / "v.vec")
    lm = firth.load(wiki_run)
    np.testing.assert_array_equal(
        lm.embed([["water"]], unit="word")[0].vectors[0], vectors[words.index("water")]
    )
    assert main(["export", str(wiki_run), str(tmp_path / "v.npy")]) == 2
    assert main(["inspect", str(wiki_run)]) == 0
    assert "word2vec" in capsys.readouterr().out


def test_contextual_models_have_no_vector_of_a_word(tiny_run, tmp_path):
    with pytest.raises(UnsupportedError, match="depend on the context"):
        firth.load(tiny_run).save_word_vectors(tmp_path / "v.vec")


def turned(seed: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    source = rng.normal(size=(300, 20))
    return source, source @ turn + noise * rng.normal(size=(300, 20)), turn


def test_procrustes_recovers_a_rotation():
    source, target, turn = turned(0)
    found = rotation(source[:50], 3 * target[:50])
    np.testing.assert_allclose(found, turn, atol=1e-5)
    np.testing.assert_allclose(found @ found.T, np.eye(20), atol=1e-5)
    np.testing.assert_array_equal(translate(source @ found, target), np.arange(300))
    np.testing.assert_array_equal(translate(source @ found, target, csls=0), np.arange(300))


def test_csls_is_the_formula():
    source, target, _ = turned(1, noise=1.0)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (source, target)]
    cosines = unit[0] @ unit[1].T
    near_source = np.sort(cosines, axis=1)[:, -7:].mean(1)
    near_target = np.sort(cosines, axis=0)[-7:].mean(0)
    expected = (2 * cosines - near_source[:, None] - near_target).argmax(1)
    np.testing.assert_array_equal(translate(source, target, csls=7), expected)
    rows = np.array([5, 200, 17])
    np.testing.assert_array_equal(translate(source, target, rows=rows, csls=7), expected[rows])
    assert (expected != cosines.argmax(1)).any()


def test_precision_takes_any_translation_of_a_word():
    source, target, _ = turned(2)
    words, others = [f"s{i}" for i in range(300)], [f"t{i}" for i in range(300)]
    pairs = [(f"s{i}", f"t{i}") for i in range(100)]
    known = pairs_with_vectors([*pairs, ("s1", "none")], words, source, others, target)
    mapped = source @ rotation(*known)
    asked = [("s200", "t200"), ("s200", "t3"), ("s201", "t4"), ("s1", "none")]
    found = precision_at_1(words, mapped, others, target, asked)
    assert (found.share, found.num_words, found.num_missing) == (0.5, 2, 1)
    with pytest.raises(DataError, match="no pair"):
        precision_at_1(words, mapped, others, target, [("x", "y")])


def test_model_1_converges_as_in_the_textbook():
    """The three sentences of Koehn 2010, figure 4.4: das Haus, das Buch, ein Buch."""
    source = [np.array([0, 1]), np.array([0, 2]), np.array([3, 2])]
    target = [np.array([0, 1]), np.array([0, 2]), np.array([3, 2])]
    table = ibm_model_1(source, target, iterations=1)
    found = dict(zip(zip(table.given, table.words, strict=True), table.probabilities, strict=True))
    # One step from equal probabilities, the empty word being a third source of each word.
    assert found[0, 0] == pytest.approx(0.5)
    assert found[0, 1] == pytest.approx(0.25)
    assert found[2, 2] == pytest.approx(0.5)
    table = ibm_model_1(source, target, iterations=50)
    found = dict(zip(zip(table.given, table.words, strict=True), table.probabilities, strict=True))
    assert min(found[0, 0], found[1, 1], found[2, 2], found[3, 3]) > 0.95
    for e in (-1, 0, 1, 2, 3):
        assert sum(p for (given, _), p in found.items() if given == e) == pytest.approx(1)


def test_a_dictionary_of_parallel_text(shared):
    import gzip

    sides = []
    for language in ("de", "en"):
        path = shared / "data" / "multi30k" / f"train.{language}.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            sides.append([line.lower().split() for line, _ in zip(file, range(4000), strict=False)])
    pairs = build_dictionary(*sides)
    assert len(pairs) > 300
    assert {("mann", "man"), ("hund", "dog"), ("und", "and"), ("wasser", "water")} <= set(pairs)
    with pytest.raises(DataError, match="as many"):
        build_dictionary(sides[0], sides[1][:-1])


def test_what_is_no_parallel_text_is_refused():
    sentences = [["der", "hund"]] * 5
    with pytest.raises(DataError, match="'the dog' is a string; expected a list of its words"):
        build_dictionary(sentences, ["the dog"] * 5)
    with pytest.raises(DataError, match="no word in the translations"):
        build_dictionary(sentences, [[]] * 5)
    with pytest.raises(DataError, match=r"\(3, 4\) and \(3, 6\); expected as many"):
        rotation(np.ones((3, 4)), np.ones((3, 6)))


def test_the_last_ending_tells_text_from_binary(tmp_path, vectors):
    for name in ("v.bin.txt", "v.txt", "v.bin"):
        write_word_vectors(tmp_path / name, WORDS, vectors)
        assert read_word_vectors(tmp_path / name)[0] == WORDS
    assert (tmp_path / "v.bin.txt").read_bytes() == (tmp_path / "v.txt").read_bytes()


@pytest.mark.parametrize(
    "text", ["the 0.1 0.2 \nof 0.3 0.4 \n", "2 2\nthe 0.1 0.2\nof 0.3 0.4\n\n"]
)
def test_spaces_and_lines_at_the_end_are_no_vectors(tmp_path, text):
    (tmp_path / "a.vec").write_text(text, encoding="utf-8")
    words, found = read_word_vectors(tmp_path / "a.vec")
    assert words == ["the", "of"]
    np.testing.assert_allclose(found, [[0.1, 0.2], [0.3, 0.4]], rtol=1e-6)


def test_special_rows_do_not_make_a_vocabulary_cased():
    tokenizer = tokenizer_of(["[PAD]", "[UNK]", "the", "of"])
    assert tokenizer.encode("The of").tokens == ["[CLS]", "the", "of", "[SEP]"]
    assert tokenizer_of(["The", "of"]).encode("The").tokens[1] == "The"
