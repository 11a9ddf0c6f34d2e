"""Pre-training on a CUDA device: tokens a second, and the share of its measured matrix rate.

    python benchmarks/figure_cuda.py [--models gpt modern-bert] [--sizes 384 768]

firth alone, without a peer: 12 layers, vocabulary 8,192, sequences of 512 tokens, the recipes'
objectives and AdamW, compiled and not. The matrix rate is that of a bfloat16 product of 8,192 x
8,192 matrices in the same run. The operations of a step are those of its matrix products, three
times the forward pass: layers, attention over the keys that are seen, the head where it runs.
Writes benchmarks/results/cuda.{json,md}, or under the name that --name gives.
"""

import argparse
import gc
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from data import shards_folder, tokenizer_folder

import firth
from firth.models import build
from firth.recipes import Recipe
from firth.text.batches import ObjectiveBatches, PackedSequences
from firth.text.shards import Shards
from firth.text.tokenizers import Tokenizer
from firth.training import AdamW, State, Training, steps

RESULTS = Path(__file__).parent / "results"
LAYERS, VOCABULARY, LENGTH = 12, 8192, 512


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    model: str
    size: int
    batch_tokens: int
    compiled: bool
    tokens_per_second: float
    share: float
    """Of the matrix rate."""
    memory_gb: float
    loss: float
    """Of the last step."""


def matrix_rate(size: int = 8192, rounds: int = 10) -> float:
    """Operations a second of a bfloat16 product of square matrices."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(rounds + 3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        torch.mm(a, b)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / median(times[3:])


def operations(recipe: Recipe, model: Any, predicted: float) -> float:
    """Of a training step, by token."""
    shape: Any = recipe.model
    matrices = sum(p.numel() for layer in model.layers for p in layer.parameters() if p.ndim == 2)
    head = shape.vocab_size * shape.hidden_size
    if recipe.name == "gpt":
        seen = [LENGTH / 2] * shape.num_layers
    else:
        head += shape.hidden_size**2
        window = 2 * shape.local_window + 1
        seen = [window if shape.is_local(i) else LENGTH for i in range(shape.num_layers)]
    attention = sum(4 * keys * shape.hidden_size for keys in seen)
    return 3 * (2 * matrices + attention + 2 * head * predicted)


def shaped(name: str, size: int, batch_tokens: int, compiled: bool) -> Recipe:
    """A recipe with twelve layers of `size` and heads of 64."""
    recipe = firth.recipe(name, size="base", vocab_size=VOCABULARY)
    wide: Any = recipe.model
    inner = round(wide.intermediate_size * size / wide.hidden_size / 64) * 64
    shape = replace(wide, hidden_size=size, num_heads=size // 64, intermediate_size=inner)
    training = Training(
        batch_tokens=batch_tokens, optimizer=AdamW(lr=3e-4), compile=compiled, workers=2
    )
    data = replace(recipe.data, max_length=LENGTH)
    return replace(recipe, model=shape, training=training, data=data)


def measure(recipe: Recipe, rate: float, warm: int, timed: int) -> Row:
    """Runs the loop, loading included; medians over the timed steps."""
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    model = build(recipe.model).cuda()
    training = recipe.training
    packed = PackedSequences(
        Shards.open(shards_folder(VOCABULARY)),
        Tokenizer.load(tokenizer_folder(VOCABULARY)).vocabulary,
        max_length=LENGTH,
        batch_tokens=training.batch_tokens,
        seed=0,
    )
    total = warm + timed
    batches = ObjectiveBatches(packed, recipe.objective, total_steps=total)
    state = State.begin(model, training)
    found = list(steps(state, recipe.objective, batches, training, total_steps=total))[warm:]
    speed = median(step.num_tokens / step.seconds for step in found)
    predicted = sum(s.num_predictions for s in found) / sum(s.num_tokens for s in found)
    share = speed * operations(recipe, model, predicted) / rate
    memory = torch.cuda.max_memory_allocated() / 1e9
    size = model.config.hidden_size
    return Row(
        recipe.name,
        size,
        training.batch_tokens,
        training.compile,
        speed,
        share,
        memory,
        found[-1].loss,
    )


def table(rows: list[Row], rate: float) -> str:
    """The figure in Markdown."""
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {LAYERS} layers, sequences of "
        f"{LENGTH} tokens, vocabulary {VOCABULARY:,}; matrix rate {rate / 1e12:.0f} Tflop/s",
        "",
        "| recipe | width | tokens a batch | compiled | tokens a second | of matrix rate | GB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r.model} | {r.size} | {r.batch_tokens:,} | {'yes' if r.compiled else 'no'} | "
        f"{r.tokens_per_second:,.0f} | {100 * r.share:.0f} % | {r.memory_gb:.0f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--models", nargs="+", default=["gpt", "modern-bert"])
    options.add_argument("--sizes", type=int, nargs="+", default=[384, 768])
    options.add_argument("--batch-tokens", type=int, default=65_536)
    options.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    options.add_argument("--warm", type=int, default=15)
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--name", default="cuda")
    given = options.parse_args()
    rate = matrix_rate()
    rows: list[Row] = []
    for name in given.models:
        for size in given.sizes:
            for mode in given.modes:
                recipe = shaped(name, size, given.batch_tokens, mode == "compiled")
                rows.append(measure(recipe, rate, given.warm, given.steps))
                print(rows[-1], flush=True)
                record = {"matrix_rate": rate, "rows": [asdict(row) for row in rows]}
                (RESULTS / f"{given.name}.json").write_text(json.dumps(record, indent=1) + "\n")
                (RESULTS / f"{given.name}.md").write_text(table(rows, rate))
                gc.collect()
                torch.cuda.empty_cache()
    print(table(rows, rate))


if __name__ == "__main__":
    main()
