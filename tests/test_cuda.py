"""On a CUDA device: the fused kernels compute what the CPU does, and training learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import firth
from firth.device import computing
from firth.models import build
from firth.models.attention import Mask, Scores, attend
from firth.models.layout import Layout
from firth.models.recurrence import State, Steps
from firth.models.recurrent import LSTMLayer
from firth.objectives import CausalLM
from firth.protocols import Batch
from firth.text.batches import collate
from firth.training import AdamW, Muon, Training, steps
from firth.training import State as TrainingState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),  # the compiler warns of itself
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
LENGTHS = (1, 5, 64, 130, 300)
CPU = torch.device("cpu")


def cuda() -> torch.device:
    return torch.device("cuda")


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("mask", "prefix"),
    [
        (Mask(), None),
        (Mask(window=16), None),
        (Mask(causal=True), None),
        (Mask(causal=True, window=16), None),
        (Mask(causal=True), (0, 0, 0, 130, 300)),  # causal ones, then whole ones
        (Mask(causal=True), (0, 5, 0, 130, 300)),  # by turns: tiles
    ],
)
def test_attention_is_that_of_the_cpu(mask, prefix, groups):
    how = Scores(num_heads=4, num_groups=groups, mask=mask, scale=0.2)
    starts = torch.tensor([0, *np.cumsum(LENGTHS)])
    before = None if prefix is None else torch.tensor(prefix)
    torch.manual_seed(0)
    own = torch.randn(int(starts[-1]), 4 + 2 * groups, 64)
    weight = torch.randn(len(own), 4, 64)
    found = []
    for device, dtype in ((CPU, torch.float32), (cuda(), torch.bfloat16), (cuda(), torch.float32)):
        x = own.bfloat16().to(device, dtype).requires_grad_()
        layout = Layout.of(starts, device, prefix=before)
        out = attend(x, layout, how)
        (grad,) = torch.autograd.grad((out * weight.to(device, dtype)).sum(), x)
        found.append((out.detach().float().cpu(), grad.float().cpu()))
    for ours, tolerance in ((found[1], 0.02), (found[2], 1e-3)):
        for part, reference in zip(ours, found[0], strict=True):
            assert (part - reference).norm() < tolerance * reference.norm()


def test_attention_to_a_source_is_that_of_the_cpu():
    how = Scores(num_heads=2, num_groups=2, mask=Mask(), scale=0.2)
    starts, keys = torch.tensor([0, 3, 40, 41]), torch.tensor([0, 50, 52, 60])
    torch.manual_seed(0)
    q, memory = torch.randn(41, 2, 64), torch.randn(60, 4, 64)
    found = []
    for device, dtype in ((CPU, torch.float32), (cuda(), torch.bfloat16)):
        layout = Layout.of(starts, device, keys=keys)
        own, beside = (x.bfloat16().to(device, dtype).requires_grad_() for x in (q, memory))
        out = attend(own, layout, how, memory=beside)
        grads = torch.autograd.grad(out.float().square().sum(), [own, beside])
        found.append([x.detach().float().cpu() for x in (out, *grads)])
    for part, reference in zip(found[1], found[0], strict=True):
        assert (part - reference).norm() < 0.02 * reference.norm()


def test_attention_by_distance_is_that_of_the_cpu():
    how = Scores(num_heads=2, num_groups=2, mask=Mask(causal=True), scale=1.0)
    starts = torch.tensor([0, *np.cumsum(LENGTHS)])
    torch.manual_seed(0)
    values = torch.randn(int(starts[-1]), 6, 16), torch.randn(2, 2 * max(LENGTHS) - 1)
    found = []
    for device in (CPU, cuda()):
        own, bias = (x.to(device).requires_grad_() for x in values)
        out = attend(own, Layout.of(starts, device), how, distances=bias)
        grads = torch.autograd.grad(out.square().sum(), [own, bias])
        found.append([x.detach().cpu() for x in (out, *grads)])
    for part, reference in zip(found[1], found[0], strict=True):
        assert (part - reference).norm() < 1e-3 * reference.norm()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_an_lstm_is_that_of_the_cpu(reverse, training):
    torch.manual_seed(0)
    starts = torch.tensor([0, *np.cumsum(LENGTHS)])
    layer = LSTMLayer(16, 24, reverse=reverse).train(training)
    values = torch.randn(int(starts[-1]), 16)
    state = State(torch.randn(len(LENGTHS), 24), torch.randn(len(LENGTHS), 24))
    found = []
    for device in (CPU, cuda()):
        layer.to(device)
        x = values.to(device).requires_grad_()
        before = State(*(part.to(device) for part in state))
        out, last = layer(x, Steps.of(starts, device, reverse=reverse), before)
        total = out.square().sum() + last.hidden.sum() + last.cell.sum()
        grads = torch.autograd.grad(total, [x, *layer.parameters()])
        found.append([part.detach().cpu() for part in (out, *last, *grads)])
    for part, reference in zip(found[1], found[0], strict=True):
        assert (part - reference).norm() < 1e-3 * reference.norm()


def batch_of(vocabulary: int, *, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return collate([rng.integers(5, vocabulary, n) for n in LENGTHS])


@pytest.mark.parametrize(
    "name", ["bert", "modern-bert", "gpt", "gpt1", "gpt2", "hybrid", "t5", "awd-lstm"]
)
def test_hidden_states_are_those_of_the_cpu(name):
    recipe = firth.recipe(name, size="tiny", vocab_size=200)
    torch.manual_seed(0)
    model = build(recipe.model).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.05)
    batch = batch_of(200)
    with torch.no_grad():
        reference = model(batch).last
        for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 0.05)):
            with computing(dtype, cuda()):
                last = model.to(cuda())(batch.to(cuda())).last.float().cpu()
            assert (last - reference).norm() < tolerance * reference.norm()
            model.to(CPU)


def losses(name: str, device: torch.device, **settings) -> list[float]:
    """Of twenty steps on two batches by turns."""
    recipe = firth.recipe(name, size="tiny", vocab_size=200)
    torch.manual_seed(0)
    state = TrainingState.begin(build(recipe.model).to(device), Training(**settings))
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(2):
        batch = batch_of(200, seed=int(rng.integers(100)))
        at = torch.arange(batch.num_tokens - 1)
        batches.append(replace(batch, predict_at=at, targets=batch.input_ids[at + 1]))
    found = steps(
        state, CausalLM(), lambda step: batches[step % 2], Training(**settings), total_steps=20
    )
    return [step.loss for step in found]


@pytest.mark.parametrize("optimizer", [AdamW(lr=3e-3), Muon(lr=0.02)])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["gpt", "modern-bert"])
def test_training_learns_what_the_cpu_does(name, compiled, optimizer):
    plain = losses(name, CPU, optimizer=optimizer, precision="float32")
    found = losses(name, cuda(), optimizer=optimizer, compile=compiled)
    assert found[-1] < found[0] - 0.3
    np.testing.assert_allclose(found, plain, atol=0.08)


def test_a_run_on_the_device_is_used_on_the_cpu(papers, tmp_path):
    recipe = firth.recipe("hybrid", size="tiny", vocab_size=1000).with_settings(
        {"training.steps": 60, "training.batch_tokens": 2048, "data.valid_tokens": 4096}
    )
    corpus = firth.Corpus.from_texts(papers[:180])
    lm = firth.pretrain(recipe, corpus, tmp_path / "run", device="cuda")
    text = "We describe a parser for <mask> sentences."
    on_device = lm.fill(text, top_k=1)[0]
    here = firth.load(tmp_path / "run", device="cpu")
    assert here.fill(text, top_k=1)[0].probability == pytest.approx(on_device.probability, rel=0.1)
    scores = [one.score(papers[180:190], pseudo=False) for one in (lm, here)]
    pairs = zip(*scores, strict=True)
    assert all(a.total == pytest.approx(b.total, rel=0.02) for a, b in pairs)
    assert lm.embed(papers[:3]).shape == (3, 128)
    assert (
        lm.generate("We describe", max_tokens=5).text
        == here.generate("We describe", max_tokens=5).text
    )
