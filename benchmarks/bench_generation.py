"""Greedy generation with a cache: firth against `generate` of `transformers`, on the same weights.

    python benchmarks/bench_generation.py

A lap continues prompts of 32 tokens by 128 tokens: one prompt, and a batch of 16. GPT-2's shape,
4 layers of 256, vocabulary 8,192, random weights. Both write the same tokens in float32, or nothing
is timed.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import cached, mixed_texts, tokenizer_folder
from report import Table, compare, milliseconds, parser, publish, rate, timing_table
from timing import Contender, Pace, run

PROMPT, NEW = 32, 128


def weights(layers: int = 4, width: int = 256) -> Path:
    """A directory with a GPT-2 of random weights, which both load."""

    def write(path: Path) -> None:
        import torch

        import firth
        from firth.interop.huggingface import save_model
        from firth.models import GPTConfig, build

        tokenizer = firth.Tokenizer.load(tokenizer_folder(8192))
        torch.manual_seed(0)
        config = GPTConfig(
            vocab_size=tokenizer.vocabulary.size,
            hidden_size=width,
            num_layers=layers,
            num_heads=width // 64,
            intermediate_size=4 * width,
        )
        with tempfile.TemporaryDirectory() as directory:
            made = Path(directory) / "model"
            tokenizer.save(made, model_max_length=1024)
            save_model(made, build(config), vocabulary=tokenizer.vocabulary, firth={})
            made.rename(path)

    return cached(f"gpt2-{layers}x{width}", write)


def prompts(count: int) -> list[str]:
    """Beginnings of running text, 32 tokens each."""
    import firth

    tokenizer = firth.Tokenizer.load(tokenizer_folder(8192))
    texts = mixed_texts(4 * count, tokenizer)
    cut = []
    for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
        if len(encoding.ids) > PROMPT + 1:
            cut.append(text[: encoding.offsets[PROMPT, 1]])
    return cut[:count]


def firth(pace: Pace, batch: int) -> None:
    """`lm.generate`."""
    import firth as library

    lm = library.load(weights())
    assert isinstance(lm, library.LanguageModel)
    texts = prompts(batch)
    written = lm.generate(texts, max_tokens=NEW)
    pace.start(tokens=sum(len(one.tokens) for one in written))
    while True:
        lm.generate(texts, max_tokens=NEW)
        pace.lap()


def peer(batch: int, bf16: bool) -> tuple[Callable[[], Any], Any]:
    """`model.generate` with its cache, as a call that gives new ids; and the tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights(), padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(
        weights(), dtype=torch.bfloat16 if bf16 else torch.float32
    ).eval()
    ids = tokenizer(prompts(batch), return_tensors="pt", padding=True)
    inputs = {key: ids[key][:, :-1] for key in ("input_ids", "attention_mask")}

    def lap() -> Any:
        with torch.inference_mode():
            written = model.generate(
                **inputs,
                max_new_tokens=NEW,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        return written[:, inputs["input_ids"].shape[1] :]

    return lap, tokenizer


def check_same(batch: int) -> None:
    """Compares what both write in float32, so that equal work is timed.

    Raises:
        SystemExit: if a prompt is continued in two ways.
    """
    import firth as library

    lm = library.load(weights(), device="cpu", precision="float32")
    assert isinstance(lm, library.LanguageModel)
    ours = [one.tokens for one in lm.generate(prompts(batch), max_tokens=NEW)]
    lap, tokenizer = peer(batch, bf16=False)
    closing = {tokenizer.pad_token_id, tokenizer.eos_token_id}
    theirs = [
        tokenizer.convert_ids_to_tokens([i for i in row if i not in closing])
        for row in lap().tolist()
    ]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    if same < batch:
        raise SystemExit(f"in float32 only {same} of {batch} prompts are continued in the same way")


def transformers(pace: Pace, batch: int, bf16: bool) -> None:
    """`generate` of `transformers`."""
    lap, tokenizer = peer(batch, bf16)
    written = lap()
    pace.start(tokens=int((written != tokenizer.pad_token_id).sum()))
    while True:
        lap()
        pace.lap()


def contenders(batch: int) -> list[Contender]:
    """firth first: the others are held against it."""
    ours = Contender(
        name="firth",
        work="firth",
        options={"batch": batch},
        allocator_note="glibc, mallopt by firth",
    )
    theirs = [
        Contender(
            name=name,
            work="transformers",
            options={"batch": batch, "bf16": bf16},
            tuned_allocator=tuned,
        )
        for name, bf16, tuned in (
            ("generate as installed", False, False),
            ("generate, float32", False, True),
            ("generate, bf16", True, True),
        )
    ]
    return [ours, *theirs]


def table(batch: int, given: argparse.Namespace) -> Table:
    """One batch size's rows."""
    weights()
    check_same(batch)
    timing = compare(
        contenders(batch),
        given,
        laps=given.laps,
    )
    extra = [
        ("ms", milliseconds),
        ("new tokens a second", lambda one: rate(one.facts["tokens"])(one)),
    ]
    title = "one prompt" if batch == 1 else f"a batch of {batch} prompts"
    note = f"{NEW} new tokens after {PROMPT}, the same ones in float32."
    return timing_table(timing, title=title, note=note, extra=extra)


def main() -> None:
    options = parser(__doc__ or "", rounds=5)
    options.add_argument("--laps", type=int, default=2, help="calls a round")
    given = options.parse_args()
    if given.quick:
        given.rounds, given.laps, given.patience = 1, 1, 0
    publish("generation", given, [table(batch, given) for batch in (1, 16)])


if __name__ == "__main__":
    run(main, {"firth": firth, "transformers": transformers})
