"""ULMFiT on IMDB: from scratch, pre-trained, and fine-tuned on the reviews first; its ablation.

    python benchmarks/figure_ulmfit.py AWD_RUN ../shared/data --sizes 100 1000 [--ablation]

AWD_RUN is a run of `awd-lstm` on general text. Its second stage reads the 25,000 reviews without
labels (`--tune` passes). Classifiers are trained on `--sizes` labelled reviews and tested on
`--test` of the 25,000 test reviews; a tenth more of the training reviews is held out to stop on.
With --ablation each of the tricks is switched off at 1,000 labels. Mean and 95 % interval over
seeds. Writes benchmarks/results/ulmfit.{json,md} after every row.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figure_features import shown

import firth
from firth.api import LanguageModel
from firth.device import prepare_process
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
    """The second stage: the language model, fine-tuned on the reviews without labels."""
    corpus = firth.Corpus.from_files(data / "imdb" / "unsup-25k.jsonl.zst")
    recipe = firth.recipe("ulmfit").with_settings({"training.epochs": epochs})
    return firth.pretrain(recipe, corpus, folder, start=lm)


def scratch(lm: LanguageModel) -> LanguageModel:
    """The same network with fresh weights."""
    torch.manual_seed(1000)
    return LanguageModel(build(lm.model.config).eval(), lm.tokenizer)


def accuracy(lm: LanguageModel, size: int, data: Path, seed: int, how: Any, test: list) -> float:
    """On the test reviews, after learning from `size` labelled ones."""
    found = reviews(data / "imdb" / "train.jsonl.zst", None, seed)
    train, dev = found[:size], found[size : size + max(100, size // 10)]
    return (
        firth.adapt(lm, firth.Classification(), train, how, dev=dev, seeds=(seed,))
        .evaluate(test)
        .score
    )


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("run", type=Path)
    options.add_argument("data", type=Path)
    options.add_argument("--sizes", type=int, nargs="+", default=[100, 1000])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--tune", type=float, default=1.0)
    options.add_argument(
        "--tuned", type=Path, help="where the second stage is kept, to be used again"
    )
    options.add_argument("--test", type=int, default=2000)
    options.add_argument("--length", type=int, default=400)
    options.add_argument("--epochs", type=float, default=None)
    options.add_argument("--ablation", action="store_true")
    given = options.parse_args()
    prepare_process()
    lm = firth.load(given.run)
    assert isinstance(lm, LanguageModel)
    folder = given.tuned or Path(tempfile.mkdtemp())
    own = tuned(lm, given.data, given.tune, folder)
    test = reviews(given.data / "imdb" / "test.jsonl.zst", given.test)
    how = firth.GradualUnfreezing(max_length=given.length, epochs=given.epochs)
    plain = replace(how, unfreezing=False, decay=1.0, lr=1e-3)  # nothing to unfreeze gradually
    rows: list[dict[str, Any]] = []

    def add(name: str, size: int, model: LanguageModel, with_how: Any) -> None:
        scores = [
            accuracy(model, size, given.data, seed, with_how, test) for seed in range(given.seeds)
        ]
        rows.append({"labels": size, "system": name, "scores": scores})
        print(size, name, shown(scores), flush=True)
        (RESULTS / "ulmfit.json").write_text(json.dumps(rows, indent=1))
        lines = [f"| {r['labels']} | {r['system']} | {shown(r['scores'])} |" for r in rows]
        head = ["| labels | system | accuracy |", "| --- | --- | --- |"]
        (RESULTS / "ulmfit.md").write_text("\n".join([*head, *lines]) + "\n")

    for size in given.sizes:
        add("from scratch", size, scratch(lm), plain)
        add("pre-trained", size, lm, how)
        add("pre-trained, fine-tuned on the reviews", size, own, how)
    for name, off in OFF.items() if given.ablation else ():
        add(name, 1000, own, replace(how, **off))


if __name__ == "__main__":
    main()
