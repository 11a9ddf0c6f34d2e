"""Pairs, spans, boundaries and joined documents: what is drawn, and what it costs."""

import dataclasses
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import firth
from firth.errors import ConfigError
from firth.objectives import MaskedLM, SentencePairs, SpanBoundary
from firth.objectives.masked import choose_positions
from firth.objectives.sentence_pairs import pair_up
from firth.objectives.spans import runs_of, span_boundaries, span_lengths
from firth.protocols import ABSENT, Sequences
from firth.text.batches import ObjectiveBatches, PackedSequences
from firth.text.joined import JoinedDocuments
from firth.text.shards import Shards, write_shards
from firth.training import AdamW, State, Training, steps
from tests.sources import VOCABULARY, ListSource, random_documents, sequences_of, tiny_bert

seeds = st.integers(0, 10_000)
lengths = st.lists(st.integers(2, 60), min_size=1, max_size=20)


def numbered(lengths: list[int], documents: list[int], seed: int = 0) -> Sequences:
    """Sequences whose tokens are all different: 10, 11, 12, ... in a vocabulary of 100,000."""
    rng = np.random.default_rng(seed)
    plain = sequences_of(lengths, seed, rng.random(sum(lengths)) < 0.6)
    special = np.isin(plain.ids, VOCABULARY.special)
    ids = np.where(special, plain.ids, 10 + np.arange(len(plain.ids)))
    return replace(
        plain,
        ids=ids,
        opens_word=plain.opens_word | special,
        vocabulary=replace(VOCABULARY, size=100_000),
        documents=np.array(documents),
    )


def parts_of(sequences: Sequences, segments: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """A and B of each pair; B is empty where there is none."""
    found = []
    for a, b in itertools.pairwise(sequences.starts):
        ids, kinds = sequences.ids[a:b], segments[a:b]
        assert ids[0] == VOCABULARY.first
        assert ids[-1] == VOCABULARY.last
        ends = np.flatnonzero(ids == VOCABULARY.last)
        assert len(ends) in (1, 2)
        np.testing.assert_array_equal(kinds, np.arange(len(ids)) > ends[0])
        found.append((ids[1 : ends[0]].tolist(), ids[ends[0] + 1 : -1].tolist()))
    return found


def rising(ids: list[int]) -> bool:
    """Whether the numbered tokens are a stretch of one text."""
    return ids == list(range(ids[0], ids[0] + len(ids))) if ids else True


# Sentence pairs.


@given(st.data(), seeds)
def test_pairs_are_stretches_of_text_with_their_labels(data, seed):
    of = data.draw(lengths)
    documents = [data.draw(st.integers(0, 5)) for _ in of]
    plain = numbered(of, documents, seed)
    owner = np.searchsorted(plain.starts, np.arange(len(plain.ids)), side="right") - 1
    pairs, segments, labels, whole = pair_up(plain, "next", np.random.default_rng(seed))
    assert np.diff(pairs.starts).max() <= max(of) + 1
    assert (np.diff(np.diff(pairs.starts)) >= 0).all()
    firsts: list[int] = []
    for (a, b), label, alone in zip(parts_of(pairs, segments), labels, whole, strict=True):
        assert rising(a)
        assert rising(b)
        assert alone == (not b)
        firsts += a
        if alone:
            assert label == 0
        elif label == 0:
            assert a[-1] + 1 == b[0]
        else:
            first, second = owner[a[0] - 10], owner[b[0] - 10]
            assert documents[first] != documents[second]
    assert len(firsts) == len(set(firsts))
    assert set(firsts) <= set(plain.ids[plain.ids >= 10].tolist())


@given(lengths, seeds)
def test_pairs_of_swapped_order_hold_the_text(of, seed):
    plain = numbered(of, [0] * len(of), seed)
    pairs, segments, labels, _ = pair_up(plain, "order", np.random.default_rng(seed))
    for (a, b), label in zip(parts_of(pairs, segments), labels, strict=True):
        assert rising(b + a if label else a + b)
    kept = set(pairs.ids[pairs.ids >= 10].tolist())
    lost = sorted(set(plain.ids[plain.ids >= 10].tolist()) - kept)
    assert not plain.opens_word[np.array(lost, int) - 10].any()  # what a piece opens with


@pytest.mark.parametrize("kind", ["next", "order"])
def test_the_label_of_a_pair_does_not_show_in_its_form(kind):
    """Neither in its length, nor in a segment that begins inside a word."""
    found: dict[int, list[tuple[int, bool, bool]]] = {0: [], 1: []}
    for seed in range(40):
        plain = numbered([128] * 20, list(range(20)), seed)
        pairs, segments, labels, _ = pair_up(plain, kind, np.random.default_rng(seed))
        for (a, b), label in zip(parts_of(pairs, segments), labels, strict=True):
            opens = [bool(plain.opens_word[part[0] - 10]) for part in (a, b)]
            found[int(label)].append((len(a) + len(b), *opens))
    for label, rows in found.items():
        assert len(rows) == pytest.approx(400, abs=60), label
        assert all(first and second for _, first, second in rows), label
        assert np.mean([length for length, *_ in rows]) > 120
    full = [np.mean([length == 126 for length, *_ in rows]) for rows in found.values()]
    assert full[0] == pytest.approx(full[1], abs=0.1)
    means = [np.mean([length for length, *_ in rows]) for rows in found.values()]
    assert means[0] == pytest.approx(means[1], abs=0.5)


@pytest.mark.parametrize("of", [[128], range(2, 40), [9, 11, 60, 128]])
def test_both_segments_end_and_begin_as_those_of_one_piece_do(of):
    """Else the end of a sentence, or a capital in the middle, would tell the label."""
    changed = 0
    for seed in range(30):
        counts = np.random.default_rng(seed).choice(of, 20).tolist()
        plain = numbered(counts, list(range(20)), seed)
        ends = set((plain.starts[1:] - 2 + 10).tolist())
        inner = [range(a + 1, b - 1) for a, b in itertools.pairwise(plain.starts.tolist())]
        opening = {10 + next((i for i in one if plain.opens_word[i]), 0) for one in inner}
        pairs, segments, labels, whole = pair_up(plain, "next", np.random.default_rng(seed))
        for (_, b), alone in zip(parts_of(pairs, segments), whole, strict=True):
            assert alone or (b[-1] in ends and b[0] not in opening)
        changed += labels.sum()
    assert changed > 100


@pytest.mark.parametrize("kind", ["next", "order"])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_half_of_few_pairs_are_changed(kind, count):
    shares = []
    for seed in range(300):
        plain = numbered([60] * count, list(range(count)), seed)
        shares.append(pair_up(plain, kind, np.random.default_rng(seed))[2].mean())
    assert np.mean(shares) == pytest.approx(0.5, abs=0.08)


def test_pairs_are_cut_between_words():
    plain = numbered([40] * 50, list(range(50)))
    pairs, segments, labels, _ = pair_up(plain, "order", np.random.default_rng(0))
    cuts = set()
    for (a, b), label in zip(parts_of(pairs, segments), labels, strict=True):
        second = a if label else b
        assert plain.opens_word[second[0] - 10]
        cuts.add(len(b if label else a))
    assert len(cuts) > 15


def test_half_of_the_labels_are_next():
    rng = np.random.default_rng(0)
    shares = []
    for seed in range(30):
        documents = rng.integers(0, 12, 40).tolist()
        plain = numbered(rng.integers(20, 60, 40).tolist(), documents, seed)
        _, _, labels, whole = pair_up(plain, "next", np.random.default_rng(seed))
        assert not whole.any()
        shares.append(labels.mean())
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)


def test_pairs_of_one_document_are_never_exchanged():
    _, _, labels, _ = pair_up(numbered([30] * 9, [4] * 9), "next", np.random.default_rng(0))
    assert not labels.any()
    most = numbered([30] * 40, [0] * 32 + list(range(1, 9)))
    shares = [pair_up(most, "next", np.random.default_rng(i))[2].mean() for i in range(50)]
    assert np.mean(shares) == pytest.approx(0.2, abs=0.04)  # 4 of 20 chosen, and as many partners
    with pytest.raises(ConfigError, match="which document"):
        pair_up(replace(most, documents=None), "next", np.random.default_rng(0))


def test_pairs_are_masked_like_other_text():
    plain = replace(sequences_of([60] * 40), documents=np.arange(40))
    batch = SentencePairs(masked=MaskedLM(rate=0.3)).prepare(plain, np.random.default_rng(3))
    assert batch.num_tokens <= 40 * 61
    ordinary = batch.num_tokens - 3 * 40
    assert batch.num_predictions / ordinary == pytest.approx(0.3, abs=0.01)
    restored = batch.input_ids.numpy().copy()
    restored[batch.predict_at] = batch.targets
    pairs, *_ = pair_up(plain, "next", np.random.default_rng(3))
    np.testing.assert_array_equal(restored, pairs.ids)


def test_the_loss_of_pairs_is_the_sum_of_both_means():
    torch.manual_seed(0)
    model = tiny_bert(pair_head=True).eval()
    plain = replace(sequences_of([3, 20, 9, 33, 40, 17]), documents=np.arange(6))
    batch = SentencePairs().prepare(plain, np.random.default_rng(0))
    with torch.no_grad():
        loss = SentencePairs().loss(model, batch)
        hidden = model(batch).last
        tokens = F.cross_entropy(model.logits(hidden[batch.predict_at]), batch.targets)
        real = batch.sequence_weights > 0
        first = hidden[batch.starts[:-1]][real]
        scores = model.pair_head(torch.tanh(model.pooler(first)))
        pairs = F.cross_entropy(scores, batch.sequence_targets[real])
        right = (scores.argmax(1) == batch.sequence_targets[real]).float().mean()
    assert real.sum() == 5
    assert float(loss.total / loss.count) == pytest.approx(float(tokens + pairs), abs=1e-5)
    parts = {name: float(value / loss.count) for name, value in loss.parts.items()}
    assert parts == pytest.approx(
        {"masked_lm": float(tokens), "pairs": float(pairs), "pair_accuracy": float(right)}, abs=1e-5
    )


@pytest.mark.parametrize("objective", [SentencePairs(), SpanBoundary()])
def test_validation_counts_masked_tokens_alone(objective):
    """The loss is the training objective's, on batches of its `for_validation`."""
    model = tiny_bert(pair_head=True, boundary_places=15).eval()
    plain = replace(sequences_of([30, 41, 60, 62]), documents=np.arange(4))
    batch = objective.for_validation().prepare(plain, np.random.default_rng(0))
    with torch.no_grad():
        loss = objective.loss(model, batch)
        wanted = MaskedLM().loss(model, batch)
    assert (float(loss.total), loss.count) == (float(wanted.total), wanted.count)


@pytest.mark.parametrize("objective", [SentencePairs(), SpanBoundary()])
def test_parts_of_a_batch_add_up(objective):
    """What a pair or a boundary counts for does not depend on where a batch is cut."""
    torch.manual_seed(0)
    model = tiny_bert(pair_head=True, boundary_places=15).eval()
    plain = replace(sequences_of([9, 12, 20, 28, 33, 41]), documents=np.arange(6))
    batch = objective.prepare(plain, np.random.default_rng(0))
    with torch.no_grad():
        whole = objective.loss(model, batch)
        parts = [objective.loss(model, part) for part in batch.split(3)]
    assert sum(part.count for part in parts) == whole.count
    assert float(sum(part.total for part in parts)) == pytest.approx(float(whole.total), rel=1e-5)


# Spans.


def test_lengths_of_spans():
    """Joshi et al. 2020, section 3.1 and figure 2: mean 3.8, P(l) falling by 0.8 up to 10."""
    drawn = span_lengths(200_000, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(3.8, abs=0.02)
    shares = np.bincount(drawn, minlength=11)[1:] / len(drawn)
    assert (drawn.min(), drawn.max(), len(shares)) == (1, 10, 10)
    np.testing.assert_allclose(shares[1:] / shares[:-1], 0.8, atol=0.04)


@given(lengths, st.sampled_from([0.15, 0.4, 1.0]), seeds)
def test_spans_are_whole_words_within_the_share(of, rate, seed):
    plain = numbered(of, [0] * len(of), seed)
    rng = np.random.default_rng(seed)
    chosen = choose_positions(plain, rate, rng, units="span")
    assert not np.isin(plain.ids[chosen], VOCABULARY.special).any()
    taken = np.zeros(len(plain.ids), dtype=bool)
    taken[chosen] = True
    for a, b in itertools.pairwise(plain.starts.tolist()):
        quota = max(1, round((b - a - 2) * rate)) if b - a > 2 else 0
        assert taken[a:b].sum() <= quota
        for t in range(a + 2, b - 1):  # the rest of a word goes with its beginning
            if not plain.opens_word[t]:
                assert taken[t] == taken[t - 1]


def test_spans_cover_their_share_and_are_as_long_as_drawn():
    plain = sequences_of([510] * 60)
    chosen = choose_positions(plain, 0.15, np.random.default_rng(0), units="span")
    assert len(chosen) == 60 * round(0.15 * 508)
    runs = np.bincount(runs_of(chosen))
    # Some touch or overlap, and the last one of a sequence is cut where its share is reached.
    assert 3.8 < runs.mean() < 5.0
    words = choose_positions(plain, 0.15, np.random.default_rng(0), units="word")
    assert np.bincount(runs_of(words)).mean() < 1.3


def test_spans_stop_at_special_tokens():
    plain = sequences_of([200] * 30)
    ids = plain.ids.copy()
    ids[5::7] = VOCABULARY.last
    plain = replace(plain, ids=ids)
    chosen = choose_positions(plain, 0.4, np.random.default_rng(0), units="span")
    assert not np.isin(ids[chosen], VOCABULARY.special).any()
    assert np.bincount(runs_of(chosen)).max() <= 6


def test_a_span_is_all_masked_or_all_random_or_all_kept():
    plain = sequences_of([128] * 200)
    batch = MaskedLM(units="span").prepare(plain, np.random.default_rng(0))
    at, now = batch.predict_at.numpy(), batch.input_ids.numpy()
    np.testing.assert_array_equal(plain.ids[at], batch.targets.numpy())
    run = runs_of(at)
    masked = np.bincount(run, now[at] == VOCABULARY.mask) / np.bincount(run)
    kept = np.bincount(run, now[at] == plain.ids[at]) / np.bincount(run)
    assert set(masked.tolist()) == {0.0, 1.0}
    assert masked.mean() == pytest.approx(0.8, abs=0.05)
    assert (kept == 1).mean() == pytest.approx(0.1, abs=0.03)
    others = np.delete(np.arange(len(now)), at)
    np.testing.assert_array_equal(now[others], plain.ids[others])


# Span boundaries.


@given(lengths, seeds)
def test_boundaries_are_the_unmasked_neighbours(of, seed):
    plain = numbered(of, [0] * len(of), seed)
    batch = SpanBoundary().prepare(plain, np.random.default_rng(seed))
    at = batch.predict_at.tolist()
    for position, (before, after, place) in zip(at, batch.boundaries.tolist(), strict=True):
        assert before < position < after
        assert before not in at
        assert after not in at
        assert set(range(before + 1, after)) <= set(at)
        edges = np.isin(plain.ids[[before, after]], VOCABULARY.special)
        assert place == (ABSENT if edges.any() else position - before - 1)


def test_a_boundary_may_be_unknown():
    plain = sequences_of([8])
    ids = plain.ids.copy()
    ids[3] = VOCABULARY.unknown
    beside = dataclasses.replace(plain, ids=ids)
    np.testing.assert_array_equal(span_boundaries(beside, np.array([4, 5])), [[3, 6, 0], [3, 6, 1]])


def test_no_chosen_position_has_no_boundaries():
    plain = sequences_of([2, 2])
    assert span_boundaries(plain, np.zeros(0, dtype=np.int64)).shape == (0, 3)
    assert SpanBoundary().prepare(plain, np.random.default_rng(0)).num_predictions == 0


def test_boundary_loss_against_a_slow_direct_computation():
    """Joshi et al. 2020, section 3.2, token by token; places behind the last count nothing."""
    torch.manual_seed(0)
    model = tiny_bert(boundary_places=3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    objective = SpanBoundary(masked=MaskedLM(units="span", rate=0.4))
    batch = objective.prepare(sequences_of([50, 33, 20]), np.random.default_rng(0))
    head = model.boundary_head
    total, count = 0.0, 0
    with torch.no_grad():
        loss = objective.loss(model, batch)
        x = model(batch).last
        for target, (before, after, place) in zip(
            batch.targets, batch.boundaries.tolist(), strict=True
        ):
            if not 0 <= place < 3:
                continue
            h = torch.cat([x[before], x[after], head.place_embeddings.weight[place]])
            h = head.first_norm(F.gelu(head.first.weight @ h + head.first.bias))
            y = head.second_norm(F.gelu(head.second.weight @ h + head.second.bias))
            scores = model.embeddings.tokens.weight @ y + head.bias
            total -= float(scores.log_softmax(0)[target])
            count += 1
        masked = model.prediction_loss(x[batch.predict_at], batch.targets)
    assert 10 < count < batch.num_predictions
    assert float(loss.parts["boundary"]) == pytest.approx(total, rel=1e-5)
    assert float(loss.total) == pytest.approx(total + float(masked), rel=1e-5)


@pytest.mark.parametrize("objective", [SentencePairs(), SpanBoundary()])
def test_every_parameter_gets_a_gradient(objective):
    torch.manual_seed(0)
    pairs = isinstance(objective, SentencePairs)
    model = tiny_bert(pair_head=pairs, boundary_places=0 if pairs else 6)
    plain = replace(sequences_of([60] * 60), documents=np.arange(60))
    batch = objective.prepare(plain, np.random.default_rng(0))
    if batch.segments is None:
        batch = replace(batch, segments=torch.arange(batch.num_tokens) % 2)
    objective.loss(model, batch).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# Joined documents.


@given(seeds, st.integers(1, 20))
def test_joined_documents_read_like_one(seed, count):
    documents = random_documents(seed, count)
    source = JoinedDocuments(ListSource(documents), VOCABULARY.last)
    ids = list(itertools.chain(*([*d, VOCABULARY.last] for d in documents)))[:-1]
    flags = [t == VOCABULARY.last or t % 3 > 0 for t in ids]
    assert source.document_starts.tolist() == [0, len(ids)]
    rng = np.random.default_rng(seed)
    for a, b in np.sort(rng.integers(0, len(ids) + 1, (20, 2))).tolist():
        assert source.tokens(a, b).tolist() == ids[a:b]
        assert source.opens_word(a, b).tolist() == flags[a:b]


@given(seeds, st.integers(1, 30))
def test_an_epoch_of_joined_documents_shows_every_token_once(seed, count):
    documents = random_documents(seed, count)
    source = JoinedDocuments(ListSource(documents), VOCABULARY.last)
    packed = PackedSequences(source, VOCABULARY, max_length=16, batch_tokens=64, seed=seed)
    pieces, ends = [], []
    for step in range(packed.steps_per_epoch):
        one = packed.sequences(step)
        pieces += [one.ids[a + 1 : b - 1] for a, b in itertools.pairwise(one.starts)]
        ends += one.ends_document.tolist()
    assert sum(len(piece) < 14 for piece in pieces) <= 1  # all but the last are full
    assert sum(ends) == 1
    seen = np.concatenate(pieces)
    joined = np.concatenate(documents)
    assert (seen == VOCABULARY.last).sum() == count - 1
    np.testing.assert_array_equal(np.sort(seen[seen != VOCABULARY.last]), np.sort(joined))


def test_separators_are_never_masked():
    source = JoinedDocuments(ListSource(random_documents(0, 60, longest=9)), VOCABULARY.last)
    packed = PackedSequences(source, VOCABULARY, max_length=64, batch_tokens=4096, seed=0)
    batch = MaskedLM(units="span", rate=0.4).prepare(packed.sequences(0), np.random.default_rng(0))
    assert batch.num_predictions > 50
    assert not torch.isin(batch.targets, torch.tensor(VOCABULARY.special)).any()


def test_a_packing_leaves_room_for_what_the_objective_adds():
    source = ListSource(random_documents(0, 80, longest=60))
    for objective in (MaskedLM(), SentencePairs()):
        packed = PackedSequences(
            source, VOCABULARY, max_length=32, batch_tokens=256, seed=0, spare=objective.spare
        )
        sizes = []
        for step in range(packed.steps_per_epoch):
            batch = objective.prepare(packed.sequences(step), np.random.default_rng(step))
            assert batch.starts.diff().max() <= 32
            sizes.append(batch.num_tokens)
        assert max(sizes) < 256 + 32


# Learning, and time.


@pytest.fixture(scope="module")
def shards(papers, tmp_path_factory):
    tokenizer = firth.Tokenizer.train(papers, vocab_size=600)
    folder = tmp_path_factory.mktemp("shards")
    write_shards(firth.Corpus.from_texts(papers), tokenizer, folder, workers=1)
    return Shards.open(folder), tokenizer.vocabulary


@pytest.mark.parametrize(
    "objective", [SentencePairs(), SentencePairs(kind="order"), SpanBoundary()]
)
def test_real_text_lowers_both_losses(objective, shards):
    """One batch, which such a model can learn by heart."""
    source, vocabulary = shards
    packed = PackedSequences(
        source, vocabulary, max_length=64, batch_tokens=1024, seed=0, spare=objective.spare
    )
    batch = ObjectiveBatches(packed, objective)(0)
    torch.manual_seed(0)
    model = tiny_bert(vocab_size=vocabulary.size, pair_head=True, boundary_places=15)
    training = Training(optimizer=AdamW(lr=3e-3), precision="float32", workers=0)

    def measured() -> dict[str, float]:
        with torch.no_grad():
            loss = objective.loss(model, batch)
        return {name: float(part) / loss.count for name, part in loss.parts.items()}

    before = measured()
    state = State.begin(model, training)
    for _ in steps(state, objective, lambda step: batch, training, total_steps=70):
        pass
    after = measured()
    for name in before.keys() - {"pair_accuracy"}:
        assert after[name] < 0.7 * before[name], (name, before, after)
    assert before["masked_lm"] == pytest.approx(math.log(vocabulary.size), abs=0.5)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_names_the_parts_of_its_loss(accumulation):
    """They add up to the loss, whatever the micro-batches, and the accuracy is a share."""
    torch.manual_seed(0)
    model = tiny_bert(pair_head=True)
    plain = replace(sequences_of([20] * 12), documents=np.arange(12))
    batch = SentencePairs().prepare(plain, np.random.default_rng(0))
    training = Training(precision="float32", accumulation=accumulation, workers=0)
    state = State.begin(model, training)
    (step,) = steps(state, SentencePairs(), lambda _: batch, training, total_steps=1)
    assert set(step.parts) == {"masked_lm", "pairs", "pair_accuracy"}
    assert step.parts["masked_lm"] + step.parts["pairs"] == pytest.approx(step.loss, rel=1e-5)
    assert step.parts["pairs"] == pytest.approx(math.log(2), abs=0.1)
    assert batch.sequence_weights is not None
    right = step.parts["pair_accuracy"] * int((batch.sequence_weights > 0).sum())
    assert right == pytest.approx(round(right), abs=1e-4)
    assert 0 <= step.parts["pair_accuracy"] <= 1


def test_no_batch_of_pairs_is_empty():
    """With a token more a sequence, a budget of one sequence once gave steps without any."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        documents = [rng.integers(5, 60, rng.integers(1, 40)) for _ in range(12)]
        packed = PackedSequences(
            ListSource(documents), VOCABULARY, max_length=16, batch_tokens=16, seed=0, spare=1
        )
        for step in range(packed.steps_per_epoch):
            assert len(packed.sequences(step).starts) > 1
