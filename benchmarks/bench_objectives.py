"""How long each objective takes to prepare 8,192 tokens, beside a step that would use them.

    python benchmarks/bench_objectives.py

The step is one of a 4x256 encoder with masked LM, in the same process: preparation keeps up with
training where it takes a small share of that.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
from report import Table, parser, publish

VOCABULARY, LENGTH, COUNT = 8192, 128, 64


def sequences():
    """Sequences of random tokens, two of each document, a third of which go on with a word."""
    from firth.protocols import Sequences, Vocabulary

    sentinels = tuple(range(5, 105))
    vocabulary = Vocabulary(
        size=VOCABULARY,
        pad=0,
        unknown=1,
        first=2,
        last=3,
        mask=4,
        special=(*range(5), *sentinels),
        sentinels=sentinels,
    )
    rng = np.random.default_rng(0)
    ids = rng.integers(105, VOCABULARY, (COUNT, LENGTH))
    ids[:, 0], ids[:, -1] = vocabulary.first, vocabulary.last
    return Sequences(
        ids=ids.ravel(),
        starts=np.arange(0, COUNT * LENGTH + 1, LENGTH),
        opens_word=rng.random(COUNT * LENGTH) < 2 / 3,
        vocabulary=vocabulary,
        documents=np.arange(COUNT) // 2,
    )


def milliseconds(call: Callable[[int], object], rounds: int) -> float:
    """Median time of a call, the first left out."""
    times = []
    for i in range(rounds + 1):
        begin = time.perf_counter()
        call(i)
        times.append(1e3 * (time.perf_counter() - begin))
    return median(times[1:])


def step_time(rounds: int, threads: int) -> float:
    """Milliseconds of an optimizer step on such a batch."""
    import torch

    import firth
    from firth.device import prepare_process
    from firth.models import build
    from firth.training import State, steps

    prepare_process(threads)
    torch.manual_seed(0)
    recipe = firth.recipe("bert", vocab_size=VOCABULARY)
    training = replace(recipe.training, workers=0)
    batch = recipe.objective.prepare(sequences(), np.random.default_rng(0))
    state = State.begin(build(recipe.model), training)
    found = steps(state, recipe.objective, lambda _: batch, training, total_steps=10**6)
    return milliseconds(lambda _: next(found), rounds)


def main() -> None:
    from firth import objectives as o

    given = parser(__doc__ or "", rounds=15).parse_args()
    rounds = 3 if given.quick else given.rounds
    plain, step = sequences(), step_time(rounds, given.threads)
    named = {
        "MaskedLM": o.MaskedLM(),
        "MaskedLM, words": o.MaskedLM(units="word"),
        "MaskedLM, spans": o.MaskedLM(units="span"),
        "SpanBoundary": o.SpanBoundary(),
        "SentencePairs": o.SentencePairs(),
        "CausalLM": o.CausalLM(),
        "PrefixLM": o.PrefixLM(),
        "Hybrid": o.Hybrid(),
        "SpanCorruption": o.SpanCorruption(),
        "SpanCorruption, iid": o.SpanCorruption(noise="iid"),
        "Deshuffling": o.Deshuffling(),
    }
    record = {
        name: milliseconds(
            lambda i, one=objective: one.prepare(plain, np.random.default_rng(i)), rounds
        )
        for name, objective in named.items()
    }
    table = Table(
        title=f"preparing {COUNT * LENGTH:,} tokens",
        note=f"Medians of {rounds}. A step of a 4x256 encoder on them takes {step:.0f} ms.",
        columns=("objective", "ms", "share of the step"),
        rows=[[name, f"{ms:.1f}", f"{ms / step:.1%}"] for name, ms in record.items()],
        record={**record, "step": step},
    )
    publish("objectives", given, [table])


if __name__ == "__main__":
    main()
