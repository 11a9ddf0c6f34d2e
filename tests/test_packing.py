"""Weights laid out for a few rows give the same products, and take the place of a decoder's own."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from firth.device import packs_float32
from firth.inference import generation, packing
from firth.inference.forward import Engine
from firth.inference.generation import Decoding, continuations
from firth.inference.packing import PackedWeight, packed_for
from firth.models import GPT, Elmo, ElmoConfig, EncoderDecoder, EncoderDecoderConfig
from tests.reference import VOCAB_SIZE
from tests.test_decoders import SHAPES, random_model

pytestmark = pytest.mark.skipif(
    not packs_float32(torch.device("cpu")), reason="this processor multiplies without MKL"
)


def packed_weights(model: nn.Module) -> dict[str, PackedWeight]:
    found = model.named_parameters(remove_duplicate=False)
    return {name: weight for name, weight in found if isinstance(weight, PackedWeight)}


@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_the_plain_weight(bias):
    torch.manual_seed(0)
    plain = nn.Linear(48, 80, bias=bias)
    weight = PackedWeight.of(plain.weight, 5)
    for rows in (5, 4):  # with other than its rows it does without its blocks
        x = torch.randn(rows, 48)
        assert torch.allclose(F.linear(x, weight, plain.bias), plain(x), atol=1e-5)
        assert weight.blocks is not None
    assert weight.data_ptr() == plain.weight.data_ptr()
    x = torch.randn(5, 48)
    assert torch.allclose(F.linear(x, weight, bias=plain.bias), plain(x), atol=1e-5)
    assert torch.allclose(F.linear(x, weight=weight, bias=plain.bias), plain(x), atol=1e-5)
    assert type(weight * 2) is torch.Tensor


@pytest.mark.parametrize("tied", [True, False])
def test_a_packed_decoder_shares_its_weights_and_gives_its_scores(tied):
    model = random_model(replace(SHAPES["gpt2"], tied=tied))
    packed = packed_for(model, 6)
    assert isinstance(packed, GPT)
    theirs = dict(model.named_parameters(remove_duplicate=False))
    weights = packed_weights(packed)
    assert len(weights) == sum(p.ndim == 2 for p in theirs.values())
    assert all(w.data_ptr() == theirs[name].data_ptr() for name, w in weights.items())
    assert not packed_weights(model)
    assert (packed.output_matrix is packed.embeddings.tokens.weight) == tied
    hidden = torch.randn(6, model.config.hidden_size)
    with torch.inference_mode():
        assert torch.allclose(packed.logits(hidden), model.logits(hidden), atol=1e-5)
    assert packed_weights(packed)["embeddings.tokens.weight"].blocks is not None or not tied


def test_what_is_not_packed(monkeypatch):
    model = random_model(SHAPES["gpt2"])
    assert packed_for(model, 2) is model
    assert packed_for(model, 64) is model
    half = random_model(SHAPES["gpt2"]).to(torch.bfloat16)
    assert packed_for(half, 6) is half
    elmo = Elmo(ElmoConfig(vocab_size=30, output_size=20, projection_size=4, cell_size=8))
    assert packed_for(elmo, 6) is elmo
    monkeypatch.setattr(packing, "_MOST_BYTES", 100)
    assert packed_for(model, 6) is model


def test_generation_packs_what_it_repeats_and_writes_the_same(monkeypatch):
    torch.manual_seed(0)
    config = EncoderDecoderConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=64,
        max_length=40,
    )
    rng = np.random.default_rng(0)
    asked: Counter[int] = Counter()

    def counted(model: nn.Module, rows: int) -> nn.Module:
        asked[rows] += 1
        return packed_for(model, rows)

    for model in (random_model(SHAPES["gpt2"]), EncoderDecoder(config)):
        engine = Engine.of(model, "float32", model.config.max_length)
        sources = [rng.integers(5, VOCAB_SIZE, 6) for _ in range(6)]
        sources = sources if isinstance(model, EncoderDecoder) else None
        prompts = [rng.integers(5, VOCAB_SIZE, 3) for _ in range(6)]
        # Two texts stop early, so that the rows change twice and the weights with them.
        early = {11: prompts[1], 21: prompts[4]}

        def stop(prompt, ids, early=early):
            return any(len(ids) == at and prompt is one for at, one in early.items())

        def write(engine=engine, prompts=prompts, stop=stop, sources=sources):
            how = Decoding(max_tokens=33)
            *_, found = continuations(engine, prompts, how, ends=[], stop=stop, sources=sources)
            return found

        monkeypatch.setattr(generation, "packed_for", lambda model, rows: model)
        plain = write()
        asked.clear()
        monkeypatch.setattr(generation, "packed_for", counted)
        for ours, theirs in zip(write(), plain, strict=True):
            assert ours.ids == theirs.ids
            assert ours.ended == theirs.ended
            assert np.allclose(ours.log_probabilities, theirs.log_probabilities, atol=1e-4)
        assert asked == {6: 1, 5: 1, 4: 1}
