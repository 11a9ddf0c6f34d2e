"""Sequence to sequence with LSTMs: the papers' equations, the cache, learning, files, commands."""

import itertools
import json
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import firth
from firth.adaptation import FineTuning
from firth.api.adapted import family_head
from firth.errors import ConfigError
from firth.inference.beam_search import beam_search
from firth.inference.forward import Engine
from firth.inference.generation import Decoding, continuations
from firth.interop.huggingface import load_model, save_model
from firth.models import Seq2Seq, Seq2SeqConfig
from firth.models.source_attention import AdditiveAttention, MultiplicativeAttention, Source
from firth.objectives import SequenceToSequence
from firth.objectives.sequence_to_sequence import teacher_forced
from firth.protocols import Batch, Example
from firth.tasks import Classification
from firth.text.pairs import ParallelCorpus
from tests.reference import VOCAB_SIZE, VOCABULARY, distance
from tests.test_end_to_end import good

TOLERANCE = 1e-5
SOURCES, TARGETS = (9, 3, 17, 1, 6), (4, 12, 1, 9, 7)

KINDS = {
    "none": {"attention": "none"},
    "dot": {"attention": "dot"},
    "general": {"attention": "general"},
    "general, read forwards": {"attention": "general", "reverse": False},
    "dot, input feeding": {"attention": "dot", "input_feeding": True},
    "general, input feeding": {"attention": "general", "input_feeding": True},
    "additive": {"attention": "additive"},
}


def shape(name: str, **changes) -> Seq2SeqConfig:
    sizes = {"vocab_size": VOCAB_SIZE, "embedding_size": 12, "hidden_size": 16, "num_layers": 2}
    return Seq2SeqConfig(**{**sizes, "dropout": 0.0, "max_length": 64, **KINDS[name], **changes})


def random_model(name: str, **changes) -> Seq2Seq:
    torch.manual_seed(0)
    model = Seq2Seq(shape(name, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)  # large enough for errors to show, biases too
    return model


def random_batch() -> Batch:
    rng = np.random.default_rng(0)

    def drawn(lengths):
        starts = torch.tensor([0, *np.cumsum(lengths)])
        return torch.from_numpy(rng.integers(5, VOCAB_SIZE, int(starts[-1]))), starts

    ids, starts = drawn(SOURCES)
    target, target_starts = drawn(TARGETS)
    source = Batch(input_ids=ids, starts=starts)
    return Batch(input_ids=target, starts=target_starts, source=source)


def lstm_step(layer, x, hidden, cell):
    gates = layer.weight @ x + layer.recurrent @ hidden + layer.bias
    i, f, o, g = gates.chunk(4)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def read_by_hand(layer, x):
    """States of one direction over the rows of x, and its last hidden state and cell."""
    hidden = cell = x.new_zeros(layer.hidden_size)
    states = []
    for one in x.flip(0) if layer.reverse else x:
        hidden, cell = lstm_step(layer, one, hidden, cell)
        states.append(hidden)
    states = torch.stack(states)
    return states.flip(0) if layer.reverse else states, hidden, cell


def context_by_hand(attention, state, memory):
    if isinstance(attention, AdditiveAttention):
        scores = [
            attention.v @ torch.tanh(attention.query.weight @ state + attention.key.weight @ h)
            for h in memory
        ]
    elif isinstance(attention.query, torch.nn.Linear):
        scores = [(attention.query.weight @ state) @ h for h in memory]
    else:
        scores = [state @ h for h in memory]
    shares = torch.exp(torch.stack(scores))
    return sum(a * h for a, h in zip(shares / shares.sum(), memory, strict=True))


def by_hand(model: Seq2Seq, source, target):
    """One pair, token by token, from the equations."""
    config, decoder = model.config, model.decoder
    x, first = model.embeddings.weight[source], []
    for i, layer in enumerate(model.encoder):
        read = [read_by_hand(direction, x) for direction in layer.directions]
        x = torch.cat([states for states, _, _ in read], dim=1)
        _, hidden, cell = read[-1]
        if config.attention == "additive":
            cell = decoder.bridges[i].weight @ hidden
            hidden = torch.tanh(cell)
        first.append((hidden, cell))
    table = decoder.embeddings or model.embeddings
    fed, found = x.new_zeros(config.hidden_size), []
    for y in table.weight[target]:
        if config.attention == "additive":
            fed = context_by_hand(decoder.attention, first[-1][0], x)
        below = torch.cat([y, fed]) if config.fed else y
        for i, layer in enumerate(decoder.layers):
            first[i] = lstm_step(layer, below, *first[i])
            below = first[i][0]
        if config.attention == "none":
            found.append(below)
        elif config.attention == "additive":
            both = decoder.combine.weight @ torch.cat([below, y, fed])
            found.append(torch.stack([torch.maximum(*pair) for pair in both.view(-1, 2)]))
        else:
            context = context_by_hand(decoder.attention, below, x)
            fed = torch.tanh(decoder.combine.weight @ torch.cat([context, below]))
            found.append(fed)
    return torch.stack(found), x


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_states_are_the_equations(name):
    """Both networks against a loop over tokens written from the papers, a pair at a time."""
    model, batch = random_model(name), random_batch()
    assert batch.source is not None
    whole, encoded = model(batch), model(batch.source, hidden_states=True)
    assert whole.last.abs().mean() > 0.1
    pairs = zip(batch.source.input_ids.split(SOURCES), batch.input_ids.split(TARGETS), strict=True)
    for i, (source, target) in enumerate(pairs):
        last, memory = by_hand(model, source, target)
        assert distance(whole.last.split(TARGETS)[i], last) <= TOLERANCE
        assert distance(encoded.last.split(SOURCES)[i], memory) <= TOLERANCE
    assert len(encoded.hidden_states) == len(model.layers) + 1
    assert torch.equal(encoded.hidden_states[-1], encoded.last)
    assert {one.shape for one in encoded.hidden_states} == {(sum(SOURCES), 16)}
    states = model(batch, hidden_states=True).hidden_states
    assert torch.equal(states[-1], whole.last)
    assert len(states) == 3


@pytest.mark.parametrize("kind", ["additive", "dot", "general"])
@torch.no_grad()
def test_attention_weights_are_the_definition(kind):
    torch.manual_seed(0)
    attention = (
        AdditiveAttention(6)
        if kind == "additive"
        else MultiplicativeAttention(6, general=kind == "general")
    )
    for parameter in attention.parameters():
        parameter.normal_()
    states, queries = torch.randn(9, 6), torch.randn(3, 6)
    starts = torch.tensor([0, 2, 7, 9])
    source = Source.of(states, attention.keys(states), starts, torch.tensor([1, 0, 2]))
    weights = attention.weights(queries, source)
    contexts = attention.context(queries, source)
    for row, (a, b) in enumerate([(2, 7), (0, 2), (7, 9)]):
        own = states[a:b]
        torch.testing.assert_close(contexts[row], context_by_hand(attention, queries[row], own))
        assert weights[row].sum().item() == pytest.approx(1.0)
        assert weights[row, b - a :].sum() == 0
        torch.testing.assert_close(weights[row, : b - a] @ own, contexts[row])


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_batched_is_one_by_one_and_the_future_changes_nothing(name):
    model, batch = random_model(name), random_batch()
    whole = model(batch).last
    alone = torch.cat([model(part).last for part in batch.split(len(SOURCES))])
    assert distance(whole, alone) <= TOLERANCE
    changed = batch.input_ids.clone()
    ends = batch.starts[1:] - 1
    changed[ends] = (changed[ends] - 4) % (VOCAB_SIZE - 5) + 5
    after = model(Batch(input_ids=changed, starts=batch.starts, source=batch.source)).last
    same = torch.ones(len(changed), dtype=torch.bool)
    same[ends] = False
    torch.testing.assert_close(whole[same], after[same], atol=1e-6, rtol=0)
    assert (whole[ends] - after[ends]).abs().max() > 0.05


@torch.no_grad()
def test_sutskevers_decoder_begins_where_the_reversed_source_ends():
    """With all tokens of the source after its first one changed, their states tell it."""
    model, batch = random_model("none"), random_batch()
    assert batch.source is not None
    steps_of_source = model.encoder[0].directions[0]
    assert steps_of_source.reverse
    source = batch.source.input_ids[:9]
    turned = random_model("none", reverse=False)
    turned.load_state_dict(model.state_dict())
    one = Batch(input_ids=batch.input_ids[:4], starts=torch.tensor([0, 4]))

    def read(network, ids):
        reading = Batch(input_ids=ids, starts=torch.tensor([0, 9]))
        return network(Batch(input_ids=one.input_ids, starts=one.starts, source=reading)).last

    assert distance(read(model, source), read(turned, source.flip(0))) <= 1e-6
    assert distance(read(model, source), read(turned, source)) > 0.01


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_reading_with_a_cache_is_reading_at_once(name):
    """The first two tokens together; after four, two sequences swap, one stays, one goes."""
    model, batch = random_model(name), random_batch()
    ids = torch.randint(5, VOCAB_SIZE, (5, 6))
    both = Batch(input_ids=ids.flatten(), starts=torch.arange(0, 31, 6), source=batch.source)
    whole = model(both).last.view(5, 6, -1)
    cache, rows = model.new_cache(8), torch.arange(5)
    opening = Batch(
        input_ids=ids[:, :2].flatten(), starts=torch.arange(0, 11, 2), source=batch.source
    )
    assert distance(model(opening, cache=cache).last.view(5, 2, -1), whole[:, :2]) <= TOLERANCE
    for t in range(2, 6):
        if t == 4:
            rows = torch.tensor([4, 1, 0, 3])
            cache.keep(rows)
        step = Batch(input_ids=ids[rows, t], starts=torch.arange(len(rows) + 1))
        assert distance(model(step, cache=cache).last, whole[rows, t]) <= TOLERANCE


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_the_equations_and_reach_all(name):
    model, batch = random_model(name), random_batch()
    assert batch.source is not None
    wanted = torch.randn(sum(TARGETS), 16)
    parameters = dict(model.named_parameters())
    parameters.pop("head.weight")  # behind the states
    ours = torch.autograd.grad((model(batch).last * wanted).sum(), list(parameters.values()))
    pairs = zip(batch.source.input_ids.split(SOURCES), batch.input_ids.split(TARGETS), strict=True)
    total = sum(
        (by_hand(model, *pair)[0] * part).sum()
        for pair, part in zip(pairs, wanted.split(TARGETS), strict=True)
    )
    theirs = torch.autograd.grad(total, list(parameters.values()))
    for key, a, b in zip(parameters, ours, theirs, strict=True):
        assert b.abs().max() > 0, key
        assert distance(a, b) <= 1e-5 * max(1.0, b.abs().max().item()), key
    fresh = Seq2Seq(shape(name, tied=True, embedding_size=16)).train()
    targets = batch.input_ids
    fresh.prediction_loss(fresh(batch).last, targets).backward()
    for key, parameter in fresh.named_parameters():
        assert parameter.grad is not None, key
        if name != "additive":  # whose v begins at zero
            assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", KINDS)
def test_groups_hold_every_parameter_once_and_the_encoder_has_its_own(name):
    model, batch = Seq2Seq(shape(name)), random_batch()
    groups = model.layer_groups()
    found = [id(parameter) for group in groups for parameter in group]
    assert len(groups) == 5  # embeddings, two layers each
    assert len(set(found)) == len(found)
    outside = [key for key, p in model.named_parameters() if id(p) not in found]
    assert outside == ["head.weight"]
    assert batch.source is not None
    model(batch.source).last.sum().backward()
    reached = [id(p) for p in model.parameters() if p.grad is not None]
    assert sorted(reached) == sorted(found[: sum(map(len, groups[:3]))])
    before = {key: p.clone() for key, p in model.named_parameters()}
    model.reset_top_layers(1)
    changed = [key for key, p in model.named_parameters() if not torch.equal(p, before[key])]
    assert all(key.startswith("encoder.1.") for key in changed)
    assert len(changed) >= 2


@pytest.mark.parametrize("name", KINDS)
def test_initialisation_is_the_papers(name):
    torch.manual_seed(0)
    model = Seq2Seq(shape(name, embedding_size=64, hidden_size=64))
    for key, parameter in model.named_parameters():
        largest = parameter.abs().max().item()
        if key.endswith("bias"):
            i, f, o, g = parameter.chunk(4)
            assert torch.equal(f, torch.ones_like(f)), key
            assert not torch.cat([i, o, g]).any(), key
        elif name != "additive":
            bound = 0.08 if name == "none" else 0.1
            assert bound * 0.9 < largest <= bound, key
        elif parameter.ndim == 1:
            assert largest == 0, key
        elif key.endswith("recurrent"):
            for gate in parameter.chunk(4):
                product = gate @ gate.t()
                torch.testing.assert_close(product, torch.eye(len(gate)), atol=1e-5, rtol=0)
        else:
            std = 0.001 if "attention" in key else 0.01
            assert parameter.std().item() == pytest.approx(std, rel=0.1), key


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_label_smoothing_reaches_the_loss(tied):
    model = random_model("general", embedding_size=16, tied=tied)
    hidden, targets = 5 * torch.randn(20, 16), torch.randint(VOCAB_SIZE, (20,))
    plain, expected = (
        F.cross_entropy(model.logits(hidden), targets, reduction="sum", label_smoothing=share)
        for share in (0.0, 0.1)
    )
    found = model.prediction_loss(hidden, targets, label_smoothing=0.1)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(plain / expected - 1) > 1e-3


def reversal(rng, count):
    """Sources of 3 to 8 tokens, and the same backwards."""
    lengths = rng.integers(3, 9, count)
    sources = [rng.integers(5, VOCAB_SIZE, n) for n in lengths]
    target = np.concatenate([one[::-1] for one in sources])
    flat = (np.concatenate(sources), lengths)
    return sources, teacher_forced(flat, (target, lengths), VOCABULARY)


def trained(name: str, steps: int) -> Seq2Seq:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = Seq2Seq(shape(name, embedding_size=48, hidden_size=48, num_layers=1, tied=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1.0, 2 * (steps - step) / steps)
        loss = SequenceToSequence().loss(model, reversal(rng, 48)[1])
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ("name", "steps"),
    [("general", 250), ("general, input feeding", 250), ("additive", 450)],
)
@pytest.mark.usefixtures("one_thread")
def test_attention_learns_to_reverse_and_generation_is_teacher_forcing(name, steps):
    model = trained(name, steps).eval()
    sources, batch = reversal(np.random.default_rng(1), 64)
    assert batch.targets is not None
    with torch.no_grad():
        guesses = model.logits(model(batch).last).argmax(1)
    assert (guesses == batch.targets).float().mean() > 0.97  # by chance 0.02
    engine = Engine.of(model, "float32", 64)
    closed = [np.array([VOCABULARY.first, *one, VOCABULARY.last]) for one in sources]
    prompts = [np.array([VOCABULARY.first])] * len(closed)
    settings = {"ends": [VOCABULARY.last], "stop": lambda *_: False, "sources": closed}
    *_, found = continuations(engine, prompts, Decoding(max_tokens=12), **settings)
    right = sum(
        one.ids == source[::-1].tolist() for one, source in zip(found, sources, strict=True)
    )
    assert right >= 56
    # What was written, read at once, is the most probable token everywhere.
    written = [np.array(one.ids) for one in found]
    lengths = np.array([len(one) for one in written])
    flat = (np.concatenate(sources), np.array([len(one) for one in sources]))
    whole = teacher_forced(flat, (np.concatenate(written), lengths), VOCABULARY)
    assert whole.targets is not None
    with torch.no_grad():
        logs = torch.log_softmax(model.logits(model(whole).last), dim=1)
    assert torch.equal(logs.argmax(1), whole.targets)
    own = logs.gather(1, whole.targets[:, None])[:, 0].split((lengths + 1).tolist())
    for one, two in zip(found, own, strict=True):
        np.testing.assert_allclose(one.log_probabilities, two.numpy(), atol=1e-4)
    beams = beam_search(
        engine, prompts[:8], Decoding(max_tokens=12, beams=3), **settings | {"sources": closed[:8]}
    )
    gains = [
        sum(best[0].log_probabilities) - sum(one.log_probabilities)
        for best, one in zip(beams, found[:8], strict=True)
        if len(best[0].ids) == len(one.ids)
    ]
    assert len(gains) >= 6
    assert min(gains) >= -1e-4


@torch.no_grad()
def test_beam_search_finds_the_best_of_all_texts():
    """Two tokens at most: with as many beams as tokens, none is missed."""
    model, batch = random_model("general, input feeding", vocab_size=20), random_batch()
    assert batch.source is not None
    source = batch.source.input_ids[:9].numpy() % 20
    engine, last = Engine.of(model, "float32", 64), VOCABULARY.last
    how = Decoding(max_tokens=2, beams=20, length_penalty=0.0)
    prompt = np.array([VOCABULARY.first])
    (found,) = beam_search(engine, [prompt], how, ends=[last], sources=[source])
    inner = [i for i in range(20) if i != last]
    texts = [*itertools.product(inner, repeat=2), (last,), *((i, last) for i in inner)]
    lengths = np.array([len(text) for text in texts])
    starts = torch.tensor([0, *lengths.cumsum()])
    wanted = torch.tensor([token for text in texts for token in text])
    read = torch.tensor([t for text in texts for t in (VOCABULARY.first, *text[:-1])])
    reading = Batch(
        input_ids=torch.from_numpy(np.tile(source, len(texts))),
        starts=9 * torch.arange(len(texts) + 1),
    )
    scores = model.logits(model(Batch(input_ids=read, starts=starts, source=reading)).last)
    logs = -F.cross_entropy(scores, wanted, reduction="none")
    totals = torch.stack([part.sum() for part in logs.split(lengths.tolist())])
    best = texts[int(totals.argmax())]
    assert sum(found[0].log_probabilities) == pytest.approx(totals.max().item(), abs=1e-4)
    assert found[0].ids == [token for token in best if token != last]


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_saved_is_loaded(name, tmp_path):
    model, batch = random_model(name), random_batch()
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={"note": 1})
    loaded = load_model(tmp_path)
    assert loaded.model.config == model.config
    assert loaded.firth == {"note": 1}
    assert torch.equal(loaded.model(batch).last, model(batch).last)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_size": 20}, "embedding_size 20 is more than hidden_size 16"),
        ({"tied": True}, "tied needs embedding_size 12 and hidden_size 16 to be the same"),
        ({"attention": "additive", "hidden_size": 17}, "hidden_size must be even"),
        ({"attention": "none", "input_feeding": True}, "input_feeding is for the attentions"),
        ({"attention": "additive", "input_feeding": True}, "input_feeding is for the attentions"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        shape("general", **settings)


def test_base_has_the_shape_of_2014():
    """Sutskever et al. 2014, section 3.4: 384M parameters, 64M of them recurrent.

    Their source vocabulary had 160,000 words and the target's 80,000; softmax and embeddings of
    1,000; 32M parameters in the encoder's LSTM and 32M in the decoder's.
    """
    config = firth.recipe("seq2seq", size="base").with_settings({"model.attention": "none"}).model
    with torch.device("meta"):
        model = Seq2Seq(config)
    for part in (model.encoder, model.decoder):
        count = sum(p.numel() for p in part.parameters())
        assert count == 4 * (4 * 1000 * 2000 + 4 * 1000)
        assert round(count / 1e6) == 32


def test_the_recipe_learns_pairs_and_its_run_does_what_models_do(tmp_path):
    rng = np.random.default_rng(0)
    letters = "abcdefghijklmnop"
    pairs = []
    for _ in range(1500):
        word = [letters[i] for i in rng.integers(0, 16, rng.integers(2, 7))]
        pairs.append((" ".join(word), " ".join(reversed(word))))
    chosen = firth.recipe("seq2seq", size="tiny", vocab_size=300).with_settings(
        {
            "training.steps": 200,
            "training.evaluate_every": 200,
            "training.optimizer.lr": 1e-2,
            "model.dropout": 0.0,
            "tokenizer.kind": "word",
        }
    )
    lm = firth.pretrain(chosen, ParallelCorpus.of(pairs), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["valid_perplexity"] for row in rows if "valid_perplexity" in row][-1] < 1.5
    written = good("generate", tmp_path / "run", "a b c d", "--beams", 3)
    assert "d c b a" in written
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "1 layers, hidden size 128," in card
    assert "heads" not in card
    assert lm.embed(["a b c", "d e"]).shape == (2, 128)
    examples = [
        Example(texts=(one,), label="yes" if "a" in one else "no") for one, _ in pairs[:300]
    ]
    tuned = firth.adapt(lm, Classification(), examples, FineTuning(epochs=6, lr=3e-3, dropout=0.0))
    answers = tuned.predict([one for one, _ in pairs[300:400]])
    right = sum(
        a.label == ("yes" if "a" in p[0] else "no")
        for a, p in zip(answers, pairs[300:400], strict=True)
    )
    assert right >= 85  # about 75 by always saying no
    with pytest.raises(firth.FirthError, match="depend on what its decoder has written"):
        lm.logits(["a b"])
    with pytest.raises(ConfigError, match="MaskedLM trains"):
        chosen.with_settings({"objective.type": "MaskedLM"})


@pytest.mark.parametrize(("attention", "idle"), [("additive", True), ("general", False)])
def test_a_direction_that_nobody_reads_in_is_named(attention, idle, caplog):
    chosen = {"model.attention": attention, "model.reverse": False}
    with caplog.at_level(logging.WARNING, logger="firth"):
        firth.recipe("seq2seq").with_settings(chosen)
    assert ("reads both ways" in caplog.text) == idle


@pytest.mark.parametrize(
    ("name", "context"),
    [("additive", "both"), ("general", "right"), ("general, read forwards", "left")],
)
def test_an_encoder_looks_where_it_says(name, context):
    """Windows of long texts, and the head of a task, go by it."""
    model = random_model(name)
    assert model.context == Engine.of(model, "float32", 64).context == context
    ids = torch.tensor([4, 9, 12, 7, 5])
    changed = {"left": ids.clone(), "right": ids.clone()}
    changed["left"][0] = changed["right"][-1] = 17
    with torch.no_grad():
        states = {
            side: model(Batch(input_ids=one, starts=torch.tensor([0, 5]))).last[2]
            for side, one in {"as it was": ids, **changed}.items()
        }
    seen = {side for side in changed if not torch.equal(states[side], states["as it was"])}
    assert seen == ({"left", "right"} if context == "both" else {context})
    last = {"both": "mean", "right": "first", "left": "last"}[context]
    assert family_head(model, Classification(labels=("a", "b")), FineTuning()).pooling == last
