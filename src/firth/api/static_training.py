"""Runs of word vectors: epochs with a log, a checkpoint after each or sooner, then a model."""

import json
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from firth import __version__
from firth.api.model_card import keep_card
from firth.api.training_text import AnyCorpus, TrainingText
from firth.atomic import need_space, write_directory, write_text
from firth.device import peak_memory
from firth.errors import CheckpointError, ConfigError, DataError, DivergedError, Interrupted
from firth.interop.huggingface import save_model
from firth.models import Static, StaticConfig
from firth.objectives import CBOW, GloVe
from firth.recipes import Recipe
from firth.text.languages import MultilingualCorpus
from firth.text.shards import Shards
from firth.text.tokenizers import Tokenizer
from firth.training import checkpoint
from firth.training.hogwild import Done, Learner, added_up, run_steps, steps_in_minutes
from firth.training.run import interruptions
from firth.training.tracking import Tracker, read_metrics
from firth.training.word_vectors import NegativeSampling, learner

logger = logging.getLogger(__name__)

_WEIGHTS = "vectors.safetensors"
_SAVE_SECONDS = 600.0
"""How long training goes on without a checkpoint, where an epoch takes longer."""


@dataclass(frozen=True)
class _Job:
    run: Path
    recipe: Recipe
    text: dict[str, TrainingText]
    words: list[str | None]
    threads: int
    resume_hint: str

    @property
    def total(self) -> int:
        """Steps of the run."""
        assert self.recipe.training.steps is not None
        return self.recipe.training.steps


def train_static(
    run: Path,
    recipe: Recipe,
    text: dict[str, TrainingText],
    *,
    tensorboard: bool,
    resume_hint: str,
    keep: Callable[[Recipe], None],
) -> None:
    """Trains the word vectors of a run to the end, from its last checkpoint if there is one.

    The number of threads is PyTorch's. With one, the same seed gives the same vectors.

    Args:
        run: the run directory, with its tokenizer and token files.
        recipe: of the run.
        text: "train" and "valid".
        tensorboard: as in `pretrain`.
        resume_hint: what to tell the user after an interruption.
        keep: called with the recipe once its budget is a number of steps.

    Raises:
        DivergedError: if the loss is no finite number.
        DataError: if no word stands near another.
        Interrupted: after Ctrl-C or SIGTERM, once the stretch in progress is learned and all saved.
    """
    source = text["train"].shards
    assert isinstance(source, Shards)
    tokenizer = Tokenizer.load(run)
    threads = torch.get_num_threads()
    assert isinstance(recipe.model, StaticConfig)
    learning = learner(
        recipe.objective,  # type: ignore[arg-type]
        recipe.model,
        words_of(tokenizer),
        source,
        longest=recipe.data.max_length,
        stretch=recipe.training.batch_tokens,
        seed=recipe.training.seed,
    )
    run_steps(learning, 0, 1, total=None, threads=1)  # compiles, and changes nothing
    recipe = _fix_steps(recipe, learning, threads)
    keep(recipe)
    job = _Job(run, recipe, text, words_of(tokenizer), threads, resume_hint)
    state = _resume(job, learning)
    logger.info(
        "%s: %d words, %d wide, %s tokens, %.1f epochs, on %d threads%s",
        recipe.name,
        recipe.model.vocab_size,
        recipe.model.hidden_size,
        f"{source.num_tokens:,}",
        job.total / learning.steps_per_epoch,
        threads,
        "" if threads == 1 else " (results differ slightly from run to run; --threads 1 does not)",
    )
    tracker = Tracker(run, from_step=state["step"], tensorboard=tensorboard)
    try:
        _epochs(job, learning, state, tracker)
    finally:
        tracker.close()
    _export(job, learning, tokenizer)


def words_of(tokenizer: Tokenizer) -> list[str | None]:
    """The words of a vocabulary by id; None for special tokens."""
    special = set(tokenizer.vocabulary.special)
    ids = range(tokenizer.vocabulary.size)
    return [None if index in special else tokenizer.token(index) for index in ids]


def check_word_vectors(recipe: Recipe, corpus: AnyCorpus) -> None:
    """Refuses what word vectors cannot be trained with, before any text is read.

    Raises:
        ConfigError: for text of several languages, or settings that do not fit word vectors.
    """
    if isinstance(corpus, MultilingualCorpus):
        raise ConfigError(
            "word vectors are of one language each: train a run for every language, and align them "
            "(firth.inference.bilingual)"
        )
    glove, outputs = isinstance(recipe.objective, GloVe), recipe.model.outputs  # type: ignore[union-attr]
    if recipe.tokenizer.kind not in ("word", "whitespace") and recipe.model.buckets:  # type: ignore[union-attr]
        raise ConfigError(
            f"tokenizer.kind is {recipe.tokenizer.kind!r}; n-grams are of whole words: set it to "
            "word or whitespace, or model.buckets to 0"
        )
    if glove and (outputs or recipe.model.buckets):  # type: ignore[union-attr]
        raise ConfigError(
            "GloVe adds its two vectors of a word up and knows no n-grams; set model.outputs to "
            "false and model.buckets to 0, or start from the recipe glove"
        )
    if glove and recipe.training.tokens is not None:
        raise ConfigError(
            "GloVe goes through the counted pairs, not through tokens; give --epochs or --minutes"
        )
    if isinstance(recipe.objective, CBOW) and recipe.model.buckets:  # type: ignore[union-attr]
        raise ConfigError(
            "n-grams are learned by SkipGram; set model.buckets to 0 for CBOW, or objective.type "
            "to SkipGram"
        )
    if recipe.training.accumulation != 1 or recipe.data.packing != "documents":
        raise ConfigError(
            "word vectors are not trained in batches: leave training.accumulation and data.packing "
            "as they are"
        )


def _fix_steps(recipe: Recipe, learning: Learner, threads: int) -> Recipe:
    training = recipe.training
    total = training.fixed_steps(learning.steps_per_epoch)
    if total is None:
        assert training.minutes is not None
        logger.info("measuring throughput")
        total = steps_in_minutes(training.minutes, learning, threads)
    fixed = replace(training, steps=total, tokens=None, epochs=None, minutes=None)
    return replace(recipe, training=fixed)


def _epochs(job: _Job, learning: Learner, state: dict[str, Any], tracker: Tracker) -> None:
    with interruptions() as stop:
        parts: list[Done] = []
        while state["step"] < job.total:
            epoch = state["step"] // learning.steps_per_epoch
            last = min(job.total, (epoch + 1) * learning.steps_per_epoch)
            done = run_steps(
                learning,
                state["step"],
                last,
                total=job.total,
                threads=job.threads,
                enough=partial(_enough, stop, time.monotonic() + _SAVE_SECONDS),
            )
            if not math.isfinite(done.loss):
                raise DivergedError(
                    f"epoch {epoch + 1}: the loss is {done.loss}, expected a finite number; lower "
                    "objective.lr; the last checkpoint is kept"
                )
            state |= {
                "step": state["step"] + done.steps,
                "tokens": state["tokens"] + done.tokens,
                "seconds": state["seconds"] + done.seconds,
            }
            parts.append(done)
            if state["step"] == last:
                tracker.write(_log(job, learning, state, added_up(parts), epoch + 1))
                parts = []
            _save(job, learning, state)
            if stop and state["step"] < job.total:
                raise Interrupted(
                    f"interrupted in epoch {epoch + 1}, after step {state['step']} of {job.total}; "
                    f"all is saved. To go on: {job.resume_hint}",
                    int(stop[0] or signal.SIGTERM),
                )


def _enough(stop: list[int], due: float) -> bool:
    return bool(stop) or time.monotonic() > due


def _log(
    job: _Job, learning: Learner, state: dict[str, Any], done: Done, epoch: int
) -> dict[str, Any]:
    """Logs an epoch, and gives what is kept of it."""
    row = {
        "step": state["step"],
        "tokens": state["tokens"],
        "tokens_per_second": done.tokens / max(1e-9, done.seconds),
        "memory_mb": peak_memory(torch.device("cpu")) / 1e6,
        "seconds": state["seconds"],
    }
    measured, held_out = "", ""
    if done.mean is not None:
        row["loss"] = done.mean
        measured = f"  loss {done.mean:.3f}"
    if isinstance(learning, NegativeSampling):
        shards = job.text["valid"].shards
        found = learning.held_out(shards, job.recipe.data.valid_tokens)
        if found is not None:
            row["held_out_loss"] = found
            held_out = f"  held-out loss {found:.3f}"
    logger.info(
        "epoch %d  step %d/%d%s%s  %s %s/s  %.1f GB  %.0f s",
        epoch,
        state["step"],
        job.total,
        measured,
        held_out,
        f"{row['tokens_per_second']:,.0f}",
        "pairs" if isinstance(job.recipe.objective, GloVe) else "words",
        row["memory_mb"] / 1e3,
        state["seconds"],
    )
    return row


def _save(job: _Job, learning: Learner, state: dict[str, Any]) -> None:
    """Writes a checkpoint and removes the one before: vectors take much room."""
    folder = job.run / "checkpoints"
    folder.mkdir(exist_ok=True)
    size = sum(array.nbytes for array in learning.arrays.values())
    need_space(folder, int(1.1 * size) + 1_000_000, "a checkpoint")

    def fill(temporary: Path) -> None:
        save_file(learning.arrays, temporary / _WEIGHTS)
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")

    path = folder / f"step-{state['step']:08d}"
    write_directory(path, fill)
    write_text(folder / "last", path.name)
    for before in folder.glob("step-*"):  # also what a process left that was killed here
        if before != path:
            shutil.rmtree(before)


def _resume(job: _Job, learning: Learner) -> dict[str, Any]:
    path = checkpoint.find(job.run)
    if path is None:
        return {"step": 0, "tokens": 0, "seconds": 0.0}
    record = checkpoint.read_record(path)
    try:
        saved = load_file(path / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path / _WEIGHTS}: {error}; it is cut short or damaged: delete {path.parent} to "
            "begin anew from the token files"
        ) from error
    for name, array in learning.arrays.items():
        if name not in saved or saved[name].shape != array.shape:
            raise CheckpointError(f"{path}: {name} is missing or has another shape")
        np.copyto(array, saved[name])
    if record["step"] < job.total:
        logger.info("resuming from step %d of %d", record["step"], job.total)
    return record


def _export(job: _Job, learning: Learner, tokenizer: Tokenizer) -> None:
    recipe = job.recipe
    if isinstance(learning, NegativeSampling) and not learning.learned:
        raise DataError(
            "no word was learned: none stands near another (is each text a single word?), or "
            f"objective.subsample ({learning.objective.subsample:g}) leaves none; give other text, "
            "or set it to 0"
        )
    assert isinstance(recipe.model, StaticConfig)
    model = Static(recipe.model)
    learning.fill(model)
    record = {"recipe": recipe.name, "max_length": recipe.max_length}
    save_model(job.run, model, vocabulary=tokenizer.vocabulary, firth=record)
    keep_card(job.run, _model_card(job))


def _model_card(job: _Job) -> str:
    rows, recipe = read_metrics(job.run), job.recipe
    last = rows[-1] if rows else {}
    held_out = last.get("held_out_loss")
    unit = "(weighted squared error)" if isinstance(recipe.objective, GloVe) else "nats"
    result = "No loss was measured"
    if "loss" in last:
        result = f"Loss {last['loss']:.3f} {unit} {recipe.objective.predicts}"
    if held_out is not None:
        result += f", {held_out:.3f} in held-out text"
    config = recipe.model
    assert isinstance(config, StaticConfig)
    ngrams = (
        f"; unseen words from n-grams of {config.min_n} to {config.max_n} characters in "
        f"{config.buckets:,} buckets"
        if config.buckets
        else ""
    )
    return f"""# {job.run.name}

Static word vectors, trained by the recipe {recipe.name} of firth {__version__}.

- Shape: {config.vocab_size:,} words ({recipe.tokenizer.kind}), {config.hidden_size} wide{ngrams}.
- Text: {job.text["train"].describe()}.
- {result}, after {last.get("step", 0):,} steps ({last.get("seconds", 0.0) / 60:.1f} minutes).

Load it with `firth.load("{job.run}")`, or write the vectors for other programs with
`firth export {job.run} vectors.vec`. Everything it depends on is in `recipe.json`; the course of
training is in `metrics.jsonl`. The licence of the vectors follows from the text they were trained
on: state it here.
"""
