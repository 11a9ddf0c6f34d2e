"""Training recurrent language models: firth's loop against the obvious way in plain PyTorch.

    python benchmarks/bench_recurrent.py

A lap is an optimizer step, from the token files to the update. ELMo: 128 streams of 20 words, as
its authors train, two layers of 1,024 cells projected to 128, 2,048 character filters, 20,000
words; the peer has `nn.LSTM` with `proj_size`, convolutions over the characters of every word, and
a full softmax. AWD-LSTM: 64 streams of 70 tokens, three layers (256, 512, 512, 256), the five
dropouts; the peer drops weights of `nn.LSTM` through `functional_call`. All use AdamW.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from data import cached, pretraining_text
from peer_recurrent import PlainAWD, PlainBiLM
from report import Table, compare, milliseconds, parser, publish, rate, timing_table
from timing import Contender, Pace, run

Work = Literal["elmo", "awd-lstm"]
SHAPES: dict[Work, tuple[int, int]] = {"elmo": (128, 20), "awd-lstm": (64, 70)}
"""Streams, and tokens of each in a step."""
SMALL: dict[Work, tuple[int, int]] = {"elmo": (4, 8), "awd-lstm": (4, 8)}
VOCABULARY: dict[Work, int] = {"elmo": 20_000, "awd-lstm": 8192}


def recipe(work: Work, quick: bool) -> Any:
    """The recipe in the shape that is measured."""
    import firth

    streams, length = (SMALL if quick else SHAPES)[work]
    size = "tiny" if quick else "mini"
    chosen = firth.recipe(work, size=size, vocab_size=VOCABULARY[work])
    settings: dict[str, Any] = {
        "data.packing": "streams",
        "data.max_length": length,
        "data.vary": False,
        "training.batch_tokens": streams * length,
        "training.optimizer.type": "AdamW",
    }
    return chosen.with_settings(settings)


def run_folder(work: Work, quick: bool) -> Path:
    """Tokenizer and token files, as a run directory has them."""
    from firth.text.corpus import Corpus
    from firth.text.shards import write_shards
    from firth.text.tokenizers import Tokenizer

    settings = recipe(work, quick).tokenizer

    def write(path: Path) -> None:
        corpus = Corpus.from_files(pretraining_text(), documents="line")
        tokenizer = Tokenizer.train(corpus, settings.kind, settings.vocab_size)
        tokenizer.save(path)
        write_shards(corpus, tokenizer, path / "data" / "train")

    return cached(f"recurrent-{work}", write)


def prepared(work: Work, quick: bool, samples: int) -> tuple[Any, Any, Any, Any]:
    """Recipe, network, batches, and the words of the vocabulary."""
    import torch

    from firth.api.language_model import show_words
    from firth.api.training_text import open_training_text
    from firth.models import build
    from firth.text.batches import ObjectiveBatches
    from firth.text.tokenizers import Tokenizer

    folder = run_folder(work, quick)
    tokenizer = Tokenizer.load(folder)
    chosen = recipe(work, quick).with_vocabulary(tokenizer.vocabulary.size)
    if work == "elmo":
        chosen = chosen.with_settings({"model.samples": samples})
    torch.manual_seed(0)
    model = build(chosen.model)
    show_words(model, tokenizer)
    packed = open_training_text(folder, "train", chosen).batches(chosen, tokenizer.vocabulary, 0)
    return chosen, model, ObjectiveBatches(packed, chosen.objective), tokenizer


def firth(pace: Pace, work: Work, quick: bool, precision: str, samples: int) -> None:
    """firth's training path."""
    from dataclasses import replace

    from firth.device import prepare_process
    from firth.training import State, steps

    prepare_process()
    chosen, model, batches, _ = prepared(work, quick, samples)
    training = replace(chosen.training, precision=precision)
    state = State.begin(model, training)
    count = sum(p.numel() for p in model.parameters())
    pace.start(parameters=count, tokens_a_step=training.batch_tokens)
    for step in steps(state, chosen.objective, batches, training, total_steps=1_000_000):
        pace.lap(loss=step.loss)


def plain(pace: Pace, work: Work, quick: bool, bf16: bool) -> None:
    """The same network from PyTorch's modules, on the same batches; at its best with bf16."""
    import torch

    chosen, ours, batches, tokenizer = prepared(work, quick, 0)
    torch.manual_seed(0)
    model: Any = PlainAWD(chosen.model)
    if work == "elmo":
        model = PlainBiLM(chosen.model, tokenizer, distinct=bf16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    count = sum(p.numel() for p in model.parameters())
    assert count == sum(p.numel() for p in ours.parameters()) + model.extra_parameters
    pace.start(parameters=count, tokens_a_step=chosen.training.batch_tokens)
    for batch in stream(batches):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.training.clip)
        optimizer.step()
        optimizer.zero_grad()
        pace.lap(loss=float(loss.detach()))


def stream(batches: Any) -> Iterator[Any]:
    """All batches, one after the other."""
    step = 0
    while True:
        yield batches(step)
        step += 1


def contenders(work: Work, quick: bool) -> list[Contender]:
    """firth first: the others are held against it."""
    shared = {"work": work, "quick": quick}
    note = "glibc, mallopt by firth"
    own = [("firth", {"precision": "auto", "samples": 0})]
    if work == "elmo":
        own.append(("firth, sampled softmax", {"precision": "auto", "samples": 8192}))
    own.append(("firth, float32", {"precision": "float32", "samples": 0}))
    return [
        *(
            Contender(name=name, work="firth", options={**shared, **more}, allocator_note=note)
            for name, more in own
        ),
        *(
            Contender(
                name=name,
                work="plain",
                options={**shared, "bf16": best},
                tuned_allocator=best,
            )
            for name, best in (("PyTorch, float32", False), ("PyTorch, bf16", True))
        ),
    ]


def table(work: Work, given: argparse.Namespace) -> Table:
    """One model's rows."""
    run_folder(work, given.quick)
    timing = compare(contenders(work, given.quick), given, laps=given.steps)
    streams, length = (SMALL if given.quick else SHAPES)[work]
    extra = [("ms a step", milliseconds), ("tokens a second", rate(streams * length))]
    counts = sorted({f"{one.facts['parameters']:,}" for one in timing.measured})
    note = f"{' to '.join(counts)} parameters, {streams} streams of {length} tokens a step."
    return timing_table(timing, title=work, note=note, extra=extra)


def main() -> None:
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--steps", type=int, default=3, help="steps a round")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.steps, given.patience = 1, 1, 0
    publish("recurrent", given, [table(work, given) for work in SHAPES])


if __name__ == "__main__":
    run(main, {"firth": firth, "plain": plain})
