"""`firth demo`: the main job on the text that comes with firth, with its numbers."""

import shlex
import sys
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.table import Table

from firth.adaptation import FineTuning
from firth.api import LanguageModel, adapt, pretrain
from firth.api.run_directory import read_recipe
from firth.models import build
from firth.protocols import Example, Report
from firth.recipes import Recipe, recipe
from firth.tasks import Classification
from firth.tasks.metrics import mean_and_interval
from firth.text.corpus import Corpus

_BLANKS = (
    "We present a new [MASK] for machine translation.",
    "The results [MASK] that our approach outperforms the baseline.",
    "We train the [MASK] on a large corpus of text.",
)
_LABELS, _DEV = 1000, 250
_STEPS = 300
"""Fewest steps of fine-tuning what was pre-trained."""
_SEEDS = (0, 1, 2)
_SLOW = 100
"""Fewer steps of pre-training in a minute than this, and training for the task is cut by half."""
_LONGEST = 300.0
"""Seconds: further seeds are run if all is done by then."""


def run_demo(output: Path, minutes: float) -> None:
    """Trains a small modern BERT, fills blanks, and compares it with no pre-training.

    Args:
        output: the run directory.
        minutes: of pre-training.
    """
    begin = time.perf_counter()
    console = Console()
    data = resources.files("firth") / "demo_data"
    with resources.as_file(data) as folder:
        console.print(f"[bold]1. Pre-train[/] a BERT on 5 MB of papers, {minutes:g} minutes.")
        corpus, valid = (
            Corpus.from_files(folder / name, documents="block")
            for name in ("papers.txt.gz", "papers.valid.txt.gz")
        )
        chosen = _recipe(minutes)
        hint = f"firth demo --output {output} --minutes {minutes:g}"
        lm = pretrain(chosen, corpus, output, valid=valid, resume_hint=hint)
        console.print("\n[bold]2. Fill blanks.[/]")
        console.print(_filled(lm))
        task = Classification(text="sentence", label="label", metric="macro_f1")
        parts = [task.read(folder / f"roles.{part}.tsv.gz") for part in ("train", "dev", "test")]
    console.print(
        f"\n[bold]3. Fine-tune[/] on {_LABELS:,} labelled sentences: what role does a sentence "
        "play in its abstract? With and without pre-training."
    )
    slow = (read_recipe(output).training.steps or 0) < _SLOW * minutes
    if slow:
        console.print(
            "This machine is slow at this, so the model has seen little text and training is cut "
            "short: expect little of the numbers. --minutes gives pre-training more time."
        )
    console.print(_compared(lm, task, *parts, part=0.5 if slow else 1.0, begin=begin))
    console.print(f"\nDone in {(time.perf_counter() - begin) / 60:.1f} minutes. Next:\n")
    for command in (
        f'firth fill {shlex.quote(str(output))} "We propose a novel [MASK]."',
        f"firth inspect {shlex.quote(str(output))}",
        "firth pretrain modern-bert YOUR_TEXT/*.txt -o runs/mine --size mini --minutes 20",
        "firth adapt runs/mine train.tsv --text sentence --label label -o runs/task finetune",
    ):
        sys.stdout.write(f"    {command}\n")


def _recipe(minutes: float) -> Recipe:
    chosen = recipe("modern-bert", size="mini", vocab_size=8192)
    training = replace(
        chosen.training,
        steps=None,
        minutes=minutes,
        batch_tokens=2048,
        evaluate_every=250,
        save_every=500,
    )
    return replace(chosen, training=training)


def _filled(lm: LanguageModel) -> Table:
    table = Table("sentence", "most probable words", box=None, pad_edge=False)
    mask = lm.tokenizer.token(lm.tokenizer.vocabulary.mask)
    for text in _BLANKS:
        found = lm.fill(text.replace("[MASK]", mask), top_k=4)
        table.add_row(
            text.replace("[MASK]", "____"),
            ", ".join(f"{one.token} ({one.probability:.0%})" for one in found),
        )
    return table


def _compared(
    lm: LanguageModel,
    task: Classification,
    train: list[Example],
    dev: list[Example],
    test: list[Example],
    *,
    part: float,
    begin: float,
) -> Table:
    train = train[:_LABELS]
    known = {example.texts for example in train}  # of "All rights reserved." and the like
    dev = [example for example in dev if example.texts not in known][:_DEV]
    scratch = LanguageModel(build(lm.model.config).eval(), lm.tokenizer)
    systems = {
        "pre-trained": (lm, FineTuning(min_steps=round(_STEPS * part))),
        "the same network from scratch": (scratch, FineTuning(epochs=12 * part, reset_layers=0)),
    }
    reports: dict[str, list[Report]] = {name: [] for name in systems}
    before = time.perf_counter()
    for seed in _SEEDS:
        for name, (model, how) in systems.items():
            adapted = adapt(model, task, train, how, dev=dev, seeds=(seed,))
            reports[name].append(adapted.evaluate(test))
        now = time.perf_counter()
        if seed == _SEEDS[0] and now - begin + (len(_SEEDS) - 1) * (now - before) > _LONGEST:
            break
    return _table(reports)


def _table(reports: dict[str, list[Report]]) -> Table:
    table = Table("", "test macro F1", "95 % interval", "accuracy", box=None, pad_edge=False)
    for name, found in reports.items():
        mean, half = mean_and_interval([report.metrics["macro_f1"] for report in found])
        interval = "of one seed" if half is None else f"± {half:.3f} ({len(found)} seeds)"
        accuracy, _ = mean_and_interval([report.metrics["accuracy"] for report in found])
        table.add_row(name, f"{mean:.3f}", interval, f"{accuracy:.3f}")
    return table
