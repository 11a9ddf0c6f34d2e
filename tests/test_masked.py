"""Masked LM: how many positions, which, and what stands there."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firth.errors import ConfigError
from firth.objectives import Hybrid, MaskedLM
from firth.objectives.masked import choose_positions, frame_ids
from firth.protocols import Sequences
from tests.sources import VOCABULARY, sequences_of, tiny_bert

lengths = st.lists(st.integers(3, 60), min_size=1, max_size=20)


@given(lengths, st.sampled_from([0.15, 0.3, 0.4]))
def test_each_sequence_gives_its_rounded_share(lengths, rate):
    sequences = sequences_of(lengths)
    chosen = choose_positions(sequences, rate, np.random.default_rng(1), units="token")
    owner = np.searchsorted(sequences.starts, chosen, side="right") - 1
    counts = np.bincount(owner, minlength=len(lengths))
    expected = [max(1, round((n - 2) * rate)) for n in lengths]
    np.testing.assert_array_equal(counts, expected)
    assert not np.isin(sequences.ids[chosen], VOCABULARY.special).any()
    assert (np.diff(chosen) > 0).all()


@given(lengths, st.integers(0, 1000))
def test_words_are_chosen_whole(lengths, seed):
    rng = np.random.default_rng(seed)
    opens = rng.random(sum(lengths)) < 0.5
    sequences = sequences_of(lengths, seed, opens)
    chosen = choose_positions(sequences, 0.3, rng, units="word")
    taken = np.zeros(len(opens), dtype=bool)
    taken[chosen] = True
    for a, b in zip(sequences.starts[:-1], sequences.starts[1:], strict=True):
        words, current = [], []
        for t in range(a + 1, b - 1):
            if opens[t] and current:
                words.append(current)
                current = []
            current.append(t)
        words.append(current)
        quota = max(1, round((b - a - 2) * 0.3))
        assert taken[a:b].sum() <= quota
        left = quota - taken[a:b].sum()
        for word in words:
            assert taken[word].all() or not taken[word].any()
            if not taken[word].any():  # BERT's rule: a word is skipped only if it did not fit
                assert len(word) > left


@pytest.mark.parametrize("units", ["word", "span"])
def test_clauses_of_scripts_without_spaces_are_masked_too(units):
    """To the tokenizer they are words of more tokens than are to be chosen."""
    opens = np.zeros(128 * 20, bool)
    opens[::128] = opens[1::128] = opens[40::128] = opens[100::128] = True
    opens[110::128] = opens[112::128] = True
    text = sequences_of([128] * 20, 0, opens)
    chosen = choose_positions(text, 0.15, np.random.default_rng(0), units=units)
    assert len(chosen) / (126 * 20) == pytest.approx(0.15, abs=0.01)
    places = chosen % 128
    assert (places < 100).mean() > 0.5
    assert len(set(places[places < 100].tolist())) > 60


def test_eighty_ten_ten():
    sequences = sequences_of([120] * 400)
    batch = MaskedLM().prepare(sequences, np.random.default_rng(0))
    now = batch.input_ids[batch.predict_at].numpy()
    before = batch.targets.numpy()
    np.testing.assert_array_equal(sequences.ids[batch.predict_at.numpy()], before)
    masked, kept = (now == VOCABULARY.mask).mean(), (now == before).mean()
    n = len(now)
    assert abs(masked - 0.8) < 4 * np.sqrt(0.16 / n)
    assert abs(kept - (0.1 + 0.1 / 55)) < 4 * np.sqrt(0.09 / n)
    others = np.setdiff1d(np.arange(len(sequences.ids)), batch.predict_at.numpy())
    np.testing.assert_array_equal(batch.input_ids.numpy()[others], sequences.ids[others])
    assert not np.isin(now[now != VOCABULARY.mask], VOCABULARY.special).any()


def test_the_rate_follows_its_schedule():
    objective = MaskedLM(rate=0.3, final_rate=0.15)
    counts = []
    for progress in (0.0, 0.5, 1.0):
        plain = sequences_of([102] * 20)
        sequences = Sequences(**{**vars(plain), "progress": progress})
        counts.append(objective.prepare(sequences, np.random.default_rng(0)).num_predictions)
    assert counts == [600, 440, 300]  # round(22.5) is 22


@pytest.mark.parametrize("units", ["span", "word"])
def test_validation_changes_the_rate_alone(units):
    rest = {"units": units, "mask_share": 0.5, "random_share": 0.2}
    found = MaskedLM(rate=0.4, final_rate=0.3, **rest).for_validation()
    assert found == MaskedLM(rate=0.15, final_rate=None, **rest)


def test_the_loss_is_the_cross_entropy_at_the_predicted_positions():
    model = tiny_bert()
    batch = MaskedLM().prepare(sequences_of([20, 9, 33]), np.random.default_rng(0))
    with torch.no_grad():
        loss = MaskedLM().loss(model, batch)
    logits = model.logits(model(batch).last).detach()
    labels = torch.full((batch.num_tokens,), -100)
    labels[batch.predict_at] = batch.targets
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert loss.count == batch.num_predictions
    assert float(loss.total / loss.count) == pytest.approx(float(expected), abs=1e-6)


def test_bad_shares_are_named():
    with pytest.raises(ConfigError, match=r"MaskedLM\.rate is 1\.5"):
        MaskedLM(rate=1.5)
    with pytest.raises(ConfigError, match="more than 1"):
        MaskedLM(mask_share=0.8, random_share=0.3)


@pytest.mark.parametrize("objective", [MaskedLM(rate=0.4), Hybrid(rate=0.4, causal_share=0.0)])
def test_unknown_tokens_are_predicted_as_words_are(objective):
    """Else scores would ask a model for what it has never learned to predict."""
    plain = sequences_of([40] * 50)
    ids = plain.ids.copy()
    inner = ~np.isin(ids, VOCABULARY.special)
    ids[inner & (np.arange(len(ids)) % 4 == 0)] = VOCABULARY.unknown
    batch = objective.prepare(Sequences(**{**vars(plain), "ids": ids}), np.random.default_rng(0))
    share = (batch.targets == VOCABULARY.unknown).float().mean()
    assert share == pytest.approx((ids == VOCABULARY.unknown).sum() / inner.sum(), abs=0.04)
    shared = dataclasses.replace(VOCABULARY, unknown=VOCABULARY.last)  # as GPT-2's
    assert shared.last in frame_ids(shared)
    assert VOCABULARY.unknown not in frame_ids(VOCABULARY)
