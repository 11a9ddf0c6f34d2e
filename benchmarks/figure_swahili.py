"""Which recipe for a language with little text: Swahili, equal minutes, then tags and topics.

    python benchmarks/figure_swahili.py ../shared/data --runs RUNS --minutes 8 --recipes elmo gpt

Each recipe learns for the same minutes (`fasttext`: five passes) from some 900,000 words: news,
stories, the New Testament and the Swahili side of MAFAND's training part, without lines that occur
among the labelled sentences. Then, with the adaptation that suits it: parts of speech (MasakhaPOS:
693 sentences) and the topics of headlines (MasakhaNEWS: 350, seven topics), each over several
seeds, on the published test parts; dev parts are for stopping. Beside them the network of
`modern-bert` from random weights, the same pre-trained from vectors of its tokens (five passes of
skip-gram, before its minutes), and TF-IDF with logistic regression for topics. Runs in RUNS are
taken up again. Writes benchmarks/results/swahili.{json,md} after every row; rows that are not asked
for stay.
"""

import argparse
import io
import re
from pathlib import Path
from typing import Any

import zstandard
from figure_features import scratch, shown
from figure_recipes import kept, measure, options
from figure_sst2 import with_tfidf
from figure_vectors import vectors_for

import firth
from firth.adaptation import Adaptation

RESULTS = Path(__file__).parent / "results"
RECIPES: dict[str, dict[str, Any]] = {
    "fasttext": {"size": "mini", "training.epochs": 5},
    "elmo": {"size": "tiny"},
    "awd-lstm": {"size": "mini"},
    "modern-bert": {"size": "mini", "training.batch_tokens": 2048},
    "gpt": {"size": "mini", "training.batch_tokens": 2048},
}
VECTORS = "modern-bert, from word vectors"
SCRATCH, TFIDF = "modern-bert, from scratch", "TF-IDF + logistic regression"
ROWS = (*RECIPES, VECTORS, SCRATCH, TFIDF)
READING = firth.Frozen(task_network="bilstm", epochs=30)
HOW: dict[str, dict[str, Adaptation]] = {
    "fasttext": {"tags": READING, "topics": firth.Frozen(epochs=60)},
    "elmo": {"tags": READING, "topics": firth.Frozen(epochs=60)},
    "awd-lstm": {"tags": firth.GradualUnfreezing(), "topics": firth.GradualUnfreezing()},
    "modern-bert": {"tags": firth.FineTuning(), "topics": firth.FineTuning()},
    "gpt": {"tags": firth.FineTuning(), "topics": firth.FineTuning()},
    VECTORS: {"tags": firth.FineTuning(), "topics": firth.FineTuning()},
    SCRATCH: {"tags": firth.FineTuning(), "topics": firth.FineTuning()},
}
TASKS: dict[str, tuple[str, Any, tuple[str, str, str]]] = {
    "tags": ("masakhapos-swa", firth.Tagging(), ("train.txt", "dev.txt", "test.txt")),
    "topics": (
        "masakhanews-swa",
        firth.Classification(text="headline", label="category"),
        ("train-50-per-class.tsv", "dev.tsv", "test.tsv"),
    ),
}


def parts(data: Path, name: str) -> tuple[Any, list[Any]]:
    """A task that knows its labels, and its examples to train on, to stop on, to test on."""
    folder, task, files = TASKS[name]
    found = [task.read(data / folder / file) for file in files]
    return task.fit_labels(found[0]), found


def letters(text: str) -> str:
    """A sentence by its letters alone, whatever a tokenizer did to it."""
    return re.sub(r"\W+", "", text).lower()


def text(data: Path) -> firth.Corpus:
    """Lines of all sources without those of the labelled sentences."""
    labelled = {letters(" ".join(one.texts[0])) for part in parts(data, "tags")[1] for one in part}
    labelled |= {letters(one.texts[0]) for part in parts(data, "topics")[1] for one in part}
    lines = list(firth.Corpus.from_files(data / "swahili-text", documents="line"))
    packed = (data / "mafand-en-swa" / "train.swa.zst").read_bytes()
    reader = zstandard.ZstdDecompressor().stream_reader(packed)
    lines += io.TextIOWrapper(reader, encoding="utf-8").read().splitlines()
    kept = [line for line in lines if letters(line) and letters(line) not in labelled]
    print(f"{len(kept)} of {len(lines)} lines, {sum(len(k.split()) for k in kept)} words")
    return firth.Corpus.from_texts(kept, drop_duplicates=True)


def pretrained(name: str, given: argparse.Namespace) -> firth.LanguageModel:
    """The model of a row, after its minutes."""
    name, _, begins = name.partition(", from ")
    settings, corpus = dict(RECIPES[name]), text(given.data)
    recipe = firth.recipe(name, size=settings.pop("size"))
    if name != "fasttext":
        settings["training.minutes"] = given.minutes
    recipe = recipe.with_settings({"data.valid": 0.02, **settings})
    if begins != "word vectors":
        return firth.pretrain(recipe, corpus, given.runs / name)
    vectors = vectors_for(name, corpus, given.runs / f"{name}-tokens", epochs=5)
    return firth.pretrain(recipe, corpus, given.runs / f"{name}-vectors", vectors=vectors)


def measured(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The row of a recipe, or of a baseline."""
    row: dict[str, Any] = {"system": name, "minutes": given.minutes, "threads": given.threads}
    lm = None if name == TFIDF else pretrained(name, given)
    if lm is not None:
        row["parameters"] = sum(p.numel() for p in lm.model.parameters())
    for what in TASKS:
        task, (train, dev, test) = parts(given.data, what)
        if lm is None:
            row[what] = [] if what == "tags" else [with_tfidf(train, test)]
            continue
        row[what] = []
        for seed in range(given.seeds):
            model = scratch(lm, seed) if name == SCRATCH else lm
            adapted = firth.adapt(model, task, train, HOW[name][what], dev=dev, seeds=(seed,))
            row[what].append(adapted.evaluate(test).metrics["accuracy"])
            print(name, what, seed, row[what][-1], flush=True)
    return row


def write(row: dict[str, Any]) -> None:
    """Puts a row among those that are there, and makes the table anew."""
    rows = kept(RESULTS / "swahili.json", row, "system", ROWS)
    lines = [
        "| | minutes | parameters | parts of speech | topics of headlines |",
        "| --- |" + " --- |" * 4,
    ]
    for one in rows:
        size = f"{one['parameters'] / 1e6:.1f}M" if "parameters" in one else ""
        cells = [shown(one[what]) if one[what] else "" for what in TASKS]
        lines.append(f"| {one['system']} | {one['minutes']:g} | {size} | {' | '.join(cells)} |")
    (RESULTS / "swahili.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    given = options(__doc__, ROWS, minutes=8.0, seeds=3).parse_args()
    measure(given, lambda name, given: write(measured(name, given)))


if __name__ == "__main__":
    main()
