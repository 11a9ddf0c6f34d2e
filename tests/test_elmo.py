"""ELMo: the published network's numbers, its parts against their definitions, and its uses."""

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import firth
from firth.errors import CheckpointError, ConfigError, UnsupportedError
from firth.inference.minimal_pairs import baseline_differences, encode_pairs
from firth.interop.allennlp import read_elmo, write_elmo
from firth.models import Elmo, ElmoConfig
from firth.models.characters import CharacterEncoder, Spellings
from firth.models.elmo import BiLayer
from firth.models.recurrence import Steps
from firth.models.sampled_softmax import log_uniform_counts, log_uniform_sample, sampled_loss
from firth.objectives import BidirectionalLM
from firth.protocols import ABSENT, Batch
from firth.text.batches import PackedSequences
from firth.text.words import Words
from firth.training import Adagrad
from tests.sources import VOCABULARY, ListSource, sequences_of

h5py = pytest.importorskip("h5py")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "tide", "über", "a" * 60, "turns"]
SMALL = {
    "vocab_size": len(WORDS),
    "output_size": 8,
    "projection_size": 6,
    "cell_size": 9,
    "filters": ((1, 4), (2, 3), (4, 5)),
    "num_highway": 1,
    "character_dim": 3,
    "samples": 0,
}


def small_elmo(**changes) -> Elmo:
    torch.manual_seed(0)
    model = Elmo(ElmoConfig(**{**SMALL, **changes})).eval()
    model.use_words(Words(WORDS, first=2, last=3))
    return model


def batch_of(*sequences) -> Batch:
    starts = np.cumsum([0, *map(len, sequences)])
    return Batch(
        input_ids=torch.tensor([*itertools.chain(*sequences)]), starts=torch.from_numpy(starts)
    )


@pytest.fixture(scope="module")
def fixture(shared) -> Path:
    return shared / "data" / "elmo-fixture"


def test_the_states_that_the_authors_computed(fixture):
    """The top layer of three streams, the state carried from each sentence to the next."""
    lm = firth.load(fixture, device="cpu", precision="float32")
    for k, stream in enumerate(json.loads((fixture / "sentences.json").read_text())):
        states = lm.hidden_states([sentence.split() for sentence in stream], stateful=True)
        with h5py.File(fixture / f"lm_embeddings_{k}.hdf5") as expected:
            for i, state in enumerate(states):
                both = np.concatenate(list(expected[str(i)][...]), axis=1)
                assert np.abs(state.values[-1][1:-1] - both).max() < 1e-5


def test_the_word_vectors_that_the_authors_computed(fixture):
    lm = firth.load(fixture, device="cpu", precision="float32")
    words = (fixture / "vocab_test.txt").read_text().splitlines()
    with h5py.File(fixture / "elmo_token_embeddings.hdf5") as file:
        expected = file["embedding"][...]
    found = lm.hidden_states([[word] for word in words])
    for word, state, vector in zip(words, found, expected, strict=True):
        if word not in ("<S>", "</S>"):  # there the marks of a sentence, here words like others
            assert np.abs(state.values[0, 1] - np.tile(vector, 2)).max() < 1e-5, word


def test_sentences_begin_afresh_unless_told(fixture):
    lm = firth.load(fixture, device="cpu", precision="float32")
    texts = [["The", "tide", "turned", "."], ["It", "rose"], ["The", "tide", "turned", "."]]
    alone = lm.hidden_states(texts[:1])[0].values
    together = lm.hidden_states(texts)
    assert np.abs(together[2].values - alone).max() < 1e-6
    carried = lm.hidden_states(texts, stateful=True)
    assert np.abs(carried[0].values - alone).max() < 1e-6
    assert np.abs(carried[2].values - alone).max() > 1e-2


def test_what_is_written_is_what_was_read(fixture, tmp_path):
    write_elmo(tmp_path, read_elmo(fixture))
    with (
        h5py.File(fixture / "lm_weights.hdf5") as theirs,
        h5py.File(tmp_path / "weights.hdf5") as ours,
    ):
        names = []
        theirs.visit(lambda name: names.append(name) if hasattr(theirs[name], "shape") else None)
        for name in names:
            assert np.abs(theirs[name][...] - ours[name][...]).max() < 1e-6, name
    written, published = (
        json.loads((path / "options.json").read_text()) for path in (tmp_path, fixture)
    )
    assert written == published


@pytest.mark.parametrize(
    "changes",
    [
        {"residual": False},
        {"num_layers": 1},
        {"num_layers": 3, "activation": "tanh"},
        {"num_highway": 0},
    ],
)
def test_other_shapes_are_written_and_read(tmp_path, changes):
    model = small_elmo(**changes)
    write_elmo(tmp_path, model)
    loaded = read_elmo(tmp_path)
    loaded.use_words(Words(WORDS, first=2, last=3))
    batch = batch_of([2, 5, 6, 9, 3], [2, 7, 3])
    with torch.no_grad():
        ours, theirs = (m(batch, hidden_states=True).hidden_states for m in (model, loaded))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_weights_that_do_not_fit_are_named(tmp_path):
    write_elmo(tmp_path, small_elmo())
    options = json.loads((tmp_path / "options.json").read_text())
    options["lstm"]["dim"] = 10
    (tmp_path / "options.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointError, match=r"layers\.0\.directions\.0.*expected"):
        firth.load(tmp_path)
    options["char_cnn"]["filters"][0] = [1, 5]
    (tmp_path / "options.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointError, match="4 filters of width 1, expected 5 of width 1"):
        firth.load(tmp_path)


def test_a_file_of_more_than_its_options_say_is_refused(tmp_path):
    """Its first layers alone would give vectors that are those of no model."""
    write_elmo(tmp_path, small_elmo())
    text = (tmp_path / "options.json").read_text()
    for part, name in (("lstm", "n_layers"), ("char_cnn", "n_highway"), ("char_cnn", "filters")):
        options = json.loads(text)
        less = options[part][name]
        options[part][name] = less[:-1] if name == "filters" else less - 1
        (tmp_path / "options.json").write_text(json.dumps(options))
        with pytest.raises(CheckpointError, match=f"one more than options.json says .{name} is"):
            firth.load(tmp_path)


def test_damaged_files_are_named(tmp_path):
    write_elmo(tmp_path, small_elmo())
    path = tmp_path / "weights.hdf5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"weights\.hdf5: .* cut short, damaged or of"):
        firth.load(tmp_path)
    options = json.loads((tmp_path / "options.json").read_text())
    del options["lstm"]["projection_dim"]
    (tmp_path / "options.json").write_text(json.dumps(options))
    with pytest.raises(CheckpointError, match=r"options\.json: 'projection_dim' is missing"):
        firth.load(tmp_path)
    for part, name, wrong in (
        ("lstm", "dim", "x"),
        ("char_cnn", "filters", [[1]]),
        ("char_cnn", "embedding", 4),
        ("lstm", "n_layers", 0),
    ):
        write_elmo(tmp_path, small_elmo())
        options = json.loads((tmp_path / "options.json").read_text())
        options[part][name] = wrong
        (tmp_path / "options.json").write_text(json.dumps(options))
        with pytest.raises(CheckpointError, match=r"options\.json: not the options of an ELMo"):
            firth.load(tmp_path)
    write_elmo(tmp_path, small_elmo())
    with h5py.File(path, "r+") as file:
        del file["CNN/W_cnn_0"]
        file["CNN/W_cnn_0"] = np.zeros((2, 2))
    with pytest.raises(CheckpointError, match=r"weights\.hdf5: .* of another network"):
        firth.load(tmp_path)


@pytest.mark.parametrize(("size", "millions"), [("mini", 13.6), ("small", 28.0), ("base", 93.6)])
def test_sizes_have_the_parameters_of_the_published_models(size, millions):
    """The authors' table of small, medium and original; their softmax is not counted."""
    with torch.device("meta"):
        model = Elmo(firth.recipe("elmo", size=size).model)
    head = {id(p) for p in model.head.parameters()}
    count = sum(p.numel() for p in model.parameters() if id(p) not in head)
    assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_characters_are_convolved_over_all_places(activation):
    """Grouping words by length, and leaving out most of the padding, changes nothing."""
    torch.manual_seed(1)
    encoder = CharacterEncoder(
        ((1, 4), (3, 5), (7, 6)), dim=3, num_highway=0, output_size=2, activation=activation
    )
    names = ["a", "tide", "longer-word", "w" * 20, "x" * 30, "y" * 47, "z" * 80, "ü" * 30, ""]
    spellings = Spellings(Words(names, first=90, last=91), 50)
    characters = torch.from_numpy(spellings.of(np.arange(len(names))))
    assert characters[1, :7].tolist() == [258, *b"tide", 259, 260]
    assert characters[6, -1] == 259
    x = encoder.characters(characters.long()).transpose(1, 2)  # (W, dim, 50)
    act = {"relu": F.relu, "tanh": torch.tanh}[activation]
    maxima = []
    for width, convolution in zip(encoder.widths, encoder.filters, strict=True):
        kernel = convolution.weight.view(-1, width, 3).transpose(1, 2)
        maxima.append(act(F.conv1d(x, kernel, convolution.bias)).amax(2))
    expected = encoder.projection(torch.cat(maxima, 1))
    assert torch.allclose(encoder(characters), expected, atol=1e-6)


def test_each_direction_sees_its_side():
    model = small_elmo()
    before, after = ([2, 5, word, 9, 3] for word in (6, 7))
    with torch.no_grad():
        a, b = (
            model(batch_of(one), hidden_states=True).hidden_states[-1] for one in (before, after)
        )
    moved = (a - b).abs().view(5, 2, 6).amax(2) > 1e-6
    assert moved[:, 0].tolist() == [False, False, True, True, True]
    assert moved[:, 1].tolist() == [True, True, True, False, False]


def test_the_loss_is_the_mean_of_both_directions():
    model = small_elmo()
    sequences = sequences_of([4, 3])
    ids = torch.randint(5, len(WORDS), (len(sequences.ids),))
    ids[sequences.starts[:-1]], ids[sequences.starts[1:] - 1] = 2, 3
    sequences.ids[:] = ids.numpy()
    objective = BidirectionalLM()
    batch = objective.prepare(sequences, np.random.default_rng(0))
    with torch.no_grad():
        loss = objective.loss(model, batch)
        last = model(batch).last.detach()
    model.requires_grad_(False)
    known = torch.where(ids < 8, ids, 1)
    total, count = 0.0, 0
    starts = sequences.starts.tolist()
    for begin, end in itertools.pairwise(starts):
        forward = torch.log_softmax(model.logits(last[begin : end - 1]), 1)
        backward = torch.log_softmax(model.logits(last[begin + 1 : end], backward=True), 1)
        row = torch.arange(end - begin - 1)
        total -= float(forward[row, known[begin + 1 : end]].sum())
        total -= float(backward[row, known[begin : end - 1]].sum())
        count += end - begin - 1
    assert loss.count == count
    assert float(loss.total) == pytest.approx(total / 2, rel=1e-5)


def test_neither_direction_predicts_across_a_cut():
    words = np.arange(5, 25)
    packed = PackedSequences(
        ListSource([words]), VOCABULARY, max_length=10, batch_tokens=40, seed=0
    )
    batch = BidirectionalLM().prepare(packed.sequences(0), np.random.default_rng(0))
    assert batch.predict_at is not None
    assert batch.targets is not None
    read = batch.input_ids[batch.predict_at].tolist()  # what the backward direction predicts
    pairs = set(zip(read, batch.targets.tolist(), strict=True))
    first, last = VOCABULARY.first, VOCABULARY.last
    cuts = {(12, 13), (20, 21)}  # behind 8 and 16 words
    inside = {*itertools.pairwise(range(5, 25))} - cuts
    assert pairs == {(first, 5), (24, last)} | inside


def test_a_sample_of_all_words_is_the_full_softmax():
    torch.manual_seed(2)
    hidden, weight = (torch.randn(n, 4, requires_grad=True) for n in (7, 11))
    bias = torch.randn(11, requires_grad=True)
    targets = torch.randint(11, (7,))
    full = F.cross_entropy(hidden @ weight.t() + bias, targets, reduction="sum")
    sampled = sampled_loss(hidden, weight, bias, targets, torch.arange(11), torch.zeros(11))
    assert sampled.item() == pytest.approx(full.item(), rel=1e-5)
    for a, b in zip(
        torch.autograd.grad(sampled, [hidden, weight, bias]),
        torch.autograd.grad(full, [hidden, weight, bias]),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_words_are_drawn_as_often_as_is_said():
    torch.manual_seed(3)
    drawn = torch.stack(
        [torch.bincount(log_uniform_sample(20, 50), minlength=50) for _ in range(4000)]
    ).float()
    assert drawn.max() == 1
    assert (drawn.mean(0) - log_uniform_counts(20, 50)).abs().max() < 0.03
    assert drawn.mean(0)[0] > 5 * drawn.mean(0)[40]


def test_vectors_of_words_are_kept_only_while_the_weights_stay():
    model = small_elmo()
    batch = batch_of([2, 5, 6, 3])
    spelled = []
    model.embeddings.register_forward_hook(lambda _module, given, _out: spelled.append(len(*given)))
    with torch.no_grad():
        first = model(batch).last
        assert torch.equal(model(batch).last, first)
        assert spelled == [4]  # once each
        changed = copy.deepcopy(model)
        changed.embeddings.projection.bias += 1
        assert not torch.allclose(changed(batch).last, first)
        model.embeddings.projection.bias += 1
        model.train()
        model.eval()
        assert torch.allclose(model(batch).last, changed(batch).last)


@pytest.fixture(scope="module")
def elmo_run(tmp_path_factory, papers) -> Path:
    """A tiny biLM, pre-trained on papers for a few seconds."""
    chosen = firth.recipe("elmo", size="tiny", vocab_size=600).with_settings(
        {
            "training.steps": 60,
            "training.batch_tokens": 1024,
            "training.optimizer.lr": 5e-3,
            "data.max_length": 32,
            "data.valid_tokens": 2000,
            "model.projection_size": 32,
            "model.cell_size": 64,
        }
    )
    path = tmp_path_factory.mktemp("elmo") / "run"
    train, valid = (firth.Corpus.from_texts(part) for part in (papers[:180], papers[180:]))
    firth.pretrain(chosen, train, path, valid=valid)
    return path


@pytest.fixture(scope="module")
def lm(elmo_run) -> firth.LanguageModel:
    return firth.load(elmo_run, device="cpu", precision="float32")


def test_it_learns_more_than_frequencies(elmo_run):
    rows = [json.loads(line) for line in (elmo_run / "metrics.jsonl").read_text().splitlines()]
    (valid,) = [row["valid_loss"] for row in rows if "valid_loss" in row]
    model = firth.load(elmo_run)
    shards = firth.text.shards.Shards.open(elmo_run / "data" / "train")
    counts = np.bincount(np.minimum(shards.tokens(0, shards.num_tokens), 600), minlength=601)
    counts[1] += counts[600]  # rarer words are one class
    shares = counts[:600] / counts[:600].sum()
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert valid < entropy - 0.1
    assert model.model.config.output_size == 600
    assert model.model.config.vocab_size > 2000


def test_an_unseen_word_has_a_vector_of_its_own(lm):
    seen, one, other = (
        lm.embed([["the", word, "model"]], unit="word", layers=0)[0].vectors[1]
        for word in ("language", "languagey", "zzzz")
    )
    assert np.abs(one - other).max() > 1e-3
    assert np.linalg.norm(one - seen) < np.linalg.norm(other - seen)


@torch.no_grad()
def test_words_beyond_the_softmax_score_as_its_class_of_them(lm):
    """An unseen word, and a seen one that is not predicted by name."""
    size = lm.model.config.output_size
    rare = lm.tokenizer.token(lm.model.config.vocab_size - 1)
    words = ["the", "zzzz", "model", rare]
    ids = lm.tokenizer.encode_batch([words])[0].ids
    assert (ids >= size).sum() == 2
    scores = torch.log_softmax(lm.model.logits(lm.model(batch_of(ids.tolist())).last), -1)
    expected = [
        float(scores[at, int(i) if i < size else lm.model.config.unknown])
        for at, i in enumerate(ids[1:-1])
    ]
    np.testing.assert_allclose(lm.score([words])[0].log_probabilities, expected, atol=1e-4)
    assert np.isfinite(lm.score([words], pseudo=True)[0].log_probabilities).all()


@pytest.mark.parametrize("backward", [False, True])
def test_greedy_writing_is_what_the_whole_text_says(lm, backward):
    written = lm.generate("we propose a", max_tokens=5, backward=backward)
    ids = [lm.tokenizer.encode(word, special_tokens=False).ids[0] for word in written.tokens]
    prompt = lm.tokenizer.encode("we propose a").ids
    last = lm.tokenizer.vocabulary.last
    text = [*ids, *prompt[1:]] if backward else [*prompt[:-1], *ids]
    with torch.no_grad():
        hidden = lm.model(batch_of([int(i) for i in text])).last
        scores = lm.model.logits(hidden, backward=backward)
        scores[:, lm.tokenizer.vocabulary.unknown] = -torch.inf  # never written
        best = scores.argmax(1).tolist()
    places = range(len(ids)) if backward else range(len(prompt) - 1, len(text))
    for place, word in zip(places, ids, strict=True):
        assert best[place + 1 if backward else place - 1] == word
    assert text[-1] == last or not backward
    assert written.text == (
        f"{' '.join(written.tokens)} we propose a" if backward else written.text
    )


def test_a_blank_must_suit_both_sides(lm):
    best = lm.fill("the number of [MASK] in the data", top_k=3)
    ids = lm.tokenizer.encode("the number of [MASK] in the data").ids
    with torch.no_grad():
        hidden = lm.model(batch_of(ids.tolist())).last
        forward = torch.log_softmax(lm.model.logits(hidden[3:4]), 1)
        backward = torch.log_softmax(lm.model.logits(hidden[5:6], backward=True), 1)
    both = (forward + backward)[0]
    both[list(lm.tokenizer.vocabulary.special)] = -torch.inf
    expected = torch.softmax(both, 0).topk(3)
    assert [lm.tokenizer.token(i) for i in expected.indices] == [one.token for one in best]
    assert [one.probability for one in best] == pytest.approx(expected.values.tolist(), rel=1e-4)


def test_a_decoder_does_not_write_backward(tiny_run):
    lm = firth.load(tiny_run)
    with pytest.raises(UnsupportedError, match="leave backward out"):
        lm.generate("the", backward=True)


def test_words_that_are_not_predicted_may_be_in_the_prompt(lm):
    """The penalty of repetition has nothing to lower for them."""
    for beams in (1, 2):
        written = lm.generate("the zzzz", max_tokens=3, repetition_penalty=1.2, beams=beams)
        assert written.text.startswith("the zzzz")


def test_unseen_words_are_the_unknown_one_to_the_baselines(lm, elmo_run):
    pairs = [(f"the model {word} .", f"model the {word} .") for word in ("zq", "zx")]
    sentences = encode_pairs(lm.tokenizer, pairs)
    assert max(one.ids.max() for one in sentences.encodings) >= lm.tokenizer.vocabulary.size
    shards = firth.text.shards.Shards.open(elmo_run / "data" / "train")
    found = baseline_differences(sentences, shards, lm.tokenizer)
    assert (found["word frequency"] == 0).all()  # the same words
    assert found["5-gram"][0] == found["5-gram"][1]


def test_rare_words_are_the_tokenizers_unknown_one():
    recipe = firth.recipe("elmo", size="tiny").with_settings({"model.output_size": 40})
    assert recipe.with_vocabulary(replace(VOCABULARY, size=100, unknown=7)).model.unknown == 7
    nothing = replace(VOCABULARY, size=100, unknown=ABSENT)
    with pytest.raises(ConfigError, match=r"no token for unknown words.*output_size to 100"):
        recipe.with_vocabulary(nothing)
    assert recipe.with_vocabulary(replace(nothing, size=40)).model.output_size == 40


@pytest.mark.parametrize("unknown", [8, -1])
def test_rare_words_need_a_place_in_the_softmax(unknown):
    with pytest.raises(ConfigError, match="expected an id below output_size, 8"):
        ElmoConfig(**{**SMALL, "unknown": unknown})


def test_a_directory_of_elmo_without_its_weights_says_so(tmp_path):
    (tmp_path / "options.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"found 0 files \*weights.hdf5, expected one"):
        firth.load(tmp_path)


def test_adagrad_is_that_of_the_program():
    """bilm-tf: sums from 1, gradients of 20 times the loss, clipped at a norm of 10."""
    torch.manual_seed(0)
    gradients = torch.randn(5, 7) * torch.tensor([0.01, 3.0, 0.1, 0.02, 0.3])[:, None]
    parameter = nn.Parameter(torch.zeros(7))
    (ours,) = Adagrad().build([("w", parameter)])
    theirs, squares = torch.zeros(7), torch.ones(7)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 0.5)
        ours.step()
        large = 20 * gradient
        large = large * min(1.0, 10 / large.norm().item())
        squares += large.square()
        theirs -= 0.2 * large / squares.sqrt()
        torch.testing.assert_close(parameter.detach(), theirs, rtol=1e-4, atol=1e-6)


def test_the_residual_adds_what_the_layer_reads():
    """Dropout included, as in bilm-tf (`DropoutWrapper` round `ResidualWrapper`)."""
    config = ElmoConfig(
        vocab_size=9, output_size=9, projection_size=4, cell_size=6, filters=((1, 4),), dropout=0.5
    )
    layer = BiLayer(config, residual=True).train()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    x = torch.ones(6, 4)
    steps = [Steps.of(torch.tensor([0, 6]), x.device, reverse=reverse) for reverse in (False, True)]
    outputs, _ = layer([x, x], steps, [None, None])
    for output in outputs:
        assert set(output.flatten().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("least", [1, 2])
def test_words_seen_once_are_spelled_in_training_on_request(least, papers, tmp_path):
    recipe = firth.recipe("elmo", size="tiny", vocab_size=600).with_settings(
        {"training.steps": 1, "training.batch_tokens": 256, "tokenizer.min_frequency": least}
    )
    model = firth.pretrain(recipe, firth.Corpus.from_texts(papers), tmp_path / "run").model
    vocabulary = firth.Tokenizer.load(tmp_path / "run").vocabulary
    assert model.config.output_size == 600 < vocabulary.size
    shards = firth.text.shards.Shards.open(tmp_path / "run" / "data" / "train")
    unknown = (shards.tokens(0, shards.num_tokens) == vocabulary.unknown).mean()
    assert unknown == 0 if least == 1 else unknown > 0.05


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"filters": ()}, "pairs of a width and a number"),
        ({"filters": ((1, 0),)}, "pairs of a width and a number"),
        ({"num_highway": -1}, "num_highway is -1"),
        ({"samples": -1}, "samples is -1"),
        ({"cell_clip": -1.0}, "cell_clip is -1.0"),
        ({"projection_clip": -0.1}, "projection_clip is -0.1"),
    ],
)
def test_shapes_that_no_elmo_has_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        ElmoConfig(vocab_size=10, output_size=10, **setting)


@pytest.mark.parametrize("settings", [{}, {"beams": 3}, {"backward": True}, {"temperature": 1.0}])
def test_the_class_of_all_rare_words_is_not_written(settings, lm):
    unknown = lm.tokenizer.token(lm.tokenizer.vocabulary.unknown)
    with torch.no_grad():
        before = lm.model.head.bias[lm.tokenizer.vocabulary.unknown].item()
        lm.model.head.bias[lm.tokenizer.vocabulary.unknown] = 50.0
    try:
        one = lm.generate("the model", max_tokens=8, **settings)
        assert len(one.tokens) > 0 or one.ended == "end"
        assert unknown not in one.tokens
        assert one.log_probabilities.max() < -20  # the class has its share all the same
    finally:
        with torch.no_grad():
            lm.model.head.bias[lm.tokenizer.vocabulary.unknown] = before
