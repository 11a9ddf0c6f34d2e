"""Masked against left-to-right: one network, the same tokens, two objectives, several seeds.

    python benchmarks/figure_directions.py ../shared/data --tokens 4000000 --seeds 3

The network is that of the recipe `hybrid`. "left to right" learns the next token alone and reads
left to right on the task, too; "masked" learns blanks alone and reads in both directions. Each is
pre-trained anew for every seed on `english-10m`, and fine-tuned on SST-2 (2,000 labels) and CoLA
(all), with the same seed. Test sets are the published dev parts; 500 sentences of the training part
are set aside to stop on. Writes benchmarks/results/directions.{json,md} after every run.
"""

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import firth
from firth.device import prepare_process
from firth.recipes import Recipe
from firth.tasks.metrics import mean_and_interval

RESULTS = Path(__file__).parent / "results"
READINGS = ("masked", "left to right")
TASKS: dict[str, dict[str, Any]] = {
    "sst-2": {
        "task": firth.Classification(text="sentence", label="label"),
        "train": "train.tsv.gz",
        "labels": 2000,
        "metric": "accuracy",
    },
    "cola": {
        "task": firth.Classification(text="4", label="2", metric="mcc"),
        "train": "train.tsv",
        "labels": 8000,
        "metric": "mcc",
    },
}


def recipe(reading: str, seed: int, tokens: int) -> Recipe:
    """The same network and budget for both."""
    settings: dict[str, Any] = {
        "training.tokens": tokens,
        "training.seed": seed,
        "training.batch_tokens": 4096,
        "data.valid_tokens": 60_000,
    }
    if reading == "masked":
        settings |= {"objective.causal_share": 0.0, "training.average": 0.0}
        return firth.recipe("hybrid").with_settings(settings)
    return firth.recipe("gpt").with_settings(settings)


def fine_tuned(lm: firth.LanguageModel, name: str, data: Path, seed: int) -> float:
    """A test score."""
    how = TASKS[name]
    folder = data / "glue" / name
    everything = how["task"].read(folder / how["train"])
    task = how["task"].fit_labels(everything)
    order = np.random.default_rng(seed).permutation(len(everything))
    dev = [everything[i] for i in order[:500]]
    train = [everything[i] for i in order[500 : 500 + how["labels"]]]
    adapted = firth.adapt(lm, task, train, firth.FineTuning(), dev=dev, seeds=(seed,))
    return adapted.evaluate(task.read(folder / "dev.tsv")).metrics[how["metric"]]


def pretrained(reading: str, seed: int, options: argparse.Namespace, scratch: Path) -> Any:
    """A model of one seed; all share the first one's tokenizer."""
    files = str(options.data / "english-10m" / "*.{}.txt.zst")
    train, valid = (
        firth.Corpus.from_files(files.format(part), documents="line") for part in ("train", "valid")
    )
    first = scratch / f"{READINGS[0]}-0"
    tokenizer = firth.Tokenizer.load(first) if (first / "tokenizer.json").is_file() else None
    return firth.pretrain(
        recipe(reading, seed, options.tokens),
        train,
        scratch / f"{reading}-{seed}",
        valid=valid,
        tokenizer=tokenizer,
    )


def write(scores: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> None:
    RESULTS.mkdir(exist_ok=True)
    record = {"tokens": options.tokens, "scores": scores}
    (RESULTS / "directions.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = ["| | " + " | ".join(TASKS) + " |", "| --- |" + " --- |" * len(TASKS)]
    for reading, by_task in scores.items():
        cells = []
        for values in by_task.values():
            mean, half = mean_and_interval(values) if values else (float("nan"), None)
            cells.append(f"{100 * mean:.1f} ± {100 * (half or 0):.1f}")
        lines.append(f"| {reading} | " + " | ".join(cells) + " |")
    (RESULTS / "directions.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    prepare_process(options.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scores = {reading: {name: list[float]() for name in TASKS} for reading in READINGS}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            for reading in READINGS:
                lm = pretrained(reading, seed, options, Path(scratch))
                for name in TASKS:
                    scores[reading][name].append(fine_tuned(lm, name, options.data, seed))
                    print(reading, seed, name, scores[reading][name][-1], flush=True)
                write(scores, options)


if __name__ == "__main__":
    main()
