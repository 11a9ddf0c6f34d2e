"""Minimal pairs: reading, accuracies by hand, n-gram models by the formula, words masked whole."""

import json
import math
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import firth
from firth.errors import ConfigError, DataError, DivergedError, UnsupportedError
from firth.inference.forward import Engine, windows
from firth.inference.minimal_pairs import baseline_differences, encode_pairs, model_differences
from firth.inference.ngrams import KneserNey, corpus_tokens, unigram_log_probabilities
from firth.inference.scoring import Score, _masked_copy, score_masked
from firth.models import GPT, Bert, BertConfig, GPTConfig
from firth.protocols import Batch
from firth.tasks.suites import (
    MinimalPair,
    accuracy,
    measure,
    permutations,
    read_suite,
    report,
)
from firth.text.shards import Shards
from tests.sources import ListSource, markov_documents, random_documents
from tests.test_end_to_end import good, run, strict_json

PAIRS = [
    ("The results are good.", "The results is good.", "agreement", "verbs"),
    ("The parser is fast.", "The parser are fast.", "agreement", "verbs"),
    ("We use these corpora.", "We use this corpora.", "nouns", "determiners"),
    ("What did we parse?", "What we did parse?", "order", "syntax"),
]


def pair(number: int, paradigm: str, field: str, good="a b", bad="a c") -> MinimalPair:
    return MinimalPair(good=good, bad=bad, paradigm=paradigm, field=field, where=f"row {number}")


def write_pairs(path: Path, rows=PAIRS) -> Path:
    lines = ["good\tbad\tparadigm\tfield", *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lm(tiny_run) -> firth.LanguageModel:
    model = firth.load(tiny_run, device="cpu", precision="float32")
    assert isinstance(model, firth.LanguageModel)
    return model


@pytest.fixture(scope="module")
def tiny_gpt(lm) -> firth.LanguageModel:
    """A decoder that has learned nothing, with the vocabulary of `lm`."""
    torch.manual_seed(0)
    shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32}
    config = GPTConfig(vocab_size=lm.tokenizer.vocabulary.size, **shape)
    return firth.LanguageModel(GPT(config).eval(), lm.tokenizer, precision="float32")


# Reading


def test_blimp_is_read_by_paradigm_and_field(tmp_path):
    row = {"sentence_good": "A cat is.", "sentence_bad": "A cat are.", "UID": "one", "pairID": "0"}
    rows = [{**row, "field": "syntax/semantics"}, {**row, "field": "syntax_semantics"}]
    (tmp_path / "one.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = json.dumps({**row, "UID": "two", "field": "morphology"})
    (tmp_path / "two.jsonl").write_text(other)
    (tmp_path / "README.txt").write_text("not a paradigm")
    found = read_suite(tmp_path)
    assert [one.paradigm for one in found] == ["one", "one", "two"]
    assert [one.field for one in found] == ["syntax_semantics"] * 2 + ["morphology"]
    assert (found[0].good, found[0].bad) == ("A cat is.", "A cat are.")
    assert len(read_suite(tmp_path, limit=1)) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("my.tsv", 'good\tbad\n"Yes", he said.\tYes "he said".\n'),
        ("my.csv", 'bad,good\n"Yes ""he said"".","""Yes"", he said."\n'),
        ("my.jsonl", json.dumps({"good": '"Yes", he said.', "bad": 'Yes "he said".'})),
    ],
)
def test_own_pairs_need_two_columns(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (found,) = read_suite(tmp_path / name, suite="pairs")
    assert (found.good, found.bad) == ('"Yes", he said.', 'Yes "he said".')
    assert found.paradigm == found.field == "my"


def test_own_pairs_may_have_paradigms_and_fields(tmp_path):
    found = read_suite(write_pairs(tmp_path / "pairs.tsv"), suite="pairs")
    assert [(p.good, p.bad, p.paradigm, p.field) for p in found] == PAIRS
    (tmp_path / "a.csv").write_text("good,bad,paradigm\nx,y,tense/mood\n")
    (one,) = read_suite(tmp_path / "a.csv", suite="pairs")
    assert one.field == one.paradigm == "tense/mood"


@pytest.mark.parametrize(
    ("name", "content", "suite", "said"),
    [
        ("a.tsv", "right\twrong\nx\ty\n", "pairs", ["row 1", "'right', 'wrong'", "good, bad"]),
        ("a.tsv", "good\tbad\nx\ty\nx\t \n", "pairs", ["row 3", "bad"]),
        ("a.jsonl", '{"good": "x", "bad": "y"}\n{"good": "x"}', "pairs", ["row 2", "bad"]),
        ("a.jsonl", '{"good": "x", "bad": 3}', "pairs", ["row 1", "bad is 3"]),
        ("a.jsonl", "good bad", "pairs", ["row 1", "good, bad"]),
        ("a.jsonl", '{"good": "x", "bad": "y"}', "blimp", ["row 1", "sentence_good"]),
        ("a.tsv", "good\tbad\nx\ty\n", "blimp", [".jsonl"]),
        ("a.csv", "good,bad\n", "pairs", ["no rows"]),
        (
            "a.jsonl",
            '{"good": "x", "bad": "y"}\n{"good": "x", "bad": "y", "paradigm": "p"}',
            "pairs",
            ["row 2", "'paradigm'", "in every row, or in none"],
        ),
        ("a.csv", "good,bad,paradigm,field\nx,y,p,f\nx,y,p,g\n", "pairs", ["row 3", "'g'", "'f'"]),
    ],
)
def test_errors_say_where_and_what(tmp_path, name, content, suite, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        read_suite(tmp_path / name, suite=suite)
    assert all(part in str(error.value) for part in [name, *said])


def test_suites_and_limits_that_do_not_exist(tmp_path):
    path = write_pairs(tmp_path / "pairs.tsv")
    with pytest.raises(ConfigError, match="blimp, pairs"):
        read_suite(path, suite="zorro")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="at least 1"):
        read_suite(path, suite="pairs", limit=0)
    with pytest.raises(DataError, match=r"nowhere"):
        read_suite(tmp_path / "nowhere", suite="pairs")


# Accuracies


def test_a_tie_is_half_right():
    assert accuracy(np.array([1.0, -1.0, 0.0, 2.0])) == 2.5 / 4
    assert accuracy(np.zeros(7)) == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_no_number_names_its_pair(bad):
    pairs = [pair(1, "p", "f"), pair(2, "p", "f", good="She sings.", bad="She sing.")]
    with pytest.raises(DivergedError, match=r"row 2.*'She sings.' and 'She sing.'.*1 of 2"):
        measure(pairs, np.array([1.0, bad]))


def test_infinite_scores_neither_win_nor_tie(lm):
    sentences = encode_pairs(lm.tokenizer, [("We parse.", "We parsed."), ("A table.", "A corpus.")])
    for scores in ([-np.inf, -np.inf, -1, -2], [-1, -np.inf, -1, -2], [np.nan, -1, -1, -2]):
        found = sentences.differences(np.array(scores))
        assert math.isnan(found[0])
        assert found[1] == 1


def test_means_are_over_paradigms_not_over_pairs():
    pairs = [pair(i, "big", "f") for i in range(8)]
    pairs += [pair(8, "small", "f"), pair(9, "other", "g"), pair(10, "other", "g")]
    differences = np.array([1.0] * 6 + [-1.0] * 2 + [-1.0] + [0.0, 1.0])
    found = measure(pairs, differences)
    assert found.paradigms == {"big": 0.75, "small": 0.0, "other": 0.75}
    assert found.fields == {"f": 0.375, "g": 0.75}
    assert found.overall == pytest.approx(0.5)
    assert found.without_permutations == found.overall


def test_permutations_of_words_are_found():
    same = [
        ("Who should Derek hug after shocking Richard?", "Who should Derek hug Richard after it?"),
        ("What had Ann walked through that day?", "What had Ann walked that day through?"),
        ("Anna did see it .", "Did Anna see it?"),
        ("यह सच है।", "है सच यह।"),
    ]
    assert permutations([pair(0, "p", "f", *same[0])]) == frozenset()
    for good_one, bad_one in same[1:]:
        assert permutations([pair(0, "p", "f", good_one, bad_one)]) == {"p"}
    repeated = pair(0, "p", "f", "a b b", "a a b")  # as sets the same, as multisets not
    assert permutations([repeated]) == frozenset()
    permuted, other = pair(0, "p", "f", *same[1]), pair(1, "p", "f")
    assert permutations([permuted] * 19 + [other]) == {"p"}
    assert permutations([permuted] * 18 + [other] * 2) == frozenset()


def test_the_mean_without_permutations_leaves_them_out():
    pairs = [pair(0, "p", "f", "a b", "b a"), pair(1, "q", "f")]
    assert measure(pairs, np.array([1.0, -1.0])).without_permutations == 0.0
    assert measure(pairs[:1], np.array([1.0])).without_permutations is None
    found = report(pairs, np.array([1.0, -1.0]), {"coin": np.zeros(2)})
    assert found.metrics == {"accuracy": 0.5, "accuracy_without_permutations": 0.0}
    assert found.details["paradigms"]["p"]["permutations"]
    assert found.details["baselines"]["coin"]["overall"] == 0.5
    assert "accuracy_without_permutations" not in report(pairs[:1], np.ones(1), {}).metrics


# N-gram models


class SlowKneserNey:
    """Chen & Goodman 1999 in dictionaries: p(w | h) with the discounts of section 3."""

    def __init__(self, documents: list[list[int]], vocab_size: int, first: int, order: int):
        self.vocab_size, self.order = vocab_size, order
        top: Counter[tuple[int, ...]] = Counter()
        kinds: list[set[tuple[int, ...]]] = [set() for _ in range(order + 1)]
        for document in documents:
            words = [first] * (order - 1) + document
            for t in range(order - 1, len(words)):
                top[tuple(words[t - order + 1 : t + 1])] += 1
                for length in range(1, order + 1):
                    kinds[length].add(tuple(words[t - length + 1 : t + 1]))
        self.followers: list[dict] = [{} for _ in range(order + 1)]
        self.discounts: list[list[float]] = [[] for _ in range(order + 1)]
        for length in range(1, order + 1):
            counts = top
            if length < order:  # continuation counts
                counts = Counter(gram[1:] for gram in kinds[length + 1])
            followers: dict = defaultdict(dict)
            for gram, count in counts.items():
                followers[gram[:-1]][gram[-1]] = count
            self.followers[length] = followers
            n = Counter(counts.values())
            self.discounts[length] = [0, 0.5, 1.0, 1.5]
            if all(n[i] for i in (1, 2, 3, 4)):
                y = n[1] / (n[1] + 2 * n[2])
                d = [0, *(i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3))]
                if all(0 <= d[i] <= i for i in (1, 2, 3)):
                    self.discounts[length] = d

    def probability(self, word: int, context: tuple[int, ...]) -> float:
        length = len(context) + 1
        if not context:
            shorter = 1 / self.vocab_size
        else:
            shorter = self.probability(word, context[1:])
        followers = self.followers[length].get(context)
        if not followers:
            return shorter
        d, total = self.discounts[length], sum(followers.values())
        count = followers.get(word, 0)
        left = sum(d[min(c, 3)] for c in followers.values())
        return (count - d[min(count, 3)]) / total + left / total * shorter


def laid(documents: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(documents), ListSource(documents).document_starts


V, FIRST = 60, 2


def texts(kind: str) -> list[np.ndarray]:
    if kind == "patterned":
        return markov_documents(0, 60)
    if kind == "one word":
        return [np.array([7])]
    return random_documents(0, 120)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["patterned", "random", "one word"])
def test_kneser_ney_equals_the_formula_and_sums_to_one(kind, order):
    documents = texts(kind)
    model = KneserNey.count(*laid(documents), vocab_size=V, first=FIRST, order=order)
    slow = SlowKneserNey([d.tolist() for d in documents], V, FIRST, order)
    seen = documents[0]
    contexts = [seen[:0], seen[:1], seen[:3], seen[:7], np.array([59, 0, 59, 5]), seen[-5:]]
    contexts += [np.random.default_rng(i).integers(5, 60, 4) for i in range(3)]
    for context in contexts:
        ways = [np.concatenate([context, [word]]) for word in range(V)]
        tokens, starts = laid(ways)
        found = np.exp(model.log_probabilities(tokens, starts)[starts[1:] - 1])
        assert found.sum() == pytest.approx(1, abs=1e-9)
        padded = (FIRST,) * (order - 1) + tuple(context.tolist())
        history = padded[len(padded) - order + 1 :]
        expected = [slow.probability(word, history) for word in range(V)]
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_discounts_are_estimated_where_they_can_be():
    """The comparison above would say nothing if all its discounts were the fallback."""
    slow = SlowKneserNey([d.tolist() for d in random_documents(0, 120)], V, FIRST, 3)
    assert slow.discounts[2] != [0, 0.5, 1.0, 1.5]


def test_no_n_gram_crosses_a_document():
    documents = random_documents(1, 40)
    tokens, starts = laid(documents)
    backwards = KneserNey.count(*laid(documents[::-1]), vocab_size=V, first=FIRST)
    forwards = KneserNey.count(tokens, starts, vocab_size=V, first=FIRST)
    np.testing.assert_allclose(
        forwards.log_probabilities(tokens, starts), backwards.log_probabilities(tokens, starts)
    )
    one = KneserNey.count(tokens, starts[[0, -1]], vocab_size=V, first=FIRST)
    assert len(one.grams[1].keys) > len(forwards.grams[1].keys)
    alone = [forwards.log_probabilities(d, np.array([0, len(d)])) for d in documents]
    np.testing.assert_array_equal(np.concatenate(alone), forwards.log_probabilities(tokens, starts))


def test_five_grams_beat_frequencies_on_text_not_seen(tiny_run, lm):
    vocabulary = lm.tokenizer.vocabulary
    train, valid = (
        corpus_tokens(Shards.open(tiny_run / "data" / side)) for side in ("train", "valid")
    )
    size = vocabulary.size
    model = KneserNey.count(*train, vocab_size=size, first=vocabulary.first)
    unigram = unigram_log_probabilities(train[0], size)
    assert np.exp(unigram).sum() == pytest.approx(1)
    assert model.log_probabilities(*valid).mean() > unigram[valid[0]].mean() + 0.5


def test_of_a_large_corpus_stretches_are_taken(tiny_run):
    shards = Shards.open(tiny_run / "data" / "train")
    everything, starts = corpus_tokens(shards)
    np.testing.assert_array_equal(everything, shards.tokens(0, len(shards)))
    np.testing.assert_array_equal(starts, shards.document_starts)
    budget = len(shards) - 1
    length = budget // 256
    tokens, starts = corpus_tokens(shards, budget)
    assert len(tokens) == starts[-1] == 256 * length
    assert (np.diff(starts) > 0).all()
    assert set(range(0, 256 * length, length)) <= set(starts.tolist())
    begins = set((shards.document_starts[:-1]).tolist())
    for at in np.setdiff1d(starts[:-1], np.arange(0, 256 * length, length)).tolist():
        stretch = np.linspace(0, len(shards) - length, 256).astype(int)[at // length]
        assert int(stretch) + at % length in begins


# Scores


def test_the_rest_of_a_word_is_masked_too(lm):
    torch.manual_seed(0)
    shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=lm.tokenizer.vocabulary.size, **shape)
    bert = firth.LanguageModel(Bert(config, pooler=False).eval(), lm.tokenizer, precision="float32")
    sentences: list = ["Incomprehensible reparametrisations, unsurprisingly.", "We parse.", ""]
    sentences.append(["incomprehensible", "un-surprising", "ok"])
    plain, whole = bert.score(sentences), bert.score(sentences, within_word=True)
    vocabulary = lm.tokenizer.vocabulary
    for text, found in zip(sentences, whole, strict=True):
        encoding = lm.tokenizer.encode(text)
        expected = []
        for at in range(1, len(encoding.ids) - 1):
            masked = encoding.ids.copy()
            for later in range(at, len(masked)):
                if encoding.words[later] == encoding.words[at]:
                    masked[later] = vocabulary.mask
            expected.append(log_probability(bert, masked, at, int(encoding.ids[at])))
        np.testing.assert_allclose(found.log_probabilities, expected, atol=1e-5)
        assert found.method == "pseudo-log-likelihood, within words"
    assert plain[0].method == "pseudo-log-likelihood"
    assert len(set(lm.tokenizer.encode(sentences[0]).words)) < len(plain[0].tokens)
    assert np.abs(plain[0].log_probabilities - whole[0].log_probabilities).max() > 1e-4


def log_probability(lm: firth.LanguageModel, ids: np.ndarray, at: int, token: int) -> float:
    batch = Batch(input_ids=torch.from_numpy(ids), starts=torch.tensor([0, len(ids)]))
    with torch.inference_mode():
        logits = lm.model.logits(lm.model(batch).last[at : at + 1])
        return float(torch.log_softmax(logits, -1)[0, token])


def test_a_word_over_the_edge_of_a_window_leaves_its_closing_token(lm):
    encoding = lm.tokenizer.encode(["x" * 40])
    short = Engine(lm.model, lm.engine.device, torch.float32, max_length=12)
    pieces = windows([encoding], 12)
    assert len(pieces) > 1
    (found,) = score_masked(short, lm.tokenizer, [encoding], within_word=True)
    expected = {}
    for window in pieces:
        for token in range(max(1, window.begin), min(window.end, len(encoding.ids) - 1)):
            masked = window.ids.copy()
            masked[token - window.offset : -1] = lm.tokenizer.vocabulary.mask
            at = token - window.offset
            expected[token] = log_probability(lm, masked, at, int(encoding.ids[token]))
    by_hand = [expected[token] for token in sorted(expected)]
    np.testing.assert_allclose(found.log_probabilities, by_hand, atol=1e-5)


def test_a_decoder_has_no_within_word(tiny_gpt, tmp_path):
    with pytest.raises(UnsupportedError, match="within_word"):
        tiny_gpt.score(["We parse."], within_word=True)


def test_differences_are_of_total_scores(lm, tiny_gpt):
    pairs = [(one[0], one[1]) for one in PAIRS]
    sentences = encode_pairs(lm.tokenizer, pairs)
    for model in (lm, tiny_gpt):
        found, method = model_differences(sentences, model.score)
        for difference, (good_one, bad_one) in zip(found, pairs, strict=True):
            better, worse = model.score([good_one, bad_one])
            assert difference == pytest.approx(better.total - worse.total, abs=1e-4)
            assert method == better.method


def test_what_the_vocabulary_cannot_tell_apart_ties_exactly(tiny_gpt):
    pairs = [(one[0], one[1]) for one in PAIRS]
    pairs += [("A 🙂 in the table.", "A 🦊 in the table."), ("We parse.", "We parse.")]
    sentences = encode_pairs(tiny_gpt.tokenizer, pairs)
    assert len(sentences.encodings) == 2 * len(PAIRS) + 2
    found, _ = model_differences(sentences, tiny_gpt.score)
    assert found[-2:].tolist() == [0, 0]
    assert (found[:-2] != 0).all()


def test_a_sentence_without_tokens_is_refused(lm):
    with pytest.raises(DataError, match="no token"):
        encode_pairs(lm.tokenizer, [("We parse.", " ")])


def test_a_permutation_has_the_same_word_frequencies(lm, tiny_run):
    shards = Shards.open(tiny_run / "data" / "train")
    pairs = [
        ("what did the parser of the corpus find in the table", "find what did the parser of the "
         "table in the corpus"),
        ("the results are shown", "the results is shown"),
    ]  # fmt: skip
    sentences = encode_pairs(lm.tokenizer, pairs)
    found = baseline_differences(sentences, shards, lm.tokenizer)
    assert list(found) == ["word frequency", "5-gram"]
    assert found["word frequency"][0] == 0
    assert found["5-gram"][0] != 0
    unigram = unigram_log_probabilities(shards.tokens(0, len(shards)), lm.tokenizer.vocabulary.size)
    one, other = (lm.tokenizer.encode(text, special_tokens=False).ids for text in pairs[1])
    expected = unigram[one].sum() - unigram[other].sum()
    assert found["word frequency"][1] == pytest.approx(expected)


def test_more_sentences_than_a_chunk_keep_their_places(lm, monkeypatch):
    monkeypatch.setattr("firth.inference.minimal_pairs.CHUNK", 3)
    sentences = encode_pairs(lm.tokenizer, [(one[0], one[1]) for one in PAIRS])
    asked = []

    def by_length(texts: list[str]) -> list[Score]:
        asked.append(len(texts))
        return [
            Score(
                text=one,
                tokens=[one],
                log_probabilities=-np.array([float(len(one))]),
                method="log-likelihood",
            )
            for one in texts
        ]

    found, _ = model_differences(sentences, by_length)
    assert asked == [3, 3, 2]
    assert found.tolist() == [len(one[1]) - len(one[0]) for one in PAIRS]


# A model on a suite


def test_minimal_pairs_of_a_masked_model(lm, tmp_path):
    path = write_pairs(tmp_path / "pairs.tsv")
    found = lm.minimal_pairs(path, suite="pairs")
    scores = [lm.score([one[0], one[1]]) for one in PAIRS]
    right = [better.total > worse.total for better, worse in scores]
    by_paradigm = [np.mean(right[:2]), right[2], right[3]]
    assert found.score == pytest.approx(np.mean(by_paradigm))
    assert found.metrics["accuracy_without_permutations"] == pytest.approx(np.mean(by_paradigm[:2]))
    assert found.num_examples == 4
    assert found.details["method"] == "pseudo-log-likelihood"
    assert set(found.details["baselines"]) == {"word frequency", "5-gram"}
    assert found.details["baselines"]["word frequency"]["paradigms"]["order"] == 0.5
    within = lm.minimal_pairs(path, suite="pairs", within_word=True)
    assert within.details["method"] == "pseudo-log-likelihood, within words"


def test_a_model_that_gives_no_numbers_is_an_error(tiny_gpt, tmp_path):
    path = write_pairs(tmp_path / "pairs.tsv")
    weight = next(tiny_gpt.model.parameters())
    kept = weight.detach().clone()
    broken = replace(tiny_gpt)
    try:
        with torch.no_grad():
            weight.fill_(torch.nan)
        with pytest.raises(DivergedError, match=r"pairs.tsv: row 2"):
            broken.minimal_pairs(path, suite="pairs")
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_evaluate_a_suite_on_the_command_line(tiny_run, tmp_path):
    path = write_pairs(tmp_path / "pairs.tsv")
    lines = good("evaluate", tiny_run, path, "--suite", "pairs").splitlines()
    rows = [line.split("\t") for line in lines]
    assert rows[0] == ["field", "paradigms", "pairs", "model", "word frequency", "5-gram"]
    fields = ["determiners", "syntax", "verbs", "overall", "without permutations"]
    assert [row[0] for row in rows[1:6]] == fields
    assert [row[1:3] for row in rows[3:6]] == [["1", "2"], ["3", "4"], ["2", "3"]]
    assert rows[6] == ["method", "pseudo-log-likelihood"]
    quick = good("evaluate", tiny_run, path, "--suite", "pairs", "--limit", 1, "--within-word")
    assert "pseudo-log-likelihood, within words" in quick
    assert "first 1 pairs of each paradigm: a quick look" in quick
    found = strict_json(good("evaluate", tiny_run, path, "--suite", "pairs", "--json"))
    assert found["num_examples"] == 4
    assert found["accuracy"] == pytest.approx(float(rows[4][3]), abs=1e-4)
    details = found["details"]
    assert details["paradigms"]["order"]["permutations"]
    assert details["paradigms"]["agreement"]["pairs"] == 2
    assert details["limit"] is None
    assert details["suite"] == "pairs"


def test_ties_are_counted(tiny_run, tmp_path):
    (tmp_path / "same.tsv").write_text("good\tbad\na b\ta b\nWe parse.\tWe parses.\n")
    out = good("evaluate", tiny_run, tmp_path / "same.tsv", "--suite", "pairs")
    assert "ties\t1 pairs have two sentences of one score, and count half" in out
    lm = firth.load(tiny_run)
    found = lm.minimal_pairs(tmp_path / "same.tsv", suite="pairs")
    assert found.details["paradigms"]["same"]["ties"] == 1


def test_files_of_one_name_are_paradigms_of_their_own(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "simple.tsv").write_text(f"good\tbad\n{folder}\tx\n")
    (tmp_path / "b" / "other.tsv").write_text("good\tbad\ny\tx\n")
    pairs = read_suite(tmp_path, suite="pairs")
    names = ["a/simple", "other", "b/simple"]
    assert [one.paradigm for one in pairs] == [one.field for one in pairs] == names


def test_a_decoder_without_its_text_has_no_baselines(tiny_gpt, tmp_path):
    tiny_gpt.save(tmp_path / "gpt")
    path = write_pairs(tmp_path / "pairs.tsv")
    result = run("evaluate", tmp_path / "gpt", path, "--suite", "pairs")
    assert result.code == 0
    assert "no baselines" in result.err
    assert "data/train" in result.err
    lines = result.out.splitlines()
    assert lines[0] == "field\tparadigms\tpairs\tmodel"
    assert lines[-1] == "method\tlog-likelihood"
    refused = run("evaluate", tmp_path / "gpt", path, "--suite", "pairs", "--within-word")
    assert refused.code == 2
    assert "within_word" in refused.err


def test_misuse_on_the_command_line(tiny_run, tmp_path):
    path = write_pairs(tmp_path / "pairs.tsv")
    assert "--suite" in run("evaluate", tiny_run, path, "--limit", 3).err
    assert run("evaluate", tiny_run, path, "--limit", 3).code == 2
    wrong = run("evaluate", tiny_run, path, "--suite", "blimp")
    assert wrong.code == 3
    assert ".jsonl" in wrong.err


def test_score_within_words_on_the_command_line(tiny_run, tmp_path):
    (tmp_path / "a.txt").write_text("We parse.\n")
    result = run("score", tiny_run, tmp_path / "a.txt", "--within-word")
    assert result.code == 0
    assert "pseudo-log-likelihood, within words" in result.err


# The published suite


@pytest.fixture(scope="module")
def blimp(shared) -> Path:
    if not (shared / "data" / "blimp").is_dir():
        pytest.skip("BLiMP is not in the folder shared/data")
    return shared / "data" / "blimp"


def test_blimp_as_published(blimp):
    pairs = read_suite(blimp)
    found = measure(pairs, np.zeros(len(pairs)))
    assert set(found.paradigms.values()) == {0.5}
    assert set(found.fields) == {"morphology", "semantics", "syntax", "syntax_semantics"}
    sizes = Counter(one.paradigm for one in pairs)
    assert set(sizes.values()) == {1000}
    permuted = permutations(pairs)
    assert {"adjunct_island", "ellipsis_n_bar_1", "principle_A_reconstruction"} <= permuted
    assert "anaphor_number_agreement" not in permuted
    # 15.6 % of its pairs are permutations
    assert "coordinate_structure_constraint_object_extraction" not in permuted


def test_word_frequencies_say_nothing_about_permutations(blimp, tiny_run, lm):
    pairs = read_suite(blimp, limit=20)
    sentences = encode_pairs(lm.tokenizer, [(one.good, one.bad) for one in pairs])
    shards = Shards.open(tiny_run / "data" / "train")
    found = baseline_differences(sentences, shards, lm.tokenizer)
    values = measure(pairs, found["word frequency"]).paradigms
    ties = [name for name in permutations(pairs) if values[name] == 0.5]
    assert len(ties) >= len(permutations(pairs)) - 1  # one moves a word from the beginning: case


def test_the_last_word_of_a_text_without_a_closing_token_is_masked_whole():
    class Closing:
        ids, offset = np.array([1, 20, 21, 22]), 0

    open_ended = np.array([-1, 0, 0, 0])
    assert _masked_copy(Closing, 1, 4, open_ended).tolist() == [1, 4, 4, 4]
    assert _masked_copy(Closing, 2, 4, open_ended).tolist() == [1, 20, 4, 4]
    closed = np.array([-1, 0, 0, -1])
    assert _masked_copy(Closing, 1, 4, closed).tolist() == [1, 4, 4, 22]
