"""Word vectors: firth against gensim, at equal settings on the same tokens.

    python benchmarks/bench_static.py

A lap is a whole training: 5 epochs over English Wikipedia (of `english-10m`), 100 wide, windows of
5, 5 negatives, two threads, the vocabulary and the initial weights being there already. After it
the vectors are held against the judgements of MEN and SimLex-999.
"""

import argparse
import importlib.metadata
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from data import SHARED, cached, pretraining_text
from report import Table, compare, parser, publish, timing_table
from timing import Contender, Measured, Pace, run

EPOCHS, WIDTH, LONGEST, STRETCH, BUCKETS = 5, 100, 1000, 10_000, 200_000
SETS = ("EN-MEN-TR-3k", "EN-SIMLEX-999")
SYSTEMS: dict[str, dict[str, Any]] = {
    "skip-gram": {"objective": "SkipGram", "lr": 0.025, "subsample": 1e-3, "power": 0.75},
    "CBOW": {"objective": "CBOW", "lr": 0.05, "subsample": 1e-3, "power": 0.75},
    "fastText": {"objective": "SkipGram", "lr": 0.05, "subsample": 1e-4, "power": 0.5},
}


def token_files() -> Path:
    """The text as token files with their tokenizer: words seen twice, in lower case."""

    def write(path: Path) -> None:
        from firth.text.corpus import Corpus
        from firth.text.shards import write_shards
        from firth.text.tokenizers import Tokenizer

        corpus = Corpus.from_files(pretraining_text(), documents="line")
        tokenizer = Tokenizer.train(corpus, "word", 50_000, lowercase=True, min_frequency=5)
        tokenizer.save(path)
        write_shards(corpus, tokenizer, path / "tokens")

    return cached("words-50000", write)


def lines(quick: bool) -> Path:
    """The same tokens as gensim reads them: words between spaces, a piece a line."""

    def write(path: Path) -> None:
        source, words = text(quick)
        with path.open("w", encoding="utf-8") as file:
            for piece in pieces(source, words):
                file.write(" ".join(piece) + "\n")

    return cached("words-50000-quick.txt" if quick else "words-50000.txt", write)


def text(quick: bool) -> tuple[Any, list[str | None]]:
    """The token files and the words by id; for a quick look the first documents."""
    from firth.api.static_training import words_of
    from firth.text.shards import Shards
    from firth.text.tokenizers import Tokenizer

    shards = Shards.open(token_files() / "tokens")
    return (First(shards) if quick else shards), words_of(Tokenizer.load(token_files()))


class First:
    """The first documents of a text."""

    def __init__(self, source: Any, documents: int = 500) -> None:
        self.source = source
        self.document_starts = source.document_starts[: documents + 1]

    def tokens(self, begin: int, end: int) -> np.ndarray:
        return self.source.tokens(begin, end)

    def opens_word(self, begin: int, end: int) -> np.ndarray:
        return self.source.opens_word(begin, end)


def pieces(source: Any, words: list[str | None]) -> Iterator[list[str]]:
    """The pieces of the text as words, unknown ones left out."""
    from firth.text.batches import cut_documents

    for begin, end in zip(*cut_documents(source.document_starts, LONGEST), strict=True):
        found = [words[i] for i in source.tokens(int(begin), int(end)).tolist()]
        yield [word for word in found if word is not None]


def agreement(words: list[str], vectors: np.ndarray) -> dict[str, float]:
    """Spearman's correlation with people's judgements."""
    from firth.tasks.word_similarity import read_similarity_sets, similarity_report

    folder = SHARED / "word-similarity"
    if not folder.is_dir():
        return {}
    rows = {word: i for i, word in enumerate(words)}
    nothing = np.zeros(vectors.shape[1], np.float32)

    def embed(asked: list[str]) -> np.ndarray:
        return np.stack([vectors[rows[w]] if w in rows else nothing for w in asked])

    sets = [one for one in read_similarity_sets(folder) if one.name in SETS]
    found = similarity_report(sets, embed).details["sets"]
    return {name: found[name]["spearman"] for name in SETS}


def firth(pace: Pace, system: str, threads: int, quick: bool) -> None:
    """The compiled loops, as `firth pretrain` runs them."""
    from firth.models import Static, StaticConfig
    from firth.objectives import OBJECTIVES
    from firth.training.word_vectors import learner, run_steps

    how = dict(SYSTEMS[system])
    objective: Any = OBJECTIVES[how.pop("objective")](**how)
    source, words = text(quick)
    buckets = BUCKETS if system == "fastText" else 0
    config = StaticConfig(vocab_size=len(words), hidden_size=WIDTH, buckets=buckets)
    shape = {"longest": LONGEST, "stretch": STRETCH}
    run_steps(
        learner(objective, config, words, source, **shape, seed=0), 0, 1, total=None, threads=1
    )
    num_tokens = sum(map(len, pieces(source, words)))
    pace.start(tokens=num_tokens)
    for seed in range(1 << 30):
        learning = learner(objective, config, words, source, **shape, seed=seed)
        total = EPOCHS * learning.steps_per_epoch
        begin = time.perf_counter()
        run_steps(learning, 0, total, total=total, threads=threads)
        model = Static(config)
        learning.fill(model)  # gensim composes its vectors within `train`, too
        seconds = time.perf_counter() - begin
        known = [i for i, word in enumerate(words) if word is not None]
        vectors = model.embeddings.tokens.weight.detach().numpy()[known]
        pace.lap(seconds, **agreement([words[i] or "" for i in known], vectors))


def gensim(pace: Pace, system: str, threads: int, quick: bool) -> None:
    """Gensim's compiled loops, from lists of words."""
    from gensim.models import FastText, Word2Vec

    how, path = SYSTEMS[system], lines(quick)
    sentences = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    given: dict[str, Any] = {
        "vector_size": WIDTH,
        "window": 5,
        "negative": 5,
        "min_count": 1,
        "sg": int(how["objective"] == "SkipGram"),
        "alpha": how["lr"],
        "min_alpha": how["lr"] * 1e-4,
        "sample": how["subsample"],
        "ns_exponent": how["power"],
        "workers": threads,
    }
    if system == "fastText":
        given["bucket"] = BUCKETS
    made = FastText if system == "fastText" else Word2Vec
    pace.start(tokens=sum(map(len, sentences)))
    for seed in range(1 << 30):
        model = made(**given, seed=seed)  # `init_weights` would go on from the vectors of before
        model.build_vocab(sentences)
        begin = time.perf_counter()
        model.train(sentences, total_examples=len(sentences), epochs=EPOCHS)
        seconds = time.perf_counter() - begin
        pace.lap(seconds, **agreement(model.wv.index_to_key, model.wv.vectors))


def table(system: str, given: argparse.Namespace) -> Table:
    """One system's rows."""
    lines(given.quick)
    options = {"system": system, "threads": given.threads, "quick": given.quick}
    contenders = [
        Contender(name="firth", work="firth", options=options),
        Contender(name="gensim", work="gensim", options=options),
    ]
    timing = compare(contenders, given, laps=1)

    def speed(one: Measured) -> str:
        return f"{EPOCHS * one.facts['tokens'] / one.seconds:,.0f}"

    def correlation(name: str) -> Any:
        return lambda one: f"{one.facts[name]:.3f}" if name in one.facts else ""

    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("gensim", "numba")]
    return timing_table(
        timing,
        title=system,
        note=f"{EPOCHS} epochs; {', '.join(versions)}. The correlations are those of the last lap.",
        extra=[
            ("seconds", lambda one: f"{one.seconds:.1f}"),
            ("words a second", speed),
            *((f"Spearman, {name.split('-')[1]}", correlation(name)) for name in SETS),
        ],
    )


def main() -> None:
    options = parser(__doc__ or "", rounds=3)
    options.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    given = options.parse_args()
    if given.quick:
        given.rounds, given.patience = 1, 0
    for system in given.systems:
        publish(f"static_{system.lower().replace('-', '_')}", given, [table(system, given)])


if __name__ == "__main__":
    run(main, {"firth": firth, "gensim": gensim})
