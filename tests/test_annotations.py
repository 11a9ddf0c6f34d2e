"""Names, dates and the user's own spans: found in text, carried to tokens, masked as a whole."""

import json
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import firth
from firth.errors import ConfigError, DataError
from firth.objectives import MaskedLM, SentencePairs, SpanCorruption
from firth.objectives.denoising import salient_or
from firth.objectives.sentence_pairs import pair_up
from firth.protocols import INSIDE, OPENS, OUTSIDE
from firth.text.annotations import annotator, dates, names, usual_forms, write_marks
from firth.text.shards import write_shards
from firth.text.tokenizers import Tokenizer
from firth.training.tracking import read_metrics

TEXT = (
    "The king met Ada Lovelace in Paris. Paris was cold, and I left on 12 March 1843 with "
    "Dr. John F. Kennedy of Boston for the University of the Arts. Nobody knew O'Neill's son."
)


def found(spans, text=TEXT):
    return [text[a:b] for a, b in spans]


def test_names_are_found():
    usual = usual_forms([TEXT, "He saw Paris and nobody saw the king. In Paris, nobody knew."])
    assert found(names(TEXT, usual)) == [
        "Ada Lovelace",
        "Paris",
        "Paris",
        "March",
        "Dr. John F. Kennedy of Boston",
        "University",
        "Arts",
        "O'Neill's",
    ]
    text = "Raphaël Faget came. Then Anna came. Nobody came."
    assert found(names(text, usual_forms([text, "and then"])), text) == ["Raphaël Faget", "Anna"]
    without = usual_forms(["the paris nobody"])
    assert found(names("Paris is. Nobody is.", without), "Paris is. Nobody is.") == []


def test_dates_are_found():
    text = "From 1990 to the 1800s, 3 May, May 3rd, May 4, 1999, 2001-02-03, 12.05.1945, 12345."
    expected = ["1990", "1800s", "3 May", "May 3rd", "May 4, 1999", "2001-02-03", "12.05.1945"]
    assert found(dates(text), text) == expected
    assert found(dates("in the 19th century"), "in the 19th century") == ["19th century"]
    both = annotator("salient", [TEXT])(TEXT)
    assert "12 March 1843" in found(both)
    assert all(a[1] <= b[0] for a, b in pairwise(both))
    for text, expected in (
        ("we met in Paris March 3, 1920", ["March 3, 1920"]),  # a date before a name it overlaps
        ("the Battle of May 1843 in Rome", ["May 1843", "Rome"]),
        ("on May 21st, 2001 it fell", ["May 21st, 2001"]),
    ):
        assert found(annotator("salient", [])(text), text) == expected


def test_phrases_of_a_file(tmp_path):
    (tmp_path / "terms.txt").write_text("heart\nheart attack\nBRCA-1\n\n", encoding="utf-8")
    text = "A heart attack, a heart; hearts and BRCA-1."
    assert found(annotator(str(tmp_path / "terms.txt"), [])(text), text) == [
        "heart attack",
        "heart",
        "BRCA-1",
    ]
    (tmp_path / "terms.txt").write_text("C++\nNew York\n(E)-2-hexenal\n", encoding="utf-8")
    text = "C and C++, new (E)-2-hexenal. New. York, New York; C+++ XC++ C++s"
    expected = ["C++", "(E)-2-hexenal", "New York", "C++"]
    assert found(annotator(str(tmp_path / "terms.txt"), [])(text), text) == expected
    composed, apart = (unicodedata.normalize(form, "Bàbá Ọlájídé") for form in ("NFC", "NFD"))
    for phrase, text in ((apart, composed), (composed, apart)):
        (tmp_path / "yo.txt").write_text(phrase.split()[1] + "\nKenya\n", encoding="utf-8")
        assert found(annotator(str(tmp_path / "yo.txt"), [])(text), text) == [text.split()[1]]
    (tmp_path / "latin.txt").write_bytes("Zürich".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        annotator(str(tmp_path / "latin.txt"), [])
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="no phrase found"):
        annotator(str(tmp_path / "empty.txt"), [])
    with pytest.raises(DataError, match=r"data\.spans is 'nmaes'; expected names, salient"):
        annotator("nmaes", [])


def test_marked_texts(tmp_path):
    path = tmp_path / "marked.jsonl"
    rows = (
        {"text": "  a bc d", "spans": [[4, 6], [5, 8]]},
        {"text": "x\u2028y", "spans": [[2, 3]]},
    )
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    find = annotator(str(path), [])
    assert find("a bc d") == [(2, 4)]  # of two that overlap, the first
    assert find("x\u2028y") == [(2, 3)]
    assert find("another text") == []
    for row, message in (
        ('{"text": "a"}', "KeyError"),
        ('{"text": "abc", "spans": [[1, 9]]}', "the span 1:9 is not within the text's 3"),
        ("nothing", "line 1: expected"),
        ('{"text": "abc", "spans": [[1]]}', "ValueError"),
    ):
        path.write_text(row + "\n")
        with pytest.raises(DataError, match=message):
            annotator(str(path), [])


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_marks_lie_on_the_tokens_of_the_spans(kind, tmp_path, papers):
    texts = [TEXT, "[MASK] lower case only", *papers[:30]]
    tokenizer = Tokenizer.train(texts, kind, 400, lowercase=kind == "wordpiece")
    shards = write_shards(firth.Corpus.from_texts(texts), tokenizer, tmp_path / "s", workers=1)
    find = annotator("salient", texts)
    write_marks(texts, find, tokenizer, shards, tmp_path / "marks")
    marks = np.fromfile(tmp_path / "marks", np.uint8)
    starts = shards.document_starts
    for i, text in enumerate(texts):
        own = marks[starts[i] : starts[i + 1]]
        ids = shards.tokens(int(starts[i]), int(starts[i + 1]))
        spans = find(text)
        assert (own == OPENS).sum() == len(spans)
        pieces = np.split(np.arange(len(own)), np.flatnonzero(own == OPENS))[1:]
        for piece, (a, b) in zip(pieces, spans, strict=True):
            inside = [j for j in piece.tolist() if own[j] != OUTSIDE]
            written = tokenizer.decode(ids[inside].tolist()).replace(" ", "").lower()
            expected = text[a:b].replace(" ", "").lower()
            assert expected in written or "[unk]" in written or "<unk>" in written
            assert len(written) <= len(expected) + 12  # a token may reach beyond its span
    with pytest.raises(DataError, match="the corpus gives"):
        write_marks(texts[1:], find, tokenizer, shards, tmp_path / "other")


@given(st.integers(0, 10_000), st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_one_salient_span_of_each_sequence_is_lost(seed, lengths):
    rng = np.random.default_rng(seed)
    sizes, total = np.array(lengths), sum(lengths)
    marks = rng.choice([OUTSIDE, INSIDE, OPENS], total).astype(np.uint8)
    other = rng.random(total) < 0.3
    lost = salient_or(other, marks, sizes, rng)
    for begin, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
        own, gone = marks[begin : begin + size], lost[begin : begin + size]
        if not (own == OPENS).any() and own[0] != INSIDE:
            if not (own != OUTSIDE).any():
                np.testing.assert_array_equal(gone, other[begin : begin + size])
            continue
        opens = (own == OPENS) | ((np.arange(size) == 0) & (own == INSIDE))
        assert (opens & gone).sum() == 1
        assert (own[gone] != OUTSIDE).all()


def sequences_with_names(texts, tokenizer, tmp_path):
    """The sequences of a text whose names are marked, as a run draws them."""
    from firth.text.batches import PackedSequences

    shards = write_shards(firth.Corpus.from_texts(texts), tokenizer, tmp_path / "s", workers=1)
    write_marks(texts, annotator("names", texts), tokenizer, shards, tmp_path / "marks")
    marks = np.fromfile(tmp_path / "marks", np.uint8)
    return PackedSequences(
        shards, tokenizer.vocabulary, max_length=128, batch_tokens=4096, seed=0, marks=marks
    ).sequences(0)


def test_entities_are_masked_as_a_whole(papers, tmp_path):
    tokenizer = Tokenizer.train(papers, "wordpiece", 800)
    drawn = sequences_with_names(papers[:60], tokenizer, tmp_path)
    assert drawn.marks is not None
    masked, names_masked, names_all = 0, 0, 0
    for seed in range(5):
        objective = MaskedLM(units="entity")
        batch = objective.prepare(drawn, np.random.default_rng(seed))
        assert batch.predict_at is not None
        chosen = np.zeros(len(drawn.ids), dtype=bool)
        chosen[batch.predict_at.numpy()] = True
        masked += chosen.sum()
        own = drawn.marks != OUTSIDE
        names_masked, names_all = names_masked + (chosen & own).sum(), names_all + own.sum()
        goes_on = np.flatnonzero(drawn.marks == INSIDE)
        goes_on = goes_on[~np.isin(drawn.ids[goes_on - 1], drawn.vocabulary.special)]
        np.testing.assert_array_equal(chosen[goes_on], chosen[goes_on - 1])
    assert masked / (5 * len(drawn.ids)) == pytest.approx(0.14, abs=0.02)
    # A little less than 15 %, since a long name may not fit into what is left of the share.
    assert 0.08 < names_masked / names_all < 0.2
    with pytest.raises(ConfigError, match=r"set data\.spans"):
        firth.recipe("bert").with_settings({"objective.units": "entity"})
    with pytest.raises(ConfigError, match=r"set data\.spans"):
        firth.recipe("bert-nsp").with_settings({"objective.masked.units": "entity"})


def test_entities_stay_whole_in_sentence_pairs(papers, tmp_path):
    """Marks move with their tokens when halves of sequences are put together anew."""
    tokenizer = Tokenizer.train(papers, "wordpiece", 800)
    drawn = sequences_with_names(papers[:60], tokenizer, tmp_path)
    objective = SentencePairs(masked=MaskedLM(units="entity"))
    pairs, *_ = pair_up(drawn, "next", np.random.default_rng(3))
    assert drawn.marks is not None
    assert pairs.marks is not None
    assert len(pairs.marks) == len(pairs.ids)
    named = {tokenizer.token(i) for i in drawn.ids[drawn.marks == OPENS].tolist()}
    assert {tokenizer.token(i) for i in pairs.ids[pairs.marks == OPENS].tolist()} <= named
    batch = objective.prepare(drawn, np.random.default_rng(3))
    chosen = np.zeros(len(pairs.ids), dtype=bool)
    assert batch.predict_at is not None
    chosen[batch.predict_at.numpy()] = True
    goes_on = np.flatnonzero(pairs.marks == INSIDE)
    goes_on = goes_on[~np.isin(pairs.ids[goes_on - 1], pairs.vocabulary.special)]
    np.testing.assert_array_equal(chosen[goes_on], chosen[goes_on - 1])


def test_a_run_with_salient_spans(tmp_path, papers):
    chosen = firth.recipe("t5", size="tiny", vocab_size=700).with_settings(
        {
            "objective.noise": "salient",
            "data.spans": "salient",
            "data.valid": 0.1,
            "training.steps": 60,
            "training.evaluate_every": 30,
            "training.batch_tokens": 1024,
            "data.max_length": 64,
        }
    )
    firth.pretrain(chosen, firth.Corpus.from_texts(papers[:60]), tmp_path / "run")
    losses = [row["valid_loss"] for row in read_metrics(tmp_path / "run") if "valid_loss" in row]
    assert losses[1] < losses[0] < np.log(700) - 2
    again = SpanCorruption(noise="salient")
    tokenizer = Tokenizer.load(tmp_path / "run")
    drawn = sequences_with_names(papers[:60], tokenizer, tmp_path)
    batch = again.prepare(drawn, np.random.default_rng(0))
    assert batch.source is not None
    sentinels = np.isin(batch.source.input_ids.numpy(), drawn.vocabulary.sentinels)
    owner = np.repeat(np.arange(batch.num_sequences), np.diff(batch.source.starts.numpy()))
    per_sequence = np.bincount(owner[sentinels], minlength=batch.num_sequences)
    assert drawn.marks is not None
    has_names = np.add.reduceat(drawn.marks, drawn.starts[:-1]) > 0
    assert 0.3 < has_names.mean() < 1
    assert (per_sequence[has_names] == 1).all()
    assert (per_sequence[~has_names] > 1).any()


def test_spans_that_are_nowhere_in_the_text_are_an_error(tmp_path):
    """Else plain words would be masked, and nobody would know."""
    (tmp_path / "phrases.txt").write_text("Firth of Forth\n")
    recipe = firth.recipe("bert", size="tiny", vocab_size=200).with_settings(
        {"data.spans": str(tmp_path / "phrases.txt"), "objective.units": "entity"}
    )
    corpus = firth.Corpus.from_texts([f"the firth of forth, part {i}" for i in range(300)])
    with pytest.raises(DataError, match=r"none of the spans of data\.spans is in the training"):
        firth.pretrain(recipe, corpus, tmp_path / "run")


def test_a_mark_at_the_beginning_of_a_file_is_no_part_of_a_phrase(tmp_path):
    (tmp_path / "terms.txt").write_bytes(b"\xef\xbb\xbfNew York\r\nOld Town\r\n")
    text = "In New York and Old Town."
    assert found(annotator(str(tmp_path / "terms.txt"), [])(text), text) == ["New York", "Old Town"]


def test_phrases_stand_beside_apostrophes_and_hyphens_but_not_within_words(tmp_path):
    path = tmp_path / "phrases.txt"
    phrases = ["Anna", "Europe", "coronavirus", "New York", "राम"]
    path.write_text("\n".join(phrases), encoding="utf-8")
    find = annotator(str(path), [])
    for text, expected in (
        ("We read Anna's and Anna’s book, not Annas.", ["Anna", "Anna"]),
        ("dans l'Europe de l’Est", ["Europe"]),
        ("anti-coronavirus-Gesetz, coronavirus-related", ["coronavirus", "coronavirus"]),
        ("_Anna_ in New York's New York-based press", ["Anna", "New York", "New York"]),
        ("रामायण और राम", ["राम"]),  # its vowel signs are part of a word
    ):
        assert found(find(text), text) == expected
    assert find("रामायण और राम") == [(10, 13)]


def test_rows_of_one_text_are_put_together(tmp_path):
    path = tmp_path / "marked.jsonl"
    spans = ([8, 11], [0, 3], [9, 12])  # the last overlaps one that came before
    rows = [json.dumps({"text": "Ada met Bob.", "spans": [span]}) for span in spans]
    path.write_text("\n".join(rows), encoding="utf-8")
    assert annotator(str(path), [])("Ada met Bob.") == [(0, 3), (8, 11)]


def test_a_row_too_deep_to_read_is_named(tmp_path):
    path = tmp_path / "marked.jsonl"
    path.write_text("\n" + "[" * 100_000, encoding="utf-8")
    with pytest.raises(DataError, match=r"marked\.jsonl, line 2: expected"):
        annotator(str(path), [])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_keep_the_marks_of_their_letters(form):
    """Yoruba's letters have no composed form for some of their marks."""
    for text, expected in (
        ("Ọbáfẹ́mi Awólọ́wọ̀ ní Ìbàdàn", ["Ọbáfẹ́mi Awólọ́wọ̀", "Ìbàdàn"]),
        ("Émile Zola, Zoë Müller-Lüdenscheidt", ["Émile Zola", "Zoë Müller-Lüdenscheidt"]),
    ):
        given = unicodedata.normalize(form, text)
        usual = usual_forms([given + ". " + given])
        found = [given[a:b] for a, b in names(given, usual)]
        assert found == [unicodedata.normalize(form, name) for name in expected]


def test_a_file_of_phrases_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "phrases.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not UTF-8"):
        annotator(str(tmp_path / "phrases.txt"), [])
