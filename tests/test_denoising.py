"""Corruptions of T5, prefix LM, the hybrid objective: nothing lost, shares kept, all invertible."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firth.errors import ConfigError
from firth.objectives import Deshuffling, Hybrid, PrefixLM, SequenceToSequence, SpanCorruption
from firth.objectives.denoising import noise_spans
from firth.protocols import Batch, Sequences, Vocabulary

FIRST, LAST, MASK, SENTINELS, SIZE = 0, 1, 2, tuple(range(3, 103)), 600
VOCABULARY = Vocabulary(
    size=SIZE,
    pad=-1,
    unknown=-1,
    first=FIRST,
    last=LAST,
    mask=MASK,
    special=(FIRST, LAST, MASK, *SENTINELS),
    sentinels=SENTINELS,
)
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=12)
SEEDS = st.integers(0, 2**32 - 1)


def sequences(lengths, seed: int = 0, *, progress: float = 0.0) -> Sequences:
    rng = np.random.default_rng(seed)
    inner = [rng.integers(103, SIZE, n) for n in lengths]
    ids = np.concatenate([[FIRST, *one, LAST] for one in inner])
    starts = np.concatenate([[0], np.cumsum([n + 2 for n in lengths])])
    return Sequences(
        ids=ids,
        starts=starts,
        opens_word=np.ones(len(ids), bool),
        vocabulary=VOCABULARY,
        progress=progress,
    )


def split(ids, starts) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in itertools.pairwise(starts)]


def sides(batch: Batch) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """What the encoder reads, what the decoder reads, what it predicts."""
    assert batch.source is not None
    assert batch.targets is not None
    assert batch.predict_at is not None
    assert batch.predict_at.tolist() == list(range(batch.num_tokens))
    return (
        split(batch.source.input_ids, batch.source.starts),
        split(batch.input_ids, batch.starts),
        split(batch.targets, batch.starts),
    )


def put_back(source: list[int], target: list[int]) -> list[int]:
    """The text: each sentinel of the source is replaced by what follows it in the target."""
    spans: dict[int, list[int]] = {}
    for token in target:
        if token in SENTINELS:
            spans[token] = last = []
        else:
            last.append(token)
    assert list(spans) == list(SENTINELS[: len(spans)])
    assert spans[SENTINELS[len(spans) - 1]] == []  # the final sentinel ends the target
    text = []
    for token in source:
        text += spans[token] if token in SENTINELS else [token]
    return text


@pytest.mark.parametrize("noise", ["spans", "iid"])
@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, seed=SEEDS)
def test_span_corruption_inverts(noise, lengths, seed):
    given_text = sequences(lengths, seed)
    objective = SpanCorruption(noise=noise)
    batch = objective.prepare(given_text, np.random.default_rng(seed))
    texts = split(given_text.ids, given_text.starts)
    for text, source, read, wanted in zip(texts, *sides(batch), strict=True):
        assert source[0] == FIRST
        assert source[-1] == LAST
        assert read[0] == FIRST
        assert wanted[-1] == LAST
        assert read[1:] == wanted[:-1]
        assert put_back(source[1:-1], wanted[:-1]) == text[1:-1]


def test_spans_have_the_papers_sizes():
    """15 % of the tokens, in spans of 3 on average (Raffel et al. 2020, section 3.3.4)."""
    lengths = np.full(400, 126)
    lost = noise_spans(lengths, 0.15, 3.0, np.random.default_rng(0)).reshape(400, 126)
    assert (lost.sum(1) == 19).all()
    opens = lost & ~np.pad(lost, ((0, 0), (1, 0)))[:, :-1]
    assert (opens.sum(1) == 6).all()
    assert not lost[:, 0].any()
    assert lost[:, -1].all()  # as in the published program: text first, then a span, and so on
    # All ways to cut 19 into 6 parts are alike, so each part has the law of the first:
    # P(length l) = C(18 - l, 4) / C(18, 5).
    from math import comb

    runs = np.diff(np.flatnonzero(np.diff(np.pad(lost, ((0, 0), (1, 1))).astype(int).ravel())))[::2]
    found = np.bincount(runs, minlength=15)[1:8] / len(runs)
    expected = np.array([comb(18 - n, 4) / comb(18, 5) for n in range(1, 8)])
    assert np.abs(found - expected).max() < 0.02


def test_independent_noise_has_its_rate():
    text = sequences([200] * 200)
    batch = SpanCorruption(noise="iid", rate=0.15).prepare(text, np.random.default_rng(0))
    _, _, wanted = sides(batch)
    lost = sum(token not in SENTINELS and token != LAST for one in wanted for token in one)
    assert lost / (200 * 200) == pytest.approx(0.15, abs=0.005)
    spans = sum(token in SENTINELS for one in wanted for token in one) - 200
    assert spans / (200 * 200) == pytest.approx(0.15 * 0.85, abs=0.005)  # runs of lost tokens


def test_independent_noise_keeps_to_the_sentinels():
    """Of more spans than there are sentinels for, some at random stay in the text."""
    text = sequences([900] * 20)
    batch = SpanCorruption(noise="iid", rate=0.15).prepare(text, np.random.default_rng(0))
    source, _, wanted = sides(batch)
    spans = [sum(token in SENTINELS for token in one) - 1 for one in wanted]
    assert set(spans) == {99}
    for one, target, whole in zip(source, wanted, split(text.ids, text.starts), strict=True):
        assert put_back(one[1:-1], target[:-1]) == whole[1:-1]
    places = [i / len(one) for one in source for i, token in enumerate(one) if token in SENTINELS]
    assert np.mean(places) == pytest.approx(0.5, abs=0.02)
    few = SpanCorruption(noise="iid", rate=0.1).prepare(sequences([500]), np.random.default_rng(0))
    assert sum(token in SENTINELS for token in sides(few)[2][0]) < 70


def test_too_few_sentinels_are_said():
    with pytest.raises(ConfigError, match=r"needs \d+ sentinel tokens and the vocabulary has 100"):
        SpanCorruption(rate=0.5, mean_length=1).prepare(sequences([300]), np.random.default_rng(0))


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, seed=SEEDS)
def test_deshuffling_keeps_the_tokens(lengths, seed):
    text = sequences(lengths, seed)
    batch = Deshuffling().prepare(text, np.random.default_rng(seed))
    texts = split(text.ids, text.starts)
    for original, source, _, wanted in zip(texts, *sides(batch), strict=True):
        assert sorted(source[1:-1]) == sorted(original[1:-1])
        assert wanted == original[1:]


def test_deshuffling_draws_all_orders_alike():
    text = sequences([3] * 6000)
    batch = Deshuffling().prepare(text, np.random.default_rng(0))
    texts, (source, _, _) = split(text.ids, text.starts), sides(batch)
    orders: dict[tuple[int, ...], int] = {}
    for original, shuffled in zip(texts, source, strict=True):
        if len(set(original)) == 5:
            order = tuple(original.index(token) for token in shuffled[1:-1])
            orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 6
    assert max(orders.values()) / min(orders.values()) < 1.2


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, seed=SEEDS)
def test_prefix_lm_cuts_a_text_in_two(lengths, seed):
    text = sequences(lengths, seed)
    rng = np.random.default_rng(seed)
    batch = PrefixLM(encoder=True).prepare(text, rng)
    texts = split(text.ids, text.starts)
    for original, source, _, wanted in zip(texts, *sides(batch), strict=True):
        assert [*source[:-1], *wanted] == original
        assert len(wanted) >= 2
    plain = PrefixLM().prepare(text, np.random.default_rng(seed))
    assert plain.prefix is not None
    assert plain.targets is not None
    assert plain.predict_at is not None
    assert plain.targets.tolist() == batch.targets.tolist()  # type: ignore[union-attr]
    assert np.array_equal(text.ids[plain.predict_at.numpy() + 1], plain.targets.numpy())
    place = np.concatenate([np.arange(n + 2) for n in lengths])
    owner = np.repeat(np.arange(len(lengths)), np.array(lengths) + 2)
    first = [place[plain.predict_at][owner[plain.predict_at] == b].min() for b in set(owner)]
    assert (np.array(first) + 1 == plain.prefix.numpy()).all()  # nothing predicted is seen


def test_pairs_are_read_as_they_are():
    source, target = sequences([4, 1, 7], 1), sequences([3, 5, 2], 2)
    pairs = Sequences(**{**vars(target), "source": source})
    batch = SequenceToSequence(label_smoothing=0.1).prepare(pairs, np.random.default_rng(0))
    read_source, read, wanted = sides(batch)
    assert read_source == split(source.ids, source.starts)
    for original, one, two in zip(split(target.ids, target.starts), read, wanted, strict=True):
        assert one == original[:-1]
        assert two == original[1:]
    assert SequenceToSequence(label_smoothing=0.1).for_validation().label_smoothing == 0
    with pytest.raises(ConfigError, match="needs pairs of texts"):
        SequenceToSequence().prepare(target, np.random.default_rng(0))


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, seed=SEEDS)
def test_hybrid_predicts_what_stood_there(lengths, seed):
    text = sequences(lengths, seed)
    batch = Hybrid(rate=0.4, final_rate=None).prepare(text, np.random.default_rng(seed))
    assert batch.prefix is not None
    assert batch.targets is not None
    assert batch.predict_at is not None
    at, ids, starts = (x.numpy() for x in (batch.predict_at, batch.input_ids, batch.starts))
    restored = ids.copy()
    restored[at + 1] = batch.targets.numpy()  # all that was changed is predicted
    # Causal sequences stand first; otherwise all are there as they were.
    causal, lengths = batch.prefix.numpy() == 0, np.diff(starts)
    assert causal.tolist() == sorted(causal, reverse=True)
    parts = [tuple(part) for part in np.split(restored, starts[1:-1])]
    before = [tuple(part) for part in np.split(text.ids, text.starts[1:-1])]
    assert sorted(parts) == sorted(before)
    causal = np.repeat(causal, lengths)
    assert np.array_equal(ids[causal], restored[causal])
    # Of the others only ordinary tokens are predicted, each from the state before it.
    predicted = at[~causal[at]] + 1
    assert not np.isin(restored[predicted], VOCABULARY.special).any()
    assert causal[at].sum() == (lengths - 1)[batch.prefix.numpy() == 0].sum()


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_a_batch_keep_its_weights(parts):
    batch = Hybrid(causal_share=0.3).prepare(sequences([20] * 9), np.random.default_rng(1))
    assert batch.weights is not None
    assert len(set(batch.weights.tolist())) == 2
    found = [part.weights for part in batch.split(parts)]
    assert [w for one in found if one is not None for w in one.tolist()] == batch.weights.tolist()


def test_hybrid_keeps_its_shares():
    text = sequences([126] * 400)
    batch = Hybrid(causal_share=0.25, rate=0.3).prepare(text, np.random.default_rng(0))
    assert batch.prefix is not None
    assert batch.predict_at is not None
    assert batch.weights is not None
    causal = np.repeat(batch.prefix.numpy() == 0, 128)
    assert (batch.prefix == 0).sum() == 100
    at, weights = batch.predict_at.numpy(), batch.weights.numpy()
    assert (~causal[at]).sum() / (300 * 126) == pytest.approx(0.3, abs=0.01)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[causal[at]].sum() / weights.sum() == pytest.approx(0.25)
    late = sequences([126] * 400, progress=1.0)
    moved = Hybrid(causal_share=0.25, final_causal_share=0.75).prepare(
        late, np.random.default_rng(0)
    )
    assert moved.prefix is not None
    assert (moved.prefix == 0).sum() == 300
    assert moved.predict_at is not None
    causal = np.repeat(moved.prefix.numpy() == 0, 128)
    assert (~causal[moved.predict_at.numpy()]).sum() / (100 * 126) == pytest.approx(0.15, abs=0.015)
    alone = Hybrid().for_validation().prepare(text, np.random.default_rng(0))
    assert alone.num_predictions == 400 * 127
