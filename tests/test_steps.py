"""A decoder's step gives the scores of its modules, with weights as they lie or laid out."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from firth.device import packs_float32
from firth.inference import generation, steps
from firth.inference.forward import Engine
from firth.inference.generation import Decoding, Reader, continuations
from firth.inference.steps import Step, decoder_step, product
from firth.models import GPT, Elmo, ElmoConfig, EncoderDecoder, EncoderDecoderConfig
from tests.reference import VOCAB_SIZE
from tests.test_decoders import OWN, SHAPES, random_model

WITH_MKL = packs_float32(torch.device("cpu"))

TRANSFORMER = EncoderDecoderConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    max_length=40,
)
T5 = replace(
    TRANSFORMER,
    norm="pre",
    norm_kind="rms",
    positions="relative",
    distance_buckets=8,
    max_distance=20,
    bias=False,
    tied=True,
    scale_embeddings=False,
    scale_outputs=True,
    scale_scores=False,
)
SOURCES = {
    "transformer": TRANSFORMER,
    "t5": T5,
    "t5, gated": replace(T5, gated=True, activation="gelu_tanh", tied=False, scale_outputs=False),
}


def model_of(name: str) -> GPT | EncoderDecoder:
    """A random model of a shape, its norms and biases too."""
    if name not in SOURCES:
        return random_model({**SHAPES, **OWN}[name])
    torch.manual_seed(0)
    model = EncoderDecoder(SOURCES[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [None, 5])
def test_products_are_those_of_the_layer(bias, rows):
    if rows is not None and not WITH_MKL:
        pytest.skip("this processor multiplies without MKL")
    torch.manual_seed(0)
    plain = nn.Linear(48, 80, bias=bias)
    x = torch.randn(rows or 7, 48)
    with torch.no_grad():
        multiplied = product(plain.weight, plain.bias, rows)(x)
        assert torch.allclose(multiplied, plain(x), atol=1e-5)


@pytest.mark.parametrize("name", [*SHAPES, *OWN, *SOURCES])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("even", [True, False])
def test_a_step_gives_the_scores_of_the_modules(name, count, even, monkeypatch):
    """For sequences of one length or several, before and after some of them have ended."""
    model = model_of(name)
    rng = np.random.default_rng(0)
    lengths = [4] * count if even else [3 + 2 * i for i in range(count)]
    prompts = [rng.integers(5, VOCAB_SIZE, n) for n in lengths]
    sources = [rng.integers(5, VOCAB_SIZE, 6 - i) for i in range(count)]
    sources = sources if isinstance(model, EncoderDecoder) else None
    engine = Engine.of(model, "float32", model.config.max_length)

    def scores(kind: type) -> list[torch.Tensor]:
        reader = Reader(engine, prompts, 30, sources)
        found = [reader.scores]
        for i in range(12):
            rows = list(range(len(reader.scores)))
            rows = rows[1:] if i == 10 and count > 1 else rows
            reader.read(rows, torch.from_numpy(tokens[i][: len(rows)]))
            found.append(reader.scores)
        assert isinstance(reader.step, kind)
        return found

    tokens = rng.integers(5, VOCAB_SIZE, (12, count))
    ours = scores(Step)
    monkeypatch.setattr(generation, "decoder_step", lambda *_: None)
    for mine, theirs in zip(ours, scores(type(None)), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5)


def test_what_has_no_step(monkeypatch):
    model = random_model(SHAPES["gpt2"])
    assert isinstance(decoder_step(model, 20), Step)
    assert decoder_step(random_model(SHAPES["gpt2"]).to(torch.bfloat16), 20) is None
    elmo = Elmo(ElmoConfig(vocab_size=30, output_size=20, projection_size=4, cell_size=8))
    assert decoder_step(elmo, 20) is None

    class Louder(nn.Linear):
        def forward(self, input):
            return 2 * super().forward(input)

    replaced = random_model(SHAPES["gpt2"])
    replaced.layers[0].feed_forward.up = Louder(
        *reversed(replaced.layers[0].feed_forward.up.weight.shape)
    )
    assert decoder_step(replaced, 20) is None
    handle = model.layers[1].register_forward_hook(lambda *_: None)
    assert decoder_step(model, 20) is None
    handle.remove()
    assert decoder_step(model, 20) is not None


def test_weights_are_laid_out_for_few_rows_of_models_that_are_not_too_large(monkeypatch):
    asked: list[int | None] = []

    def counted(weight: torch.Tensor, bias: torch.Tensor | None, rows: int | None):
        asked.append(rows)
        return product(weight, bias, rows)

    monkeypatch.setattr(steps, "product", counted)
    model = random_model(SHAPES["gpt2"])
    own = 1 + 4 * model.config.num_layers
    for rows in (None, 1, 6, 64):
        asked.clear()
        decoder_step(model, 20, rows)
        laid_out = WITH_MKL and rows == 6
        assert asked == [rows if laid_out else None] * own
    monkeypatch.setattr(steps, "_MOST_BYTES", 100)
    asked.clear()
    decoder_step(model, 20, 6)
    assert asked == [None] * own


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_generation_lays_out_what_it_repeats_and_writes_the_same(name, monkeypatch):
    model = model_of(name)
    rng = np.random.default_rng(0)
    engine = Engine.of(model, "float32", model.config.max_length)
    prompts = [rng.integers(5, VOCAB_SIZE, 3) for _ in range(6)]
    sources = [rng.integers(5, VOCAB_SIZE, 6) for _ in range(6)]
    asked: Counter[int | None] = Counter()

    def stop(prompt: np.ndarray, ids: list[int]) -> bool:
        """Two texts stop early, so that the rows change twice and the weights with them."""
        return any(len(ids) == n and prompt is prompts[i] for n, i in ((11, 1), (21, 4)))

    def write():
        given = sources if isinstance(model, EncoderDecoder) else None
        how = Decoding(max_tokens=33)
        *_, found = continuations(engine, prompts, how, ends=[], stop=stop, sources=given)
        return found

    def counted(model: nn.Module, room: int, rows: int | None = None) -> Step | None:
        asked[rows] += 1
        return decoder_step(model, room, rows)

    monkeypatch.setattr(generation, "decoder_step", counted)
    written = write()
    assert asked == {None: 1, 6: 1, 5: 1, 4: 1}
    monkeypatch.setattr(generation, "decoder_step", lambda *_: None)
    for ours, theirs in zip(written, write(), strict=True):
        assert ours.ids == theirs.ids
        assert ours.ended == theirs.ended
        assert np.allclose(ours.log_probabilities, theirs.log_probabilities, atol=1e-4)
