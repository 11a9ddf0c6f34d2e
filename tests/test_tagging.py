"""Tags on the user's words: files, spans, words and their tokens, taggers that learn."""

import gzip
import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import firth
from firth.adaptation import FineTuning, Frozen
from firth.adaptation.features import extract, score_features
from firth.adaptation.network import EncodedExamples, score_examples
from firth.api.adapted import family_head
from firth.cli import main
from firth.errors import CheckpointError, ConfigError, DataError
from firth.inference.forward import Engine
from firth.models import StaticConfig, build
from firth.models.heads import RecurrentHead, WordHead
from firth.models.mix import LayerMix, pool_words
from firth.protocols import Example
from firth.tasks import Tagging
from firth.tasks.columns import looks_like_columns, read_sentences
from firth.tasks.spans import Span, find_spans, mark_spans, span_scores
from firth.tasks.tagging import split_words
from firth.text.tokenizers import Tokenizer

SENTENCE = ("The", "tagger", "tags", "words", ".")
TAGS = ("DET", "NOUN", "VERB", "NOUN", "PUNCT")


@pytest.fixture(scope="module")
def lm(tiny_run) -> firth.LanguageModel:
    model = firth.load(tiny_run, device="cpu", precision="float32")
    assert isinstance(model, firth.LanguageModel)
    return model


# Files


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


CONLLU = """\
# sent_id = 1
# text = Don't go.
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVBP\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
2.1\tyou\tyou\tPRON\tPRP\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_

# sent_id = 2
1\t#\t#\tSYM\tNN\t_\t0\troot\t_\t_
"""


def test_conllu_leaves_out_comments_ranges_and_empty_nodes(tmp_path):
    path = write(tmp_path / "a.conllu", CONLLU)
    first, second = Tagging().read(path)
    assert first == Example(texts=(("Do", "n't", "go"),), label=("AUX", "PART", "VERB"), row=4)
    assert second == Example(texts=(("#",),), label=("SYM",), row=10)
    assert Tagging(label="xpos").read(path)[0].label == ("VBP", "RB", "VB")
    assert Tagging(text="lemma", label=8).read(path)[0] == Example(
        texts=(("do", "not", "go"),), label=("aux", "advmod", "root"), row=4
    )
    assert [e.label for e in Tagging().read(path, labelled=False)] == [None, None]
    packed = tmp_path / "a.conllu.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert Tagging().read(packed) == [first, second]


def test_columns_by_tabs_or_spaces(tmp_path):
    spaces = write(tmp_path / "a.txt", "-DOCSTART- -X- O O\n\nIn NN O O\n# NN O  B-X\n\n\nx NN O O")
    assert read_sentences(spaces, labelled=True) == [
        (3, ("In", "#"), ("O", "B-X")),
        (7, ("x",), ("O",)),
    ]
    assert read_sentences(spaces, 2, "1", labelled=True)[0] == (3, ("NN", "NN"), ("In", "#"))
    tabs = write(tmp_path / "a.conll", "New York\tB-LOC\r\nis\tO\r\n \t \r\nbig\tO\r\n")
    assert read_sentences(tabs, labelled=True) == [
        (1, ("New York", "is"), ("B-LOC", "O")),
        (4, ("big",), ("O",)),
    ]
    bare = write(tmp_path / "b.conll", "one\ntwo\n\nthree\n")
    assert [s.words for s in read_sentences(bare, labelled=False)] == [("one", "two"), ("three",)]


def test_comments_above_a_sentence_are_no_words(tmp_path, caplog):
    caplog.set_level("INFO")
    text = "# id = 1\n# Anna sings\nAnna\tB-PER\nsings\tO\n#\tO\n\n#1\tO\n\n#x\tO\ny\tO\n"
    path = write(tmp_path / "a.conll", text)
    assert [s.words for s in read_sentences(path, labelled=True)] == [
        ("Anna", "sings", "#"),
        ("#1",),
        ("#x", "y"),
    ]
    assert "2 lines that begin with # were taken for comments" in caplog.text
    inside = write(tmp_path / "b.conll", "# a\nIn O\n# x y\n")  # no comment stands in a sentence
    with pytest.raises(DataError, match="row 3: 3 cells, expected 2"):
        read_sentences(inside, labelled=True)


def test_a_few_odd_tags_among_those_of_spans_are_told(caplog):
    spans = ["O", "B-PER", "I-PER", "B-LOC"]
    Tagging().fit_labels([Example(texts=(("a",) * 4,), label=tuple(spans))])
    assert not caplog.records
    odd = Tagging().fit_labels([Example(texts=(("a",) * 5,), label=(*spans, "B_ORG"))])
    assert not odd.marks_spans
    assert "1 tags are not those of spans (B_ORG)" in caplog.text
    caplog.clear()
    for tags in (("O", "NOUN", "VERB"), ("B", "S", "NOUN"), (*spans, "B_ORG")):
        chosen = Tagging(spans=False) if "B_ORG" in tags else Tagging()
        chosen.fit_labels([Example(texts=(("a",) * len(tags),), label=tags)])
    assert not caplog.records


def test_jsonl_has_lists(tmp_path):
    rows = [{"words": list(SENTENCE), "tags": list(TAGS), "ner": ["O"] * 5}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert Tagging().read(path) == [Example(texts=(SENTENCE,), label=TAGS, row=1)]
    assert Tagging(label="ner").read(path)[0].label == ("O",) * 5


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({}, "In"),
        ({"label": "NER", "text": "token"}, "In"),
        ({"label": 3, "header": True}, "In"),
        ({"header": False}, "Token"),
    ],
)
def test_a_header_is_no_sentence(tmp_path, settings, first):
    path = write(tmp_path / "a.tsv", "Token\tlemma\tner\nIn\tin\tO\nToken\ttoken\tO\n\nx\tx\tB-X\n")
    sentences = Tagging(**settings).read(path)
    assert sentences[0].texts[0][0] == first
    assert sentences[-1] == Example(texts=(("x",),), label=("B-X",), row=5)
    assert len(sentences) == 2
    assert Tagging(**settings).read(path, labelled=False)[0].texts[0][0] == first


def test_a_word_that_headers_have_may_open_a_file(tmp_path):
    path = write(tmp_path / "a.conll", "Word O\nof O\nhonour O\n")
    assert Tagging().read(path)[0].texts[0] == ("Word", "of", "honour")
    bare = write(tmp_path / "b.conll", "Words\nfail\nme\n")
    for task in (Tagging(), Tagging(label="ner")):  # no header is asked for where no tag is read
        assert task.read(bare, labelled=False)[0].texts[0] == ("Words", "fail", "me")


def test_a_header_among_spans_is_seen_whatever_its_words(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tner_tags\nAnna\tB-PER\nsings\tO\n")
    (sentence,) = Tagging().read(path)
    assert (sentence.texts[0], sentence.label) == (("Anna", "sings"), ("B-PER", "O"))


@pytest.mark.parametrize(("word", "tag"), [("Words", "NNS"), ("Token", "NN")])
def test_a_first_word_that_headers_have_stays_where_its_tag_is_none_of_theirs(word, tag, tmp_path):
    (tmp_path / "x.txt").write_text(f"{word} {tag}\nmatter VBP\na DT\n\nthe DT\n")
    first, _ = Tagging().read(tmp_path / "x.txt")
    assert first.texts == ((word, "matter", "a"),)


def test_tabs_are_looked_for_behind_the_name_of_a_document(tmp_path):
    (tmp_path / "x.txt").write_text("-DOCSTART-\n\nNew York\tB-LOC\nis\tO\n")
    (only,) = Tagging().read(tmp_path / "x.txt")
    assert only.texts == (("New York", "is"),)


def test_signs_of_several_characters_are_one_word():
    assert split_words("👩‍🔬! 👍🏽ok ❤️, 1️⃣") == ("👩‍🔬", "!", "👍🏽", "ok", "❤️", ",", "1️⃣")


def test_what_may_be_a_header_is_asked_about(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tpos\na\tDET\nb\tNOUN\nc\tDET\nd\tNOUN\n")
    with pytest.raises(ConfigError, match="'pos' is in no other row"):
        Tagging().read(path)
    assert len(Tagging(header=True).read(path)[0].texts[0]) == 4
    assert len(Tagging(header=False).read(path)[0].texts[0]) == 5


@pytest.mark.parametrize(
    ("name", "text", "settings", "message"),
    [
        ("a.conll", "a O\nb\n", {}, r"row 2: 1 cells, expected 2 as in the first row"),
        ("a.conll", "a\tO\nb\t\n", {}, r"row 2: an empty word or tag"),
        ("a.conll", "\n\n", {}, r"found no sentences"),
        ("a.conll", "a O\n", {"label": 3}, r"row 1: no column 3; columns are counted 1 to 2"),
        ("a.conll", "a O\n", {"label": "upos"}, r"no column 'upos' among 'a', 'O'.*not a header"),
        ("a.conll", "one\ntwo\n\nthree\n", {}, r"row 1: words and tags are both in column 1 of 1"),
        ("a.tsv", "w\tner\na\tO\n", {"label": "ner", "header": False}, "no column 'ner'"),
        ("a.conllu", CONLLU, {"label": "upo"}, r"did you mean 'upos'"),
        ("a.conllu", "a\tO\n", {}, r"row 1: the id is 'a'"),
        ("a.jsonl", '{"words": ["a"], "tags": [1]}', {}, r"'tags' is \[1\]; expected a list"),
        ("a.jsonl", '{"words": ["a"], "tags": []}', {}, r"1 words and 0 tags"),
        ("a.jsonl", '{"words": ["a", "b"], "tags": ["", "O"]}', {}, r"row 1: an empty tag"),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O"]}', {}, r"no column 'words'"),
        ("a.csv", "a,O\n", {}, r"convert the file"),
    ],
)
def test_files_that_cannot_be_read_say_where(tmp_path, name, text, settings, message):
    with pytest.raises((DataError, ConfigError), match=message):
        Tagging(**settings).read(write(tmp_path / name, text))


@pytest.mark.parametrize(
    ("name", "settings", "sentences", "words", "spans"),
    [
        ("wnut17/train.conll", {}, 3394, 62730, True),
        ("wnut17/test.conll", {}, 1287, 23394, True),
        ("conll2000/train.txt", {}, 8936, 211727, True),
        ("conll2000/test.txt", {"label": 2}, 2012, 47377, False),
        ("masakhaner2-swa/train.txt", {}, 6593, 175160, True),
        ("masakhapos-swa/train.txt", {}, 693, 20898, False),
        ("scierc-ner/train.txt", {}, 1861, 45412, True),
    ],
)
def test_published_files_are_read_whole(shared, name, settings, sentences, words, spans):
    task = Tagging(**settings)
    path = shared / "data" / name
    found = task.read(path)
    assert (len(found), sum(len(e.texts[0]) for e in found)) == (sentences, words)
    assert all(len(e.texts[0]) == len(e.label) for e in found)
    assert task.fit_labels(found).marks_spans is spans
    lines = path.read_text(encoding="utf-8").split("\n")
    for example in found[:: len(found) // 50]:
        cells = lines[example.row - 1].split()
        assert example.texts[0][0] == cells[0]
        assert example.label[0] == cells[-1 if not settings else settings["label"] - 1]


@pytest.fixture(scope="module")
def ud(shared) -> dict[str, list[Example]]:
    folder = shared / "data" / "ud-english-ewt"
    names = {"train": "train.conllu.gz", "dev": "dev.conllu"}
    return {part: Tagging().read(folder / f"en_ewt-ud-{name}") for part, name in names.items()}


def test_universal_dependencies_are_read_whole(shared, ud):
    path = shared / "data" / "ud-english-ewt" / "en_ewt-ud-train.conllu.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [line.split("\t") for line in file if re.match(r"\d+\t", line)]
    assert len(ud["train"]) == 12544
    assert [w for e in ud["train"] for w in e.texts[0]] == [row[1] for row in rows]
    assert [t for e in ud["train"] for t in e.label] == [row[3] for row in rows]
    tags = Tagging().fit_labels(ud["train"]).labels
    assert len(tags) == 17
    assert "_" not in tags


def test_texts_that_look_like_columns():
    columns = [*["word O"] * 9, "", *["word B-X"] * 3]
    assert looks_like_columns(columns)
    assert not looks_like_columns([*columns, "three words here"])
    assert not looks_like_columns(["two words"] * 20)
    assert not looks_like_columns(["one", "", "word"] * 10)


# Spans


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-X I-X O B-Y", [("X", 0, 2), ("Y", 3, 4)]),
        ("I-X I-X O", [("X", 0, 2)]),  # IOB: B only between neighbours of a type
        ("O I-X I-X B-X I-X", [("X", 1, 3), ("X", 3, 5)]),
        ("B-X I-Y I-Y", [("X", 0, 1), ("Y", 1, 3)]),  # the type changes without a B
        ("B-X B-X", [("X", 0, 1), ("X", 1, 2)]),
        ("S-X B-X I-X E-X S-X O", [("X", 0, 1), ("X", 1, 4), ("X", 4, 5)]),
        ("U-X B-X L-X I-X", [("X", 0, 1), ("X", 1, 3), ("X", 3, 4)]),
        ("E-X I-X E-X", [("X", 0, 1), ("X", 1, 3)]),
        ("B I O I", [("", 0, 2), ("", 3, 4)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 2)]),
        ("O O", []),
    ],
)
def test_spans_by_hand(tags, spans):
    assert find_spans(tags.split()) == [Span(*span) for span in spans]


def ends(before: tuple[str, str], now: tuple[str, str]) -> bool:
    """`endOfChunk` of conlleval.pl."""
    letter, after = before[0], now[0]
    listed = (letter, after) in {
        *(("B", x) for x in "BO"),
        *(("I", x) for x in "BO"),
        *(("E", x) for x in "EIO"),
    }
    return listed or (letter != "O" and before[1] != now[1])


def begins(before: tuple[str, str], now: tuple[str, str]) -> bool:
    """`startOfChunk` of conlleval.pl."""
    letter, after = before[0], now[0]
    listed = (letter, after) in {
        *(("B", x) for x in "B"),
        *(("I", x) for x in "B"),
        *(("O", x) for x in "BIE"),
        *(("E", x) for x in "EI"),
    }
    return listed or (after != "O" and before[1] != now[1])


def conlleval(expected: list[list[str]], found: list[list[str]]) -> tuple[int, int, int]:
    """Right, predicted and true chunks, counted as the main loop of conlleval.pl does."""
    right = predicted = true = 0
    inside = False
    last = guess_last = ("O", "")
    for tags, guesses in zip(expected, found, strict=True):
        for tag, guess in zip([*tags, "O"], [*guesses, "O"], strict=True):
            now, guessed = (tuple([*t.split("-", 1), ""][:2]) for t in (tag, guess))
            if inside:
                both = ends(last, now), ends(guess_last, guessed)
                if all(both) and last[1] == guess_last[1]:
                    inside, right = False, right + 1
                elif both[0] != both[1] or now[1] != guessed[1]:
                    inside = False
            starts = begins(last, now), begins(guess_last, guessed)
            if all(starts) and now[1] == guessed[1]:
                inside = True
            true += starts[0]
            predicted += starts[1]
            last, guess_last = now, guessed
    return right, predicted, true


iob = st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"])
pairs = st.lists(st.lists(st.tuples(iob, iob), min_size=1, max_size=12), min_size=1, max_size=5)


@given(pairs)
def test_span_counts_are_those_of_conlleval(sentences):
    expected, found = ([[pair[i] for pair in one] for one in sentences] for i in (0, 1))
    right, predicted, true = conlleval(expected, found)
    total, by_type = span_scores(expected, found)
    assert total["precision"] == pytest.approx(right / max(1, predicted))
    assert total["recall"] == pytest.approx(right / max(1, true))
    assert total["f1"] == pytest.approx(2 * right / max(1, predicted + true))
    assert sum(row["count"] for row in by_type.values()) == true


iobes = st.lists(st.sampled_from([f"{p}-{t}" for p in "BIES" for t in "XY"] + ["O"]), max_size=12)


@given(iobes)
def test_spans_of_all_letters_are_those_of_seqeval(tags):
    """`get_entities` of seqeval, written out again."""
    found, begin = [], 0
    before, before_type = "O", ""
    for i, tag in enumerate([*tags, "O"]):
        now, now_type = tag[0], tag.split("-")[-1]
        changed = now_type != before_type
        end = before in "ES" or (before in "BI" and (now in "BSO" or changed))
        begin_here = now in "BS" or (now in "EI" and (before in "ESO" or changed))
        if end:
            found.append(Span(before_type, begin, i))
        begin = i if begin_here else begin
        before, before_type = now, now_type
    assert find_spans(tags) == found


def test_spans_of_published_tags(shared):
    found = Tagging().read(shared / "data" / "conll2000" / "test.txt")
    tags = [list(e.label) for e in found]
    total, by_type = span_scores(tags, tags)
    assert total == {"f1": 1.0, "precision": 1.0, "recall": 1.0}
    # The shared task's paper counts 23,852 chunks in this file (Tjong Kim Sang and Buchholz 2000).
    assert sum(row["count"] for row in by_type.values()) == 23852
    assert by_type["NP"]["count"] == 12422


def test_which_tags_mark_spans():
    assert mark_spans({"O", "B-X", "I-X"})
    assert mark_spans({"B-NP", "I-NP"})
    assert mark_spans({"O", "B", "I"})
    assert not mark_spans({"O"})
    assert not mark_spans({"NOUN", "O"})
    assert not mark_spans({"I-X", "X"})
    assert mark_spans({"B", "I", "E", "S"})
    assert not mark_spans({"L", "S"})  # names of classes
    assert not mark_spans({"S", "O"})
    assert not mark_spans({"B", "S"})


# The task


def one_hot(task: Tagging, sentences: list[list[str]]) -> list[np.ndarray]:
    """Scores that choose the given tags."""
    at = {tag: i for i, tag in enumerate(task.labels)}
    return [np.eye(len(at), dtype=np.float32)[[at[tag] for tag in tags]] for tags in sentences]


def test_a_report_counts_words_and_spans():
    task = Tagging(labels=("B-X", "I-X", "O"))
    expected = [("B-X", "I-X", "O"), ("B-X", "O"), ("B-Z", "I-Z")]
    examples = [
        Example(texts=(tuple("abc"[: len(tags)]),), label=tags, row=10 * i)
        for i, tags in enumerate(expected)
    ]
    scores = one_hot(task, [["B-X", "I-X", "O"], ["O", "B-X"], ["B-X", "I-X"]])
    report = task.evaluate(scores, examples)
    assert report.main == "f1"
    assert report.metrics == pytest.approx(
        {"f1": 2 / 6, "precision": 1 / 3, "recall": 1 / 3, "accuracy": 3 / 7}
    )
    assert report.details["per_span"]["Z"] == {"f1": 0, "precision": 0, "recall": 0, "count": 1}
    first = {"row": 10, "word": 1, "text": "a", "expected": "B-X", "found": "O"}
    assert report.details["errors"][0] == first
    assert len(report.details["errors"]) == 4
    assert report.details["per_tag"]["B-Z"]["count"] == 1
    assert report.num_examples == 3


def test_plain_tags_have_accuracy_and_confusions():
    task = Tagging().fit_labels([Example(texts=(SENTENCE,), label=TAGS)])
    assert task.labels == ("DET", "NOUN", "PUNCT", "VERB")
    example = Example(texts=(SENTENCE,), label=TAGS, row=3)
    scores = one_hot(task, [["DET", "VERB", "VERB", "VERB", "PUNCT"]])
    report = task.evaluate(scores, [example])
    assert (report.main, report.score) == ("accuracy", 3 / 5)
    assert report.details["confusions"] == [{"expected": "NOUN", "found": "VERB", "count": 2}]
    (tagged,) = task.decode(scores, [example])
    assert (tagged.words, tagged.tags) == (SENTENCE, ("DET", "VERB", "VERB", "VERB", "PUNCT"))
    assert tagged.probabilities == pytest.approx([np.e / (np.e + 3)] * 5)
    assert "spans" not in tagged.to_dict()


def test_spans_are_named_in_predictions():
    task = Tagging(labels=("B-X", "I-X", "O"))
    (tagged,) = task.decode(
        one_hot(task, [["O", "B-X", "I-X"]]), [Example(texts=(("in", "New", "York"),))]
    )
    assert tagged.to_dict()["spans"] == [{"label": "X", "begin": 1, "end": 3, "text": "New York"}]


def test_the_loss_is_the_sum_over_words():
    task = Tagging(labels=("a", "b"))
    scores = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0]])
    loss = task.loss(scores, torch.tensor([0, 0, 1]))
    by_hand = np.log1p(np.exp(-1)) + np.log1p(np.exp(3)) + np.log(2)
    assert (float(loss.total), loss.count) == (pytest.approx(by_hand), 3)


def test_one_tag_for_everything_is_degenerate_unless_nearly_all_words_have_it():
    task = Tagging(labels=("B-X", "O"))

    def degenerate(tags: list[str], answers: list[str]) -> bool:
        example = Example(texts=(("w",) * len(tags),), label=tuple(tags))
        return task.degenerate(one_hot(task, [answers]), [example])

    assert degenerate(["B-X", "O"], ["O", "O"])
    assert not degenerate(["B-X", "O"], ["B-X", "O"])
    assert not degenerate(["O", "O"], ["O", "O"])
    assert not degenerate(["B-X"] + ["O"] * 9, ["O"] * 10)
    assert degenerate(["B-X"] + ["O"] * 9, ["B-X"] * 10)
    example = Example(texts=(("w",),), label=("O",))
    assert task.degenerate([np.full((1, 2), np.nan)], [example])


def test_settings_that_do_not_fit_are_named():
    pos = [Example(texts=(SENTENCE,), label=TAGS, row=7)]
    with pytest.raises(ConfigError, match=r"'f1', which these tags do not have"):
        Tagging(metric="f1").fit_labels(pos)
    with pytest.raises(ConfigError, match=r"did you mean 'accuracy'"):
        Tagging(metric="acuracy")
    with pytest.raises(DataError, match=r"do not mark spans"):
        Tagging(spans=True).fit_labels(pos)
    with pytest.raises(DataError, match=r"1 different tags"):
        Tagging().fit_labels([Example(texts=(("a",),), label=("O",))])
    with pytest.raises(DataError, match=r"row 7 has 'PUNCT'"):
        Tagging(labels=("DET", "NOUN", "VERB")).targets(pos)
    with pytest.raises(ConfigError, match="list of words"):
        Tagging().example([1, 2])
    chunks = [Example(texts=(("a", "b"),), label=("B-X", "O"))]
    assert Tagging(spans=False).fit_labels(chunks).main_metric == "accuracy"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'He said: "don\'t (ever)!"',
            ["He", "said", ":", '"', "don't", "(", "ever", ")", "!", '"'],
        ),
        ("well-known 3.5 %", ["well-known", "3.5", "%"]),
        ("हिन्दी में।", ["हिन्दी", "में", "।"]),
        ("  ", []),
        ("...", [".", ".", "."]),
    ],
)
def test_strings_are_cut_into_words_and_marks(text, words):
    assert list(split_words(text)) == words
    assert Tagging().example(text).texts == (tuple(words),)


# Words and their tokens


KINDS = ("wordpiece", "bpe", "unigram", "word")


@pytest.fixture(scope="module")
def tokenizers(papers) -> dict[str, Tokenizer]:
    return {kind: Tokenizer.train(papers, kind, 600, min_frequency=1) for kind in KINDS}


ODD_WORDS = [
    "",
    "\u200b",
    "internationalisation",
    "don't",
    "New York",
    "e.g.",
    "naïve",
    "数学",
    "🙂",
]


def random_words(rng: np.random.Generator, papers: list[str], count: int) -> tuple[str, ...]:
    pool = [*papers[0].split(), *ODD_WORDS * 3]
    return tuple(pool[i] for i in rng.integers(len(pool), size=count))


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_where_their_tokens_are(tokenizers, papers, kind):
    rng = np.random.default_rng(0)
    texts = [random_words(rng, papers, n) for n in (0, 1, 5, 30, 60)]
    tokenizer = tokenizers[kind]
    examples = [Example(texts=(words,)) for words in texts]
    data = EncodedExamples.of(examples, tokenizer, 10_000, "word")
    assert data.words is not None
    without = 0
    for words, ids, ranges in zip(texts, data.ids, data.words, strict=True):
        encoding = tokenizer.encode(words)
        assert np.array_equal(ids, encoding.ids)
        assert ranges.shape == (len(words), 2)
        owned = [t for begin, end in ranges for t in range(begin, end)]
        special = tokenizer.vocabulary.special
        ordinary = np.flatnonzero(encoding.words >= 0).tolist()
        assert owned == ordinary  # each token once, in order
        assert all(ids[t] not in special or ids[t] == tokenizer.vocabulary.unknown for t in owned)
        begin = 0
        for word, (first, end) in zip(words, ranges, strict=True):
            inside = [encoding.offsets[t] for t in range(first, end)]
            # A byte-level token may begin with the space before its word.
            assert all(begin - 1 <= a <= b <= begin + len(word) for a, b in inside), word
            assert end > first or not word.strip("\u200b")
            without += end == first
            begin += len(word) + 1
    assert without > 0 or kind == "bpe"  # which keeps the space before an empty word


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_lose_no_word(tokenizers, papers, kind):
    rng = np.random.default_rng(1)
    texts = [random_words(rng, papers, n) for n in (3, 200, 1, 90)]
    examples = [Example(texts=(words,)) for words in texts]
    tokenizer = tokenizers[kind]
    whole = EncodedExamples.of(examples, tokenizer, 10_000, "word")
    cut = EncodedExamples.of(examples, tokenizer, 24, "word")
    assert max(map(len, cut.ids)) <= 24
    assert np.diff(cut.first).max() > 5
    assert cut.counts.tolist() == [3, 200, 1, 90]
    assert whole.words is not None
    assert cut.words is not None
    tokens = lost = 0
    for e in range(4):
        ids = np.concatenate(cut.ids[cut.first[e] : cut.first[e + 1]])
        for (a, b), (c, d) in zip(whole.words[e], cut.words[e], strict=True):
            # The last tokens of a long word may lie beyond the window that answers for it.
            assert (b > a) == (d > c)
            assert np.array_equal(whole.ids[e][a : a + d - c], ids[c:d])
            tokens, lost = tokens + b - a, lost + (b - a) - (d - c)
    assert lost < 0.02 * tokens


def test_batches_hold_words_of_texts_with_several_sequences(tokenizers, papers):
    rng = np.random.default_rng(2)
    texts = [random_words(rng, papers, n) for n in (40, 2, 70)]
    examples = [Example(texts=(words,)) for words in texts]
    data = EncodedExamples.of(examples, tokenizers["wordpiece"], 20, "word")
    targets = [np.arange(len(words)) + 100 * i for i, words in enumerate(texts)]
    batch = data.batch(np.array([2, 0]), targets)
    assert batch.words is not None
    assert batch.word_starts is not None
    assert batch.word_starts.tolist() == [0, 70, 110]
    assert batch.targets is not None
    assert batch.targets.tolist() == [*range(200, 270), *range(40)]
    assert batch.num_sequences == (data.first[3] - data.first[2]) + data.first[1]
    alone = data.batch(np.array([0]))
    assert alone.words is not None
    for (a, b), (c, d) in zip(batch.words[70:].tolist(), alone.words.tolist(), strict=True):
        assert torch.equal(batch.input_ids[a:b], alone.input_ids[c:d])
    with pytest.raises(ConfigError, match="batch of words is not cut"):
        batch.split(2)
    assert batch.split(1) == [batch]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=9), st.sampled_from(["first", "last", "mean"])
)
def test_pooling_of_words_is_what_a_loop_gives(lengths, how):
    torch.manual_seed(0)
    states = torch.randn(sum(lengths) + 2, 3, 5, requires_grad=True)
    ends = np.cumsum(lengths) + 1
    words = torch.tensor([[e - n, e] if n else [0, 0] for e, n in zip(ends, lengths, strict=True)])
    found = pool_words(states, words, how)
    assert found.shape == (len(lengths), 3, 5)
    for row, (a, b) in zip(found, words.tolist(), strict=True):
        own = states[a:b]
        expected = torch.zeros(3, 5)
        if b > a:
            expected = {"first": own[0], "last": own[-1], "mean": own.mean(0)}[how]
        torch.testing.assert_close(row, expected)
    found.sum().backward()
    assert states.grad is not None
    if not sum(lengths):
        assert states.grad.abs().sum() == 0
    assert torch.isfinite(states.grad).all()


def test_a_string_is_no_list_of_words(lm):
    with pytest.raises(DataError, match="expected a list of words"):
        EncodedExamples.of([Example(texts=("the cat",))], lm.tokenizer, 64, "word")


# Networks


def sentences_of(papers: list[str], count: int, longest: int = 30) -> list[Example]:
    """Words tagged by how they are spelled: something any model can learn."""
    rng = np.random.default_rng(5)
    found = []
    for paper in papers:
        words = paper.split()
        while len(words) > longest and len(found) < count:
            size = int(rng.integers(3, longest))
            one, words = tuple(words[:size]), words[size:]
            found.append(Example(texts=(one,), label=tuple(map(kind_of, one)), row=len(found)))
    return found


def kind_of(word: str) -> str:
    return "SHORT" if len(word) < 4 else "MIDDLE" if len(word) < 8 else "LONG"


TASK = Tagging(labels=("LONG", "MIDDLE", "SHORT"))
FAST = {"lr": 3e-3, "batch_size": 8, "precision": "float32"}
HOWS = {
    "finetune": FineTuning(epochs=4, **FAST),
    "finetune mean": FineTuning(epochs=1, pooling="mean", **FAST),
    "finetune lstm": FineTuning(epochs=1, task_network="bilstm", hidden_size=16, **FAST),
    "frozen": Frozen(epochs=8, **FAST),
    "frozen layer": Frozen(epochs=1, layers=1, **FAST),
    "frozen lstm": Frozen(
        epochs=6, task_network="bilstm", hidden_size=16, num_layers=2, output_mix=True, **FAST
    ),
    "frozen gru": Frozen(epochs=1, task_network="gru", layers="last", layer_norm=False, **FAST),
}


@pytest.mark.parametrize("name", HOWS)
def test_a_tagger_learns_and_is_saved_whole(lm, papers, tmp_path, name):
    examples = sentences_of(papers, 140)
    train, dev, new = examples[:80], examples[80:110], examples[110:]
    adapted = firth.adapt(lm, Tagging(), train, HOWS[name], dev=dev)
    assert adapted.task.labels == TASK.labels
    counts = Counter(tag for e in new for tag in e.label)
    majority = max(counts.values()) / counts.total()
    if HOWS[name].epochs > 1:
        assert adapted.evaluate(new).score > majority + 0.15
    adapted.save(tmp_path)
    loaded = firth.load(tmp_path, device="cpu", precision="float32")
    assert isinstance(loaded, firth.AdaptedModel)
    for one, other in zip(adapted.scores(new), loaded.scores(new), strict=True):
        assert np.array_equal(one, other)
    assert loaded.predict([new[0].texts[0]]) == adapted.predict([new[0].texts[0]])
    assert (loaded.task, loaded.adaptation) == (adapted.task, adapted.adaptation)
    assert loaded.seeds == adapted.seeds
    for at in ("input", "output"):
        assert loaded.layer_shares(at) == adapted.layer_shares(at)
    shares = loaded.layer_shares()
    assert (shares is None) == name.startswith("finetune")
    if shares is not None:
        assert len(shares) == 3
        assert sum(shares) == pytest.approx(1, abs=1e-6)
        used = {"frozen layer": [1], "frozen gru": [2]}.get(name, [0, 1, 2])
        assert [i for i, share in enumerate(shares) if share] == used
    assert (loaded.layer_shares("output") is None) == (name != "frozen lstm")
    loaded.save(tmp_path / "again")
    again = firth.load(tmp_path / "again", device="cpu", precision="float32")
    assert np.array_equal(again.scores(new)[0], adapted.scores(new)[0])


def test_tensors_that_do_not_fit_the_record_are_refused(lm, papers, tmp_path):
    examples = sentences_of(papers, 40)
    adapted = firth.adapt(lm, Tagging(), examples, HOWS["frozen layer"])
    adapted.save(tmp_path)
    record = json.loads((tmp_path / "adaptation.json").read_text())
    record["adaptation"]["task_network"] = "lstm"
    (tmp_path / "adaptation.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="do not fit what"):
        firth.load(tmp_path)


@pytest.mark.parametrize("name", ["finetune mean", "frozen lstm"])
def test_scores_of_one_text_do_not_depend_on_the_others(lm, papers, name):
    """Texts of several windows among them."""
    examples = sentences_of(papers, 12, longest=90)
    network = HOWS[name].network(lm.model, family_head(lm.model, TASK, HOWS[name]), 0).eval()
    engine = Engine.of(network, "float32", 32)
    data = EncodedExamples.of(examples, lm.tokenizer, 32, "word")
    assert np.diff(data.first).max() > 2
    together = score_examples(engine, data)
    for example, scores in zip(examples, together, strict=True):
        alone = EncodedExamples.of([example], lm.tokenizer, 32, "word")
        np.testing.assert_allclose(score_examples(engine, alone)[0], scores, atol=2e-6)
        assert scores.shape == (len(example.texts[0]), 3)


@pytest.mark.parametrize("task", [TASK, firth.Classification(labels=("a", "b", "c"))])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_frozen_features_give_the_scores_of_a_full_forward_pass(lm, papers, task, precision):
    how = replace(HOWS["frozen lstm"], precision=precision)
    torch.manual_seed(0)
    network = how.network(lm.model, family_head(lm.model, task, how), 0).eval()
    assert network.mix is not None
    assert network.output_mix is not None
    with torch.no_grad():
        network.mix.weights.copy_(torch.tensor([0.5, -1.0, 2.0]))
        network.output_mix.weights.copy_(torch.tensor([-2.0, 0.0, 1.0]))
        network.output_mix.gamma.fill_(1.5)
    texts = sentences_of(papers, 20)
    if task.unit == "sequence":
        texts = [Example(texts=(" ".join(e.texts[0]),)) for e in texts]
    data = EncodedExamples.of(texts, lm.tokenizer, 32, task.unit)
    features = extract(network, data, precision)
    assert features.states.dtype == (np.float32 if precision == "float32" else np.float16)
    fast = score_features(network, features)
    full = score_examples(Engine.of(network, precision, 32), data)
    fast, full = np.concatenate(fast), np.concatenate(full)
    assert full.std() > 1
    np.testing.assert_allclose(fast, full, atol=1e-5 if precision == "float32" else 0.1)


def test_large_features_lie_in_a_file(lm, papers, monkeypatch):
    how = HOWS["frozen lstm"]
    network = how.network(lm.model, family_head(lm.model, TASK, how), 0).eval()
    data = EncodedExamples.of(sentences_of(papers, 20), lm.tokenizer, 32, "word")
    small = extract(network, data, "float32")
    monkeypatch.setattr("firth.adaptation.features.IN_MEMORY", 1000)
    large = extract(network, data, "float32")
    assert isinstance(large.states, np.memmap)
    assert not isinstance(small.states, np.memmap)
    assert np.array_equal(small.states, large.states)


def test_the_second_mix_changes_scores_and_learns(lm, papers):
    how = HOWS["frozen lstm"]
    network = how.network(lm.model, family_head(lm.model, TASK, how), 0).eval()
    data = EncodedExamples.of(sentences_of(papers, 6), lm.tokenizer, 64, "word")
    batch = data.batch(np.arange(6), TASK.targets(sentences_of(papers, 6)))
    before = network(batch)
    assert network.output_mix is not None
    with torch.no_grad():
        network.output_mix.weights.copy_(torch.tensor([3.0, 0.0, -3.0]))
    after = network(batch)
    assert float((before - after).detach().abs().max()) > 1e-3
    assert batch.targets is not None
    TASK.loss(after, batch.targets).total.backward()
    mixes = [network.mix, network.output_mix]
    for mix in mixes:
        assert mix is not None
        for parameter in mix.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0
    assert all(p.grad is None for p in network.body.parameters())
    with pytest.raises(ConfigError, match="output_mix"):
        Frozen(output_mix=True)


def test_the_mix_is_that_of_the_paper():
    """Peters et al. 2018, eq. 1, with the layer norm of Ba et al. 2016, by hand."""
    mix = LayerMix(2, layer_norm=True)
    with torch.no_grad():
        mix.weights.copy_(torch.tensor([0.0, np.log(3.0)]))
        mix.gamma.fill_(2.0)
    states = torch.tensor([[[1.0, 3.0], [5.0, 1.0]]])  # (1, 2, 2): normed (-1, 1) and (1, -1)
    mixed = mix(states).detach()
    torch.testing.assert_close(mixed, torch.tensor([[1.0, -1.0]]), atol=1e-4, rtol=0)
    assert float(mix.penalty().detach()) == pytest.approx(np.log(3.0) ** 2)
    assert LayerMix(3).shares.tolist() == pytest.approx([1 / 3] * 3)
    torch.testing.assert_close(LayerMix(2)(states).detach(), torch.tensor([[3.0, 2.0]]))


def test_a_large_penalty_keeps_the_mix_an_average(lm, papers):
    examples = sentences_of(papers, 60)
    found = {}
    for penalty in (0.0, 10.0):
        how = replace(HOWS["frozen"], lr=1e-2, mix_penalty=penalty)
        shares = firth.adapt(lm, Tagging(), examples, how).layer_shares()
        assert shares is not None
        found[penalty] = max(shares) - min(shares)
    assert found[0.0] > 0.02
    assert found[10.0] < 0.5 * found[0.0]


def test_the_last_layer_alone_is_what_the_body_gives(lm, papers):
    data = EncodedExamples.of(sentences_of(papers, 5), lm.tokenizer, 64, "word")
    batch = data.batch(np.arange(5))
    head = family_head(lm.model, TASK, Frozen())
    hidden = lm.model(batch, hidden_states=True).hidden_states
    assert batch.words is not None
    for layers, i in (("last", -1), (0, 0), (-2, 1)):
        how = Frozen(layers=layers, layer_norm=False)
        states, _ = how.network(lm.model, head, 0).features(batch)
        torch.testing.assert_close(states[:, 0], pool_words(hidden[i], batch.words, "first"))
        assert states.shape[1] == 1
    with pytest.raises(ConfigError, match="layer 3 does not exist"):
        Frozen(layers=3).network(lm.model, head, 0)


@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm", "bigru", "bilstm"])
@pytest.mark.parametrize("unit", ["word", "sequence"])
def test_recurrent_heads_read_the_whole_text(kind, unit):
    torch.manual_seed(0)
    head = RecurrentHead(8, 3, network=kind, hidden_size=6, unit=unit, dropout=0.0).eval()
    states = torch.randn(9, 8, requires_grad=True)
    starts = torch.tensor([0, 4, 9])
    scores = head(states, starts)
    assert scores.shape == ((9, 3) if unit == "word" else (2, 3))
    scores[1 if unit == "word" else 0].sum().backward()
    assert states.grad is not None
    reached = states.grad.abs().sum(1) > 0
    both = kind.startswith("bi")
    expected = [True] * 4 if unit == "sequence" or both else [True, True, False, False]
    assert reached.tolist() == [*expected, *[False] * 5]


FAMILIES = {
    "gpt": ("wordpiece", "last"),
    "t5": ("wordpiece", "first"),
    "elmo": ("word", "first"),
    "awd-lstm": ("wordpiece", "last"),
    "static": ("word", "first"),
}
"""Random models: their vocabularies, and what stands for a word of several tokens."""


def random_model(family: str, tokenizer: Tokenizer) -> firth.LanguageModel:
    size = tokenizer.vocabulary.size
    torch.manual_seed(0)
    if family == "static":
        config = StaticConfig(vocab_size=size, hidden_size=24, buckets=500)
    else:
        config = firth.recipe(family, size="tiny", vocab_size=size).model
    if family == "elmo":
        config = replace(config, vocab_size=size, output_size=size, samples=0)
    return firth.LanguageModel(build(config).eval(), tokenizer, precision="float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_tags_words(tokenizers, papers, tmp_path, family):
    """Trained and frozen, saved and loaded; words that were never seen among the new ones."""
    examples = sentences_of(papers, 60)
    kind, pooling = FAMILIES[family]
    model = random_model(family, tokenizers[kind])
    head = family_head(model.model, TASK, FineTuning())
    assert isinstance(head, WordHead)
    assert head.pooling == pooling
    new = [*examples[:3], Tagging().example("Zyxwvutsrq zyx never seen")]
    for i, name in enumerate(("finetune lstm", "frozen lstm")):
        adapted = firth.adapt(model, Tagging(), examples, replace(HOWS[name], epochs=1))
        adapted.save(tmp_path / str(i))
        loaded = firth.load(tmp_path / str(i), device="cpu", precision="float32")
        assert isinstance(loaded, firth.AdaptedModel)
        one, other = (m.scores(new) for m in (adapted, loaded))
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
        assert [len(rows) for rows in one] == [len(e.texts[0]) for e in new]
        if family in ("elmo", "static"):  # which spell
            assert not np.allclose(one[3][0], one[3][1])


@pytest.mark.parametrize("family", ["elmo", "static"])
def test_one_token_a_word_in_models_of_words(tokenizers, papers, family):
    model = random_model(family, tokenizers["word"])
    words = ("Zyxwvutsrq", "New York", "don't", "e.g.")
    data = EncodedExamples.of([Example(texts=(words,))], model.tokenizer, 64, "word")
    assert data.words is not None
    assert data.words[0].tolist() == [[1, 2], [2, 3], [3, 4], [4, 5]]
    batch = data.batch(np.array([0]))
    assert batch.words is not None
    last = model.model(batch).last.detach()
    for how in ("first", "last", "mean"):
        torch.testing.assert_close(pool_words(last, batch.words, how), last[1:5])


def test_fine_tuning_trains_static_vectors(tokenizers, papers):
    """The network of the years before contextual vectors: its word vectors are learned as well."""
    model = random_model("static", tokenizers["word"])
    adapted = firth.adapt(model, Tagging(), sentences_of(papers, 60), HOWS["finetune lstm"])
    before, after = (m.embeddings.tokens.weight for m in (model.model, adapted.network.body))
    assert not torch.equal(before, after)
    frozen = firth.adapt(model, Tagging(), sentences_of(papers, 60), HOWS["frozen lstm"])
    assert torch.equal(before, frozen.network.body.embeddings.tokens.weight)
    assert frozen.layer_shares() == [1.0]


@pytest.mark.parametrize("kind", ["single", "regression"])
@pytest.mark.parametrize("trained", [True, False])
def test_texts_are_classified_by_recurrent_networks(lm, papers, tmp_path, kind, trained):
    rng = np.random.default_rng(0)
    examples = []
    for example in sentences_of(papers, 120, longest=12):
        numbers = bool(rng.random() < 0.5)
        words = [*example.texts[0], "1999"] if numbers else example.texts[0]
        label = (100.0 + numbers) if kind == "regression" else str(numbers)
        examples.append(Example(texts=(" ".join(words),), label=label))
    task = firth.Classification(kind=kind)
    settings = {"task_network": "bilstm", "hidden_size": 16, "precision": "float32"}
    how = (
        FineTuning(lr=2e-3, epochs=4, **settings)
        if trained
        else Frozen(lr=5e-3, epochs=12, **settings)
    )
    adapted = firth.adapt(lm, task, examples[:90], how, dev=examples[90:])
    assert adapted.evaluate(examples[90:]).score > (0.4 if kind == "regression" else 0.7)
    adapted.save(tmp_path)
    loaded = firth.load(tmp_path, device="cpu", precision="float32")
    texts = [e.texts[0] for e in examples[90:]]
    one, other = ([p.label for p in m.predict(texts)] for m in (adapted, loaded))
    assert one == (pytest.approx(other, abs=1e-3) if kind == "regression" else other)


def test_words_without_tokens_are_tagged_like_any(lm, papers):
    adapted = firth.adapt(lm, Tagging(), sentences_of(papers, 40), HOWS["frozen layer"])
    found = adapted.predict([["", "The", "\u200b"], [""], [], "The end."])
    assert [len(tagged.tags) for tagged in found] == [3, 1, 0, 3]
    assert found[3].words == ("The", "end", ".")
    assert adapted.predict([]) == []
    with pytest.raises(ConfigError, match="list of texts"):
        adapted.predict("The end.")


def test_a_tagger_beats_the_most_frequent_tag_of_each_word_on_real_text(ud):
    """UD English: what a word's neighbours say, beyond the word itself. Nothing is pre-trained."""
    train, dev = ud["train"][:400], ud["dev"][:150]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        for word, tag in zip(example.texts[0], example.label, strict=True):
            counts[word][tag] += 1
            counts[""][tag] += 1
    baseline = np.mean(
        [
            counts[word if word in counts else ""].most_common(1)[0][0] == tag
            for example in dev
            for word, tag in zip(example.texts[0], example.label, strict=True)
        ]
    )
    assert baseline > 0.75
    tokenizer = Tokenizer.train(
        [" ".join(e.texts[0]) for e in ud["train"][:1500]], "wordpiece", 3000
    )
    torch.manual_seed(0)
    config = firth.recipe("bert", size="tiny", vocab_size=tokenizer.vocabulary.size).model
    scratch = firth.LanguageModel(build(config).eval(), tokenizer, precision="float32")
    how = replace(HOWS["finetune lstm"], lr=2e-3, epochs=4, batch_size=16, hidden_size=64)
    adapted = firth.adapt(scratch, Tagging(), train, how, dev=dev)
    assert adapted.evaluate(dev).metrics["accuracy"] > baseline + 0.01


# The command line


def test_the_command_line_tags(lm, papers, tmp_path, tiny_run, capsys):
    examples = sentences_of(papers, 90)
    rows = [
        "\n".join(f"{w}\t{t}" for w, t in zip(e.texts[0], e.label, strict=True)) for e in examples
    ]
    train = write(tmp_path / "train.conll", "\n\n".join(rows[:60]) + "\n")
    test = write(tmp_path / "test.conll", "\n\n".join(rows[60:]) + "\n")
    out = tmp_path / "tagger"
    command = ["adapt", str(tiny_run), str(train), "--task", "tagging", "-o", str(out)]
    assert main([*command, "--test", str(test), "finetune", "--epochs", "2", "--lr", "2e-3"]) == 0
    shown = capsys.readouterr().out
    assert "test accuracy\t" in shown
    assert main(["evaluate", str(out), str(test), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert f"{report['accuracy']:.4f}" in shown
    assert {"details", "num_examples", "main", "macro_f1"} <= report.keys()
    assert report["details"]["num_words"] == sum(len(e.texts[0]) for e in examples[60:])
    assert main(["predict", str(out), str(test)]) == 0
    sentences = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert [tuple(line.split("\t")[0] for line in one.split("\n")) for one in sentences] == [
        e.texts[0] for e in examples[60:]
    ]
    lines = write(tmp_path / "text.txt", "The results of 1999.\nAnother text\n")
    assert main(["predict", str(out), str(lines), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["words"] for one in found] == [
        ["The", "results", "of", "1999", "."],
        ["Another", "text"],
    ]
    unseen = write(tmp_path / "unseen.conll", test.read_text() + "\nnew\tUNSEEN\n")
    again = ["adapt", str(tiny_run), str(train), "--task", "tagging", "-o", str(tmp_path / "again")]
    assert main([*again, "--test", str(unseen), "finetune", "--epochs", "1"]) == 0  # it is an error
    assert "test accuracy\t" in capsys.readouterr().out
    wrong = write(tmp_path / "columns.txt", test.read_text())
    assert main(["predict", str(out), str(wrong)]) == 2
    assert "looks like words in columns" in capsys.readouterr().err
    for number in ("1", "2"):
        assert main(["predict", str(out), str(wrong), "--text", number]) == 0
        found = capsys.readouterr().out.rstrip("\n").split("\n\n")
        if number == "1":
            assert found == sentences
    assert [line.split("\t")[0] for line in found[0].split("\n")] == list(examples[60].label)


def test_the_command_line_prints_both_mixes(papers, tmp_path, tiny_run, capsys):
    rows = [{"words": e.texts[0], "tags": e.label} for e in sentences_of(papers, 60)]
    train = write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, rows)))
    command = ["adapt", str(tiny_run), str(train), "--task", "tagging", "-o", str(tmp_path / "t")]
    how = ["frozen", "--task-network", "bilstm", "--hidden-size", "8", "--output-mix"]
    assert main([*command, *how, "--epochs", "1"]) == 0
    shown = capsys.readouterr().out
    for name in ("layer mix", "layer mix at the output"):
        (line,) = re.findall(rf"^{name}\t(.*)$", shown, re.MULTILINE)
        assert sum(map(float, line.split())) == pytest.approx(1, abs=0.02)
    assert main([*command[:-1], str(tmp_path / "u"), "--kind", "single", "frozen"]) == 2
    assert "--kind is for --task classification, and this is tagging" in capsys.readouterr().err


def test_blanks_around_tags_do_not_count(tmp_path):
    path = write(tmp_path / "a.tsv", "Runs\tB-PER \nfar\t O\n")
    assert read_sentences(path, labelled=True) == [(1, ("Runs", "far"), ("B-PER", "O"))]
    first_empty = write(tmp_path / "b.tsv", "\tRuns\tO\n\tfar\tO\n")
    assert read_sentences(first_empty, 2, labelled=False) == [(1, ("Runs", "far"), None)]
