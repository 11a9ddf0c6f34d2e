"""ULMFiT on IMDB: from scratch, pre-trained, and fine-tuned on the reviews first; its ablation.

    python benchmarks/figure_ulmfit.py AWD_RUN ../shared/data --sizes 100 1000 [--ablation]

AWD_RUN is a run of `awd-lstm` on general text. Its second stage reads the 25,000 reviews without
labels (`--tune` passes). Classifiers are trained on `--sizes` labelled reviews (0: all) and tested
on `--test` of the 25,000 test reviews; a tenth more of the training reviews is held out to stop on.
With --ablation each of the tricks is switched off at 1,000 labels. Mean and 95 % interval over
seeds. Beside them logistic regression on the tf-idf of words and pairs of words, of texts that are
cut to as much. All networks have the dropouts of the recipe `ulmfit` while they learn to classify.
From scratch is the same network with random weights in the same training, and in another one: all
layers from the first step on, at one rate of 3e-3.
A run that collapses counts as half right and is not begun again. Writes
benchmarks/results/ulmfit.{json,md} after every run, or under the name that --name gives; rows that
are there already and are not asked for stay.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from figure_features import scratch, shown

import firth
from firth.api import LanguageModel
from firth.device import prepare_process
from firth.errors import DivergedError
from firth.models import build
from firth.protocols import Example

RESULTS = Path(__file__).parent / "results"
OFF: dict[str, dict[str, Any]] = {
    "no gradual unfreezing": {"unfreezing": False},
    "one rate for all layers": {"decay": 1.0},
    "constant rate": {"slanted": False},
    "no concat pooling": {"concat_pooling": False},
}


def reviews(path: Path, count: int | None, seed: int = 0) -> list[Example]:
    """Labelled reviews in a seeded order."""
    import zstandard

    with zstandard.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    order = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [
        Example(texts=(rows[i]["text"],), label=str(rows[i]["label"]), row=int(i)) for i in order
    ]


def tuned(lm: LanguageModel, data: Path, epochs: float, folder: Path) -> LanguageModel:
    """The language model, fine-tuned on the reviews without labels (the second stage), or kept."""
    if (folder / "config.json").is_file():
        kept = firth.load(folder)
        assert isinstance(kept, LanguageModel)
        return kept
    corpus = firth.Corpus.from_files(data / "imdb" / "unsup-25k.jsonl.zst")
    recipe = firth.recipe("ulmfit").with_settings({"training.epochs": epochs})
    return firth.pretrain(recipe, corpus, folder, start=lm)


def accuracy(lm: LanguageModel, size: int, data: Path, seed: int, how: Any, test: list) -> float:
    """On the test reviews, after learning from `size` labelled ones."""
    found = reviews(data / "imdb" / "train.jsonl.zst", None, seed)
    size = size or len(found) * 9 // 10
    train, dev = found[:size], found[size : size + max(100, size // 10)]
    try:
        adapted = firth.adapt(lm, firth.Classification(), train, how, dev=dev, seeds=(seed,))
    except DivergedError as error:  # one answer for everything
        print(seed, error, flush=True)
        return 0.5
    return adapted.evaluate(test).score


def words_alone(size: int, data: Path, seed: int, test: list[Example], length: int) -> float:
    """Accuracy of logistic regression on tf-idf, of about as many words as `length` tokens are."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def texts(examples: list[Example]) -> list[str]:
        return [" ".join(str(one.texts[0]).split()[: length * 3 // 4]) for one in examples]

    found = reviews(data / "imdb" / "train.jsonl.zst", None, seed)
    train = found[: size or len(found) * 9 // 10]
    pairs = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(train) > 500 else 1
    )
    model = make_pipeline(pairs, LogisticRegression(C=10.0, max_iter=300))
    model.fit(texts(train), [one.label for one in train])
    return float(model.score(texts(test), [one.label for one in test]))


def with_dropouts(lm: LanguageModel) -> LanguageModel:
    """The same model with the dropouts of the recipe that fine-tunes it."""
    recipe = firth.recipe("ulmfit").started_from(lm.model.config, str(lm.path), lm.max_length)
    model = build(recipe.model).eval()
    model.load_state_dict(lm.model.state_dict())
    return LanguageModel(model, lm.tokenizer)


def write(row: dict[str, Any], name: str) -> None:
    """Puts a row among those that are there."""
    file = RESULTS / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    key = (row["labels"], row["system"])
    rows = [*(one for one in rows if (one["labels"], one["system"]) != key), row]
    file.write_text(json.dumps(rows, indent=1) + "\n")
    lines = [
        f"| {r['labels'] or 'all'} | {r['system']} | {shown(r['scores'])} | {len(r['scores'])} |"
        for r in rows
    ]
    head = ["| labels | system | accuracy | seeds |", "| --- | --- | --- | --- |"]
    (RESULTS / f"{name}.md").write_text("\n".join([*head, *lines]) + "\n")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("run", type=Path)
    options.add_argument("data", type=Path)
    options.add_argument("--sizes", type=int, nargs="*", default=[100, 1000])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--tune", type=float, default=1.0)
    options.add_argument(
        "--tuned", type=Path, help="where the second stage is kept, to be used again"
    )
    options.add_argument("--test", type=int, default=2000)
    options.add_argument("--length", type=int, default=400)
    options.add_argument("--epochs", type=float, default=None)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--ablation", action="store_true")
    options.add_argument("--systems", nargs="+", help="only rows of these names")
    options.add_argument("--name", default="ulmfit")
    return options.parse_args()


def rows_of(given: argparse.Namespace) -> list[tuple[str, int, str, Any]]:
    """Of each row the name, the labels, the model that it begins with, and the fine-tuning."""
    how = firth.GradualUnfreezing(
        max_length=given.length, epochs=given.epochs, batch_size=given.batch_size, restarts=0
    )
    at_once = replace(how, unfreezing=False, decay=1.0, lr=3e-3)
    rows: list[tuple[str, int, str, Any]] = []
    for size in given.sizes:
        rows.append(("tf-idf, logistic regression", size, "words", None))
        rows.append(("from scratch", size, "scratch", how))
        rows.append(("from scratch, all layers at once", size, "scratch", at_once))
        rows.append(("pre-trained", size, "general", how))
        rows.append(("pre-trained, fine-tuned on the reviews", size, "reviews", how))
    for name, off in OFF.items() if given.ablation else ():
        rows.append((name, 1000, "reviews", replace(how, **off)))
    return rows


def main() -> None:
    given = arguments()
    prepare_process()
    lm = firth.load(given.run)
    assert isinstance(lm, LanguageModel)
    general = with_dropouts(lm)
    test = reviews(given.data / "imdb" / "test.jsonl.zst", given.test)
    rows = [row for row in rows_of(given) if not given.systems or row[0] in given.systems]
    models = {"scratch": scratch(general), "general": general}
    if any(start == "reviews" for _, _, start, _ in rows):
        folder = given.tuned or Path(tempfile.mkdtemp())
        models["reviews"] = tuned(lm, given.data, given.tune, folder)
    for name, size, start, how in rows:
        scores: list[float] = []
        for seed in range(given.seeds):
            if start == "words":
                scores.append(words_alone(size, given.data, seed, test, given.length))
            else:
                scores.append(accuracy(models[start], size, given.data, seed, how, test))
            write({"labels": size, "system": name, "scores": scores}, given.name)
            print(size, name, shown(scores), flush=True)


if __name__ == "__main__":
    main()
