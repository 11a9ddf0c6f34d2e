"""Word vectors: the compiled loops against PyTorch's gradients, and runs."""

import math
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import firth
from firth.api import pretraining, static_training
from firth.api.adapted import encoded
from firth.api.word_vectors import vocabulary_vectors
from firth.errors import CheckpointError, ConfigError, DataError, Interrupted, UnsupportedError
from firth.models import Static, StaticConfig
from firth.models.static import fnv1a, input_rows, ngram_rows
from firth.objectives import CBOW, GloVe, SkipGram
from firth.objectives.word_context import (
    alias_table,
    keep_probabilities,
    negative_sampling,
)
from firth.protocols import ABSENT, Batch, Example, Sequences
from firth.tasks import Classification
from firth.training import hogwild
from firth.training.distributed import Ranks
from firth.training.hogwild import run_steps
from firth.training.tracking import read_metrics
from firth.training.word_vectors import NegativeSampling, count_pairs, learner

pytest.importorskip("numba")

from firth.objectives import glove_kernels
from firth.objectives import word_context_kernels as loops

WORDS, SIZE, WINDOW, NEGATIVES = 400, 12, 3, 4


def shuffled_text(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three pieces, in each of which no word stands twice."""
    rng = np.random.default_rng(seed)
    pieces = [rng.permutation(WORDS)[:n] for n in (40, 9, 15)]
    starts = np.cumsum([0, *map(len, pieces)])
    return np.concatenate(pieces).astype(np.int32), starts


def drawn(tokens, starts, keep, odds, alias, seed):
    """The words kept, reaches and targets that the loops draw: (kept, [(reach, targets)])."""
    state = np.full(1, seed, np.uint64)
    for piece in range(len(starts) - 1):
        kept = np.empty(len(tokens), np.int64)
        text = tokens[starts[piece] : starts[piece + 1]]
        kept = kept[: loops.keep_some(text, keep, state, kept)]
        targets = np.empty((len(kept), NEGATIVES + 1), np.int64)
        counts = np.zeros(len(kept), np.int64)
        reaches = []
        for i in range(-1, len(kept)):
            if i + 1 < len(kept):
                row = targets[i + 1]
                counts[i + 1] = loops.draw_targets(kept[i + 1], odds, alias, state, row)
            if i >= 0:
                reaches.append(1 + int(loops.next_random(state) >> np.uint64(33)) % WINDOW)
        yield kept, reaches, [row[:n] for row, n in zip(targets, counts, strict=True)]


def weights(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.4, (rows, SIZE)).astype(np.float32)


def drawing() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = np.arange(WORDS, 2 * WORDS)
    return (keep_probabilities(counts, 0.001), *alias_table(counts**0.75))


def model_of(inputs: np.ndarray, outputs: np.ndarray) -> Static:
    model = Static(StaticConfig(vocab_size=len(inputs), hidden_size=SIZE)).double()
    model.embeddings.tokens.weight.data = torch.from_numpy(inputs).double()
    model.outputs.weight.data = torch.from_numpy(outputs).double()
    return model


def targets_batch(targets: np.ndarray) -> Batch:
    empty = torch.zeros(0, dtype=torch.int64)
    return Batch(input_ids=empty, starts=empty, targets=torch.from_numpy(targets)[None])


@pytest.mark.parametrize("ngrams", [0, 5])
def test_skip_gram_takes_the_gradient_steps_of_its_loss(ngrams):
    """Word by word, SGD on the loss of `negative_sampling`, with an input of one row or several."""
    tokens, starts = shuffled_text()
    keep, odds, alias = drawing()
    rows = np.arange(WORDS * (1 + ngrams), dtype=np.int32).reshape(1 + ngrams, WORDS).T
    inputs, outputs, lr = weights(rows.size, 1), weights(WORDS, 2), 0.1
    model = model_of(inputs, outputs)
    table, out = model.embeddings.tokens.weight, model.outputs.weight
    losses = []
    for kept, reaches, all_targets in drawn(tokens, starts, keep, odds, alias, seed=5):
        assert 2 < len(kept) < len(tokens)
        assert all(len(set(row)) == len(row) for row in all_targets)
        for i, (reach, targets) in enumerate(zip(reaches, all_targets, strict=True)):
            for j in range(max(0, i - reach), min(len(kept), i + reach + 1)):
                if j == i:
                    continue
                own = torch.from_numpy(rows[kept[j]].astype(np.int64))
                hidden = table[own].mean(0)
                loss = negative_sampling(model, hidden[None], targets_batch(targets)).total
                losses.append(float(loss.detach()))
                of_hidden, of_outputs = torch.autograd.grad(loss, [hidden, out])
                with torch.no_grad():  # as in fastText, each row moves by the whole error
                    table[own] -= lr * of_hidden
                    out -= lr * of_outputs
    row_starts = np.arange(WORDS + 1) * rows.shape[1]
    found = loops.skip_gram(
        tokens, starts, inputs, outputs, row_starts, rows.ravel(),
        (keep, odds, alias, loops.SIGMOID_TABLE), (WINDOW, NEGATIVES, np.float32(lr), 5, 1),
    )  # fmt: skip
    np.testing.assert_allclose(inputs, table.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(outputs, out.detach().numpy(), atol=2e-5)
    assert found[1] == len(losses)
    assert found[0] == pytest.approx(sum(losses), rel=1e-4)


def test_cbow_takes_the_gradient_steps_of_its_loss():
    tokens, starts = shuffled_text()
    keep, odds, alias = drawing()
    inputs, outputs, lr = weights(WORDS, 1), weights(WORDS, 2), 0.1
    model = model_of(inputs, outputs)
    table, out = model.embeddings.tokens.weight, model.outputs.weight
    losses = []
    for kept, reaches, all_targets in drawn(tokens, starts, keep, odds, alias, seed=5):
        for i, (reach, targets) in enumerate(zip(reaches, all_targets, strict=True)):
            first, last = max(0, i - reach), min(len(kept) - 1, i + reach)
            batch = Batch(
                input_ids=torch.from_numpy(kept),
                starts=torch.tensor([0, len(kept)]),
                predict_at=torch.tensor([i]),
                targets=torch.from_numpy(targets)[None],
                boundaries=torch.tensor([[first, last, i - first]]),
            )
            loss = CBOW().loss(model, batch).total
            losses.append(float(loss.detach()))
            of_inputs, of_outputs = torch.autograd.grad(loss, [table, out])
            with torch.no_grad():  # the program's: each neighbour moves by the whole error
                table -= lr * (last - first) * of_inputs
                out -= lr * of_outputs
    found = loops.cbow(
        tokens, starts, inputs, outputs,
        (keep, odds, alias, loops.SIGMOID_TABLE), (WINDOW, NEGATIVES, np.float32(lr), 5, 1),
    )  # fmt: skip
    np.testing.assert_allclose(inputs, table.detach().numpy(), atol=2e-5)
    np.testing.assert_allclose(outputs, out.detach().numpy(), atol=2e-5)
    assert found == (pytest.approx(sum(losses), rel=1e-4), len(losses))


def test_glove_takes_the_gradient_steps_of_its_loss():
    """AdaGrad on half the gradient of eq. 8, with the learning rate inside what is squared."""
    rng = np.random.default_rng(3)
    first = np.array([0, 2, 1, 4, 0], np.int32)
    second = np.array([3, 2, 5, 5, 3], np.int32)
    counts = np.array([3.5, 120.0, 0.25, 40.0, 100.0], np.float32)
    both = rng.normal(size=(2, 6, SIZE)).astype(np.float32)
    biases = rng.normal(size=(2, 6)).astype(np.float32)
    names = ("weights", "squares", "biases", "bias_squares")
    ours = dict(zip(names, (both, np.ones_like(both), biases, np.ones_like(biases)), strict=True))
    expected = {name: torch.from_numpy(array).double() for name, array in ours.items()}
    total, lr = 0.0, 0.05
    for i, j, x in zip(first.tolist(), second.tolist(), counts.tolist(), strict=True):
        for a, b in [(i, j), (j, i)] if i != j else [(i, j)]:
            w = expected["weights"].clone().requires_grad_()
            bias = expected["biases"].clone().requires_grad_()
            gap = w[0, a] @ w[1, b] + bias[0, a] + bias[1, b] - np.log(x)
            loss = min(1.0, (x / 100) ** 0.75) * gap**2
            total += float(loss.detach())
            for name, gradient in zip(
                ("weights", "biases"), torch.autograd.grad(loss / 2, [w, bias]), strict=True
            ):
                square = "squares" if name == "weights" else "bias_squares"
                expected[name] -= lr * gradient / expected[square].sqrt()
                expected[square] += (lr * gradient) ** 2
    found = glove_kernels.glove(
        first, second, counts, *ours.values(), np.float32(100), np.float32(0.75), np.float32(lr)
    )
    assert found == pytest.approx(total, rel=1e-5)
    for name, array in ours.items():
        np.testing.assert_allclose(array, expected[name].numpy(), atol=1e-5)


def test_co_occurrences_are_counted_as_one_over_the_distance():
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 9, n) for n in (40, 1, 23)]
    known = np.array([True] * 9)
    known[0] = False
    expected = np.zeros((9, 9))
    for document in documents:
        words = [word for word in document if word]
        for right, word in enumerate(words):
            for left in range(max(0, right - 4), right):
                expected[words[left], word] += 1 / (right - left)
                expected[word, words[left]] += 1 / (right - left)
    pairs, counts = count_pairs(Text(documents), known, 4, longest=1000)
    found = np.zeros((9, 9))
    first, second = np.divmod(pairs, 9)
    found[first, second] = found[second, first] = counts
    np.testing.assert_allclose(found, expected)
    assert (np.diff(pairs) > 0).all()


class Text:
    """Documents of token ids."""

    def __init__(self, documents):
        self.ids = np.concatenate(documents).astype(np.int64)
        self.document_starts = np.cumsum([0, *map(len, documents)])

    def tokens(self, begin, end):
        return self.ids[begin:end]

    def opens_word(self, begin, end):
        return np.ones(end - begin, bool)


def test_alias_table_gives_the_distribution():
    shares = np.array([5.0, 0.0, 1.0, 14.0, 0.5, 7.0])
    odds, alias = alias_table(shares)
    found = odds.astype(float)
    np.add.at(found, alias, 1 - odds)
    np.testing.assert_allclose(found / len(shares), shares / shares.sum(), atol=1e-7)
    state = np.full(1, 7, np.uint64)
    drawn = np.bincount([loops.draw(odds, alias, state) for _ in range(20_000)], minlength=6)
    np.testing.assert_allclose(drawn / 20_000, shares / shares.sum(), atol=0.015)


def test_frequent_words_are_kept_less_often():
    counts = np.array([0, 10, 990])
    np.testing.assert_allclose(
        keep_probabilities(counts, 0.01), [0, 1, np.sqrt(0.01 / 0.99) + 0.01 / 0.99], rtol=1e-6
    )
    np.testing.assert_array_equal(keep_probabilities(counts, 0), [0, 1, 1])


def test_the_sigmoid_of_the_loops_is_nearly_exact():
    x = np.linspace(-8, 8, 1001).astype(np.float32)
    found = [loops.sigmoid(one, loops.SIGMOID_TABLE) for one in x]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-x.astype(float))), atol=5e-6)
    assert loops.sigmoid(np.float32(50), loops.SIGMOID_TABLE) == pytest.approx(1, abs=4e-4)


def test_pairs_of_the_objective_lie_within_the_window():
    ids = np.array([0, 5, 6, 7, 8, 9, 1, 0, 6, 5, 1])
    vocabulary = firth.Tokenizer.train(["a b c d e"], "word", 10, min_frequency=1).vocabulary
    special = dict(special=(0, 1, 2, 3, 4))
    sequences = Sequences(
        ids=ids,
        starts=np.array([0, 7, 11]),
        opens_word=np.ones(11, bool),
        vocabulary=type(vocabulary)(**{**vars(vocabulary), **special}),
    )
    objective = SkipGram(window=2, negatives=3)
    batch = objective.prepare(sequences, np.random.default_rng(0))
    at, targets = batch.predict_at.numpy(), batch.targets.numpy()
    assert targets.shape == (len(at), 4)
    assert not np.isin(ids[at], special["special"]).any()
    assert (targets[:, 1:] != targets[:, :1]).all()
    assert ((targets[:, 1:] == ABSENT) | (targets[:, 1:] >= 5)).all()
    near = {(5, 6), (5, 7), (6, 7), (6, 8), (7, 8), (7, 9), (8, 9)}
    found = set(zip(ids[at].tolist(), targets[:, 0].tolist(), strict=True))
    assert found <= near | {(b, a) for a, b in near}
    assert {(5, 6), (6, 5), (8, 9), (9, 8)} <= found
    model = Static(StaticConfig(vocab_size=10, hidden_size=4))
    assert float(objective.loss(model, batch).total.detach()) == pytest.approx(
        np.log(2) * (targets != ABSENT).sum(), rel=1e-6
    )


def test_hash_of_ngrams():
    """Test vectors of Fowler, Noll and Vo for 32-bit FNV-1a; beyond ASCII fastText has its own."""
    assert fnv1a(b"") == 0x811C9DC5
    assert fnv1a(b"a") == 0xE40C292C
    assert fnv1a(b"foobar") == 0xBF9CF968
    hashes = pytest.importorskip("gensim.models.fasttext_inner")
    for word in ("where", "a", "ışık", "naïve", "中文", "Ærø"):
        assert fnv1a(word.encode()) == hashes.ft_hash_bytes(word.encode())
        for shape in ((3, 6, 2_000_000), (1, 3, 1000), (4, 4, 7)):
            theirs = hashes.compute_ngrams_bytes(word, *shape[:2])
            assert ngram_rows(word, *shape).tolist() == [
                hashes.ft_hash_bytes(ngram) % shape[2] for ngram in theirs
            ]


def test_vectors_have_a_width():
    with pytest.raises(ConfigError, match="hidden_size is 0, expected at least 1"):
        firth.recipe("word2vec").with_settings({"model.hidden_size": 0})


def test_rows_of_a_word_are_its_own_and_its_ngrams():
    config = StaticConfig(vocab_size=3, hidden_size=4, buckets=50, min_n=3, max_n=4)
    starts, rows = input_rows([None, "ab", "c"], config)
    assert starts.tolist() == [0, 0, 4, 6]
    assert rows[0] == 1
    assert rows[4] == 2
    assert rows[1:4].tolist() == [3 + fnv1a(n) % 50 for n in (b"<ab", b"<ab>", b"ab>")]


def test_unseen_words_are_the_mean_of_their_ngrams():
    config = StaticConfig(vocab_size=6, hidden_size=4, buckets=100)
    model = Static(config)
    tokenizer = firth.Tokenizer.train(["one"], "word", 6, min_frequency=1)
    with pytest.raises(UnsupportedError, match="use_words"):
        model(Batch(input_ids=torch.tensor([7]), starts=torch.tensor([0, 1])))
    model.use_words(tokenizer.open())
    lm = firth.LanguageModel(model, tokenizer)
    found = lm.embed([["one", "three", "one", "seven", "three"]], unit="word")[0].vectors
    table, ngrams = (part.weight.detach().numpy() for part in model.embeddings.children())
    np.testing.assert_allclose(found[0], table[tokenizer.encode("one").ids[1]])
    for i, word in ((1, "three"), (3, "seven"), (4, "three")):
        np.testing.assert_allclose(
            found[i], ngrams[ngram_rows(word, 3, 6, 100)].mean(0), rtol=1e-5, atol=1e-7
        )


def quick(name: str, **settings) -> firth.Recipe:
    plain = {
        "model.hidden_size": 32,
        "training.batch_tokens": 2000,
        "training.epochs": 3,
        "data.valid": 0.1,
        **({"model.buckets": 2000} if name == "fasttext" else {}),
    }
    return firth.recipe(name, size="tiny").with_settings(plain).with_settings(settings)


@pytest.fixture(scope="module")
def corpus(papers):
    return firth.Corpus.from_texts(papers)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return dict(firth.load(run).model.state_dict())


@pytest.mark.parametrize(
    ("name", "more"),
    [("word2vec", {}), ("word2vec", {"objective.type": "CBOW"}), ("glove", {}), ("fasttext", {})],
)
def test_a_run_is_reproducible_and_goes_on_where_it_was_stopped(
    name, more, corpus, tmp_path, monkeypatch, one_thread
):
    chosen = quick(name, **more)
    for run in ("a", "b"):
        firth.pretrain(chosen, corpus, tmp_path / run)
    whole = tensors(tmp_path / "a")
    assert all(torch.equal(tensor, tensors(tmp_path / "b")[key]) for key, tensor in whole.items())
    write = static_training.Tracker.write

    def write_and_interrupt(tracker, row):
        write(tracker, row)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(static_training.Tracker, "write", write_and_interrupt)
        with pytest.raises(Interrupted, match="epoch 1"):
            firth.pretrain(chosen, corpus, tmp_path / "c")
    firth.pretrain(chosen, corpus, tmp_path / "c")
    resumed = tensors(tmp_path / "c")
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    rows = read_metrics(tmp_path / "c")
    assert len(rows) == 3
    assert rows[2]["loss"] < rows[0]["loss"]


def test_a_run_is_stopped_and_saved_within_an_epoch(corpus, tmp_path, monkeypatch, one_thread):
    firth.pretrain(quick("word2vec"), corpus, tmp_path / "a")
    answers = iter([False, True, False])  # saved after the second step, stopped after the fourth

    def enough(stop, _due):
        if (answer := next(answers, None)) is None:
            stop.append(signal.SIGINT)
        return answer is not False

    saved = []
    with monkeypatch.context() as patched:
        patched.setattr(static_training, "_enough", enough)
        save = static_training._save
        patched.setattr(static_training, "_save", lambda *a: saved.append(a[2]["step"]) or save(*a))
        with pytest.raises(Interrupted, match=r"in epoch 1, after step 4 of .* all is saved"):
            firth.pretrain(quick("word2vec"), corpus, tmp_path / "b")
    assert saved == [2, 4]
    firth.pretrain(quick("word2vec"), corpus, tmp_path / "b")
    whole, resumed = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
    assert len(read_metrics(tmp_path / "b")) == 3


def test_two_threads_learn_as_well(corpus, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    firth.pretrain(quick("word2vec"), corpus, tmp_path / "run")
    torch.set_num_threads(before)
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["held_out_loss"] < rows[0]["held_out_loss"] < 6 * np.log(2)


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        ("word2vec", {"objective.window": 0}, "window 0"),
        ("word2vec", {"training.epochs": None}, "no budget; give one of steps"),
        ("word2vec", {"objective.subsample": -1.0}, "subsample"),
        ("fasttext", {"tokenizer.kind": "bpe"}, "whole words"),
        ("word2vec", {"objective.type": "MaskedLM"}, "trains BertConfig"),
        ("bert", {"objective.type": "SkipGram"}, "StaticConfig"),
        ("fasttext", {"objective.type": "CBOW"}, "n-grams are learned by SkipGram"),
        ("fasttext", {"model.min_n": 7}, "min_n 7"),
        ("glove", {"training.tokens": 1000}, "counted pairs"),
        ("glove", {"model.outputs": True}, "model.outputs to false"),
        ("word2vec", {"training.accumulation": 2}, "accumulation"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, settings, found, corpus, tmp_path):
    with pytest.raises((ConfigError, UnsupportedError), match=found):
        firth.pretrain(
            firth.recipe(name, size="tiny").with_settings(settings), corpus, tmp_path / "run"
        )


def test_text_without_neighbours_gives_no_model(tmp_path, one_thread):
    """The random vectors that training began with would look like a result."""
    alone = firth.Corpus.from_texts(["cat", "dog"] * 20)
    with pytest.raises(DataError, match="none stands near another"):
        firth.pretrain(quick("word2vec"), alone, tmp_path / "run", valid=alone)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    once = firth.Corpus.from_texts(["every word here occurs once only today"])
    with pytest.raises(DataError, match=r"no word .* occurs 2 times"):
        firth.pretrain(quick("word2vec"), once, tmp_path / "once", valid=once)


def test_a_budget_of_tokens(corpus, tmp_path):
    lm = firth.pretrain(quick("word2vec", **{"training.tokens": 30_000}), corpus, tmp_path / "run")
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["tokens"] == pytest.approx(30_000, rel=0.15)
    assert vocabulary_vectors(lm)[1].std() > 0


def test_a_budget_of_minutes(corpus, tmp_path, monkeypatch, one_thread):
    """A stretch takes 10 ms here, by a clock that only learning moves."""
    clock = [0.0]
    learn = NegativeSampling.learn

    def timed(*arguments):
        clock[0] += 0.01
        return learn(*arguments)

    monkeypatch.setattr(NegativeSampling, "learn", timed)
    monkeypatch.setattr(hogwild, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    lm = firth.pretrain(quick("word2vec", **{"training.minutes": 0.02}), corpus, tmp_path / "run")
    last = read_metrics(tmp_path / "run")[-1]
    assert last["step"] == pytest.approx(115, abs=1)  # 0.96 of 1.2 seconds
    assert last["seconds"] == pytest.approx(1.15, abs=0.011)
    assert vocabulary_vectors(lm)[1].std() > 0


@pytest.fixture(scope="module")
def fasttext_run(corpus, tmp_path_factory):
    run = tmp_path_factory.mktemp("static") / "fasttext"
    firth.pretrain(quick("fasttext", **{"training.epochs": 2}), corpus, run)
    return run


def test_special_tokens_leave_means_alone(fasttext_run):
    lm = firth.load(fasttext_run)
    words = ["translation", "of", "qwertyish", "words"]
    one_by_one = lm.embed([words], unit="word")[0].vectors
    assert (np.abs(one_by_one).sum(1) > 0).all()
    both = {"mean": one_by_one.mean(0), "max": one_by_one.max(0)}
    for pooling, expected in {**both, "first": one_by_one[0], "last": one_by_one[-1]}.items():
        found = lm.embed([words, []], pooling=pooling)
        np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-7)
        assert not found[1].any()
    states = lm.hidden_states([words])[0]
    assert states.values.shape == (1, 6, 32)
    assert not states.values[0, [0, -1]].any()
    np.testing.assert_array_equal(states.values[0, 1:-1], one_by_one)


def test_a_static_model_predicts_neighbours_where_it_has_outputs(fasttext_run, corpus, tmp_path):
    lm = firth.load(fasttext_run)
    assert lm.logits(["of"])[0].values.shape == (3, lm.model.config.vocab_size)
    glove = firth.pretrain(quick("glove", **{"training.epochs": 1}), corpus, tmp_path / "glove")
    with pytest.raises(UnsupportedError, match="no output vectors"):
        glove.logits(["of"])


@pytest.mark.parametrize("use", ["fill", "score", "generate"])
def test_word_vectors_predict_nothing_from_context(use, fasttext_run):
    lm = firth.load(fasttext_run)
    with pytest.raises(UnsupportedError, match=f"{use} needs a model that reads context"):
        getattr(lm, use)(["we show that"])


def test_word_vectors_do_not_go_on_from_others(fasttext_run, corpus, tmp_path):
    """They would begin with random ones all the same."""
    start = firth.load(fasttext_run)
    with pytest.raises(ConfigError, match="leave the start out"):
        firth.pretrain(quick("fasttext"), corpus, tmp_path / "run", start=start)
    assert not (tmp_path / "run").exists()


def test_adapting_static_vectors(tmp_path, corpus):
    """Two classes that one word each gives away; frozen and fine-tuned."""
    texts = [
        f"{' '.join(['we', 'show', 'the'][: 1 + i % 3])} {word}"
        for i in range(60)
        for word in (("model", "corpus")[i % 2],)
    ]
    task = Classification(text="text", label="label")
    examples = [Example(texts=(text,), label=text.split()[-1]) for text in texts]
    lm = firth.pretrain(quick("word2vec"), corpus, tmp_path / "run")
    before = lm.model.embeddings.tokens.weight.clone()
    for method in (firth.Frozen(), firth.FineTuning(epochs=20, lr=1e-2)):
        adapted = firth.adapt(lm, task, examples[:40], method, dev=examples[40:])
        assert adapted.evaluate(examples[40:]).score > 0.9
        adapted.save(tmp_path / type(method).__name__)
        again = firth.load(tmp_path / type(method).__name__)
        assert again.evaluate(examples[40:]).score == adapted.evaluate(examples[40:]).score
    assert torch.equal(before, lm.model.embeddings.tokens.weight)


@pytest.mark.parametrize("name", ["word2vec", "glove", "fasttext"])
def test_words_that_are_not_in_the_text_have_no_random_vectors(name, corpus, tmp_path):
    tokenizer = firth.Tokenizer.train([*corpus.texts, "zyxwv zyxwv"], "word", 3000)
    how = quick(name, **{"training.epochs": 1, "model.vocab_size": 3000})
    lm = firth.pretrain(how, corpus, tmp_path / "run", tokenizer=tokenizer)
    absent, there = lm.embed([["zyxwv", "model"]], unit="word")[0].vectors
    assert there.any()
    ngrams = lm.model.embeddings.ngrams
    expected = np.zeros(32)
    if ngrams is not None:
        rows = ngram_rows("zyxwv", lm.model.config.min_n, lm.model.config.max_n, 2000)
        expected = ngrams.weight.detach().numpy()[rows].mean(0)
    np.testing.assert_allclose(absent, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "unit"), [("word2vec", " nats "), ("glove", " (weighted squared")]
)
def test_the_card_of_a_run_names_what_was_measured(name, unit, corpus, tmp_path):
    firth.pretrain(quick(name, **{"training.epochs": 1}), corpus, tmp_path / "run")
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert unit in card
    assert ("nats" in card) == (unit == " nats ")


def test_no_loss_where_nothing_was_measured():
    """Held-out text of one unknown word a document: no pair, and no perfect score."""
    config = StaticConfig(vocab_size=6, hidden_size=4)
    text = Text([np.array([5, 5, 5, 5])])
    learning = learner(
        SkipGram(subsample=0), config, [None] * 5 + ["a"], text, longest=10, stretch=10, seed=0
    )
    assert learning.held_out(Text([np.array([1])]), 100) is None
    assert learning.held_out(text, 100) > 0


def test_the_loss_of_glove_is_that_of_a_cell():
    """A pair of a word with itself is one cell, of different words two."""
    config = StaticConfig(vocab_size=7, hidden_size=4)
    for ids, cells in (([5, 5], 1), ([5, 6], 2)):
        learning = learner(
            GloVe(), config, [None] * 5 + ["a", "b"], Text([np.array(ids)]),
            longest=10, stretch=10, seed=0,
        )  # fmt: skip
        assert learning.learn(0, None).measured == cells


def test_a_text_without_known_words_is_refused():
    config = StaticConfig(vocab_size=6, hidden_size=4)
    with pytest.raises(DataError, match="no word of the vocabulary"):
        learner(
            SkipGram(), config, [None] * 5 + ["a"], Text([np.array([1, 1, 3])]),
            longest=10, stretch=10, seed=0,
        )  # fmt: skip


def test_an_error_in_a_thread_is_raised():
    class Broken:
        arrays, steps_per_epoch = None, 9

        def learn(self, step, progress):
            raise DataError("the text is gone")

    with pytest.raises(DataError, match="gone"):
        run_steps(Broken(), 0, 9, total=9, threads=2)


@pytest.mark.parametrize("objective", [GloVe()])
def test_glove_is_not_learned_in_batches(objective):
    with pytest.raises(UnsupportedError, match="whole text"):
        objective.prepare(None, None)
    with pytest.raises(UnsupportedError, match="whole text"):
        objective.loss(None, None)


def test_word_vectors_are_trained_in_one_process(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "join", lambda device: (Ranks(0, 2), device))
    with pytest.raises(ConfigError, match="without torchrun"):
        firth.pretrain(firth.recipe("word2vec", size="tiny"), corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_save_clears_away_what_a_killed_process_left(corpus, tmp_path):
    run = tmp_path / "run"
    firth.pretrain(quick("word2vec"), corpus, run)
    left = run / "checkpoints" / "step-00000001"
    left.mkdir()
    last = run / "checkpoints" / "last"
    (run / "checkpoints" / last.read_text()).rename(run / "checkpoints" / "step-99999999")
    last.unlink()
    (run / "config.json").unlink()  # else the run is done
    firth.pretrain(quick("word2vec"), corpus, run)
    (kept,) = (p.name for p in (run / "checkpoints").iterdir() if p.is_dir())
    assert kept == last.read_text()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_named(damage, corpus, tmp_path):
    firth.pretrain(quick("word2vec"), corpus, tmp_path / "run")
    (weights,) = (tmp_path / "run" / "checkpoints").glob("*/vectors.safetensors")
    weights.write_bytes(weights.read_bytes()[:200])
    if damage == "gone":
        weights.unlink()
    with pytest.raises(CheckpointError, match=r"cut short or damaged: delete .*checkpoints to"):
        firth.pretrain(quick("word2vec"), corpus, tmp_path / "run")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SkipGram(power=-1.0), "SkipGram.power is -1"),
        (lambda: CBOW(lr=math.nan), "lr nan"),
        (lambda: CBOW(subsample=math.nan), "subsample is nan"),
        (lambda: GloVe(alpha=-1.0), "alpha -1"),
        (lambda: GloVe(lr=math.inf), "lr inf"),
    ],
)
def test_hyper_parameters_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_text_is_the_mean_of_its_words_for_tasks_too(corpus, tmp_path):
    """Special tokens have no vector: a mean with their zeros says how short a text is."""
    lm = firth.pretrain(quick("word2vec"), corpus, tmp_path / "run")
    task = firth.Classification(labels=("a", "b"))
    texts = [Example(texts=(text,)) for text in ("the model", "model", "")]
    how = {"model": lm.model, "tokenizer": lm.tokenizer, "max_length": 32}
    data = encoded(task, texts, **how)
    assert [len(ids) for ids in data.ids] == [2, 1, 1]
    states = lm.model(data.batch(np.arange(3))).last.split([2, 1, 1])
    means = torch.stack([part.mean(0) for part in states]).detach()
    np.testing.assert_allclose(means.numpy(), lm.embed(["the model", "model", ""]), atol=1e-6)
    assert means[0].norm() > 0
    pairs = [Example(texts=("the model", "model")), Example(texts=("", ""))]
    both = encoded(task, pairs, **how)
    assert both.segments is not None
    assert [one.tolist() for one in both.segments] == [[0, 0, 1], [0]]
