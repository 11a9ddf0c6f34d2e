"""AWD-LSTM: its regularisation, its streams, its optimiser."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import firth
from firth.errors import ConfigError, DataError, UnsupportedError
from firth.models import AWDLSTM, AWDLSTMConfig
from firth.objectives import CausalLM
from firth.objectives.causal import _jumps
from firth.protocols import Batch
from firth.text.batches import ObjectiveBatches
from firth.text.streams import StreamedSequences
from firth.training import SGD, AdamW, Schedule, State, Training, checkpoint, steps
from firth.training.optimizers import NonMonotoneAverage
from tests.sources import VOCABULARY, ListSource
from tests.test_end_to_end import good

TEXT = ListSource([np.arange(5, 5 + 997) % 55 + 5])


def small_awd(**changes) -> AWDLSTM:
    torch.manual_seed(0)
    shape = {"vocab_size": 60, "embedding_size": 6, "hidden_size": 9, "num_layers": 3}
    return AWDLSTM(AWDLSTMConfig(**{**shape, **changes}))


def streams(**changes) -> StreamedSequences:
    settings = {"streams": 4, "length": 10, "seed": 3}
    return StreamedSequences(TEXT, VOCABULARY, **{**settings, **changes})


def batch_of(*sequences) -> Batch:
    starts = np.cumsum([0, *map(len, sequences)])
    ids = torch.tensor([*itertools.chain(*sequences)])
    return Batch(input_ids=ids, starts=torch.from_numpy(starts))


@pytest.mark.parametrize("vary", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_the_stretches_of_an_epoch_are_the_text(vary, backward):
    source = streams(vary=vary, backward=backward, shift=False)
    text = TEXT.tokens(0, 997)
    read = [[] for _ in range(4)]
    for step in range(source.steps_per_epoch):
        one = source.sequences(step)
        assert one.continues == (step > 0)
        batch = CausalLM(backward=backward).prepare(one, np.random.default_rng(0))
        assert batch.num_predictions == batch.num_tokens  # every token of a stream
        ids, targets = (x.view(4, -1).numpy() for x in (batch.input_ids, batch.targets))
        for stream in range(4):
            read[stream].append((ids[stream], targets[stream]))
    span = source.span
    for stream, pieces in enumerate(read):
        if backward:
            pieces = pieces[::-1]
        ids, targets = (np.concatenate([piece[i] for piece in pieces]) for i in (0, 1))
        begin = stream * span + backward
        assert np.array_equal(ids, text[begin : begin + span])
        moved = begin - 1 if backward else begin + 1
        assert np.array_equal(targets, text[moved : moved + span])


@pytest.mark.parametrize("length", [1, 2])
def test_no_stretch_is_empty_however_short_they_are(length):
    source = streams(length=length, streams=2, vary=True)
    sizes = [int(source.sequences(i).starts[1]) for i in range(2 * source.steps_per_epoch)]
    assert min(sizes) > 0
    assert sum(sizes[: source.steps_per_epoch]) == source.span


def test_lengths_vary_as_in_the_paper():
    source = StreamedSequences(
        ListSource([np.arange(700_000) % 50]), VOCABULARY, streams=1, length=70, seed=0, vary=True
    )
    found = [source.sequences(step) for step in range(0, source.steps_per_epoch, 3)]
    lengths = np.array([len(one.ids) for one in found])
    assert 62 < np.median(lengths) < 78
    assert 3 < lengths[lengths > 50].std() < 7
    assert 0.03 < (lengths < 50).mean() < 0.07
    assert all(one.rate == len(one.ids) / 70 for one in found)
    again = source.sequences(4)
    assert np.array_equal(again.ids, source.sequences(4).ids)
    assert not np.array_equal(again.ids, source.sequences(4 + source.steps_per_epoch).ids)


def test_some_steps_begin_afresh():
    """At random, the same ones for a seed, and the text goes on as without."""
    long = ListSource([np.arange(280_000) % 50])
    plain, source, other = (
        StreamedSequences(long, VOCABULARY, streams=4, length=70, **settings)
        for settings in (
            {"seed": 3},
            {"seed": 3, "restart": 0.05},
            {"seed": 4, "restart": 0.05},
        )
    )
    steps = range(1, source.steps_per_epoch)
    begun = [step for step in steps if not source.sequences(step).continues]
    assert 0.04 < len(begun) / len(steps) < 0.06, len(begun)
    assert begun == [step for step in steps if not source.sequences(step).continues]
    assert begun != [step for step in steps if not other.sequences(step).continues]
    assert all(plain.sequences(step).continues for step in steps[:200])
    assert np.array_equal(plain.sequences(7).ids, source.sequences(7).ids)


def test_too_little_text_for_a_stream_is_refused():
    with pytest.raises(DataError, match="997 tokens are too few for one step of 1000"):
        streams(length=1000)
    assert streams(streams=500).streams == 99  # as many as there is text for


def test_held_out_text_of_one_token_is_named(tmp_path, papers):
    chosen = firth.recipe("awd-lstm", size="tiny", vocab_size=300)
    chosen = chosen.with_settings({"training.steps": 1, "tokenizer.kind": "word"})
    valid = firth.Corpus.from_texts(["results"])
    with pytest.raises(DataError, match="the held-out text: tokens: 1, expected 2 at least"):
        firth.pretrain(chosen, firth.Corpus.from_texts(papers), tmp_path / "run", valid=valid)


def test_held_out_text_may_be_shorter_than_a_step(tmp_path, papers):
    chosen = firth.recipe("awd-lstm", size="tiny", vocab_size=300).with_settings(
        {"training.steps": 1, "training.batch_tokens": 160, "data.max_length": 40}
    )
    train, valid = (firth.Corpus.from_texts(texts) for texts in (papers[:9], ["the parser"]))
    firth.pretrain(chosen, train, tmp_path / "run", valid=valid)
    tokens = firth.text.shards.Shards.open(tmp_path / "run" / "data" / "valid").num_tokens
    (loss,) = losses_of(tmp_path / "run")
    assert tokens < 40
    assert 5 < loss < 6.5  # the uniform distribution costs log 300 = 5.7


@pytest.mark.parametrize(
    ("settings", "compares"), [({}, False), ({"objective.ar": 0, "objective.tar": 0}, True)]
)
def test_a_loss_that_is_regularised_is_not_held_against_the_entropy(
    settings, compares, tmp_path, papers, monkeypatch
):
    class SeenError(Exception):
        pass

    def train(_state, _objective, _batches, _training, plan):
        raise SeenError(plan.unigram_entropy)

    monkeypatch.setattr("firth.api.pretraining.train", train)
    chosen = firth.recipe("awd-lstm", size="tiny", vocab_size=300).with_settings(
        {"training.steps": 1, "training.batch_tokens": 160, "data.max_length": 40, **settings}
    )
    corpus = firth.Corpus.from_texts(papers[:9])
    with pytest.raises(SeenError) as seen:
        firth.pretrain(chosen, corpus, tmp_path / "run", valid=corpus)
    assert (seen.value.args[0] is not None) == compares


def test_a_stream_in_parts_is_the_stream():
    """The state goes from step to step, so cutting a text changes nothing."""
    model = small_awd().eval()
    source = streams(shift=False)
    with torch.no_grad():
        parts = []
        for step in range(4):
            batch = CausalLM().prepare(source.sequences(step), np.random.default_rng(0))
            parts.append(model(batch).last.view(4, 10, -1))
        ids = [TEXT.tokens(i * source.span, i * source.span + 40).tolist() for i in range(4)]
        whole = model(batch_of(*ids)).last.view(4, 40, -1)
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-6)


@pytest.mark.parametrize("backward", [False, True])
def test_it_sees_one_side(backward):
    model = small_awd(backward=backward).eval()
    with torch.no_grad():
        a, b = (model(batch_of([7, 8, word, 9, 10])).last for word in (11, 12))
    moved = ((a - b).abs().amax(1) > 1e-7).tolist()
    seen = [False, False, True, True, True]
    assert moved == (seen[::-1] if backward else seen)


def test_each_dropout_is_as_described():
    off = {f"{name}_dropout": 0.0 for name in ("output", "hidden", "input", "embedding", "weight")}
    torch.manual_seed(1)
    ids = [7, 8, 9, 7, 8]
    batch = batch_of(ids, ids)

    def states(**one):
        model = small_awd(embedding_size=32, hidden_size=40, **{**off, **one})
        return model(batch, hidden_states=True)

    plain = states().last
    assert torch.allclose(plain, states().last)
    kept = states(output_dropout=0.5).last.view(2, 5, 40)
    zero = (kept == 0).float()
    assert torch.equal(zero.amax(1), zero.amin(1))  # one mask for all tokens of a sequence
    assert not torch.equal(zero[0], zero[1])
    embedded = states(embedding_dropout=0.5).hidden_states[0]
    gone = (embedded[:, :32] == 0).all(1).view(2, 5)
    assert torch.equal(gone[0], gone[1])  # a word is gone everywhere
    assert torch.equal(gone[0, :2], gone[0, 3:])
    for name in ("hidden", "input", "weight"):
        assert not torch.allclose(states(**{f"{name}_dropout": 0.5}).last, plain), name
        halved = states(**{f"{name}_dropout": 0.5}, dropout=0.0).last
        assert torch.allclose(halved, plain), name


def test_regularisation_by_hand():
    model = small_awd().eval()
    batch = CausalLM().prepare(streams().sequences(0), np.random.default_rng(0))
    with torch.no_grad():
        loss = CausalLM(ar=2.0, tar=1.0).loss(model, batch)
        model.eval()
        h = model(replace(batch, continues=False)).last.view(4, 10, 9)[..., :6]
    expected = 2 * h.square().mean() + (h[:, 1:] - h[:, :-1]).square().mean()
    penalty = float(loss.parts["regularisation"])
    assert penalty == pytest.approx(float(expected) * loss.count, rel=1e-5)
    assert float(loss.total) == pytest.approx(float(loss.parts["cross_entropy"]) + penalty)


def test_initialisation():
    model = AWDLSTM(AWDLSTMConfig(vocab_size=100, embedding_size=40, hidden_size=115))
    assert 0.09 < model.embeddings.weight.abs().max() <= 0.1
    for layer, size in zip(model.layers, (115, 115, 40), strict=True):
        assert 0.95 * size**-0.5 < layer.recurrent.abs().max() <= size**-0.5
    assert model.bias.abs().max() == 0


def test_the_average_begins_when_validation_stops_improving():
    """Algorithm 1 of Merity et al. 2018."""
    model = nn.Linear(1, 1, bias=False)
    average = NonMonotoneAverage(model, patience=2)

    def step(value):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(model, 1)
        return float(average.weights["weight"])

    assert step(4.0) == 4.0
    for loss in (3.0, 2.0, 2.5, 1.9):  # 2.5 and 1.9 are better than what was two and more ago
        average.notice(loss)
        assert average.count is None
    average.notice(2.2)  # worse than 2.0
    assert average.count == 0
    assert [step(v) for v in (1.0, 3.0, 8.0)] == [1.0, 2.0, 4.0]
    other = NonMonotoneAverage(nn.Linear(1, 1, bias=False), patience=2)
    other.restore(average.tensors())
    assert (other.count, other.losses) == (3, [3.0, 2.0, 2.5, 1.9, 2.2])
    assert float(other.weights["weight"]) == 4.0
    broken = NonMonotoneAverage(model, patience=2)
    for loss in (float("nan"), 2.0, 2.5, 1.9, 2.2):  # a loss that is none says nothing
        broken.notice(loss)
    assert broken.count == 0


@pytest.mark.parametrize("optimizer", [SGD(lr=1.0), AdamW(lr=1e-2)])
def test_a_run_on_streams_goes_on_bit_for_bit(tmp_path, optimizer):
    """The checkpoint holds the state of the streams, and what an average has seen."""
    training = Training(
        steps=8,
        optimizer=optimizer,
        schedule=Schedule(shape="constant", warmup=0),
        nonmonotone=1 if isinstance(optimizer, SGD) else 0,
    )
    batches = ObjectiveBatches(streams(vary=True), CausalLM(ar=2.0, tar=1.0))

    def go_on(state: State, save_at: int | None) -> State:
        for step in steps(state, batches.objective, batches, training, total_steps=8):
            if state.average is not None and step.step in (2, 3, 5):
                state.average.notice(float(step.step))
            if step.step == save_at:
                checkpoint.save(tmp_path, state, {})
        return state

    whole = go_on(State.begin(small_awd(), training), save_at=4)
    resumed = State.begin(small_awd(), training)
    checkpoint.restore(checkpoint.find(tmp_path), resumed)
    assert resumed.step == 4
    go_on(resumed, None)
    for (name, a), b in zip(
        whole.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    if whole.average is not None:
        assert whole.average.count == resumed.average.count == 3
        for name, a in whole.average.weights.items():
            assert torch.equal(a, resumed.average.weights[name]), name


def test_streams_cannot_be_cut_into_micro_batches():
    batch = CausalLM().prepare(streams().sequences(0), np.random.default_rng(0))
    with pytest.raises(ConfigError, match="streams carry their state"):
        batch.split(2)


@pytest.mark.parametrize(
    ("name", "settings", "found"),
    [
        ("gpt", {"data.packing": "streams"}, "for recurrent models"),
        ("awd-lstm", {"training.accumulation": 2}, "training.accumulation to be 1"),
        ("gpt", {"data.vary": True}, "set data.packing to streams"),
        ("gpt", {"data.restart": 0.1}, "steps of streams"),
        ("awd-lstm", {"data.restart": 1.5}, "a share from 0 to 1"),
        ("gpt", {"objective.ar": 1.0}, "regularise AWDLSTMConfig"),
        ("awd-lstm", {"objective.backward": True}, "model.backward must be the same"),
        ("awd-lstm", {"training.average": 0.9, "training.nonmonotone": 5}, "not both"),
    ],
)
def test_settings_that_do_not_fit_are_refused(name, settings, found):
    with pytest.raises(ConfigError, match=found):
        firth.recipe(name).with_settings(settings)


@pytest.fixture(scope="module", params=[False, True], ids=["forward", "backward"])
def lm(request, tmp_path_factory, papers) -> firth.LanguageModel:
    """A tiny model of each direction, pre-trained on papers for a few seconds."""
    chosen = firth.recipe("awd-lstm", size="tiny", vocab_size=800).with_settings(
        {
            "training.steps": 250,
            "training.batch_tokens": 16 * 30,
            "training.optimizer.lr": 1e-2,
            "data.max_length": 30,
            "data.valid_tokens": 3000,
            "model.dropout": 0.1,
            "model.backward": request.param,
            "objective.backward": request.param,
        }
    )
    path = tmp_path_factory.mktemp("awd") / "run"
    train, valid = (firth.Corpus.from_texts(part) for part in (papers[:180], papers[180:]))
    firth.pretrain(chosen, train, path, valid=valid)
    return firth.load(path, device="cpu", precision="float32")


def losses_of(run) -> list[float]:
    rows = firth.training.tracking.read_metrics(run)
    return [row["valid_loss"] for row in rows if "valid_loss" in row]


def test_it_learns_and_writes(lm):
    backward = lm.model.config.backward
    (valid,) = losses_of(lm.path)
    shards = firth.text.shards.Shards.open(lm.path / "data" / "train")
    assert valid < firth.text.shards.unigram_entropy(shards.token_counts) - 0.2
    written = lm.generate("the results of", max_tokens=4, backward=backward)
    ids = [lm.tokenizer._backend.token_to_id(token) for token in written.tokens]
    prompt = lm.tokenizer.encode("the results of").ids
    text = [*ids, *prompt[1:]] if backward else [*prompt[:-1], *ids]
    with torch.no_grad():
        best = lm.model.logits(lm.model(batch_of([int(i) for i in text])).last).argmax(1)
    places = range(1, 5) if backward else range(len(prompt) - 2, len(prompt) + 2)
    assert best[list(places)].tolist() == ids
    with pytest.raises(UnsupportedError, match="backward"):
        lm.generate("the", backward=not backward)


def test_texts_open_with_the_token_that_stands_between_texts(lm, papers):
    """A stream holds no other: what an opening token of its own is would never be learned."""
    vocabulary = lm.tokenizer.vocabulary
    assert vocabulary.first == vocabulary.last
    assert lm.tokenizer.encode("the results").ids[[0, -1]].tolist() == [vocabulary.last] * 2
    scores = lm.score(papers[180:])
    edge = -1 if lm.model.config.backward else 0
    first = np.mean([one.log_probabilities[edge] for one in scores])
    assert first > -np.log(vocabulary.size) + 1.0  # a uniform guess, which no state gives
    again = firth.Tokenizer.load(lm.path)
    assert again.vocabulary == vocabulary


@torch.no_grad()
def test_scores_are_those_of_its_own_direction(lm):
    backward = lm.model.config.backward
    text = "the results of the model"
    ids = lm.tokenizer.encode(text).ids
    read = ids[1:] if backward else ids[:-1]
    logs = torch.log_softmax(lm.model.logits(lm.model(batch_of(read.tolist())).last), -1)
    targets = torch.from_numpy(ids[1:-1].astype(np.int64))
    states = logs[1:] if backward else logs[:-1]
    expected = states.gather(1, targets[:, None]).squeeze(1)
    np.testing.assert_allclose(lm.score([text])[0].log_probabilities, expected, atol=1e-4)


def test_states_of_all_layers(lm):
    (states,) = lm.hidden_states(["the results"])
    assert states.values.shape[0] == len(lm.model.layers) + 1
    assert states.values.shape[2] == lm.model.config.hidden_size
    one, other = lm.hidden_states(["the results", "the results"], stateful=True)
    assert np.abs(one.values - states.values).max() < 1e-6
    assert np.abs(other.values[1:] - one.values[1:]).max() > 1e-3


def test_states_are_as_wide_as_word_vectors():
    with pytest.raises(ConfigError, match="at least as wide as word vectors"):
        small_awd(hidden_size=40, embedding_size=41)


def test_discriminative_rates():
    """Howard and Ruder 2018, section 3.2: eta^(l-1) = eta^l / 2.6; the softmax with the top."""
    model = small_awd()
    training = Training(steps=1, optimizer=AdamW(lr=0.4, weight_decay=0.0), layer_decay=2.0)
    state = State.begin(model, training)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {
        names[id(p)]: group["peak_lr"]
        for optimizer in state.optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert rates.keys() == set(names.values())
    assert rates["bias"] == rates["layers.2.recurrent"] == pytest.approx(0.4)
    assert rates["layers.1.weight"] == pytest.approx(0.2)
    assert rates["layers.0.bias"] == pytest.approx(0.1)
    assert rates["embeddings.weight"] == rates["bias"]


def test_going_on_from_a_model(lm, tmp_path, papers):
    """The second stage of ULMFiT: same vocabulary and shape, better from the first step on."""
    backward = lm.model.config.backward
    settings = {
        "training.steps": 2,
        "training.batch_tokens": 16 * 30,
        "training.optimizer.lr": 1e-4,
        "data.max_length": 30,
        "data.valid_tokens": 3000,
        "model.dropout": 0.25,
        "model.backward": backward,
        "objective.backward": backward,
    }
    recipe = firth.recipe("ulmfit").with_settings(settings)
    train, valid = (firth.Corpus.from_texts(part) for part in (papers[:50], papers[180:]))
    tuned = firth.pretrain(recipe, train, tmp_path / "tuned", valid=valid, start=lm)
    assert tuned.tokenizer.content_hash == lm.tokenizer.content_hash
    assert tuned.model.config == replace(lm.model.config, dropout=0.25)
    (after,) = losses_of(tuned.path)
    (before,) = losses_of(lm.path)
    assert abs(after - before) < 0.05
    moved = (tuned.model.embeddings.weight - lm.model.embeddings.weight).abs().max()
    assert 0 < moved < 1e-3
    with pytest.raises(ConfigError, match="other settings"):
        firth.pretrain(recipe, train, tmp_path / "tuned", valid=valid)
    with pytest.raises(ConfigError, match="trains GPTConfig"):
        firth.pretrain(firth.recipe("gpt"), train, tmp_path / "other", start=lm)


def test_stop_strings_are_cut_off_in_both_directions(lm):
    backward = lm.model.config.backward
    how = {"max_tokens": 12, "temperature": 1.0, "seed": 3, "backward": backward}
    whole = lm.generate("the results of", **how).continuation
    stop = whole.split()[-4 if backward else 3]
    cut = lm.generate("the results of", stop=[stop], **how)
    kept = whole.rpartition(stop)[2] if backward else whole.partition(stop)[0]
    assert cut.ended == "stop"
    assert cut.continuation == kept


def test_the_command_line_writes_in_both_directions(lm):
    backward = ["--backward"] if lm.model.config.backward else []
    written = good("generate", lm.path, "the results of", "--max-tokens", "4", *backward)
    assert written.strip().endswith("the results of") == bool(backward)
    assert written.strip().startswith("the results of") != bool(backward)


def test_sequences_of_one_token_have_no_jumps():
    """TAR is a mean over neighbours; without any it is nothing, not NaN."""
    states = torch.randn(3, 4)
    assert _jumps(states, torch.tensor([0, 1, 2, 3])) == 0
    assert _jumps(states, torch.tensor([0, 2, 3])) == pytest.approx(
        (states[1] - states[0]).square().mean().item()
    )
