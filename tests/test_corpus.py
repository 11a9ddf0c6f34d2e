import gzip
import json
import tracemalloc
from collections import Counter
from math import sqrt
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firth.errors import ConfigError, DataError
from firth.text import files, formats
from firth.text.corpus import Corpus, Statistics
from firth.text.sentences import sentence_spans

ENGLISH = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "english-10m"


def stripped(documents):
    return [text for document in documents if (text := document.strip())]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


class TestFindingFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in (
            "b.txt",
            "a/z.TXT.GZ",
            "a/y.jsonl",
            "c/d/x.tsv",
            "README.md",
            "a/t.parquet.gz",
        ):
            write(tmp_path / name, "text")
        for name in (".hidden.txt", ".git/a.txt", "a/.b/c.txt"):
            write(tmp_path / name, "hidden")
        return tmp_path

    def names(self, folder, *paths):
        found = Corpus.from_files([folder / path for path in paths]).files
        return [file.relative_to(folder).as_posix() for file in found]

    def test_a_folder_is_sorted_and_filtered(self, folder):
        assert self.names(folder, "") == ["a/y.jsonl", "a/z.TXT.GZ", "b.txt", "c/d/x.tsv"]

    def test_globs(self, folder):
        assert self.names(folder, "*") == ["b.txt"]
        assert self.names(folder, "**/*.tsv") == ["c/d/x.tsv"]
        assert self.names(folder, "**") == ["a/y.jsonl", "a/z.TXT.GZ", "b.txt", "c/d/x.tsv"]

    def test_order_of_the_arguments_and_each_file_once(self, folder):
        assert self.names(folder, "c", "a", "c/d/x.tsv", "b.txt", "*.txt") == [
            "c/d/x.tsv",
            "a/y.jsonl",
            "a/z.TXT.GZ",
            "b.txt",
        ]

    def test_one_file_under_two_names(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        (folder / "link.txt").symlink_to("b.txt")
        assert Corpus.from_files(["b.txt", folder / "*.txt"]).files == (Path("b.txt"),)

    def test_one_path_as_a_string_and_brackets_in_a_name(self, tmp_path):
        path = write(tmp_path / "a[1].txt", "text")
        assert Corpus.from_files(str(path)).files == (path,)

    def test_linked_folders_are_followed_once(self, folder, tmp_path_factory):
        outside = tmp_path_factory.mktemp("outside")
        write(outside / "far/e.txt", "text")
        (outside / "far/back").symlink_to(folder)  # leads round in a circle
        (folder / "a/linked").symlink_to(outside)
        (folder / "0").symlink_to(folder / "c")  # which keeps its own name
        (folder / ".hidden").symlink_to(outside)
        expected = ["a/linked/far/e.txt", "a/y.jsonl", "a/z.TXT.GZ", "b.txt", "c/d/x.tsv"]
        assert self.names(folder, "") == expected

    def test_indexes_are_left_out_and_other_words_are_not(self, tmp_path, caplog):
        for name in ("book", "index"):
            write(tmp_path / name / "words.txt", "words")
            write(tmp_path / name / "story.txt", "story")
        write(tmp_path / "book/manifest.json", '{"title": "Words"}')
        write(tmp_path / "index/manifest.json", '{"format": 2, "sizes": {"words.txt": 5}}')
        assert self.names(tmp_path, "") == ["book/story.txt", "book/words.txt"]
        (message,) = caplog.messages
        assert message == f"{tmp_path / 'index'}: a model or an index, no text; left out"

    def test_a_hidden_file_given_by_name(self, folder):
        assert self.names(folder, ".hidden.txt") == [".hidden.txt"]

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            (
                "missing.txt",
                "missing.txt: no such file or folder .*give a file, a folder or a glob",
            ),
            ("*.csv", r"\*.csv: no text files among 0 matches; known: .txt, .*check the path"),
            (
                "README.md",
                "README.md: unknown suffix '.md'; known: .txt, .jsonl, .csv, .tsv, .parq",
            ),
            ("a/t.parquet.gz", "unknown suffix '.parquet.gz'; .*all but .parquet also with .gz"),
        ],
    )
    def test_errors(self, folder, path, message):
        with pytest.raises(DataError, match=message):
            Corpus.from_files(folder / path)

    def test_no_path(self):
        with pytest.raises(DataError, match="give at least one file"):
            Corpus.from_files([])

    def test_wrong_settings(self, folder):
        with pytest.raises(ConfigError, match=r"documents is 'lines'; did you mean 'line'\?"):
            Corpus.from_files(folder, documents="lines")
        with pytest.raises(ConfigError, match="errors is 'ignore'; known: replace, strict"):
            Corpus.from_files(folder, errors="ignore")


LONG = "word " * 25


class TestDetection:
    @pytest.mark.parametrize(
        ("text", "unit"),
        [
            ("", "file"),
            ("a line\nanother\n", "file"),
            ("a line\n\nanother", "block"),
            ("a line\n \t\nanother", "block"),
            ("\n\n\na line\nanother\n\n\n", "file"),
            (f"{LONG}\n{LONG}\nshort\n", "line"),
            (f"{LONG}\nshort\nshort\n", "file"),
            (f"{LONG}\n\n{LONG}", "block"),
            ("字" * 250 + "\n" + "字" * 250, "line"),
            ("字" * 249 + "\n" + "字" * 249, "file"),
        ],
    )
    def test_unit(self, text, unit):
        assert formats.detect_unit(text) == unit

    def test_looks_at_the_beginning_only(self, monkeypatch, tmp_path):
        monkeypatch.setattr(formats, "SAMPLE", 8)
        monkeypatch.setattr(files, "CHUNK", 7)
        write(tmp_path / "a.txt", "ab\ncd\nef\n\ngh")
        write(tmp_path / "b.txt", "ab\n\ncd\n\ngh")
        corpus = Corpus.from_files(tmp_path)
        assert [description.unit for description in corpus.describe()] == ["file", "block"]
        assert list(corpus) == ["ab\ncd\nef\n\ngh", "ab", "cd", "gh"]

    def test_description(self, tmp_path):
        write(tmp_path / "a.txt.gz", "one\n\ntwo")
        write(tmp_path / "b.CSV", "text\none")
        assert Corpus.from_files(tmp_path).describe() == [
            (str(tmp_path / "a.txt.gz"), ".txt.gz", "block"),
            (str(tmp_path / "b.CSV"), ".csv", "row"),
        ]
        assert Corpus.from_files(tmp_path, documents="line").describe()[0].unit == "line"
        assert Corpus.from_texts(["one"]).describe()[0].unit == "text"

    @pytest.mark.skipif(not ENGLISH.is_dir(), reason="shared/data/english-10m is not here")
    def test_real_text(self):
        pytest.importorskip("zstandard")
        corpus = Corpus.from_files(ENGLISH / "*.valid.txt.zst")
        units = {Path(d.path).name.split(".")[0]: d.unit for d in corpus.describe()}
        assert units == {
            "books": "block",
            "childes": "file",
            "children_stories": "block",
            "childrens_book_test": "file",
            "meetings": "block",  # a blank line between meetings
            "simple_wiki": "block",
            "storybooks": "block",
            "task_dialogues": "block",
            "wikipedia": "block",
        }
        novels = Corpus.from_files(ENGLISH / "books.train.txt.zst")
        assert novels.describe()[0].unit == "block"  # the first novel has two million characters
        wikipedia = Corpus.from_files(ENGLISH / "wikipedia.valid.txt.zst")
        documents = list(wikipedia)
        assert len(documents) == 136
        assert all(document.startswith("= ") for document in documents)
        assert sum(len(document.split()) for document in documents) == 61_183


class TestSplit:
    numbers = tuple(f"document {i}" for i in range(4000))

    def test_train_and_valid_are_all_in_order(self):
        train, valid = Corpus.from_texts(self.numbers).split(valid=0.1, seed=3)
        sides = {text: 0 for text in train} | {text: 1 for text in valid}
        assert sorted(sides, key=self.numbers.index) == list(self.numbers)
        assert len(list(train)) + len(list(valid)) == len(self.numbers)
        for part in (train, valid):
            found = list(part)
            assert found == sorted(found, key=self.numbers.index)

    @pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
    def test_share_is_within_five_standard_errors(self, share):
        for seed in range(5):
            _, valid = Corpus.from_texts(self.numbers).split(valid=share, seed=seed)
            n = len(self.numbers)
            deviation = len(list(valid)) - share * n
            assert abs(deviation) < 5 * sqrt(n * share * (1 - share))

    def test_a_document_stays_when_files_are_added(self, tmp_path):
        write(tmp_path / "b.txt", "\n".join(self.numbers[:400]))
        before = [set(part) for part in Corpus.from_files(tmp_path, documents="line").split()]
        write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": t}) for t in self.numbers[400:]))
        after = [set(part) for part in Corpus.from_files(tmp_path, documents="line").split()]
        assert before[0] < after[0]
        assert before[1] < after[1]

    def test_never_changes(self):
        _, valid = Corpus.from_texts([str(i) for i in range(100)]).split(valid=0.1, seed=0)
        golden = "1 4 6 25 42 47 50 54 55 61 64 73 82 83 91"
        assert list(valid) == golden.split()

    def test_seeds_and_repeated_splits_are_independent(self):
        corpus = Corpus.from_texts(self.numbers)
        train, valid = corpus.split(valid=0.5, seed=0)
        other = set(corpus.split(valid=0.5, seed=1)[1])
        for part in (train, valid):
            for again in (list(part.split(valid=0.5, seed=0)[1]), other & set(part)):
                assert abs(len(again) - 1000) < 5 * sqrt(4000 * 0.25 * 0.75)
        develop, test = valid.split(valid=0.5)
        assert Counter([*train, *develop, *test]) == Counter(self.numbers)

    def test_equal_texts_are_on_one_side(self):
        train, valid = Corpus.from_texts(self.numbers[:50] * 3).split(valid=0.5)
        assert not set(train) & set(valid)
        assert set(Counter(valid).values()) == {3}

    def test_an_empty_side_is_an_error_when_read(self):
        corpus = Corpus.from_texts(["one", "two"])
        with pytest.raises(
            DataError, match=r"none of 2 documents fell into the valid part, .*0\.001"
        ):
            list(corpus.split(valid=0.001)[1])
        with pytest.raises(
            DataError, match=r"fell into the train part, which should get 0\.001 of"
        ):
            list(corpus.split(valid=0.999)[0])

    @pytest.mark.parametrize("share", [0, 1, -0.1, 5])
    def test_wrong_share(self, share):
        with pytest.raises(ConfigError, match="expected a share between 0 and 1"):
            Corpus.from_texts(["one"]).split(valid=share)


class TestSample:
    @pytest.fixture(autouse=True)
    def _little(self, monkeypatch):
        monkeypatch.setattr("firth.text.corpus._LEAST", 10)

    def test_of_many_files_some_are_left_out(self, tmp_path):
        for i in range(50):
            write(tmp_path / f"{i:02}.txt", f"{i:02} and more text")
        corpus = Corpus.from_files(tmp_path, documents="line")
        assert list(corpus.sample(100)) == [f"{i:02} and mor" for i in range(0, 50, 5)]
        assert len(list(corpus.sample(5000))) == 50

    def test_every_file_has_its_share_and_the_last_document_is_cut(self, tmp_path):
        write(tmp_path / "a.txt", "\n".join("a" * 30 for _ in range(100)))
        write(tmp_path / "b.txt", "\n".join(["", "b" * 400]))
        write(tmp_path / "c.txt", "short")
        corpus = Corpus.from_files(tmp_path, documents="line")
        expected = ["a" * 30, "a" * 30, "a" * 30, "a" * 10, "b" * 100, "short"]
        assert list(corpus.sample(300)) == expected

    def test_of_a_split_its_own_side_alone(self, tmp_path):
        for name in "ab":
            write(tmp_path / f"{name}.txt", "\n".join(f"{name} {i}" for i in range(500)))
        _, valid = Corpus.from_files(tmp_path, documents="line").split(valid=0.1)
        whole = list(valid)
        assert list(valid.sample(10**6)) == whole
        some = list(valid.sample(100))
        assert {text[0] for text in some} == {"a", "b"}
        assert len(some) < len(whole)

    def test_a_file_without_a_document_of_this_side_is_passed_over(self, tmp_path):
        write(tmp_path / "a.txt", "one line")
        write(tmp_path / "b.txt", "\n".join(map(str, range(500))))
        _, valid = Corpus.from_files(tmp_path, documents="line").split(valid=0.1)
        assert list(valid.sample(10**6)) == list(valid)
        with pytest.raises(DataError, match="none of 1 documents fell into the valid part"):
            list(Corpus.from_texts(["one"]).split(valid=1e-9)[1].sample(100))


class TestDuplicates:
    def test_the_first_is_kept_across_files(self, tmp_path):
        write(tmp_path / "a.txt", "x\ny\n x \nz")
        write(tmp_path / "b.jsonl.gz", '{"text": "w"}\n{"text": "y"}')
        corpus = Corpus.from_files(tmp_path, documents="line", drop_duplicates=True)
        statistics = Statistics()
        assert list(corpus.read(statistics)) == ["x", "y", "z", "w"]
        assert statistics == Statistics(documents=4, characters=4, duplicates=2)
        assert corpus.statistics() == statistics
        kept = Corpus.from_files(tmp_path, documents="line")
        assert kept.statistics() == Statistics(documents=6, characters=6)

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(["a", "b", " a", "c\n", ""]), max_size=12))
    def test_like_a_dictionary(self, texts):
        corpus = Corpus.from_texts(texts, drop_duplicates=True)
        assert list(corpus) == list(dict.fromkeys(stripped(texts)))

    def test_with_a_split_the_sides_add_up(self):
        texts = [str(i % 70) for i in range(200)]
        parts = Corpus.from_texts(texts, drop_duplicates=True).split(valid=0.3)
        found = [part.statistics() for part in parts]
        assert sum(statistics.documents for statistics in found) == 70
        assert sum(statistics.duplicates for statistics in found) == 130

    def test_memory_a_document(self, tmp_path):
        write(tmp_path / "a.txt", "\n".join(f"{i:0200}" for i in range(50_000)))
        peaks = []
        for drop in (False, True):
            corpus = Corpus.from_files(tmp_path, documents="line", drop_duplicates=drop)
            tracemalloc.start()
            try:
                assert corpus.statistics().documents == 50_000
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        assert peaks[1] - peaks[0] < 50_000 * 110


class TestFingerprint:
    def test_moving_keeps_it_and_content_changes_it(self, tmp_path):
        for folder in ("one", "two"):
            write(tmp_path / folder / "a.txt", "text a")
            write(tmp_path / folder / "b.txt", "text b")
        first = Corpus.from_files(tmp_path / "one").fingerprint()
        assert first == Corpus.from_files(tmp_path / "two").fingerprint()
        write(tmp_path / "two" / "b.txt", "text c")
        assert first != Corpus.from_files(tmp_path / "two").fingerprint()

    def test_every_setting_changes_it(self, tmp_path):
        a, b = write(tmp_path / "a.txt", "text a"), write(tmp_path / "b.txt", "text b")
        corpus = Corpus.from_files([a, b])
        variants = [
            corpus,
            Corpus.from_files([b, a]),
            Corpus.from_files([a]),
            Corpus.from_files([a, b], documents="line"),
            Corpus.from_files([a, b], text_column="body"),
            Corpus.from_files([a, b], errors="replace"),
            Corpus.from_files([a, b], drop_duplicates=True),
            *corpus.split(),
            *corpus.split(seed=1),
            *corpus.split(valid=0.02),
            *corpus.split()[0].split(),
            Corpus.from_texts(["text a", "text b"]),
            Corpus.from_texts(["text a", "text b "]),
            Corpus.from_texts(["text atext b"]),
        ]
        assert len({variant.fingerprint() for variant in variants}) == len(variants)
        assert Corpus.from_files([a, b]).fingerprint() == corpus.fingerprint()


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("hello", ConfigError, "expected a list of texts"),
        (["one", float("nan")], DataError, r"text 1 is nan \(float\), expected a string"),
        (["one", None], DataError, "text 1 is None"),
    ],
)
def test_texts_are_strings(texts, error, message):
    with pytest.raises(error, match=message):
        Corpus.from_texts(texts)


def test_texts_come_in_a_fixed_order():
    assert list(Corpus.from_texts(word for word in ("the", "tide", "", "the"))) == [
        "the",
        "tide",
        "the",
    ]
    for texts in ({"the", "tide"}, frozenset({"the"})):
        with pytest.raises(ConfigError, match=r"found a .*set, whose order .* give sorted\(texts"):
            Corpus.from_texts(texts)


@pytest.mark.parametrize(
    "sentences",
    [
        ["یہ ایک جملہ ہے۔", "یہ دوسرا ہے۔"],
        ["ما اسمك؟", "اسمي علي."],
        ["Սա է։", "Այն է։"],
    ],
    ids=["Urdu", "Arabic", "Armenian"],
)
def test_sentences_end_at_the_stops_of_their_script(sentences):
    text = " ".join(sentences)
    assert [text[begin:end] for begin, end in sentence_spans(text)] == sentences
