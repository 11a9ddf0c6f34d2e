"""What reading the field's text first is worth: SST-2 with few labels, on reviews without labels.

    python benchmarks/figure_continued.py RUN ../shared/data --runs RUNS [--rates 1 0.3]

RUN, a `modern-bert` of general text, goes on for `--tokens` with IMDB's unlabelled reviews (another
site's, of the field) or with the texts of SST-2's training part without their labels (the task's
own), at `--rates` times the recipe's learning rates. Each is fine-tuned as in `figure_sst2.py`.
Finished runs in RUNS are taken up again. Writes benchmarks/results/continued.{json,md} after every
system; rows that are not asked for stay.
"""

import argparse
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figure_features import shown
from figure_sst2 import accuracy, drawn, parts

import firth
from firth.device import prepare_process

RESULTS = Path(__file__).parent / "results"
TEXTS = {"reviews": "IMDB's reviews", "task": "the task's texts"}


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def corpus(name: str, data: Path) -> firth.Corpus:
    """Text of the field without labels; none of what is tested on."""
    if name == "reviews":
        return firth.Corpus.from_files(data / "imdb" / "unsup-25k.jsonl.zst")
    pool = parts(data / "glue" / "sst-2")[1]
    return firth.Corpus.from_texts([str(example.texts[0]) for example in pool])


def trained(
    folder: Path, text: firth.Corpus, tokens: int, rate: float, start: firth.LanguageModel
) -> tuple[firth.LanguageModel, float]:
    """A model after `tokens` of a text, and its perplexity on a held-out part of that text."""
    recipe = firth.recipe("modern-bert", size="mini")
    optimizer = recipe.training.optimizer
    chosen = recipe.with_settings(
        {
            "training.tokens": tokens,
            "training.batch_tokens": 4096,
            "training.optimizer.lr": rate * optimizer.lr,
            "training.optimizer.rest.lr": rate * optimizer.rest.lr,
        }
    )
    lm = firth.pretrain(chosen, text, folder, start=start)
    found = [one["valid_perplexity"] for one in metrics(folder) if "valid_perplexity" in one]
    return lm, found[-1]


def systems(
    given: argparse.Namespace,
) -> Iterator[tuple[str, firth.LanguageModel, float | None]]:
    """Name, model and perplexity of each."""
    general = firth.load(given.run)
    assert isinstance(general, firth.LanguageModel)
    if "general" in given.texts:
        yield "general text alone", general, None
    for name in filter(TEXTS.__contains__, given.texts):
        text = corpus(name, given.data)
        for rate in given.rates:
            folder = given.runs / f"{name}-{rate:g}"
            lm, found = trained(folder, text, given.tokens, rate, general)
            yield f"then {TEXTS[name]}, rate x {rate:g}", lm, found


def write(row: dict[str, Any], sizes: list[int]) -> None:
    """Puts a row among those that are there, and makes the table anew."""
    file = RESULTS / "continued.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    rows = sorted(
        [*(one for one in rows if one["system"] != row["system"]), row],
        key=lambda one: one["system"],
    )
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        f"| text | perplexity | {' | '.join(f'{size} labels' for size in sizes)} |",
        "| --- |" + " --- |" * (1 + len(sizes)),
    ]
    for one in rows:
        perplexity = "" if one["perplexity"] is None else f"{one['perplexity']:.1f}"
        cells = [shown(one["scores"][str(s)]) if str(s) in one["scores"] else "" for s in sizes]
        lines.append(f"| {one['system']} | {perplexity} | {' | '.join(cells)} |")
    (RESULTS / "continued.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="a modern-bert run of general text")
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True, help="where the models are kept")
    parser.add_argument(
        "--texts", nargs="+", default=["general", *TEXTS], choices=["general", *TEXTS]
    )
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.3])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 500, 2000])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    prepare_process(given.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    task, pool, dev, test = parts(given.data / "glue" / "sst-2")
    for name, lm, perplexity in systems(given):
        row: dict[str, Any] = {"system": name, "perplexity": perplexity, "scores": {}}
        for size in given.sizes:
            row["scores"][str(size)] = [
                accuracy("fine-tuned", lm, task, drawn(pool, size, seed), dev, test, seed)
                for seed in range(given.seeds)
            ]
            print(name, size, row["scores"][str(size)], flush=True)
        write(row, given.sizes)


if __name__ == "__main__":
    main()
