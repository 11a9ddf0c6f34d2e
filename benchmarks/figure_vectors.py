"""Does it help to begin with word vectors? Equal tokens with and without, then what was learned.

    python benchmarks/figure_vectors.py ../shared/data --runs RUNS --recipes gpt --steps 300

For each recipe skip-gram learns vectors of its tokens on `english-10m` (two epochs). Then it
is pre-trained for the same steps of 4,096 tokens twice, with random vectors and with these. The
perplexity of held-out text, BLiMP (the first pairs of each paradigm) and SST-2 with 500 labels,
fine-tuned, are as in `figure_recipes.py`. Runs in RUNS are taken up again. Writes
benchmarks/results/vectors.{json,md}; rows of recipes that are not asked for, and those of other
steps (which need another RUNS), stay.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from figure_features import shown
from figure_recipes import RECIPES, measure, options, pairs
from figure_sst2 import accuracy, drawn, parts

import firth

RESULTS = Path(__file__).parent / "results"
BEGIN = ("random", "vectors")


def corpora(given: argparse.Namespace) -> list[firth.Corpus]:
    """Training and held-out text."""
    files = str(given.data / "english-10m" / "*.{}.txt.zst")
    names = ("train", "valid")
    return [firth.Corpus.from_files(files.format(part), documents="line") for part in names]


def vectors_for(
    name: str, train: firth.Corpus, run: Path, *, epochs: int, valid: firth.Corpus | None = None
) -> firth.LanguageModel:
    """Skip-gram over the tokens that a recipe cuts text into."""
    cut = firth.recipe(name, size="mini").tokenizer
    recipe = firth.recipe("word2vec", size="mini", vocab_size=cut.vocab_size).with_settings(
        {
            "tokenizer.kind": cut.kind,
            "tokenizer.lowercase": cut.lowercase,
            "tokenizer.sentinels": cut.sentinels,
            "training.epochs": epochs,
            "data.valid": 0.02,
        }
    )
    return firth.pretrain(recipe, train, run, valid=valid)


def last(run: Path) -> dict[str, Any]:
    """What the log of a run says at its end."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {key: value for row in rows for key, value in row.items()}


def measured(name: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a recipe."""
    train, valid = corpora(given)
    vectors = vectors_for(name, train, given.runs / f"{name}-tokens", epochs=2, valid=valid)
    recipe = firth.recipe(name, size="mini").with_settings(
        {"training.steps": given.steps, "training.batch_tokens": 4096, **RECIPES[name]}
    )
    task, pool, dev, test = parts(given.data / "glue" / "sst-2")
    rows = []
    for begin in BEGIN:
        run = given.runs / f"{name}-{begin}"
        kind = {"tokenizer": vectors.tokenizer} if begin == "random" else {"vectors": vectors}
        lm = firth.pretrain(recipe, train, run, valid=valid, **kind)
        log, before = last(run), last(given.runs / f"{name}-tokens")
        seconds = log["seconds"] + (before["seconds"] if begin == "vectors" else 0)
        row = {
            "recipe": name,
            "begin": begin,
            "steps": given.steps,
            "minutes": seconds / 60,
            "tokens": log["tokens"],
            "perplexity": log["valid_perplexity"],
            "blimp": pairs(lm, given),
        }
        row["SST-2"] = [
            accuracy("fine-tuned", lm, task, drawn(pool, 500, seed), dev, test, seed)
            for seed in range(given.seeds)
        ]
        print(row, flush=True)
        rows.append(row)
    return rows


def write(name: str, given: argparse.Namespace) -> None:
    """Puts the rows of a recipe among those that are there, and makes the table anew."""
    file = RESULTS / "vectors.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    new = measured(name, given)
    own = {(name, given.steps)}
    rows = [one for one in rows if (one["recipe"], one["steps"]) not in own] + new
    rows.sort(key=lambda one: (list(RECIPES).index(one["recipe"]), one["steps"]))
    file.write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        "| recipe | tokens begin | steps | minutes | perplexity | BLiMP | without permutations | "
        "SST-2, 500 labels |",
        "| --- |" + " --- |" * 7,
    ]
    for one in rows:
        both = (one["blimp"][key] for key in ("accuracy", "accuracy_without_permutations"))
        cells = [one["recipe"], one["begin"], str(one["steps"]), f"{one['minutes']:.0f}"]
        cells += [f"{one['perplexity']:.1f}", *(f"{100 * score:.1f}" for score in both)]
        lines.append(f"| {' | '.join([*cells, shown(one['SST-2'])])} |")
    (RESULTS / "vectors.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = options(__doc__, list(RECIPES), seeds=5)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=100, help="of each paradigm of BLiMP")
    measure(parser.parse_args(), write)


if __name__ == "__main__":
    main()
