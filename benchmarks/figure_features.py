"""What frozen contextual features are worth: ELMo's mix and last layer, static and random vectors.

    python benchmarks/figure_features.py ELMO_RUN ../shared/data --static WORD2VEC_RUN

A BiLSTM task network (Peters et al. 2018, section 5) reads the features of a frozen model: parts of
speech (UD English EWT, accuracy), entities (WNUT 17, F1 of spans) and sentiment in five classes
(SST, accuracy). "random" is the same ELMo with fresh weights, "characters" its word vectors,
without context. Dev parts to stop on, test parts to report, mean and 95 % interval over seeds.
Writes benchmarks/results/features.{json,md} after every row, or under the name that --name gives;
rows that are there already and are not asked for (`--features`) stay.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch

import firth
from firth.api import LanguageModel
from firth.device import prepare_process
from firth.models import build
from firth.protocols import Example
from firth.tasks.metrics import mean_and_interval

RESULTS = Path(__file__).parent / "results"
ORDER = ("random", "static", "characters", "last layer", "mix")
_LABEL, _WORD = re.compile(r"^\((\d) "), re.compile(r"[^() ]+(?=\))")


def sentiment(path: Path) -> list[Example]:
    """The sentences of a file of trees, with the label of each root."""
    examples = []
    for row, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        root = _LABEL.match(line)
        assert root is not None
        examples.append(Example(texts=(_WORD.findall(line),), label=root[1], row=row))
    return examples


def parts(name: str, data: Path) -> tuple[Any, list[list[Example]]]:
    """The task, and its train, dev and test examples."""
    if name == "SST-5":
        files = [data / "sst" / "trees" / f"{part}.txt" for part in ("train", "dev", "test")]
        return firth.Classification(), [sentiment(file) for file in files]
    if name == "POS":
        folder = data / "ud-english-ewt"
        files = [
            folder / f"en_ewt-ud-{part}"
            for part in ("train.conllu.gz", "dev.conllu", "test.conllu")
        ]
    else:
        files = [data / "wnut17" / f"{part}.conll" for part in ("train", "dev", "test")]
    task = firth.Tagging()
    return task, [task.read(file) for file in files]


def scratch(lm: LanguageModel, seed: int = 0) -> LanguageModel:
    """The same network with fresh weights."""
    torch.manual_seed(1000 + seed)
    device = next(lm.model.parameters()).device
    return LanguageModel(build(lm.model.config).eval().to(device), lm.tokenizer)


def score(lm: LanguageModel, name: str, data: Path, layers: Any, given: argparse.Namespace) -> list:
    """Test scores of all seeds."""
    task, (train, dev, test) = parts(name, data)
    how = firth.Frozen(task_network="bilstm", layers=layers, epochs=given.epochs, dropout=0.3)
    found = []
    for seed in range(given.seeds):
        adapted = firth.adapt(lm, task, train[: given.train], how, dev=dev, seeds=(seed,))
        found.append(adapted.evaluate(test).score)
        shares = adapted.layer_shares()
        print(name, layers, seed, f"{found[-1]:.4f}", shares, flush=True)
    return found


def table(rows: list[dict[str, Any]], given: argparse.Namespace) -> str:
    """The figure in Markdown."""
    names = list(dict.fromkeys(row["task"] for row in rows))
    lines = [
        f"python benchmarks/figure_features.py, {given.train or 'all'} training sentences, "
        f"{given.seeds} seeds, {given.epochs} epochs",
        "",
        f"| features | {' | '.join(names)} |",
        f"| --- |{' --- |' * len(names)}",
    ]
    for features in dict.fromkeys(row["features"] for row in rows):
        cells = []
        for name in names:
            found = [r for r in rows if (r["task"], r["features"]) == (name, features)]
            cells.append(shown(found[0]["scores"]) if found else "")
        lines.append(f"| {features} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(scores: list[float]) -> str:
    """Mean and half-width of the interval, in per cent."""
    mean, half = mean_and_interval([100 * one for one in scores])
    return f"{mean:.1f}" if half is None else f"{mean:.1f} ± {half:.1f}"


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("run", type=Path)
    options.add_argument("data", type=Path)
    options.add_argument("--static", type=Path, help="a run of word2vec, GloVe or fastText")
    options.add_argument("--train", type=int, default=None, help="training sentences (all)")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--epochs", type=float, default=10)
    options.add_argument("--tasks", nargs="+", default=["POS", "NER", "SST-5"])
    options.add_argument("--features", nargs="+", help="only rows of these names")
    options.add_argument("--name", default="features")
    given = options.parse_args()
    prepare_process()
    lm = firth.load(given.run)
    assert isinstance(lm, LanguageModel)
    settings: list[tuple[str, LanguageModel, Any]] = [("random", scratch(lm), "all")]
    if given.static:
        static = firth.load(given.static)
        assert isinstance(static, LanguageModel)
        settings.append(("static", static, "last"))
    settings += [("characters", lm, 0), ("last layer", lm, "last"), ("mix", lm, "all")]
    file = RESULTS / f"{given.name}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    for name in given.tasks:
        for features, model, layers in settings:
            if given.features and features not in given.features:
                continue
            scores = score(model, name, given.data, layers, given)
            rows = [r for r in rows if (r["task"], r["features"]) != (name, features)]
            rows.append({"task": name, "features": features, "scores": scores})
            rows.sort(key=lambda row: ORDER.index(row["features"]))
            file.write_text(json.dumps(rows, indent=1))
            (RESULTS / f"{given.name}.md").write_text(table(rows, given))
    print(table(rows, given))


if __name__ == "__main__":
    main()
