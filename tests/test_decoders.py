"""GPT and its kin: the numbers of `transformers`, causality, the cache, both ways through files."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from firth.errors import UnsupportedError
from firth.interop.decoders import config_from_decoder, decoder_family
from firth.interop.huggingface import load_model, save_model
from firth.models import GPT, GPTConfig
from firth.models.cache import Cache
from firth.protocols import Batch
from tests.reference import LENGTHS, VOCAB_SIZE, VOCABULARY, distance, transformers

TOLERANCE = 1e-5

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "num_layers": 3,
    "num_heads": 4,
    "intermediate_size": 40,
    "max_length": 40,
    "dropout": 0.0,
}
LLAMA = {
    "activation": "silu",
    "gated": True,
    "norm_kind": "rms",
    "positions": "rotary",
    "bias": False,
    "output_init": "plain",
}
SHAPES = {
    "gpt2": GPTConfig(**SIZES),
    "gpt2, untied": GPTConfig(**SIZES, tied=False, norm_eps=1e-6),
    "llama": GPTConfig(**SIZES, **LLAMA, tied=False),
    "llama, grouped": GPTConfig(**SIZES, **LLAMA, num_groups=2, rotary_base=5e5),
    "llama, one group, wide heads": GPTConfig(**SIZES, **LLAMA, num_groups=1, head_size=10),
}
OWN = {
    "gpt": GPTConfig(**SIZES, norm="post", activation="gelu", output_init="plain"),
    "modern": GPTConfig(
        **SIZES, **{**LLAMA, "output_init": "zero"}, qk_norm=True, embedding_norm=True
    ),
}


def test_heads_that_do_not_divide_the_size_are_no_llama():
    """`transformers` refuses such a shape, so a run keeps our own form."""
    odd = replace(SHAPES["llama"], hidden_size=25, head_size=6)
    assert decoder_family(SHAPES["llama"]) == "llama"
    assert decoder_family(odd) is None


def random_model(config: GPTConfig) -> GPT:
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no zeros and ones that hide a mistake
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def random_batch(seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    starts = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)])
    return Batch(input_ids=torch.randint(5, VOCAB_SIZE, (int(starts[-1]),)), starts=starts)


def their_logits(model, batch: Batch) -> torch.Tensor:
    found = []
    for a, b in zip(batch.starts[:-1], batch.starts[1:], strict=True):
        found.append(model(input_ids=batch.input_ids[None, a:b]).logits[0])
    return torch.cat(found)


@pytest.mark.parametrize(
    ("family", "rates", "warned"),
    [
        ("gpt2", {"resid_pdrop": 0.0, "embd_pdrop": 0.1}, True),
        ("gpt2", {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}, False),
        ("llama", {"attention_dropout": 0.1}, True),
    ],
)
def test_dropout_rates_that_differ_are_told(family, rates, warned, caplog):
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "layer_norm_epsilon": 1e-5}
    if family == "llama":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 16, "max_position_embeddings": 16, "rms_norm_eps": 1e-5}
    config_from_decoder(family, {"vocab_size": 9, **sizes, **rates}, where="x")
    assert ("dropout rates differ" in caplog.text) == warned


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt2", {"is_causal": False}),
        ("llama", {"is_causal": False}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
    ],
)
def test_settings_that_would_give_other_scores_are_refused(family, changes, tmp_path):
    save_model(tmp_path, random_model(SHAPES[family]), vocabulary=VOCABULARY, firth={})
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | changes))
    (key,) = changes
    with pytest.raises(UnsupportedError, match=key):
        load_model(tmp_path)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_ours_loads_there_and_theirs_here(name, tmp_path):
    ours, batch = random_model(SHAPES[name]), random_batch()
    save_model(tmp_path / "ours", ours, vocabulary=VOCABULARY, firth={"note": 1})
    settings = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert settings["model_type"] == name.partition(",")[0]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    logits = ours.logits(ours(batch).last)
    assert distance(logits, their_logits(theirs, batch)) <= TOLERANCE
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert distance(loaded.model.logits(loaded.model(batch).last), logits) <= TOLERANCE
    again = load_model(tmp_path / "ours")
    assert again.model.config == SHAPES[name]
    assert again.firth == {"note": 1}


@pytest.mark.parametrize("name", SHAPES)
def test_hidden_states_and_gradients_agree(name, tmp_path):
    ours, batch = random_model(SHAPES[name]), random_batch()
    save_model(tmp_path, ours, vocabulary=VOCABULARY, firth={})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    states = ours(batch, hidden_states=True).hidden_states
    ids = batch.input_ids[None, : LENGTHS[0]]
    reference = theirs(input_ids=ids, output_hidden_states=True, labels=ids)
    for a, b in zip(states, reference.hidden_states, strict=True):
        assert distance(a[: LENGTHS[0]], b[0]) <= TOLERANCE
    reference.loss.backward()
    single = Batch(input_ids=ids[0], starts=torch.tensor([0, LENGTHS[0]]))
    loss = ours.prediction_loss(ours(single).last[:-1], ids[0, 1:]) / (LENGTHS[0] - 1)
    loss.backward()
    assert abs(loss - reference.loss) <= TOLERANCE
    their_table = theirs.get_input_embeddings().weight.grad
    assert distance(ours.embeddings.tokens.weight.grad, their_table) <= TOLERANCE
    with torch.no_grad():
        for parameter in ours.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", OWN)
@torch.no_grad()
def test_shapes_without_a_stock_class_come_back(name, tmp_path):
    model, batch = random_model(OWN[name]), random_batch()
    save_model(tmp_path, model, vocabulary=VOCABULARY, firth={})
    loaded = load_model(tmp_path)
    assert loaded.family is None
    assert loaded.model.config == OWN[name]
    assert torch.equal(loaded.model(batch).last, model(batch).last)


@pytest.mark.parametrize("name", [*SHAPES, *OWN])
@torch.no_grad()
def test_the_future_changes_nothing(name):
    model, batch = random_model({**SHAPES, **OWN}[name]), random_batch()
    changed = batch.input_ids.clone()
    at = batch.starts[:-1] + torch.tensor(LENGTHS) // 2
    for begin, end in zip(at, batch.starts[1:], strict=True):
        changed[begin:end] = torch.randint(5, VOCAB_SIZE, (int(end - begin),))
    before = model(batch).last
    after = model(Batch(input_ids=changed, starts=batch.starts)).last
    same = torch.ones(len(changed), dtype=torch.bool)
    for begin, end in zip(at, batch.starts[1:], strict=True):
        same[begin:end] = False
    torch.testing.assert_close(before[same], after[same], atol=1e-6, rtol=0)
    assert (before[~same] - after[~same]).abs().max() > 0.1


@pytest.mark.parametrize("name", [*SHAPES, *OWN])
@torch.no_grad()
def test_reading_with_a_cache_is_reading_at_once(name):
    """Prompts of unequal length, then one token of each at a time; one sequence ends early."""
    config = {**SHAPES, **OWN}[name]
    model = random_model(config)
    torch.manual_seed(1)
    texts = [torch.randint(5, VOCAB_SIZE, (n + 6,)) for n in (3, 17, 1, 9)]
    heads = [text[: len(text) - 6] for text in texts]
    starts = torch.tensor([0, *torch.tensor([len(h) for h in heads]).cumsum(0)])
    cache = Cache(config.num_layers, 40)
    first = model(Batch(input_ids=torch.cat(heads), starts=starts), cache=cache).last
    found = [[part] for part in first.split(starts.diff().tolist())]
    alive = torch.arange(4)
    for step in range(6):
        if step == 3:
            alive = alive[[3, 0, 1]]
            cache.keep(torch.tensor([3, 0, 1]))
        ids = torch.stack([texts[i][len(heads[i]) + step] for i in alive])
        last = model(Batch(input_ids=ids, starts=torch.arange(len(ids) + 1)), cache=cache).last
        for i, state in zip(alive.tolist(), last, strict=True):
            found[i].append(state[None])
    for text, states in zip(texts, found, strict=True):
        read = torch.cat(states)
        whole = model(Batch(input_ids=text, starts=torch.tensor([0, len(text)]))).last
        torch.testing.assert_close(read, whole[: len(read)], atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        # Radford et al. 2018: 117M (40,478 tokens, 512 positions); 2019, table 2, counted anew by
        # the authors: 124M and 355M.
        ((40_478, 768, 12, 12, 512, "post"), 116_534_784),
        ((50_257, 768, 12, 12, 1024, "pre"), 124_439_808),
        ((50_257, 1024, 24, 16, 1024, "pre"), 354_823_168),
    ],
)
def test_papers_sizes(shape, parameters):
    vocab, size, layers, heads, length, norm = shape
    config = GPTConfig(
        vocab_size=vocab,
        hidden_size=size,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=4 * size,
        max_length=length,
        norm=norm,
    )
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT(config).parameters()) == parameters


@torch.no_grad()
def test_initialisation_is_that_of_the_table():
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": 256, "intermediate_size": 1024, "num_layers": 8}
    for how, out in (("plain", 0.02), ("scaled", 0.02 / 4), ("zero", 0.0)):
        model = GPT(GPTConfig(**sizes, output_init=how))
        layer = model.layers[3]
        assert layer.attention.out.weight.std() == pytest.approx(out, rel=0.05)
        assert layer.feed_forward.down.weight.std() == pytest.approx(out, rel=0.05)
        assert layer.attention.qkv.weight.std() == pytest.approx(0.02, rel=0.05)
        assert model.embeddings.tokens.weight.std() == pytest.approx(0.02, rel=0.05)
        places = model.embeddings.positions.weight.std()
        assert places == pytest.approx(0.02 if how == "plain" else 0.01, rel=0.05)
        assert layer.attention.out.bias.abs().max() == 0
        assert layer.attention_norm.weight.min() == layer.attention_norm.weight.max() == 1


@torch.no_grad()
def test_an_output_matrix_that_training_changed_is_kept(tmp_path, caplog):
    """As where LoRA was merged into it; the settings still say that it is the embeddings'."""
    ours = random_model(SHAPES["gpt2"])
    save_model(tmp_path, ours, vocabulary=VOCABULARY, firth={})
    tensors = load_file(tmp_path / "model.safetensors")
    changed = ours.embeddings.tokens.weight + torch.randn(VOCAB_SIZE, 24)
    save_file({**tensors, "lm_head.weight": changed}, tmp_path / "model.safetensors")
    model = load_model(tmp_path).model
    assert "both are kept" in caplog.text
    last = model(random_batch()).last
    assert torch.allclose(model.logits(last), last @ changed.T, atol=1e-4)


def test_a_class_with_another_head_is_named(tmp_path):
    save_model(tmp_path, random_model(SHAPES["gpt2"]), vocabulary=VOCABULARY, firth={})
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["architectures"] = ["GPT2ForSequenceClassification"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(
        UnsupportedError, match=r"GPT2ForSequenceClassification; .*GPT2LMHeadModel of"
    ):
        load_model(tmp_path)
