"""German and English word vectors, trained apart, brought together by a rotation.

    python benchmarks/figure_bilingual.py ../shared/data/multi30k

Vectors are trained on each side of Multi30k alone. IBM model 1 on the pairs of sentences gives a
dictionary; every fourth pair of it is held out, and the rotation is learned from the others. The
figure is precision at 1 of the held-out German words among all English ones.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from report import Table, publish
from timing import run

import firth
from firth.api.word_vectors import vocabulary_vectors
from firth.device import prepare_process
from firth.inference.bilingual import (
    build_dictionary,
    pairs_with_vectors,
    precision_at_1,
    rotation,
)

SEEDS = (0, 1, 2)


def sentences(folder: Path, language: str) -> list[str]:
    """The training sentences of one side."""
    with gzip.open(folder / f"train.{language}.gz", "rt", encoding="utf-8") as file:
        return [line.strip() for line in file]


def trained(recipe: str, texts: list[str], run: Path, seed: int) -> firth.LanguageModel:
    """Vectors of one side."""
    chosen = firth.recipe(recipe).with_settings(
        {
            "training.epochs": 20,
            "training.seed": seed,
            "objective.lr": 0.05,
            "objective.subsample": 1e-3,
            "model.hidden_size": 100,
            "data.valid": 0.001,
        }
    )
    return firth.pretrain(chosen, firth.Corpus.from_texts(texts), run)


def precisions(folder: Path, recipe: str, seed: int, runs: Path) -> dict[str, float]:
    """Precision at 1 by CSLS and by cosine, with the numbers of pairs."""
    texts = {language: sentences(folder, language) for language in ("de", "en")}
    sides, words = [], []
    for language, lines in texts.items():
        lm = trained(recipe, lines, runs / f"{recipe}-{language}-{seed}", seed)
        sides.append(vocabulary_vectors(lm))
        encodings = lm.tokenizer.encode_batch(lines, special_tokens=False)
        words.append([encoding.tokens for encoding in encodings])
    (german, of_german), (english, of_english) = sides
    unknown = {"[UNK]"}
    pairs = [pair for pair in build_dictionary(*words) if not set(pair) & unknown]
    test, train = pairs[::4], [pair for i, pair in enumerate(pairs) if i % 4]
    turn = rotation(*pairs_with_vectors(train, german, of_german, english, of_english))
    found = {"pairs to learn from": float(len(train)), "words asked for": float(len(test))}
    for name, neighbours in (("CSLS", 10), ("cosine", 0)):
        one = precision_at_1(german, of_german @ turn, english, of_english, test, csls=neighbours)
        found[name] = one.share
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("folder", type=Path, help="of train.de.gz and train.en.gz")
    options.add_argument("--runs", type=Path, default=Path("runs/bilingual"))
    options.add_argument("--recipes", nargs="+", default=["word2vec", "fasttext"])
    options.add_argument("--results", type=Path, default=None)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    given.quick = False
    prepare_process(given.threads)
    rows, record = [], {}
    for recipe in given.recipes:
        found = [precisions(given.folder, recipe, seed, given.runs) for seed in SEEDS]
        record[recipe] = found
        means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        counts = [f"{means[name]:,.0f}" for name in ("pairs to learn from", "words asked for")]
        spread = [f"{means[name]:.1%} ({_each(found, name)})" for name in ("CSLS", "cosine")]
        rows.append([recipe, *counts, *spread])
    note = f"Multi30k, German to English, {len(SEEDS)} seeds; mean (each seed)."
    columns = ("recipe", "pairs to learn from", "words asked for", "P@1 CSLS", "P@1 cosine")
    title = "translation of words"
    table = Table(title=title, note=note, columns=columns, rows=rows, record=record)
    publish("bilingual", given, [table])


def _each(found: list[dict[str, float]], name: str) -> str:
    return ", ".join(f"{one[name]:.1%}" for one in found)


if __name__ == "__main__":
    run(main, {})
