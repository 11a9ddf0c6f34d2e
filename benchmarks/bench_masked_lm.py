"""Masked-LM training: firth's loop against `transformers.Trainer`, on the same text and shapes.

    python benchmarks/bench_masked_lm.py

A lap is an optimizer step on sequences of 128 tokens of English Wikipedia: reading and masking the
batch, forward, backward, clipping, AdamW. Dropout is 0.1 everywhere on both sides.
"""

import argparse

import ours
from data import SEQUENCE, blocks_folder, shards_folder, tokenizer_folder
from peers import load_tokenizer, train
from report import Table, compare, milliseconds, parser, publish, rate, timing_table
from timing import Contender, Pace, run

SHAPES = {
    "4x256, vocabulary 8,192, batch 64": (4, 256, 8192, 64),
    "4x256, vocabulary 30,522, batch 64": (4, 256, 30522, 64),
    "12x768, vocabulary 8,192, batch 16": (12, 768, 8192, 16),
}
"""Layers, width, vocabulary, sequences a batch."""
QUICK = {"1x64, vocabulary 8,192, batch 4": (1, 64, 8192, 4)}


def firth(pace: Pace, shape: tuple[int, int, int, int], precision: str) -> None:
    """firth's training path: token files, packed sequences, objective, loop."""
    import torch

    from firth.device import prepare_process
    from firth.models.bert import Bert, BertConfig
    from firth.objectives import MaskedLM

    prepare_process()
    torch.manual_seed(0)
    layers, width, vocab_size, batch = shape
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_layers=layers,
        num_heads=width // 64,
        intermediate_size=4 * width,
        dropout=0.1,
    )
    ours.train(
        pace,
        Bert(config, pooler=False),
        MaskedLM(),
        shards_folder(vocab_size),
        tokenizer_folder(vocab_size),
        length=SEQUENCE,
        batch_size=batch,
        precision=precision,
    )


def trainer(pace: Pace, shape: tuple[int, int, int, int], bf16: bool) -> None:
    """`BertForMaskedLM` in a `Trainer`, as `run_mlm.py` sets it up."""
    import datasets
    import torch
    from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling

    torch.manual_seed(0)
    layers, width, vocab_size, batch = shape
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )
    model = BertForMaskedLM(config)
    train(
        pace,
        model,
        datasets.load_from_disk(str(blocks_folder(vocab_size))),
        DataCollatorForLanguageModeling(
            load_tokenizer(tokenizer_folder(vocab_size)), mlm_probability=0.15
        ),
        batch_size=batch,
        bf16=bf16,
        facts={
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens_a_step": batch * SEQUENCE,
        },
    )


def contenders(shape: tuple[int, int, int, int]) -> list[Contender]:
    """firth first: the others are held against it."""
    note = "glibc, mallopt by firth"
    ours = [
        Contender(
            name=name,
            work="firth",
            options={"shape": shape, "precision": precision},
            allocator_note=note,
        )
        for name, precision in (("firth", "auto"), ("firth, float32", "float32"))
    ]
    theirs = [
        Contender(
            name=name, work="trainer", options={"shape": shape, "bf16": best}, tuned_allocator=best
        )
        for name, best in (("Trainer as installed", False), ("Trainer, bf16", True))
    ]
    return [*ours, *theirs]


def table(title: str, shape: tuple[int, int, int, int], given: argparse.Namespace) -> Table:
    """One shape's rows."""
    for prepare in (shards_folder, blocks_folder):
        prepare(shape[2])
    timing = compare(
        contenders(shape),
        given,
        laps=given.steps,
    )
    extra = [
        ("ms a step", milliseconds),
        ("tokens a second", lambda one: rate(one.facts["tokens_a_step"])(one)),
    ]
    counts = sorted({f"{one.facts['parameters']:,}" for one in timing.measured})
    tokens = sorted({f"{one.facts['tokens_a_step']:,.0f}" for one in timing.measured})
    note = f"{' to '.join(counts)} parameters, {' to '.join(tokens)} tokens a step."
    return timing_table(timing, title=title, note=note, extra=extra)


def arguments() -> argparse.Namespace:
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--steps", type=int, default=3, help="steps a round")
    options.add_argument("--shape", choices=list(SHAPES), help="only this one")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.steps, given.patience = 1, 1, 0
    return given


def main() -> None:
    given = arguments()
    shapes = QUICK if given.quick else SHAPES
    if given.shape:
        shapes = {given.shape: SHAPES[given.shape]}
    publish("masked_lm", given, [table(title, shape, given) for title, shape in shapes.items()])


if __name__ == "__main__":
    run(main, {"firth": firth, "trainer": trainer})
