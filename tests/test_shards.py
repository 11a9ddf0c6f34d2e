import errno
import functools
import itertools
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers

import firth.text.shards as shards_module
from firth.atomic import write_file
from firth.errors import DataError, ResourceError
from firth.text.shards import Shards, unigram_entropy, write_shards
from firth.text.tokenizers import Tokenizer
from firth.text.word_cache import WHITE_SPACE, WordCache

KINDS = ("wordpiece", "bpe", "unigram", "word")
DOCUMENTS = [
    f"The {a} tide {b}s the old wall, isn't it?\nÜber {b} naïve Straße — {a}{b} 中文 {a}!"
    for a in ("high", "low", "spring", "neap", "red")
    for b in ("break", "wash", "turn", "flood", "carve")
] * 3


class Texts:
    """A corpus in memory that counts what is read of it."""

    def __init__(self, documents: list[str]) -> None:
        self.documents = documents
        self.num_read = 0

    def __iter__(self) -> Iterator[str]:
        for document in self.documents:
            self.num_read += 1
            yield document

    def fingerprint(self) -> str:
        return f"texts-{hash(tuple(self.documents)):x}"


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {kind: Tokenizer.train(DOCUMENTS, kind, 400) for kind in KINDS}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


# --- The word cache gives what the tokenizer gives for whole documents ---------------------------


@functools.cache
def caches(tokenizer_json: str) -> tuple[WordCache, WordCache, tokenizers.Tokenizer]:
    backend = tokenizers.Tokenizer.from_str(tokenizer_json)
    backend.encode_special_tokens = True
    return WordCache(tokenizer_json), WordCache(tokenizer_json, max_bytes=1), backend


def assert_equal_to_whole_documents(tokenizer_json: str, documents: list[str]) -> None:
    cache, forgetful, backend = caches(tokenizer_json)
    encoded, again = cache.encode(documents), forgetful.encode(documents)
    encodings = backend.encode_batch(documents, add_special_tokens=False)
    assert encoded.ids.tolist() == [i for e in encodings for i in e.ids]
    assert encoded.lengths.tolist() == [len(e.ids) for e in encodings]
    opens_word = [w != v for e in encodings for v, w in itertools.pairwise([None, *e.word_ids])]
    assert encoded.opens_word.tolist() == opens_word
    assert all(np.array_equal(a, b) for a, b in zip(encoded, again, strict=True))


def variants(trained: dict[str, Tokenizer]) -> list[str]:
    """The four kinds, folded variants, and BERT's own normaliser, as tokenizer.json files."""
    found = [tokenizer.to_json() for tokenizer in trained.values()]
    for kind in ("wordpiece", "bpe"):
        backend = tokenizers.Tokenizer.from_str(trained[kind].to_json())
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.NFD()])
        found.append(backend.to_str())
    for lowercase in (True, False):
        backend = tokenizers.Tokenizer.from_str(trained["wordpiece"].to_json())
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
        )
        found.append(backend.to_str())
    return found


SPACES = " \n\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2028\u2029\u202f\u205f\u3000"
CHARACTERS = SPACES + "abtE.,;'!?\"-<[\u200b\u200d\u0301\u0338\x00é中ß\u1100\u1161İ▁#"
DOCUMENT = st.lists(
    st.one_of(
        st.sampled_from(CHARACTERS),
        st.sampled_from(["tide", " the", "isn't", "[MASK]", "<mask>", "</s>", "  ", "\n\n"]),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
).map("".join)


@given(documents=st.lists(DOCUMENT, max_size=4))
def test_cached_words_equal_whole_documents(trained, documents):
    for tokenizer_json in variants(trained):
        assert caches(tokenizer_json)[0].by_words
        assert_equal_to_whole_documents(tokenizer_json, documents)


def test_every_space_control_and_mark_is_cut_as_the_tokenizer_does(trained):
    odd = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in ("Zs", "Zl", "Zp", "Cc", "Cf", "Po") or code < 0x400
    ]
    documents = [f"a{c}b {c} c{c} {c}d  {c}\n{c}\n\n{c}\t{c},a{c}," for c in odd]
    for tokenizer_json in variants(trained):
        assert_equal_to_whole_documents(tokenizer_json, documents)


def test_real_text_is_encoded_alike(trained, shared):
    for name in ("english-10m/wikipedia.valid.txt.zst", "multilingual-text/ko.txt.zst"):
        with zstandard.open(shared / "data" / name, "rt", encoding="utf-8") as file:
            text = file.read(60_000)
        for tokenizer in trained.values():
            assert_equal_to_whole_documents(tokenizer.to_json(), text.split("\n\n"))


def test_tokenizers_that_look_across_words_get_whole_documents(trained):
    def change(kind: str, **parts: object) -> str:
        backend = tokenizers.Tokenizer.from_str(trained[kind].to_json())
        for name, part in parts.items():
            setattr(backend, name, part)
        return backend.to_str()

    with_token = tokenizers.Tokenizer.from_str(trained["wordpiece"].to_json())
    with_token.add_tokens([AddedToken("old wall")])
    others = [
        with_token.to_str(),
        change("bpe", pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        change("bpe", normalizer=normalizers.StripAccents()),
        change("unigram", pre_tokenizer=pre_tokenizers.Metaspace()),
        change("wordpiece", normalizer=normalizers.Replace(" ", "")),
        change("wordpiece", pre_tokenizer=pre_tokenizers.Split("tide", "isolated")),
    ]
    documents = ["the old wall\n\n\u0301 turns", " the tide  tide", ""]
    for tokenizer_json in others:
        assert not caches(tokenizer_json)[0].by_words
        assert_equal_to_whole_documents(tokenizer_json, documents)
    # A word of which WordPiece has no piece, though the mask is of this name.
    assert caches(others[-1])[0].encode(["[MASK]"]).ids.tolist() == [1]


def test_white_space_is_that_of_the_library():
    cut = pre_tokenizers.WhitespaceSplit()
    spaces = {c for c in map(chr, range(0x3100)) if len(cut.pre_tokenize_str(f"a{c}b")) == 2}
    assert spaces == {c for c in map(chr, range(0x3100)) if c.isspace()} - {*"\x1c\x1d\x1e\x1f"}
    assert {c for c in spaces if c not in "\t\n\x0b\x0c\r \x85\xa0"} <= {*SPACES} | {
        chr(code) for code in range(0x2000, 0x200B)
    }
    assert "\x1c" not in WHITE_SPACE


# --- The files ----------------------------------------------------------------------------------


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.mark.parametrize("kind", KINDS)
def test_shards_hold_the_documents_in_order(trained, tmp_path, kind):
    tokenizer = trained[kind]
    documents = ["", *DOCUMENTS[:20], " \n ", *DOCUMENTS[20:], ""]
    shards = write_shards(Texts(documents), tokenizer, tmp_path, workers=1, shard_tokens=300)
    encoded = [pair for pair in tokenizer.encode_documents(documents) if len(pair[0])]
    ids = np.concatenate([ids for ids, _ in encoded])
    opens_word = np.concatenate([flags for _, flags in encoded])
    lengths = [len(ids) for ids, _ in encoded]
    num_shards = len(list(tmp_path.glob("*.tokens")))
    assert num_shards > 3
    assert len(shards) == shards.num_tokens == len(ids)
    assert shards.num_documents == len(lengths) == len(DOCUMENTS) + (kind == "bpe")  # keeps spaces
    assert shards.document_starts.tolist() == [0, *np.cumsum(lengths)]
    rng = np.random.default_rng(0)
    ranges = [(0, len(ids)), (0, 0), (len(ids), len(ids)), *rng.integers(len(ids), size=(200, 2))]
    for begin, end in map(sorted, ranges):
        tokens = shards.tokens(begin, end)
        assert tokens.dtype == np.int64
        assert np.array_equal(tokens, ids[begin:end])
        assert np.array_equal(shards.opens_word(begin, end), opens_word[begin:end])
    with pytest.raises(IndexError, match="not a range"):
        shards.tokens(5, len(ids) + 1)


def test_shards_end_with_the_document_that_fills_them(tmp_path):
    tokenizer = Tokenizer.train(["a b c d"], "word", 9, min_frequency=1)
    documents = ["a b", "c d", "a", "", "b c d a b", "c"]
    write_shards(Texts(documents), tokenizer, tmp_path, workers=1, shard_tokens=4)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["shards"] == [
        {"tokens": 4, "documents": 2, "documents_read": 2},
        {"tokens": 6, "documents": 2, "documents_read": 5},
        {"tokens": 1, "documents": 1, "documents_read": 6},
    ]
    assert (manifest["num_tokens"], manifest["num_documents"]) == (11, 5)
    assert np.fromfile(tmp_path / "shard-00001.documents", "<u8").tolist() == [1, 6]
    assert np.fromfile(tmp_path / "shard-00001.words", "u1").tolist() == [0b11111100]
    ids = tokenizer.encode_ids(["a b c d a"], special_tokens=False)[0]
    assert np.fromfile(tmp_path / "shard-00001.tokens", "<u2").tolist()[:5] == [
        ids[0],
        *ids[1:4],
        ids[0],
    ]


def test_files_do_not_depend_on_the_number_of_workers(trained, tmp_path):
    corpus = Texts([text * 40 for text in DOCUMENTS])
    tokenizer = trained["wordpiece"]
    reports = []
    for workers in (1, 2, 3):
        write_shards(
            corpus,
            tokenizer,
            tmp_path / str(workers),
            workers=workers,
            shard_tokens=20_000,
            progress=lambda *counts: reports.append(counts),
        )
    expected = contents(tmp_path / "1")
    assert len(expected) > 3 * 4
    assert contents(tmp_path / "2") == contents(tmp_path / "3") == expected
    assert reports[-1] == (len(DOCUMENTS), json.loads(expected["manifest.json"])["num_tokens"])


def test_large_vocabularies_take_four_bytes(tmp_path):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for size, dtype in ((65_536, "uint16"), (65_537, "uint32")):
        words = special + [f"w{i}" for i in range(size - 5)]
        model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]")
        backend = tokenizers.Tokenizer(model)
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = Tokenizer(backend.to_str())
        directory = tmp_path / dtype
        shards = write_shards(Texts([f"w0 {words[-1]} w1"]), tokenizer, directory, workers=1)
        assert shards.tokens(0, 3).tolist() == [5, size - 1, 6]
        assert (directory / "shard-00000.tokens").stat().st_size == 3 * np.dtype(dtype).itemsize
        assert json.loads((directory / "manifest.json").read_text())["dtype"] == dtype


def test_finished_shards_are_opened_at_once(trained, tmp_path):
    corpus = Texts(DOCUMENTS)
    first = write_shards(corpus, trained["bpe"], tmp_path, workers=1)
    assert corpus.num_read == len(DOCUMENTS)
    before = contents(tmp_path)
    again = write_shards(corpus, trained["bpe"], tmp_path, workers=1, shard_tokens=10)
    assert corpus.num_read == len(DOCUMENTS)
    assert again.num_tokens == first.num_tokens == Shards.open(tmp_path).num_tokens
    assert contents(tmp_path) == before
    other = Texts(DOCUMENTS[:5])
    with pytest.raises(DataError, match=f"{corpus.fingerprint()}, expected {other.fingerprint()}"):
        write_shards(other, trained["bpe"], tmp_path)
    hashes = f"{trained['bpe'].content_hash}, expected {trained['word'].content_hash}"
    with pytest.raises(DataError, match=hashes):
        write_shards(corpus, trained["word"], tmp_path)
    assert contents(tmp_path) == before


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from firth.text.shards import write_shards
    from firth.text.tokenizers import Tokenizer

    class Corpus:
        def __iter__(self):
            return iter(Path(sys.argv[1]).read_text().split("\\0"))

        def fingerprint(self):
            return "corpus"

    def write(limit=None, workers=2):
        def progress(documents, tokens):
            if limit is not None and tokens >= limit:
                os.kill(os.getpid(), signal.SIGKILL)
        tokenizer = Tokenizer.load(sys.argv[2])
        write_shards(Corpus(), tokenizer, sys.argv[3], workers=workers, shard_tokens=9000,
                     progress=progress)

    for limit in sys.argv[4:]:
        child = os.fork()
        if child == 0:
            write(int(limit))
            os._exit(1)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        stem = Path(sys.argv[3])
        shards = sorted(stem.glob("*.tokens"))
        print(limit, *(f"{path.name}:{path.stat().st_ino}" for path in shards), flush=True)
"""


def test_a_killed_run_resumes_byte_for_byte(trained, tmp_path):
    documents = [f"{text} {i}" * (i % 30) for i, text in enumerate(DOCUMENTS * 8)]
    (tmp_path / "corpus").write_text("\0".join(documents))
    trained["bpe"].save(tmp_path / "tokenizer")
    arguments = [str(tmp_path / name) for name in ("corpus", "tokenizer", "killed")]
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments, "1", "60000", "200000"],
        capture_output=True,
        text=True,
        check=True,
    )
    seen = [
        dict(item.split(":") for item in line.split()[1:]) for line in killed.stdout.split("\n")
    ]
    assert len(seen[0]) < len(seen[1]) < len(seen[2])
    corpus = Texts(documents)
    corpus.fingerprint = lambda: "corpus"
    tokenizer, directory = trained["bpe"], tmp_path / "killed"
    write_shards(corpus, tokenizer, directory, workers=2, shard_tokens=9000)
    write_shards(corpus, tokenizer, tmp_path / "whole", workers=1, shard_tokens=9000)
    assert contents(directory) == contents(tmp_path / "whole")
    # What a run had finished is still the same file after the runs that came after it.
    for before in seen:
        for name, inode in before.items():
            assert (directory / name).stat().st_ino == int(inode)


def test_a_shard_that_is_not_whole_is_written_again(trained, tmp_path):
    corpus, tokenizer = Texts(DOCUMENTS), trained["wordpiece"]
    options = {"workers": 1, "shard_tokens": 500}

    class StopError(Exception):
        pass

    def interrupt(documents: int, tokens: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        write_shards(corpus, tokenizer, tmp_path / "a", progress=interrupt, **options)
    left = contents(tmp_path / "a")
    assert [name for name in left if name.endswith(".part")] == []
    assert len(json.loads(left["unfinished.json"])["shards"]) > 2
    (tmp_path / "a" / "shard-00001.words").write_bytes(b"short")
    (tmp_path / "a" / "shard-00099.tokens").write_bytes(b"of a run with smaller shards")
    write_shards(corpus, tokenizer, tmp_path / "a", **options)
    write_shards(corpus, tokenizer, tmp_path / "b", **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_full_disk_says_what_is_needed_and_loses_nothing(trained, tmp_path, monkeypatch):
    corpus, tokenizer = Texts(DOCUMENTS), trained["wordpiece"]
    calls = itertools.count()

    def full(_: int) -> None:
        if next(calls) >= 9:  # shards and the record of them take four
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match=r"the disk is full .* needs up to 0\.0 MB .* kept"):
            write_shards(corpus, tokenizer, tmp_path / "a", workers=1, shard_tokens=500)
    assert (tmp_path / "a" / "shard-00000.tokens").exists()
    write_shards(corpus, tokenizer, tmp_path / "a", workers=1, shard_tokens=500)
    write_shards(corpus, tokenizer, tmp_path / "b", workers=1, shard_tokens=500)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_dead_process_is_reported(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ResourceError, match="ended with exit code 1"):
        write_shards(Texts(DOCUMENTS), trained["word"], tmp_path, workers=2)


def test_bad_documents_and_folders_are_named(trained, tmp_path):
    with pytest.raises(DataError, match=r"document 3: character 4 is '\\udfff'"):
        write_shards(Texts(["a", "b", "half\udfff"]), trained["bpe"], tmp_path / "a", workers=1)
    with pytest.raises(DataError, match="none of the corpus's documents has a token"):
        write_shards(Texts([" ", ""]), trained["word"], tmp_path / "b", workers=1)
    with pytest.raises(DataError, match=r"no manifest\.json"):
        Shards.open(tmp_path / "b")
    write_shards(Texts(DOCUMENTS), trained["word"], tmp_path / "c", workers=1)
    with (tmp_path / "c" / "shard-00000.tokens").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DataError, match=r"shard-00000\.tokens: 100 bytes, expected [\d,]+ by"):
        Shards.open(tmp_path / "c")
    (tmp_path / "c" / "shard-00000.tokens").unlink()
    with pytest.raises(DataError, match="no such file"):
        Shards.open(tmp_path / "c")
    for content, message in (("{", "not a JSON file"), ('{"format": 7}', "format 7, expected 1")):
        (tmp_path / "c" / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=message):
            Shards.open(tmp_path / "c")


def test_unigram_entropy_is_that_of_the_frequencies(tmp_path, monkeypatch):
    tokenizer = Tokenizer.train(["a b c d"], "word", 9, min_frequency=1)
    shards = write_shards(Texts(["a a a a b b c d"] * 512), tokenizer, tmp_path, workers=1)
    a, b, c, d = tokenizer.encode_ids(["a b c d"], special_tokens=False)[0]
    assert shards.token_counts[[a, b, c, d]].tolist() == [2048, 1024, 512, 512]
    assert shards.token_counts.sum() == shards.num_tokens
    assert math.isclose(unigram_entropy(shards.token_counts), 1.75 * math.log(2))
    monkeypatch.setattr(shards_module, "SAMPLE_TOKENS", 2048)
    sampled = Shards.open(tmp_path)
    assert sampled.token_counts.sum() == 2048
    assert abs(sampled.token_counts[a] - 1024) < 150


def test_what_a_run_killed_at_its_end_has_left_is_removed(trained, tmp_path):
    corpus = Texts(DOCUMENTS)
    write_shards(corpus, trained["bpe"], tmp_path, workers=1)
    before = contents(tmp_path)
    (tmp_path / "unfinished.json").write_bytes(before["manifest.json"])
    (tmp_path / "unfinished.json.123-124.part").write_text("{")
    write_shards(corpus, trained["bpe"], tmp_path, workers=1)
    assert contents(tmp_path) == before


def test_two_who_write_one_file_leave_one_whole(tmp_path):
    path, begun = tmp_path / "out.txt", threading.Barrier(2)
    names = []

    def write(letter: str) -> None:
        def fill(temporary: Path) -> None:
            names.append(temporary.name)
            with temporary.open("w") as file:
                file.write(letter * 10)
                begun.wait()
                file.write(letter * 10)

        write_file(path, fill)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in ("a" * 20, "b" * 20)
    assert list(tmp_path.iterdir()) == [path]
    assert all(re.fullmatch(rf"out\.txt\.{os.getpid()}-\d+\.part", name) for name in names)
    assert len({*names}) == 2


def test_a_corpus_that_changes_while_it_is_read_is_refused(trained, tmp_path):
    class Changing(Texts):
        def fingerprint(self) -> str:
            return f"{self.num_read > 0}"

    with pytest.raises(DataError, match="changed while it was read"):
        write_shards(Changing(DOCUMENTS), trained["bpe"], tmp_path / "s", workers=1)
    assert not {"manifest.json", "unfinished.json"} & {*contents(tmp_path / "s")}
    write_shards(Texts(DOCUMENTS), trained["bpe"], tmp_path / "s", workers=1)


@pytest.mark.parametrize("content", ["[1]", '{"format": 1}', "{"])
def test_a_damaged_manifest_is_named(content, trained, tmp_path):
    write_shards(Texts(DOCUMENTS), trained["bpe"], tmp_path, workers=1)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json: .*delete and rewrite"):
        Shards.open(tmp_path)


def test_a_run_that_is_stopped_anywhere_resumes_byte_for_byte(trained, tmp_path, monkeypatch):
    """At every moment at which a file gets or loses its name, before and after."""
    corpus, options = Texts(DOCUMENTS), {"workers": 1, "shard_tokens": 500}
    write_shards(corpus, trained["bpe"], tmp_path / "whole", **options)
    expected, calls = contents(tmp_path / "whole"), itertools.count()
    limit = [math.inf]

    def counted(original, after):
        def call(*arguments, **settings):
            at = next(calls)
            if at == limit[0] and not after:
                raise KeyboardInterrupt
            original(*arguments, **settings)
            if at == limit[0]:
                raise KeyboardInterrupt

        return call

    for after in (False, True):
        stopped = 0
        for place in itertools.count():
            directory = tmp_path / f"{place}-{after}"
            calls, limit[0] = itertools.count(), place
            with monkeypatch.context() as patched:
                for owner, name in ((os, "replace"), (Path, "replace"), (Path, "unlink")):
                    patched.setattr(owner, name, counted(getattr(owner, name), after))
                try:
                    write_shards(corpus, trained["bpe"], directory, **options)
                except KeyboardInterrupt:
                    stopped += 1
            write_shards(corpus, trained["bpe"], directory, **options)
            assert contents(directory) == expected, (place, after)
            if stopped <= place:
                break
        assert stopped > 10
