"""How much pre-training helps: SST-2 with few and many labels, against scratch and TF-IDF.

    python benchmarks/figure_sst2.py RUN ../shared/data/glue/sst-2 [--seeds 5] [--sizes 100 500 ...]

Test set: SST-2's dev part (872 sentences; the published test part has no labels). To stop on and to
choose by: 500 sentences taken out of the training part. The training subset, the head and the order
change with the seed. Writes benchmarks/results/sst2.{json,md} after every row, or under the name
that --name gives.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from figure_features import scratch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

import firth
from firth.protocols import Example
from firth.tasks.metrics import mean_and_interval

RESULTS = Path(__file__).parent / "results"


def with_tfidf(train, test) -> float:
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    x = vectors.fit_transform([e.texts[0] for e in train])
    classifier = LogisticRegression(C=10, max_iter=1000).fit(x, [e.label for e in train])
    return classifier.score(vectors.transform([e.texts[0] for e in test]), [e.label for e in test])


def budget(size: int) -> dict:
    """Three epochs or 300 steps; one epoch of all labels."""
    return {"epochs": 1.0} if size > 10_000 else {}


def accuracy(name: str, lm, task, train, dev, test, seed: int) -> float:
    if name == "TF-IDF + logistic regression":
        return with_tfidf(train, test)
    how = {
        "fine-tuned": firth.FineTuning(**budget(len(train))),
        "frozen + mix": firth.Frozen(**({"epochs": 3.0} if len(train) > 10_000 else {})),
        "from scratch": firth.FineTuning(lr=5e-4, reset_layers=0, **budget(len(train))),
    }[name]
    model = scratch(lm, seed) if name == "from scratch" else lm
    adapted = firth.adapt(model, task, train, how, dev=dev, seeds=(seed,))
    return adapted.evaluate(test).metrics["accuracy"]


METHODS = ("fine-tuned", "frozen + mix", "from scratch", "TF-IDF + logistic regression")


def parts(data: Path) -> tuple[firth.Classification, list[Example], list[Example], list[Example]]:
    """The task, the examples to draw training sets from, those to stop on, those to test on."""
    task = firth.Classification(text="sentence", label="label")
    everything = task.read(data / "train.tsv.gz")
    test = task.read(data / "dev.tsv")
    order = np.random.default_rng(0).permutation(len(everything))
    dev = [everything[i] for i in order[:500]]
    pool = [everything[i] for i in order[500:]]
    return task.fit_labels(pool), pool, dev, test


def drawn(pool: list[Example], size: int, seed: int) -> list[Example]:
    """`size` training examples of a seed, or all for 0, in its order."""
    chosen = np.random.default_rng(100 + seed).permutation(len(pool))
    return [pool[i] for i in chosen[: size or None]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 500, 2000, 0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--name", default="sst2")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.INFO)
    lm = firth.load(options.run)
    task, pool, dev, test = parts(options.data)
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in options.methods}
    for size in options.sizes:
        for name in options.methods:
            begin = time.perf_counter()
            values = []
            for seed in range(options.seeds):
                train = drawn(pool, size, seed)
                values.append(accuracy(name, lm, task, train, dev, test, seed))
            rows[name]["all" if size == 0 else f"{size:,}"] = values
            mean, half = mean_and_interval(values)
            seconds = (time.perf_counter() - begin) / options.seeds
            print(f"{size or 'all'}\t{name}\t{mean:.3f} ± {half or 0:.3f}\t{seconds:.0f} s a run")
            write(rows, options)


def write(rows: dict[str, dict[str, list[float]]], options: argparse.Namespace) -> None:
    RESULTS.mkdir(exist_ok=True)
    record = {"run": Path(options.run).name, "seeds": options.seeds, "accuracy": rows}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    sizes = list(rows[options.methods[0]])
    lines = ["| labels | " + " | ".join(sizes) + " |", "| --- |" + " --- |" * len(sizes)]
    for name, values in rows.items():
        cells = []
        for size in sizes:
            if size in values:
                mean, half = mean_and_interval(values[size])
                cells.append(f"{100 * mean:.1f} ± {100 * (half or 0):.1f}")
            else:
                cells.append("")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    (RESULTS / f"{options.name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
