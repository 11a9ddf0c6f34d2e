"""How the peers are used, as their own examples and documentation do."""

import itertools
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data import SEQUENCE
from timing import Pace


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a folder, as `transformers` has it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def blocks_of_text(
    files: Sequence[Path], tokenizer: Any, cache: Path, *, num_proc: int | None = None
) -> Any:
    """Text to blocks of 128 tokens with `datasets.map`, as `run_mlm.py` of `transformers` does."""
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("transformers").setLevel(logging.ERROR)  # "longer than the maximum length"

    def tokenize(examples: dict[str, Any]) -> Any:
        return tokenizer(examples["text"], return_special_tokens_mask=True)

    def group(examples: dict[str, Any]) -> dict[str, Any]:
        joined = {key: list(itertools.chain(*parts)) for key, parts in examples.items()}
        total = len(joined["input_ids"]) // SEQUENCE * SEQUENCE
        return {
            key: [values[i : i + SEQUENCE] for i in range(0, total, SEQUENCE)]
            for key, values in joined.items()
        }

    text = datasets.load_dataset(
        "text", data_files=[str(file) for file in files], split="train", cache_dir=str(cache)
    )
    tokens = text.map(tokenize, batched=True, num_proc=num_proc, remove_columns=["text"])
    return tokens.map(group, batched=True, num_proc=num_proc)


def train(
    pace: Pace,
    model: Any,
    dataset: Any,
    collate: Callable[[Any], Any],
    *,
    batch_size: int,
    facts: dict[str, Any],
    **settings: Any,
) -> None:
    """Runs `Trainer`; a lap is a step, its loading included. `settings` go to TrainingArguments."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Laps(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            pace.start(**facts)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            pace.lap()

    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=batch_size,
            max_steps=1_000_000,  # until this process is told to end
            learning_rate=5e-5,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **settings,
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=collate,
            callbacks=[Laps()],
        ).train()
