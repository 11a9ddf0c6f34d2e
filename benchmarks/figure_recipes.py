"""Which recipe for half an hour: equal minutes, then perplexity, minimal pairs and few labels.

    python benchmarks/figure_recipes.py ../shared/data --runs RUNS --minutes 30 --recipes gpt t5

Each recipe is pre-trained on `english-10m` for the same minutes, at the size that suits it, in
batches of 4,096 tokens. Then: the perplexity of held-out text (each objective's own, so that only
those of one kind compare), BLiMP (the first pairs of each paradigm), and SST-2 with 500 labels as
in `figure_sst2.py`, fine-tuned, and the same network from scratch. Runs in RUNS are taken up
again. Writes benchmarks/results/recipes.{json,md} after every recipe; rows of recipes that are not
asked for, and those of other minutes (which need another RUNS), stay.
"""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from figure_features import shown
from figure_sst2 import accuracy, drawn, parts

import firth
from firth.device import prepare_process

RESULTS = Path(__file__).parent / "results"
RECIPES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "modern-bert": {},
    "gpt": {"model.num_layers": 6},
    "hybrid": {"model.num_layers": 6},
    "t5": {},
}
SST = ("fine-tuned", "from scratch")


def pretrained(name: str, given: argparse.Namespace) -> firth.LanguageModel:
    """A model of a recipe, after its minutes."""
    files = str(given.data / "english-10m" / "*.{}.txt.zst")
    train, valid = (
        firth.Corpus.from_files(files.format(part), documents="line") for part in ("train", "valid")
    )
    recipe = firth.recipe(name, size="mini").with_settings(
        {"training.minutes": given.minutes, "training.batch_tokens": 4096, **RECIPES[name]}
    )
    return firth.pretrain(recipe, train, given.runs / name, valid=valid)


def pairs(lm: firth.LanguageModel, given: argparse.Namespace, **how: Any) -> dict[str, Any]:
    """Accuracy on BLiMP, all paradigms and those that are no permutations, and by what score."""
    found = lm.minimal_pairs(given.data / "blimp", limit=given.pairs, **how)
    return {"method": found.details["method"], **found.metrics}


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The row of a recipe."""
    lm = pretrained(name, given)
    lines = (given.runs / name / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    row: dict[str, Any] = {
        "recipe": name,
        "minutes": given.minutes,
        "threads": given.threads,
        "parameters": sum(p.numel() for p in lm.model.parameters()),
        "tokens": max(one.get("tokens", 0) for one in metrics),
        "perplexity": next(
            one["valid_perplexity"] for one in reversed(metrics) if "valid_perplexity" in one
        ),
        "blimp": [pairs(lm, given)],
    }
    if name == "hybrid":
        row["blimp"].append(pairs(lm, given, pseudo=True))
    print(row, flush=True)
    task, pool, dev, test = parts(given.data / "glue" / "sst-2")
    for method in SST:
        row[method] = [
            accuracy(method, lm, task, drawn(pool, 500, seed), dev, test, seed)
            for seed in range(given.seeds)
        ]
        print(name, method, row[method], flush=True)
    return row


def kept(file: Path, row: dict[str, Any], key: str, order: Sequence[str]) -> list[dict[str, Any]]:
    """Puts a row among those that a file has, in place of its own of as many minutes."""

    def place(one: dict[str, Any]) -> tuple[int, float]:
        return order.index(one[key]), one["minutes"]

    rows = json.loads(file.read_text()) if file.is_file() else []
    rows = sorted([one for one in rows if place(one) != place(row)] + [row], key=place)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def write(row: dict[str, Any]) -> None:
    """Puts a row among those that are there, and makes the table anew."""
    rows = kept(RESULTS / "recipes.json", row, "recipe", list(RECIPES))
    lines = [
        "| recipe | minutes | parameters | tokens | perplexity | BLiMP | without permutations | "
        "SST-2, 500 labels | from scratch |",
        "| --- |" + " --- |" * 8,
    ]
    for one in rows:
        both = [
            ", ".join(f"{100 * score[key]:.1f}" for score in one["blimp"])
            for key in ("accuracy", "accuracy_without_permutations")
        ]
        cells = [f"{one['minutes']:g}"]
        cells += [f"{one[key] / 1e6:.1f}M" for key in ("parameters", "tokens")]
        cells += [f"{one['perplexity']:.1f}", *both, *(shown(one[key]) for key in SST)]
        lines.append(f"| {one['recipe']} | {' | '.join(cells)} |")
    (RESULTS / "recipes.md").write_text("\n".join(lines) + "\n")


def options(doc: str | None, names: Sequence[str], **defaults: float) -> argparse.ArgumentParser:
    """Those of a figure that pre-trains recipes for equal minutes."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True, help="where the models are kept")
    parser.add_argument("--recipes", nargs="+", default=list(names), choices=list(names))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.set_defaults(**defaults)
    return parser


def measure(given: argparse.Namespace, one: Callable[[str, argparse.Namespace], None]) -> None:
    """Has each of the recipes that are asked for measured."""
    prepare_process(given.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in given.recipes:
        one(name, given)


def main() -> None:
    parser = options(__doc__, list(RECIPES), minutes=30.0, seeds=5)
    parser.add_argument("--pairs", type=int, default=200, help="of each paradigm of BLiMP")
    measure(parser.parse_args(), lambda name, given: write(measured(name, given)))


if __name__ == "__main__":
    main()
