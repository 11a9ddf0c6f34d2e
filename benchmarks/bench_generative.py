"""Training decoders and encoder-decoders: firth's loop against `transformers.Trainer`.

    python benchmarks/bench_generative.py

A lap is an optimizer step on sequences of 256 tokens of English Wikipedia: reading and preparing
the batch, forward, backward, clipping, AdamW. GPT-2's shape with causal LM, and T5's (v1.0) with
span corruption: 4 layers (of each stack) of 256, vocabulary 8,192, dropout 0.1 on both sides.
"""

import argparse
from dataclasses import dataclass, replace
from typing import Any, Literal

import ours
from data import blocks_folder, shards_folder, tokenizer_folder
from peers import SpanCorruption, load_tokenizer, train
from report import Table, compare, milliseconds, parser, publish, rate, timing_table
from timing import Contender, Pace, run

LENGTH = 256


@dataclass(frozen=True, kw_only=True)
class Shape:
    kind: Literal["gpt2", "t5"]
    layers: int = 4
    width: int = 256
    vocab_size: int = 8192
    batch: int = 32

    @property
    def text(self) -> tuple[int, int]:
        """Vocabulary and sentinels, by which the text is prepared."""
        return self.vocab_size, 100 if self.kind == "t5" else 0


SHAPES = {
    "causal LM, 4x256, batch 32": Shape(kind="gpt2"),
    "span corruption, 4+4x256, batch 32": Shape(kind="t5"),
}
QUICK = {
    "causal LM, 1x64, batch 4": Shape(kind="gpt2", layers=1, width=64, batch=4),
    "span corruption, 1+1x64, batch 4": Shape(kind="t5", layers=1, width=64, batch=4),
}


def firth(pace: Pace, shape: dict[str, Any], precision: str) -> None:
    """firth's training path."""
    import torch

    from firth.device import prepare_process
    from firth.models import EncoderDecoderConfig, GPTConfig, build
    from firth.objectives import CausalLM, SpanCorruption

    prepare_process()
    torch.manual_seed(0)
    wanted = Shape(**shape)
    sizes: dict[str, Any] = {
        "vocab_size": wanted.vocab_size,
        "hidden_size": wanted.width,
        "num_layers": wanted.layers,
        "num_heads": wanted.width // 64,
        "intermediate_size": 4 * wanted.width,
        "dropout": 0.1,
    }
    if wanted.kind == "gpt2":
        config, objective = GPTConfig(**sizes), CausalLM()
    else:
        config, objective = t5(sizes), SpanCorruption()
    assert isinstance(config, GPTConfig | EncoderDecoderConfig)
    ours.train(
        pace,
        build(config),
        objective,
        shards_folder(*wanted.text),
        tokenizer_folder(*wanted.text),
        length=LENGTH,
        batch_size=wanted.batch,
        precision=precision,
    )


def t5(sizes: dict[str, Any]) -> Any:
    """T5 v1.0: the recipe's shape with the earlier version's parts."""
    from firth.recipes import recipe

    v10 = {"activation": "relu", "gated": False, "tied": True, "scale_outputs": True}
    return replace(recipe("t5").model, **sizes, **v10)  # type: ignore[arg-type]


def trainer(pace: Pace, shape: dict[str, Any], bf16: bool) -> None:
    """`GPT2LMHeadModel` or `T5ForConditionalGeneration` in a `Trainer`."""
    import datasets
    import torch

    torch.manual_seed(0)
    wanted = Shape(**shape)
    tokenizer = load_tokenizer(tokenizer_folder(*wanted.text))
    model, collate = (gpt2_of if wanted.kind == "gpt2" else t5_of)(wanted, tokenizer)
    train(
        pace,
        model,
        datasets.load_from_disk(str(blocks_folder(*wanted.text, LENGTH))),
        collate,
        batch_size=wanted.batch,
        bf16=bf16,
        facts={
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens_a_step": wanted.batch * LENGTH,
        },
    )


def gpt2_of(shape: Shape, tokenizer: Any) -> tuple[Any, Any]:
    """The peer's decoder, and what makes its batches, as `run_clm.py` has them."""
    from transformers import DataCollatorForLanguageModeling, GPT2Config, GPT2LMHeadModel

    class WithoutSegments(DataCollatorForLanguageModeling):
        def __call__(self, features: list[dict[str, Any]], *more: Any) -> dict[str, Any]:
            # GPT-2 would add the embedding of their number to each token.
            kept = [{k: v for k, v in one.items() if k != "token_type_ids"} for one in features]
            return super().__call__(kept, *more)

    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.width // 64,
        n_positions=1024,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    return GPT2LMHeadModel(config), WithoutSegments(tokenizer, mlm=False)


def t5_of(shape: Shape, tokenizer: Any) -> tuple[Any, Any]:
    """The peer's encoder-decoder, and what makes its batches."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=shape.vocab_size,
        d_model=shape.width,
        d_ff=4 * shape.width,
        num_layers=shape.layers,
        num_heads=shape.width // 64,
        decoder_start_token_id=tokenizer.cls_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    sentinels = [tokenizer.convert_tokens_to_ids(f"<extra_id_{i}>") for i in range(100)]
    collate = SpanCorruption(sentinels, tokenizer.pad_token_id, tokenizer.sep_token_id)
    return T5ForConditionalGeneration(config), collate


def contenders(shape: Shape) -> list[Contender]:
    """firth first: the others are held against it."""
    options = {"shape": vars(shape)}
    own = Contender(
        name="firth",
        work="firth",
        options={**options, "precision": "auto"},
        allocator_note="glibc, mallopt by firth",
    )
    theirs = [
        Contender(
            name=name, work="trainer", options={**options, "bf16": best}, tuned_allocator=best
        )
        for name, best in (("Trainer as installed", False), ("Trainer, bf16", True))
    ]
    return [own, *theirs]


def table(title: str, shape: Shape, given: argparse.Namespace) -> Table:
    """One shape's rows."""
    shards_folder(*shape.text)
    blocks_folder(*shape.text, LENGTH)
    timing = compare(
        contenders(shape),
        given,
        laps=given.steps,
    )
    extra = [
        ("ms a step", milliseconds),
        ("tokens of text a second", rate(shape.batch * LENGTH)),
    ]
    counts = sorted({f"{one.facts['parameters']:,}" for one in timing.measured})
    note = f"{' to '.join(counts)} parameters, {shape.batch * LENGTH:,} tokens of text a step."
    return timing_table(timing, title=title, note=note, extra=extra)


def main() -> None:
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--steps", type=int, default=3, help="steps a round")
    options.add_argument("--shape", choices=list(SHAPES), help="only this one")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.steps, given.patience = 1, 1, 0
    shapes = QUICK if given.quick else SHAPES
    if given.shape:
        shapes = {given.shape: SHAPES[given.shape]}
    publish("generative", given, [table(title, shape, given) for title, shape in shapes.items()])


if __name__ == "__main__":
    run(main, {"firth": firth, "trainer": trainer})
