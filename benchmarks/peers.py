"""How the peers are used, as their own examples and documentation do."""

import itertools
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from data import SEQUENCE
from timing import Pace


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a folder, as `transformers` has it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def blocks_of_text(
    files: Sequence[Path],
    tokenizer: Any,
    cache: Path,
    *,
    num_proc: int | None = None,
    length: int = SEQUENCE,
) -> Any:
    """Text to blocks of tokens with `datasets.map`, as `run_mlm.py` of `transformers` does."""
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("transformers").setLevel(logging.ERROR)  # "longer than the maximum length"

    def tokenize(examples: dict[str, Any]) -> Any:
        return tokenizer(examples["text"], return_special_tokens_mask=True)

    def group(examples: dict[str, Any]) -> dict[str, Any]:
        joined = {key: list(itertools.chain(*parts)) for key, parts in examples.items()}
        total = len(joined["input_ids"]) // length * length
        return {
            key: [values[i : i + length] for i in range(0, total, length)]
            for key, values in joined.items()
        }

    text = datasets.load_dataset(
        "text", data_files=[str(file) for file in files], split="train", cache_dir=str(cache)
    )
    tokens = text.map(tokenize, batched=True, num_proc=num_proc, remove_columns=["text"])
    return tokens.map(group, batched=True, num_proc=num_proc)


class SpanCorruption:
    """T5's collator, after `run_t5_mlm_flax.py` of `transformers`, for torch.

    Each block loses 15 % of its tokens in spans of 3 on average; sources and targets are padded.
    """

    def __init__(self, sentinels: Sequence[int], pad: int, end: int) -> None:
        self.sentinels, self.pad, self.end = np.array(sentinels), pad, end
        self.rng = np.random.default_rng(0)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        import torch

        ids = np.array([example["input_ids"] for example in examples])
        lost = np.stack([self._mask(ids.shape[1]) for _ in examples])
        sources = [self._marked(row, mask) for row, mask in zip(ids, lost, strict=True)]
        targets = [self._marked(row, ~mask) for row, mask in zip(ids, lost, strict=True)]
        labels = self._padded(targets, -100)
        return {
            "input_ids": torch.from_numpy(self._padded(sources, self.pad)),
            "attention_mask": torch.from_numpy(self._padded(sources, -1) >= 0).long(),
            "labels": torch.from_numpy(labels),
        }

    def _mask(self, length: int) -> np.ndarray:
        lost = round(0.15 * length)
        spans = round(lost / 3)
        inside, between = self._segments(lost, spans), self._segments(length - lost, spans)
        return np.repeat(np.tile([False, True], spans), np.stack([between, inside], 1).ravel())

    def _segments(self, total: int, parts: int) -> np.ndarray:
        first = np.arange(total - 1) < parts - 1
        self.rng.shuffle(first)
        return np.bincount(np.cumsum(np.append(False, first)), minlength=parts)

    def _marked(self, row: np.ndarray, mask: np.ndarray) -> np.ndarray:
        opens = mask & ~np.append(False, mask[:-1])
        marked = np.where(opens, self.sentinels[np.cumsum(opens) - 1], row)
        return np.append(marked[~mask | opens], self.end)

    def _padded(self, rows: Sequence[np.ndarray], value: int) -> np.ndarray:
        width = max(map(len, rows))
        return np.stack([np.pad(r, (0, width - len(r)), constant_values=value) for r in rows])


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
