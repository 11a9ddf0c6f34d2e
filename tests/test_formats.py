import csv
import gzip
import io
import json
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firth.config import read_json, read_toml
from firth.errors import ConfigError, DataError, UnsupportedError
from firth.text import files, formats
from firth.text.corpus import Corpus, Statistics

zstandard = pytest.importorskip("zstandard")
arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

# All of Unicode but surrogates, the byte-order mark and carriage returns (a line break in a file).
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff\r")
texts = st.text(characters | st.sampled_from(' \n\t",é界😀'), max_size=40)
lines = texts.map(lambda text: text.replace("\n", " ").replace("\t", " "))
text_lines = lines.filter(lambda line: line.strip())


# Under a deadline the first example would pay for the imports.
quick = settings(deadline=None, max_examples=60)


def stripped(documents):
    return [text for document in documents if (text := document.strip())]


def compress(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data)
    return zstandard.ZstdCompressor().compress(data) if suffix == ".zst" else data


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(compress(data, path.suffix))
    return path


def read_back(name: str, content: str | bytes, chunk: int = 1 << 20, **settings) -> list[str]:
    """The documents of a file with this content, read in chunks of this size."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK", chunk)
        return list(Corpus.from_files(write(Path(folder) / name, content), **settings))


compressions = st.sampled_from(["", ".gz", ".zst"])
chunks = st.integers(1, 30)


class TestRoundTrip:
    @quick
    @given(st.lists(lines, max_size=8), st.sampled_from(["\n", "\r\n"]), compressions, chunks)
    def test_lines(self, documents, newline, compression, chunk):
        content = newline.join(documents)
        found = read_back(f"a.txt{compression}", content, chunk, documents="line")
        assert found == stripped(documents)

    @quick
    @given(
        st.lists(st.lists(text_lines, min_size=1, max_size=3), max_size=5),
        st.sampled_from(["\n\n", "\n \t\n", "\r\n\r\n", "\n\n\n\n", "\n\u2003\n"]),
        compressions,
        chunks,
    )
    def test_blocks(self, blocks, separator, compression, chunk):
        documents = ["\n".join(block) for block in blocks]
        found = read_back(
            f"a.txt{compression}", separator.join(documents), chunk, documents="block"
        )
        assert found == stripped(documents)

    @quick
    @given(texts, compressions, chunks)
    def test_file(self, text, compression, chunk):
        found = read_back(f"a.txt{compression}", text, chunk, documents="file")
        assert found == stripped([text])

    @quick
    @given(st.lists(texts, max_size=8), st.booleans(), compressions, chunks)
    def test_jsonl(self, documents, ascii_only, compression, chunk):
        rows = [json.dumps({"id": 1, "t": text}, ensure_ascii=ascii_only) for text in documents]
        content = "\n".join(rows)
        found = read_back(f"a.jsonl{compression}", content, chunk, text_column="t")
        assert found == stripped(documents)

    @quick
    @given(st.lists(texts, max_size=8), compressions, chunks, st.booleans())
    def test_csv(self, documents, compression, chunk, with_header):
        buffer = io.StringIO()
        header = [["id", "text"]] if with_header else []
        csv.writer(buffer).writerows(header + [["7", text] for text in documents])
        column = "text" if with_header else "2"
        found = read_back(f"a.csv{compression}", buffer.getvalue(), chunk, text_column=column)
        assert found == stripped(documents)

    @quick
    @given(st.lists(lines, max_size=8), compressions, chunks)
    def test_tsv_takes_quotes_literally(self, documents, compression, chunk):
        content = "".join(f"{text}\t7\n" for text in ["text", *documents])
        found = read_back(f"a.tsv{compression}", content, chunk)
        assert found == stripped(documents)

    @quick
    @given(st.lists(texts | st.none(), max_size=8), st.integers(1, 3))
    def test_parquet(self, documents, row_group_size):
        table = arrow.table({"id": range(len(documents)), "text": arrow.array(documents, "string")})
        buffer = io.BytesIO()
        parquet.write_table(table, buffer, row_group_size=row_group_size)
        found = read_back("a.parquet", buffer.getvalue())
        assert found == stripped(text for text in documents if text is not None)

    @pytest.mark.parametrize("kind", ["large_string", "string_view", "binary", "large_binary"])
    def test_parquet_of_all_types_of_text(self, tmp_path, kind):
        column = arrow.array(["größer", "b"]).cast(getattr(arrow, kind)())
        parquet.write_table(arrow.table({"text": column}), tmp_path / "a.parquet")
        assert list(Corpus.from_files(tmp_path / "a.parquet")) == ["größer", "b"]

    def test_parquet_of_dictionary_type(self, tmp_path):
        column = arrow.array(["one", "two", "one"]).dictionary_encode()
        parquet.write_table(arrow.table({"text": column}), tmp_path / "a.parquet")
        assert list(Corpus.from_files(tmp_path)) == ["one", "two", "one"]

    @quick
    @given(st.lists(texts, max_size=8))
    def test_texts_in_memory(self, documents):
        corpus = Corpus.from_texts(documents)
        assert list(corpus) == stripped(documents)
        assert list(corpus) == stripped(documents)  # a second pass gives the same

    def test_several_compressed_frames_in_one_file(self, tmp_path):
        for suffix in (".gz", ".zst"):
            path = tmp_path / f"a.txt{suffix}"
            path.write_bytes(compress(b"one\ntw", suffix) + compress(b"o\n", suffix))
            assert list(Corpus.from_files(path, documents="line")) == ["one", "two"]

    def test_a_csv_field_beyond_the_limit_of_python(self):
        assert read_back("a.csv", f'text\n"{"x" * 200_000}"\n') == ["x" * 200_000]

    def test_a_csv_field_keeps_its_line_breaks(self):
        assert read_back("a.csv", 'text,n\r\n"a\r\n\r\nb ""c""",1\r\n') == ['a\n\nb "c"']

    def test_byte_order_mark_and_old_line_breaks(self):
        assert read_back("a.txt", b"\xef\xbb\xbfone\rtwo\r\nthree", 1, documents="file") == [
            "one\ntwo\nthree"
        ]
        assert read_back("a.csv", b"\xef\xbb\xbftext\nx\n", 1) == ["x"]


class TestLongDocuments:
    @quick
    @given(
        st.text(st.sampled_from("abcdefg é\n"), min_size=20, max_size=120),
        st.sampled_from(["file", "block", "line"]),
        chunks,
    )
    def test_pieces_lose_nothing_and_ignore_chunks(self, text, unit, chunk):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formats, "LONGEST", 9)
            pieces = read_back("a.txt", text, chunk, documents=unit)
            assert pieces == read_back("a.txt", text, documents=unit)
        assert max(map(len, pieces), default=0) <= 9
        assert "".join("".join(pieces).split()) == "".join(text.split())

    def test_cuts_at_line_breaks_then_spaces_then_anywhere(self, monkeypatch):
        monkeypatch.setattr(formats, "LONGEST", 9)
        text = "ab cd\nef gh\nij kl mn op\nabcdefghijkl\nabcd efgh\nij"
        pieces = ["ab cd", "ef gh", "ij kl mn", "op", "abcdefghi", "jkl", "abcd efgh", "ij"]
        assert read_back("a.txt", text, documents="file") == pieces

    @pytest.mark.parametrize("chunk", [1, 10, 100])
    def test_white_space_at_the_end_does_not_make_it_long(self, monkeypatch, chunk):
        monkeypatch.setattr(formats, "LONGEST", 9)
        found = read_back("a.txt", "ab\ncdefgh    \n  \ni", chunk, documents="block")
        assert found == ["ab\ncdefgh", "i"]

    @pytest.mark.parametrize("unit", ["file", "block", "line"])
    @pytest.mark.parametrize("ending", [b" ", b"\n"])
    def test_memory_is_bounded(self, tmp_path, unit, ending):
        path = tmp_path / "a.txt"
        path.write_bytes((b"word " * 9_999 + b"word" + ending) * 600)
        assert path.stat().st_size == 30_000_000
        corpus = Corpus.from_files(path, documents=unit)
        tracemalloc.start()
        try:
            num_characters = sum(len(document) for document in corpus)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert num_characters >= 30_000_000 - 600
        assert peak < 10_000_000


def reference_errors(data: bytes) -> list[int]:
    """Offsets of the invalid sequences of `data`, found one after the other."""
    offsets, start = [], 0
    while True:
        try:
            data[start:].decode()
            return offsets
        except UnicodeDecodeError as error:
            offsets.append(start + error.start)
            start += error.end


invalid = st.lists(
    st.sampled_from(
        [b"a", b"\n", b"\r", "é".encode(), "界".encode(), "😀".encode(), "\ufffd".encode()]
    )
    | st.binary(min_size=1, max_size=3),
    max_size=12,
).map(b"".join)


class TestDecoding:
    @quick
    @given(invalid, chunks, compressions)
    def test_replacing(self, data, chunk, compression):
        statistics = Statistics()
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "CHUNK", chunk)
            path = write(Path(folder) / f"a.txt{compression}", data)
            found = "".join(files.read_text(path, "replace", statistics))
        text = data.decode(errors="replace").removeprefix("\ufeff")
        assert found == text.replace("\r\n", "\n").replace("\r", "\n")
        assert statistics.replaced == len(reference_errors(data))

    @quick
    @given(invalid, chunks, compressions)
    def test_strict_names_the_byte(self, data, chunk, compression):
        offsets = reference_errors(data)
        if not offsets:
            read_back(f"a.txt{compression}", data, chunk)
            return
        at = offsets[0]
        with pytest.raises(DataError, match=rf"a\.txt.*: byte {at} is 0x{data[at]:02x} "):
            read_back(f"a.txt{compression}", data, chunk)

    def test_message(self, tmp_path):
        path = write(tmp_path / "a.txt", "naïve caf".encode() + b"\xe9 au lait")
        with pytest.raises(DataError) as raised:
            list(Corpus.from_files(path))
        assert str(raised.value).startswith(
            f"{path}: byte 10 is 0xe9 (after 'naïve caf'), expected UTF-8; "
        )
        assert "errors='replace'" in str(raised.value)

    def test_offset_far_into_a_compressed_file(self, tmp_path):
        data = "é".encode() * 1_500_000 + b"\xff"
        for suffix in (".gz", ".zst"):
            path = write(tmp_path / f"a.txt{suffix}", data)
            with pytest.raises(DataError, match="byte 3000000 is 0xff"):
                list(Corpus.from_files(path))

    def test_count_through_the_corpus(self, tmp_path):
        write(tmp_path / "a.txt", b"caf\xe9 \xef\xbf\xbd\n\nna\xefve")
        corpus = Corpus.from_files(tmp_path, errors="replace")
        assert list(corpus) == ["caf\ufffd \ufffd", "na\ufffdve"]
        assert corpus.statistics() == Statistics(documents=2, characters=11, replaced=2)

    def test_invalid_text_in_parquet(self, tmp_path):
        values = arrow.array([b"fine \xef\xbf\xbd", b"ab\xff"], "binary")
        parquet.write_table(arrow.table({"text": values}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a\.parquet: row 2: byte 2 of the text is 0xff"):
            list(Corpus.from_files(tmp_path))
        corpus = Corpus.from_files(tmp_path, errors="replace")
        assert list(corpus) == ["fine \ufffd", "ab\ufffd"]
        assert corpus.statistics().replaced == 1

    def test_half_a_surrogate_pair_in_jsonl(self, tmp_path):
        write(tmp_path / "a.jsonl", r'{"text": "\ud83d\ude00"}' + "\n" + r'{"text": "a\ud83d"}')
        with pytest.raises(DataError, match=r"a\.jsonl: row 2: 'text' holds half of a surrogate"):
            list(Corpus.from_files(tmp_path))
        corpus = Corpus.from_files(tmp_path, errors="replace")
        assert list(corpus) == ["😀", "a\ufffd"]
        assert corpus.statistics().replaced == 1


class TestDamage:
    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_cut_short_anywhere(self, tmp_path, suffix):
        whole = compress("".join(f"line {i * i}\n" for i in range(9)).encode(), suffix)
        for length in range(1, len(whole)):
            path = tmp_path / f"a.txt{suffix}"
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match=rf"a\.txt{suffix}: damaged or cut short"):
                list(Corpus.from_files(path))

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_not_compressed_at_all(self, tmp_path, suffix):
        (tmp_path / f"a.txt{suffix}").write_bytes(b"plain text, wrongly named")
        with pytest.raises(DataError, match=r"damaged or cut short \(.+\); expected a whole"):
            list(Corpus.from_files(tmp_path))

    def test_not_parquet(self, tmp_path):
        write(tmp_path / "a.parquet", b"PAR1 but no more")
        with pytest.raises(DataError, match=r"a\.parquet: not a whole \.parquet file"):
            list(Corpus.from_files(tmp_path))

    def test_a_file_that_is_gone(self, tmp_path):
        corpus = Corpus.from_files(write(tmp_path / "a.txt", "text"))
        (tmp_path / "a.txt").unlink()
        for use in (list, Corpus.describe, Corpus.fingerprint):
            with pytest.raises(DataError, match=r"a\.txt: cannot be read \(No such file"):
                use(corpus)

    @pytest.mark.parametrize(
        ("name", "module"), [("a.txt.zst", "zstandard"), ("a.parquet", "pyarrow")]
    )
    def test_missing_extra(self, tmp_path, monkeypatch, name, module):
        monkeypatch.setitem(sys.modules, module, None)
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UnsupportedError, match=rf"needs {module}: pip install 'firth\[data\]'"):
            list(Corpus.from_files(tmp_path))


class TestRows:
    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ('{"text": "a"', r"row 3: not JSON \(.*column 13.*\), found '{\"text\": \"a\"'"),
            ('["a"]', r"row 3: found \['a'\], expected a JSON object"),
            ('{"texts": "a"}', r"row 3: there is no column 'text' .*did you mean 'texts'\?"),
            ('{"id": 1}', r"row 3: there is no column 'text' .*known: id"),
            ('{"text": 5}', r"row 3: 'text' is 5, expected a string"),
        ],
    )
    def test_bad_jsonl(self, row, message):
        with pytest.raises(DataError, match=rf"a\.jsonl: {message}"):
            read_back("a.jsonl", f'{{"text": "fine"}}\n\n{row}\n')

    def test_null_and_blank_rows_of_jsonl_are_empty(self):
        assert read_back("a.jsonl", '{"text": null}\n \n{"text": "a"}\n') == ["a"]

    def test_a_name_that_several_columns_have(self, tmp_path):
        with pytest.raises(DataError, match="several columns are named 'text'"):
            read_back("x.csv", "text,text\nA,good\n")
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = arrow.Table.from_arrays([["a"], ["b"]], names=["text", "text"])
        parquet.write_table(table, tmp_path / "x.parquet")
        with pytest.raises(DataError, match="several columns are named 'text'"):
            list(Corpus.from_files(tmp_path / "x.parquet"))

    def test_a_line_as_long_as_a_file_is_read_in_one_pass(self, monkeypatch):
        """Not in one for each chunk: a JSON array in one line of .jsonl is a common mistake."""
        joined = []
        texts = ["x" * 100] * 5000 + ["y\nz"]

        class Counted(str):
            def __radd__(self, other):
                joined.append(len(other))
                return other + str(self)

        lines = list(formats._lines(map(Counted, texts)))
        assert lines == ["x" * 500_000 + "y", "z"]
        assert sum(joined) == 0

    def test_a_number_that_is_a_name(self):
        assert read_back("a.tsv", "1\t2\na\tb\n", text_column="2") == ["b"]
        assert read_back("a.tsv", "1\t2\na\tb\n", text_column="1") == ["a"]

    def test_a_number_means_no_header(self):
        assert read_back("a.tsv", "x\ty\n\na\tb\n", text_column="2") == ["y", "b"]

    @pytest.mark.parametrize("column", ["review", "0", "-1"])
    def test_missing_column(self, column):
        with pytest.raises(DataError, match=rf"a\.csv: row 1: there is no column '{column}'"):
            read_back("a.csv", "id,reviews\n1,good\n", text_column=column)

    def test_missing_column_of_parquet(self, tmp_path):
        parquet.write_table(arrow.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"there is no column 'text' .*known: body, n"):
            list(Corpus.from_files(tmp_path))
        with pytest.raises(DataError, match="column 'n' is of type int64, expected text"):
            list(Corpus.from_files(tmp_path, text_column="n"))

    @pytest.mark.parametrize(
        ("name", "rows", "column", "message"),
        [
            ("a.csv", "n,text\n1,a\n\n2\n", "text", r"row 4: found 1 cells in \['2'\], expected 2"),
            ("a.tsv", "n\ttext\n1\ta\n\n2\n", "text", "row 4: found 1 cells"),
            ("a.csv", "text\nWell\nYes, it was, so\n", "text", "row 3: found 3 .*double quotes"),
            ("a.csv", "text,n\nYes, it was,1\n", "text", "row 2: found 3 cells"),
            ("a.csv", "Well,1\nYes, it was,1\n", 1, "row 2: found 3 cells"),
            ("a.tsv", "text\na\tb\n", "text", "row 2: found 2 cells"),
        ],
    )
    def test_a_row_of_another_width_is_not_cut(self, name, rows, column, message):
        with pytest.raises(DataError, match=message):
            read_back(name, rows, text_column=column)

    def test_a_row_that_ends_early_keeps_its_text(self):
        content = "id\ttext\tnote\n1\ta b\n \n2\tc d\tx\n"
        assert read_back("a.tsv", content) == ["a b", "c d"]

    def test_a_column_by_a_number_as_one_writes_it(self):
        assert read_back("a.csv", "a,x\nb,y\n", text_column=1) == ["a", "b"]
        with pytest.raises(DataError, match=r"row 1: there is no column '3'"):
            read_back("a.csv", "a,x\nb,y\n", text_column=3)

    def test_an_open_quote(self):
        with pytest.raises(DataError, match=r"a\.csv: line 3: unexpected end of data"):
            read_back("a.csv", 'text\n"open\nmore\n')

    def test_an_empty_table(self):
        assert read_back("a.csv", "") == read_back("a.tsv", "") == read_back("a.jsonl", "") == []


class TestWhatIsNoText:
    @pytest.mark.parametrize("errors", ["strict", "replace"])
    @pytest.mark.parametrize("chunk", [1, 1 << 20])
    @pytest.mark.parametrize(
        ("encoding", "message"),
        [
            ("utf-16", r"a\.txt: begins as UTF-16, expected UTF-8; convert the file"),
            ("utf-16-le", r"a\.txt: 60 of the first 120 bytes are NUL, .* expected UTF-8; convert"),
        ],
    )
    def test_utf16(self, errors, chunk, encoding, message):
        content = ("The tide turned. " * 4)[:60].encode(encoding)
        with pytest.raises(DataError, match=message):
            read_back("a.txt", content, chunk, errors=errors)

    def test_a_stray_nul_is_text(self):
        for text in ("\0".join(["The tide turned."] * 100), "\0" * 31):
            assert read_back("a.txt", text) == [text]

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_no_bytes_at_all(self, tmp_path, suffix):
        (tmp_path / f"a.txt{suffix}").write_bytes(b"")
        with pytest.raises(DataError, match=r"damaged or cut short .it has no bytes at all"):
            list(Corpus.from_files(tmp_path))

    def test_json_too_deep_to_read(self):
        with pytest.raises(DataError, match=r"a\.jsonl: row 2: not JSON"):
            read_back("a.jsonl", '{"text": "a"}\n' + '{"text": ' + "[" * 100_000)


class TestSettings:
    def test_a_byte_order_mark_is_no_part_of_them(self, tmp_path):
        toml, record = tmp_path / "a.toml", tmp_path / "a.json"
        toml.write_bytes(b"\xef\xbb\xbfsteps = 5\r\n")
        record.write_bytes(b'\xef\xbb\xbf{"steps": 5}')
        assert read_toml(toml) == read_json(record) == {"steps": 5}

    @pytest.mark.parametrize("read", [read_toml, read_json])
    def test_what_cannot_be_read(self, tmp_path, read):
        with pytest.raises(ConfigError, match="is a directory, expected a file of settings"):
            read(tmp_path)
        with pytest.raises(ConfigError, match=r"none\.toml: no such file"):
            read(tmp_path / "none.toml")
        (tmp_path / "latin").write_bytes(b"a = '\xe9'")
        with pytest.raises(ConfigError, match="latin: not a "):
            read(tmp_path / "latin")
