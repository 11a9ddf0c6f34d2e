"""Packing loses and invents nothing; batches are pure functions of the step."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firth.errors import ConfigError, DataError
from firth.objectives import MaskedLM
from firth.protocols import Batch
from firth.text.batches import (
    BucketedBatches,
    ObjectiveBatches,
    PackedSequences,
    collate,
    cut_documents,
    length_batches,
)
from tests.sources import VOCABULARY, ListSource, random_documents


def packed(documents, **changes) -> PackedSequences:
    settings = {"max_length": 16, "batch_tokens": 64, "seed": 3, **changes}
    return PackedSequences(ListSource(documents), VOCABULARY, **settings)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 20))
def test_pieces_partition_every_document(lengths, longest):
    starts = np.concatenate(([0], np.cumsum(lengths)))
    begin, end = cut_documents(starts, longest)
    assert (end - begin).max() <= longest
    assert (end - begin).min() >= 1
    assert begin[0] == 0
    assert end[-1] == starts[-1]
    np.testing.assert_array_equal(begin[1:], end[:-1])
    assert set(starts[:-1]) <= set(begin.tolist())  # no piece spans two documents


@given(st.integers(0, 50), st.integers(1, 30))
def test_an_epoch_shows_every_token_once(seed, count):
    documents = random_documents(seed, count)
    source = packed(documents)
    for epoch in (0, 1):
        seen = []
        for step in range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch):
            one = source.sequences(step)
            for a, b in zip(one.starts[:-1], one.starts[1:], strict=True):
                assert one.ids[a] == VOCABULARY.first
                assert one.ids[b - 1] == VOCABULARY.last
                assert b - a <= 16
                seen.append(tuple(one.ids[a + 1 : b - 1]))
        cut = [tuple(d[i : i + 14]) for d in documents for i in range(0, len(d), 14)]
        assert sorted(seen) == sorted(cut)


def test_epochs_differ_and_steps_repeat():
    source = packed(random_documents(0, 40))
    first, again = source.sequences(2), source.sequences(2)
    later = source.sequences(2 + source.steps_per_epoch)
    np.testing.assert_array_equal(first.ids, again.ids)
    assert not np.array_equal(first.ids, later.ids)


@given(st.lists(st.integers(1, 14), min_size=1, max_size=40), st.integers(16, 64))
def test_no_batch_is_empty(lengths, budget):
    """Three documents of 8 tokens and a budget of 10 once gave two batches, one without a piece."""
    documents = [np.arange(5, 5 + n) for n in lengths]
    source = PackedSequences(
        ListSource(documents), VOCABULARY, max_length=16, batch_tokens=budget, seed=0
    )
    for step in range(2 * source.steps_per_epoch):
        assert len(source.sequences(step).starts) > 1


def test_batches_keep_to_their_budget():
    source = packed(random_documents(1, 300))
    sizes = [source.sequences(step).starts[-1] for step in range(source.steps_per_epoch)]
    assert max(sizes) < 64 + 16
    assert sum(sizes) == source.tokens_per_epoch
    assert np.mean(sizes[:-1]) == pytest.approx(64, abs=2)


def test_word_flags_follow_their_tokens():
    one = packed(random_documents(1, 30)).sequences(0)
    inside = (one.ids != VOCABULARY.first) & (one.ids != VOCABULARY.last)
    np.testing.assert_array_equal(one.opens_word[inside], one.ids[inside] % 3 > 0)


def test_objective_batches_are_pure_functions_of_the_step():
    documents = random_documents(2, 100)
    one = ObjectiveBatches(packed(documents), MaskedLM(), total_steps=10)
    other = ObjectiveBatches(packed(documents), MaskedLM(), total_steps=10)
    for step in (7, 0, 12):  # any order
        a, b = one(step), other(step)
        assert torch.equal(a.input_ids, b.input_ids)
        assert torch.equal(a.predict_at, b.predict_at)
    epoch = one.packed.steps_per_epoch
    assert not torch.equal(one(0).predict_at, one(epoch).predict_at)


@given(st.lists(st.integers(1, 30), min_size=4, max_size=30), st.integers(1, 4))
def test_split_parts_add_up_to_the_batch(lengths, parts):
    rng = np.random.default_rng(0)
    batch = collate([rng.integers(0, 9, n) for n in lengths])
    at = torch.arange(0, batch.num_tokens, 2)
    batch = Batch(
        input_ids=batch.input_ids,
        starts=batch.starts,
        predict_at=at,
        targets=batch.input_ids[at],
        segments=batch.input_ids % 2,
    )
    pieces = batch.split(parts)
    assert len(pieces) == parts
    assert torch.equal(torch.cat([p.input_ids for p in pieces]), batch.input_ids)
    assert torch.equal(torch.cat([p.segments for p in pieces]), batch.segments)
    assert torch.equal(torch.cat([p.targets for p in pieces]), batch.targets)
    for piece in pieces:
        assert torch.equal(piece.input_ids[piece.predict_at], piece.targets)
        assert piece.starts[-1] == piece.num_tokens
        assert piece.num_sequences >= 1


def test_split_refuses_more_parts_than_sequences():
    with pytest.raises(ConfigError, match="2 sequences cannot be cut into 3"):
        collate([np.arange(3), np.arange(4)]).split(3)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=60), st.integers(10, 200))
def test_length_batches_partition_within_budget(lengths, budget):
    groups = length_batches(np.array(lengths), budget)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[i] for i in group) <= budget


def test_buckets_hold_like_lengths_and_every_example_once():
    rng = np.random.default_rng(0)
    ids = [np.full(rng.integers(1, 100), i) for i in range(2000)]
    lengths = np.array([len(one) for one in ids])
    source = BucketedBatches(
        lengths,
        lambda chosen: collate([ids[i] for i in chosen], targets=chosen),
        batch_size=32,
        seed=0,
    )
    seen, spreads = [], []
    for step in range(source.steps_per_epoch):
        batch = source(step)
        seen += batch.targets.tolist()
        lengths = batch.starts.diff()
        spreads.append(float(lengths.max() / lengths.float().mean()))
        assert torch.equal(batch.input_ids[batch.starts[:-1]], batch.targets)
    assert sorted(seen) == list(range(2000))
    assert np.mean(spreads) < 1.15


@pytest.mark.parametrize("count", [33, 97, 320, 1601, 2000])
def test_no_example_is_alone_in_a_batch_because_it_is_long(count):
    """A remainder would hold the longest examples, in every epoch, and count each for many."""
    source = BucketedBatches(np.arange(1, count + 1), lambda chosen: chosen, batch_size=32, seed=0)
    assert source.steps_per_epoch == -(-count // 32)
    for epoch in range(2):
        first = epoch * source.steps_per_epoch
        batches = [source(first + i) for i in range(source.steps_per_epoch)]
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 1
        assert max(sizes) <= 32
        assert sorted(np.concatenate(batches).tolist()) == list(range(count))


def test_bad_settings_are_named():
    with pytest.raises(ConfigError, match="batch_tokens 8 is less than max_length 16"):
        packed(random_documents(0, 3), batch_tokens=8)
    with pytest.raises(DataError, match="no tokens"):
        packed([])
