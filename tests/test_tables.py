"""Rows of task files: formats, quotes, headers, and errors that name the file and row."""

import csv
import gzip
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firth.errors import ConfigError, DataError
from firth.tasks.classification import Classification
from firth.tasks.tables import read_rows
from firth.text.corpus import Corpus

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'id,label,text\n1,pos,"good, ""very"" good"\n2,neg,bad\n'),
        ("a.csv", '\ufeffid,label,text\r\n1,pos,"good, ""very"" good"\r\n\r\n2,neg,bad'),
        ("a.tsv", 'text\tlabel\ngood, "very" good\tpos\nbad\t neg \n'),
        ("a.tsv", 'text\tlabel\n"good, ""very"" good"\tpos\nbad\tneg\n'),
        (
            "a.jsonl",
            '{"text": "good, \\"very\\" good", "label": "pos"}\n\n{"label":"neg","text":"bad"}',
        ),
    ],
    ids=["csv", "csv-bom-crlf-blank", "tsv-literal", "tsv-enclosed", "jsonl"],
)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_formats_give_the_same_rows(tmp_path, name, content, compression):
    content = content.encode()
    if compression == ".gz":
        content = gzip.compress(content)
    elif compression == ".zst":
        content = pytest.importorskip("zstandard").compress(content)
    task = Classification()
    path = write(tmp_path, name + compression, content)
    rows = [(e.texts, e.label) for e in task.read(path)]
    assert rows == [(('good, "very" good',), "pos"), (("bad",), "neg")]
    assert [e.label for e in task.read(path, labelled=False)] == [None, None]


@pytest.mark.parametrize(
    ("name", "first", "found"),
    [
        ("a.csv", "text;label", ";"),
        ("a.tsv", "text,label", ","),
        ("a.csv", "text\tlabel", "\t"),
        ("a.csv", '"text";"label"', ";"),
        ("a.tsv", '"text","label"', ","),
    ],
)
def test_another_separator_is_named(tmp_path, name, first, found):
    path = write(tmp_path, name, f"{first}\nOne, two{found}pos\n")
    with pytest.raises(DataError, match=rf"separated by {re.escape(repr(found))}, expected"):
        Classification().read(path)
    with pytest.raises(DataError, match=rf"separated by {re.escape(repr(found))}, expected"):
        list(Corpus.from_files(path))
    enclosed = write(tmp_path, name, f'{first}\n"One, ""two"""{found}pos\n')
    with pytest.raises(DataError, match=rf"separated by {re.escape(repr(found))}, expected"):
        Classification().read(enclosed)
    alone = write(tmp_path, "b.csv", "yes;no\nno;yes\n")
    assert [row.cells for row in read_rows(alone, [1])] == [("yes;no",), ("no;yes",)]


def test_rows_count_lines_of_the_file(tmp_path):
    path = write(tmp_path, "a.csv", 'text,label\n\n"two\nlines",a\nx,b\n')
    examples = Classification().read(path)
    assert [(e.texts[0], e.row) for e in examples] == [("two\nlines", 3), ("x", 5)]


def test_unlabelled_file_needs_no_label_column(tmp_path):
    path = write(tmp_path, "a.csv", "text\nx\ny\n")
    assert [e.texts for e in Classification().read(path, labelled=False)] == [("x",), ("y",)]


def test_pairs_and_columns_by_number(tmp_path):
    path = write(tmp_path, "a.tsv", "1\tx\ty\n0\tz\tw\n")
    for text, text_pair, label in [(2, 3, 1), ("2", "3", "1")]:
        task = Classification(text=text, text_pair=text_pair, label=label)
        assert [(e.texts, e.label) for e in task.read(path)] == [
            (("x", "y"), "1"),
            (("z", "w"), "0"),
        ]
        with_header = replace(task, header=True)
        assert [(e.texts, e.row) for e in with_header.read(path)] == [(("z", "w"), 2)]


def test_long_documents_fit_in_a_csv_cell(tmp_path):
    text = "word " * 60_000  # more than the 131,072 characters that csv allows by itself
    path = write(tmp_path, "a.csv", f'text,label\n"{text}",a\n')
    assert Classification().read(path)[0].texts == (text,)


def test_words_and_values_of_jsonl(tmp_path):
    records = [
        {"text": ["two", "words"], "label": 1},
        {"text": "x", "label": True},
        {"text": "y", "label": " a b "},
    ]
    path = write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, records)))
    examples = Classification().read(path)
    assert [e.texts[0] for e in examples] == [("two", "words"), "x", "y"]
    assert [e.label for e in examples] == ["1", "true", "a b"]


def test_multi_label_cells_and_lists_agree(tmp_path):
    table = write(tmp_path, "a.tsv", "text\tlabel\nx\tb; a;b\ny\t\n")
    lines = write(tmp_path, "a.jsonl", '{"text":"x","label":["b","a"]}\n{"text":"y","label":[]}')
    task = Classification(kind="multi_label", label_separator=";")
    assert [e.label for e in task.read(table)] == [("b", "a"), ()]
    assert [e.label for e in task.read(lines)] == [("b", "a"), ()]


def test_regression_reads_numbers(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\nx,-1.5\ny,2e1\n")
    assert [e.label for e in Classification(kind="regression").read(path)] == [-1.5, 20.0]


cell = st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=6), suffix=st.sampled_from(",\t"))
def test_what_csv_writers_write_is_read_back(tmp_path_factory, rows, suffix):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=suffix, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    name = "t.csv" if suffix == "," else "t.tsv"
    path = write(tmp_path_factory.mktemp("csv"), name, buffer.getvalue())
    found = read_rows(path, ["b", "a"], quotes="standard")
    assert [row.cells for row in found] == [(b, a) for a, b in rows]


plain = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\n\t\ufeff"), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(plain, plain), min_size=1, max_size=6))
def test_literal_quotes_change_no_character(tmp_path_factory, rows):
    content = "".join(f"{a}\t{b}\n" for a, b in rows)
    path = write(tmp_path_factory.mktemp("tsv"), "t.tsv", content)
    assert [row.cells for row in read_rows(path, [1, 2], quotes="literal")] == rows


def test_tsv_keeps_quotes_unless_all_are_enclosing(tmp_path):
    enclosed = '"a ""b"" c"\tx\n'
    path = write(tmp_path, "a.tsv", enclosed)
    assert read_rows(path, [1])[0].cells == ('a "b" c',)
    for writer in ['"a"\t"b"\nc\td\n', '"a"\t"b"\n"c"\t"d"\n']:  # the whole first row is enclosed
        path = write(tmp_path, "c.tsv", writer)
        assert [row.cells for row in read_rows(path, [1, 2])] == [("a", "b"), ("c", "d")]
    for ordinary in ['"d" e\tx\n', 'd " e\tx\n', '"\tx\n']:
        path = write(tmp_path, "b.tsv", enclosed + ordinary)
        assert read_rows(path, [1])[0].cells == ('"a ""b"" c"',)


UNREADABLE = [
    ("a.csv", "text,label\nx,a\ny\n", "row 3: 1 cells, expected 2"),
    ("a.csv", "text,label\nx,a\ny,z,b\n", "row 3: 3 cells, expected 2"),
    ("a.csv", 'text,label\nx,a\n"y,b\nz,a\n', r"row 3: the quotes .*literal"),
    ("a.csv", 'text,label\n"x"y,a\n', r"row 2: the quotes .*literal"),
    ("a.csv", "", "found no rows"),
    ("a.csv", "text,label\n", "found no rows"),
    ("a.csv", "text,label\nx,a\ny, \n", "row 3: the label is empty"),
    ("a.csv", b"text,label\nx\xff,a\n", "byte 12 is 0xff"),
    ("a.jsonl", "\n", "found no rows"),
    ("a.jsonl", '{"text": "x", "label": 1}\n{"text', "row 2: not JSON"),
    ("a.jsonl", '{"text": "\\ud83d", "label": 1}', "row 1: not JSON in Unicode"),
    ("a.jsonl", "[1]", r"row 1: found \[1\], expected a JSON object"),
    ("a.jsonl", '{"text": null, "label": 1}', "row 1: the text is null"),
    ("a.jsonl", '{"text": ["a", 1], "label": 1}', "row 1: the text is"),
    ("a.jsonl", '{"text": "x", "label": null}', "row 1: the label is null"),
    ("a.jsonl", '{"text": "x", "label": ["a"]}', r"row 1: the label .*multi_label"),
    ("a.jsonl", '{"text": "x", "label": 1.0}', r"row 1: the label is 1\.0"),
]


@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE)
def test_unreadable_content_is_named_with_its_row(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as raised:
        Classification().read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("multi_label", "a.jsonl", '{"text": "x", "label": 3}', r"row 1: .*expected a list"),
        ("regression", "a.csv", "text,label\nx,1\ny,high\n", r'row 3: .*"high"'),
        ("regression", "a.csv", "text,label\nx,nan\n", r"row 2: .*finite number"),
        ("regression", "a.jsonl", '{"text": "x", "label": true}', r"row 1: .*true"),
    ],
)
def test_labels_that_do_not_fit_the_kind(tmp_path, kind, name, content, message):
    with pytest.raises(DataError, match=message):
        Classification(kind=kind).read(write(tmp_path, name, content))


@pytest.mark.parametrize(
    ("columns", "name", "content", "message"),
    [
        ({"text": "sentnce"}, "a.tsv", "sentence\tlabel\nx\ty\n", "did you mean 'sentence'"),
        ({}, "a.csv", "x,pos\ny,neg\n", r"row 1: no column 'text' among 'x', 'pos'; .*numbers"),
        ({}, "a.csv", "text,label,label\nx,a,b\n", "several columns are named 'label'"),
        ({"text": 1, "label": 3}, "a.csv", "x,a\ny,b\n", r"no column 3; .*1 to 2"),
        ({"text": 0, "label": 1}, "a.csv", "x,a\ny,b\n", "no column 0"),
        ({"header": False}, "a.csv", "text,label\nx,a\n", r"header=False .*by number"),
        ({"text": 1}, "a.jsonl", '{"text": "x", "label": 1}', "no column 1 among 'text'"),
        ({}, "a.jsonl", '{"text": "x", "label": 1}\n{"text": "y"}', "row 2: no column 'label'"),
        ({}, "a.txt", "text\tlabel\n", r"expected a file name in \.csv"),
    ],
)
def test_columns_that_are_not_there(tmp_path, columns, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(ConfigError, match=message) as raised:
        Classification(**columns).read(path)
    assert str(path) in str(raised.value)


def test_a_header_under_columns_by_number_is_noticed(tmp_path):
    path = write(tmp_path, "a.csv", "text,label\nx,a\ny,b\nz,a\nw,b\n")
    task = Classification(text=1, label=2)
    with pytest.raises(ConfigError, match=r"row 1 looks .*'label' .*header=True"):
        task.read(path)
    assert len(replace(task, header=True).read(path)) == 4
    assert len(replace(task, header=False).read(path)) == 5
    for no_header in ["x,a\ny,b\nz,c\n", "x,a\ny,b\nz,b\n"]:  # one of each, or a rare class first
        assert len(task.read(write(tmp_path, "b.csv", no_header))) == 3


# Published files

SENTENCES = {"text": "sentence1", "text_pair": "sentence2"}
STRINGS = {"text": "#1 String", "text_pair": "#2 String", "label": "Quality"}
COLA = {"text": "4", "label": "2"}
STS = {**SENTENCES, "label": "score", "kind": "regression"}
MNLI = {"text": "premise", "text_pair": "hypothesis"}
PUBLISHED = [
    ("glue/sst-2", "train.tsv.gz", 67_349, 2, {"text": "sentence"}),
    ("glue/sst-2", "dev.tsv", 872, 2, {"text": "sentence"}),
    ("glue/cola", "train.tsv", 8_551, 2, COLA),
    ("glue/cola", "dev.tsv", 1_043, 2, COLA),
    ("glue/mrpc", "train.tsv", 3_668, 2, STRINGS),
    ("glue/mrpc", "dev.tsv", 408, 2, STRINGS),
    ("glue/mrpc", "test.tsv", 1_725, None, STRINGS),
    ("glue/rte", "train.tsv", 2_490, 2, SENTENCES),
    ("glue/rte", "dev.tsv", 277, 2, SENTENCES),
    ("glue/rte", "test.tsv", 3_000, None, SENTENCES),
    ("glue/sts-b", "train.tsv", 5_749, 1, STS),
    ("glue/sts-b", "dev.tsv", 1_500, 1, STS),
    ("glue/mnli", "train.jsonl.gz", 10_000, 3, MNLI),
    ("glue/mnli", "valid.jsonl.gz", 4_908, 3, MNLI),
    ("imdb", "test.jsonl.zst", 25_000, 2, {}),
    ("masakhanews-swa", "test.tsv", 476, 7, {"label": "category"}),
]


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not here")
@pytest.mark.parametrize(("folder", "name", "size", "outputs", "columns"), PUBLISHED)
def test_published_files_have_their_published_rows(folder, name, size, outputs, columns):
    table = (DATA / "README.md").read_text().splitlines()
    row = next(line for line in table if line.startswith(f"| {folder} |"))
    assert f"{size:,}" in re.findall(r"[\d,]+", row.split("|")[4])
    task = Classification(**columns)
    examples = task.read(DATA / folder / name, labelled=outputs is not None)
    assert len(examples) == size
    assert {len(e.texts) for e in examples} == {2 if task.text_pair else 1}
    if outputs:
        fitted = task.fit_labels(examples)
        assert (fitted.num_outputs, len(fitted.targets(examples))) == (outputs, size)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not here")
def test_quotes_of_published_files():
    mrpc = Classification(text="#1 String", label="Quality").read(DATA / "glue/mrpc/train.tsv")
    assert 'called " the witness " ,' in mrpc[0].texts[0]
    swahili = Classification(label="category").read(DATA / "masakhanews-swa/test.tsv")
    assert swahili[0].texts[0].startswith("Siku zina kasi")
    assert any('"' in example.texts[0] for example in swahili)
    assert not any('""' in example.texts[0] for example in swahili)


def test_a_header_of_several_labels_is_noticed_too(tmp_path):
    rows = 'text,topics\nhello,"a,b"\nbye,a\nso,b\n'
    task = Classification(text=1, label=2, kind="multi_label")
    path = write(tmp_path, "a.csv", rows)
    with pytest.raises(ConfigError, match="'topics' is in no other row"):
        task.read(path)
    assert len(replace(task, header=True).read(path)) == 3


def test_a_header_is_one_also_where_the_label_is_not_read(tmp_path):
    path = write(tmp_path, "a.tsv", "sentence\tlabel\nx\ta\ny\tb\n")
    task = Classification(text=1, label="label")
    assert [example.texts for example in task.read(path)] == [("x",), ("y",)]
    found = task.with_header().read(path, labelled=False)
    assert [example.texts for example in found] == [("x",), ("y",)]
    assert len(task.read(path, labelled=False)) == 3  # nothing says that there is one
    assert len(Classification(text=1, label=2).with_header().read(path, labelled=False)) == 3


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_an_empty_text_of_a_single_column_keeps_its_row(tmp_path, name):
    path = write(tmp_path, name, "\ntext\nfirst\n\nthird\n\n")
    found = Classification().read(path, labelled=False)
    assert [example.texts[0] for example in found] == ["first", "", "third"]
    assert [example.row for example in found] == [3, 4, 5]
