"""A decoder through every room: pre-trained, used, adapted, on the command line."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import firth
from firth.errors import ConfigError
from firth.objectives import CausalLM, MaskedLM
from firth.protocols import ABSENT, Example
from firth.text.batches import PackedSequences
from firth.text.shards import Shards, unigram_entropy
from tests.sources import VOCABULARY, ListSource, sequences_of
from tests.test_end_to_end import good, run

SMALL = {
    "model.max_length": 96,
    "data.max_length": 64,
    "data.valid_tokens": 4096,
    "training.batch_tokens": 1024,
    "training.evaluate_every": 50,
}


@pytest.fixture(scope="module")
def gpt_run(tmp_path_factory, papers):
    """A tiny decoder, pre-trained on papers for a few seconds."""
    chosen = firth.recipe("gpt", size="tiny", vocab_size=1000)
    path = tmp_path_factory.mktemp("gpt") / "run"
    train, valid = (firth.Corpus.from_texts(part) for part in (papers[:180], papers[180:]))
    firth.pretrain(chosen.with_settings({**SMALL, "training.steps": 100}), train, path, valid=valid)
    return path


@pytest.fixture(scope="module")
def lm(gpt_run) -> firth.LanguageModel:
    loaded = firth.load(gpt_run, device="cpu", precision="float32")
    assert isinstance(loaded, firth.LanguageModel)
    return loaded


def test_every_token_but_the_first_of_a_sequence_is_predicted():
    sequences = sequences_of([5, 2, 9])
    batch = CausalLM().prepare(sequences, np.random.default_rng(0))
    starts = sequences.starts.tolist()
    wanted = [(i, i + 1) for a, b in itertools.pairwise(starts) for i in range(a, b - 1)]
    assert batch.predict_at.tolist() == [at for at, _ in wanted]
    assert batch.targets.tolist() == [int(sequences.ids[target]) for _, target in wanted]
    assert torch.equal(batch.input_ids, torch.from_numpy(sequences.ids))


def test_the_closing_token_is_predicted_only_where_a_document_ends():
    documents = [np.arange(5, 5 + n) for n in (20, 6, 7)]
    packed = PackedSequences(
        ListSource(documents), VOCABULARY, max_length=10, batch_tokens=1000, seed=0
    )
    sequences = packed.sequences(0)
    assert sequences.ends_document is not None
    assert sequences.ends_document.sum() == 3
    batch = CausalLM().prepare(sequences, np.random.default_rng(0))
    assert batch.targets is not None
    assert (batch.targets == VOCABULARY.last).sum() == 3
    assert sorted(batch.targets[batch.targets != VOCABULARY.last].tolist()) == sorted(
        np.concatenate(documents).tolist()
    )


def test_right_to_left_the_opening_token_is_predicted_only_where_a_document_begins():
    documents = [np.arange(5, 5 + n) for n in (20, 6, 7)]
    packed = PackedSequences(
        ListSource(documents), VOCABULARY, max_length=10, batch_tokens=1000, seed=0
    )
    batch = CausalLM(backward=True).prepare(packed.sequences(0), np.random.default_rng(0))
    assert batch.targets is not None
    assert (batch.targets == VOCABULARY.first).sum() == 3
    assert sorted(batch.targets[batch.targets != VOCABULARY.first].tolist()) == sorted(
        np.concatenate(documents).tolist()
    )


def test_it_learns_more_than_frequencies(gpt_run, lm, papers):
    rows = [json.loads(line) for line in (gpt_run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["valid_loss"] for row in rows if "valid_loss" in row]
    entropy = unigram_entropy(Shards.open(gpt_run / "data" / "train").token_counts)
    assert losses[-1] < entropy - 0.5
    scores = lm.score(papers[180:190])
    words = " ".join(papers[180:190]).split()
    np.random.default_rng(0).shuffle(words)
    (shuffled,) = lm.score([" ".join(words[:200])])
    mean = sum(s.total for s in scores) / sum(len(s.tokens) for s in scores)
    assert mean > shuffled.total / len(shuffled.tokens) + 0.3


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_twenty_sentences_are_memorised(name, tmp_path, papers):
    sentences = [" ".join(text.split()[:12]) for text in papers[:20]]
    chosen = firth.recipe(name, size="tiny", vocab_size=600).with_settings(
        {
            "data.max_length": 64,
            "training.batch_tokens": 1024,
            "training.steps": 250,
            "training.precision": "float32",
        }
    )
    corpus = firth.Corpus.from_texts(sentences)
    lm = firth.pretrain(chosen, corpus, tmp_path / "run", valid=corpus)
    heads = [" ".join(sentence.split()[:4]) for sentence in sentences]  # whole words
    found = lm.generate(heads, max_tokens=60)
    right = sum(one.text == sentence for one, sentence in zip(found, sentences, strict=True))
    assert right >= 15


@pytest.mark.parametrize(
    "how",
    [firth.FineTuning(lr=1e-3, epochs=6, reset_layers=0), firth.Frozen(epochs=10, lr=3e-3)],
)
def test_it_is_taught_a_task_and_saved(lm, how, tmp_path, papers):
    sea, land = "The ship left the harbour {}.", "The tractor crossed the field {}."
    days = ("today", "early", "at noon", "late", "again", "at last", "slowly", "alone")
    rows = [
        (t.format(f"{d} {n}"), k)
        for t, k in ((sea, "sea"), (land, "land"))
        for d in days
        for n in range(4)
    ]
    examples = [Example(texts=(text,), label=label) for text, label in rows]
    adapted = firth.adapt(lm, firth.Classification(), examples, how)
    assert adapted.summary()["accuracy"][0] == 1.0
    if isinstance(how, firth.FineTuning):
        assert adapted.network.head.pooling == "last"
    adapted.save(tmp_path)
    loaded = firth.load(tmp_path, device="cpu", precision="float32")
    assert isinstance(loaded, firth.AdaptedModel)
    np.testing.assert_allclose(loaded.scores(examples), adapted.scores(examples), atol=1e-5)


def test_vectors_and_states(lm):
    vectors = lm.embed(["The results are good.", "We parse."])
    assert vectors.shape == (2, 128)
    (states,) = lm.hidden_states(["We parse."])
    assert states.values.shape == (3, len(states.tokens), 128)
    (words,) = lm.embed([["We", "parse", "."]], unit="word")
    assert words.units == ["We", "parse", "."]


def test_generate_on_the_command_line(gpt_run):
    greedy = good("generate", gpt_run, "The results", "--max-tokens", 8)
    assert greedy.startswith("The results")
    assert good("generate", gpt_run, "The results", "--max-tokens", 8) == greedy
    lines = good("generate", gpt_run, "The", "We", "--max-tokens", 8, "--beams", 3, "--json")
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["prompt"] for row in rows] == ["The", "We"]
    assert all(len(row["tokens"]) <= 8 for row in rows)
    warm = ["--max-tokens", 12, "--temperature", 1.0, "--top-p", 0.9]
    first = good("generate", gpt_run, "We", *warm)
    assert good("generate", gpt_run, "We", *warm) == first
    assert good("generate", gpt_run, "We", *warm, "--seed", 1) != first


def test_verbs_that_need_another_model(gpt_run, tiny_run):
    assert "generate" in run("fill", gpt_run, "The [MASK].").err
    result = run("generate", tiny_run, "The")
    assert result.code != 0
    assert "fill" in result.err
    assert good("generate", gpt_run, "--max-tokens", 3).strip()  # it begins by itself


def test_score_names_its_method(gpt_run, tmp_path):
    (tmp_path / "lines.txt").write_text("The results are good.\n")
    row = json.loads(good("score", gpt_run, tmp_path / "lines.txt", "--json"))
    assert row["method"] == "log-likelihood"
    assert row["nats"] == pytest.approx(sum(row["log_probabilities"]), abs=1e-3)


def test_masked_lm_without_a_mask_is_refused():
    sequences = sequences_of([5])
    bare = replace(sequences, vocabulary=replace(sequences.vocabulary, mask=ABSENT))
    with pytest.raises(ConfigError, match="mask token"):
        MaskedLM().prepare(bare, np.random.default_rng(0))
