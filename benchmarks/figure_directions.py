"""Masked against left-to-right: one network, the same tokens, two objectives, several seeds.

    python benchmarks/figure_directions.py ../shared/data --tokens 4000000 --seeds 3 --runs RUNS

The network is that of the recipe `hybrid`. "left to right" learns the next token alone and reads
left to right on the task, too; "masked" learns blanks alone and reads in both directions. Each is
pre-trained anew for every seed on `english-10m`, and fine-tuned on SST-2 (2,000 labels) and CoLA
(8,000), with the same seed. Test sets are the published dev parts; 500 sentences of the training
part are set aside to stop on. Writes benchmarks/results/directions.{json,md} after every score;
scores that are there, of as many tokens, are not measured again, and models in RUNS are used again.
"""

import argparse
import itertools
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from figure_features import shown

import firth
from firth.device import prepare_process
from firth.recipes import Recipe

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


def pretrained(reading: str, seed: int, options: argparse.Namespace) -> firth.LanguageModel:
    """A model of one seed; all share the first one's tokenizer."""
    files = str(options.data / "english-10m" / "*.{}.txt.zst")
    train, valid = (
        firth.Corpus.from_files(files.format(part), documents="line") for part in ("train", "valid")
    )
    first = options.runs / f"{READINGS[0]}-0"
    tokenizer = firth.Tokenizer.load(first) if (first / "tokenizer.json").is_file() else None
    return firth.pretrain(
        recipe(reading, seed, options.tokens),
        train,
        options.runs / f"{reading}-{seed}",
        valid=valid,
        tokenizer=tokenizer,
    )


def known() -> list[dict[str, Any]]:
    """The scores that were measured before."""
    file = RESULTS / "directions.json"
    return json.loads(file.read_text()) if file.is_file() else []


def write(rows: list[dict[str, Any]], tokens: int) -> None:
    """All scores, and a table of the means and intervals of those after so many tokens."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "directions.json").write_text(json.dumps(rows, indent=1) + "\n")
    rows = [row for row in rows if row["tokens"] == tokens]
    lines = ["| | " + " | ".join(TASKS) + " | seeds |", "| --- |" + " --- |" * (len(TASKS) + 1)]
    for reading in READINGS:
        found = {
            name: [r["score"] for r in rows if (r["reading"], r["task"]) == (reading, name)]
            for name in TASKS
        }
        if all(found.values()):
            cells = [shown(scores) for scores in found.values()]
            lines.append(f"| {reading} | {' | '.join(cells)} | {min(map(len, found.values()))} |")
    (RESULTS / "directions.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, required=True, help="where the models are kept")
    options = parser.parse_args()
    prepare_process(options.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = known()
    for seed, reading in itertools.product(range(options.seeds), READINGS):
        for name in TASKS:
            what = {"tokens": options.tokens, "reading": reading, "task": name, "seed": seed}
            if any(what.items() <= row.items() for row in rows):
                continue
            score = fine_tuned(pretrained(reading, seed, options), name, options.data, seed)
            print(reading, seed, name, score, flush=True)
            rows.append({**what, "score": score})
            write(rows, options.tokens)


if __name__ == "__main__":
    main()
