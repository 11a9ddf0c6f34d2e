"""The default consumer of the loop: log, evaluate, show predictions, save; in that fixed order."""

import contextlib
import copy
import logging
import math
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from firth.device import peak_memory
from firth.errors import DivergedError, Interrupted
from firth.protocols import Batches, Trainable
from firth.training import checkpoint
from firth.training.distributed import Ranks, agree, of_first, wait
from firth.training.loop import State, Step, Training, mean_loss, steps
from firth.training.tracking import Tracker

logger = logging.getLogger(__name__)

_RISE = 2.0
"""A smoothed loss this many nats above its lowest value has diverged."""


@dataclass(frozen=True)
class HeldOut:
    """Text to validate on."""

    batches: Batches
    count: int
    """Batches that each validation looks at."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: where it is kept and what is asked of it beside the steps."""

    path: Path
    total_steps: int
    valid: Mapping[str, HeldOut] = field(default_factory=dict)
    """By name, of several kinds of text; the mean of their losses counts."""
    valid_objective: Trainable | None = None
    """What gives the validation loss; None for that of training."""
    unigram_entropy: float | None = None
    """Nats a token: what a model scores that knows word frequencies and nothing else."""
    sample: Callable[[nn.Module], list[str]] | None = None
    """Lines that show what the model predicts now."""
    export: Callable[[nn.Module], None] | None = None
    """Called with the final weights (averaged, where they are kept)."""
    resume_hint: str = "run the same command again"
    tensorboard: bool = False
    ranks: Ranks = field(default_factory=Ranks)


@dataclass
class Watch:
    """Notices a run that breaks down or does not learn."""

    unigram_entropy: float | None
    smoothed: float = math.nan
    """Running mean of the loss; it and the lowest are kept in checkpoints."""
    lowest: float = math.inf
    warned: bool = False

    def see(self, step: Step, total_steps: int) -> None:
        """Takes note of a step.

        Raises:
            DivergedError: on a loss or gradient that is not finite, or a loss that has risen far.
        """
        if not math.isfinite(step.loss) or not math.isfinite(step.gradient_norm):
            raise DivergedError(
                f"step {step.step}: the loss is {step.loss} and the gradient norm "
                f"{step.gradient_norm}, expected finite numbers; {_remedy(step)}"
            )
        if not step.num_predictions:  # its loss says nothing
            return
        first = math.isnan(self.smoothed)
        self.smoothed = step.loss if first else 0.98 * self.smoothed + 0.02 * step.loss
        self.lowest = min(self.lowest, self.smoothed)
        if self.smoothed > self.lowest + _RISE:
            raise DivergedError(
                f"step {step.step}: the loss has risen to {self.smoothed:.2f} from "
                f"{self.lowest:.2f} nats; {_remedy(step)}"
            )
        late = step.step >= max(200, total_steps // 4)
        if (
            late
            and not self.warned
            and self.unigram_entropy
            and self.smoothed > self.unigram_entropy
        ):
            self.warned = True
            logger.warning(
                "step %d: the loss (%.2f nats) is still above the unigram entropy of the corpus "
                "(%.2f): the model knows no more than word frequencies. Raise the learning rate or "
                "the number of steps, and look at the text and the vocabulary report.",
                step.step,
                self.smoothed,
                self.unigram_entropy,
            )


def _remedy(step: Step) -> str:
    return (
        f"try a lower learning rate (now {step.learning_rate:.2g}), a longer warm-up or "
        "--training.precision float32; the last checkpoint, if there is one yet, is kept"
    )


def train(
    state: State,
    objective: Trainable,
    batches: Batches,
    training: Training,
    run: Run,
) -> float | None:
    """Trains to the end of the run, from the last checkpoint if there is one.

    Returns:
        The validation loss after the last step, or None without validation text.

    Raises:
        DivergedError: if training breaks down.
        Interrupted: after Ctrl-C or SIGTERM; the state is saved and the way to resume logged.
    """
    record = _resume(state, run)
    tracker = None
    if run.ranks.first:
        tracker = Tracker(run.path, from_step=state.step, tensorboard=run.tensorboard)
    try:
        _consume(state, objective, batches, training, run, tracker, record)
    finally:
        if tracker is not None:
            tracker.close()
    if run.export is not None and run.ranks.first:
        with averaged_weights(state):
            run.export(state.model)
    wait(run.ranks)
    return record["valid_loss"]


def _consume(
    state: State,
    objective: Trainable,
    batches: Batches,
    training: Training,
    run: Run,
    tracker: Tracker | None,
    record: dict[str, Any],
) -> None:
    watch = Watch(run.unigram_entropy, record["smoothed_loss"], record["lowest_loss"])
    device = next(state.model.parameters()).device
    begin, before = time.perf_counter(), record["seconds"]
    window: list[Step] = []
    with interruptions() as stop:
        for step in steps(
            state, objective, batches, training, total_steps=run.total_steps, ranks=run.ranks
        ):
            watch.see(step, run.total_steps)
            record |= {"smoothed_loss": watch.smoothed, "lowest_loss": watch.lowest}
            window.append(step)
            record["seconds"] = before + time.perf_counter() - begin
            last = step.step == run.total_steps
            stopped = agree(bool(stop), run.ranks, device)
            if step.step % training.log_every == 0 or last:
                if tracker:
                    tracker.write(_log(window, state, run, record["seconds"]))
                window.clear()
            better = False
            # Also where the run is to stop: taken up again it begins behind this step.
            if run.valid and (step.step % training.evaluate_every == 0 or last):
                better = _evaluate(state, objective, training, run, tracker, record)
            if step.step % training.save_every == 0 or last or stopped or better:
                if run.ranks.first:
                    checkpoint.save(run.path, state, record, best=better)
                wait(run.ranks)
            if stopped:
                raise _interrupted(stop, step, run)


def _resume(state: State, run: Run) -> dict[str, Any]:
    record: dict[str, Any] = {"best_loss": math.inf, "valid_loss": None, "seconds": 0.0}
    record |= {"smoothed_loss": math.nan, "lowest_loss": math.inf}
    path = checkpoint.find(run.path)
    if path is not None:
        found = checkpoint.restore(path, state)
        record |= {key: value for key, value in found.items() if key in record}
        logger.info("resuming from step %d of %d", state.step, run.total_steps)
    return record


def _log(window: list[Step], state: State, run: Run, seconds: float) -> dict[str, Any]:
    predictions = sum(step.num_predictions for step in window)
    shares = [step.num_predictions / max(1, predictions) for step in window]
    loss = sum(share * step.loss for share, step in zip(shares, window, strict=True))
    parts = {
        name: sum(share * step.parts[name] for share, step in zip(shares, window, strict=True))
        for name in window[-1].parts
    }
    spent = sum(step.seconds for step in window)
    rate = sum(step.num_tokens for step in window) / spent
    left = (run.total_steps - state.step) * spent / len(window)
    device = next(state.model.parameters()).device
    row = {
        "step": state.step,
        "tokens": state.tokens,
        "loss": loss,
        **parts,
        "learning_rate": window[-1].learning_rate,
        "gradient_norm": sum(step.gradient_norm for step in window) / len(window),
        "tokens_per_second": rate,
        "memory_mb": peak_memory(device) / 1e6,
        "seconds": seconds,
    }
    logger.info(
        "step %d/%d  loss %.3f%s  %s tok/s  grad %.2f  lr %.1e  %.1f GB  %s left",
        state.step,
        run.total_steps,
        loss,
        "".join(f"  {name} {value:.3f}" for name, value in parts.items()),
        f"{rate:,.0f}",
        row["gradient_norm"],
        row["learning_rate"],
        row["memory_mb"] / 1e3,
        f"{left / 60:.0f} min" if left >= 90 else f"{left:.0f} s",
    )
    return row


def _evaluate(
    state: State,
    objective: Trainable,
    training: Training,
    run: Run,
    tracker: Tracker | None,
    record: dict[str, Any],
) -> bool:
    """Measures the validation loss; returns whether it is the best so far."""
    with averaged_weights(state):
        device, measured = next(state.model.parameters()).device, run.valid_objective or objective
        losses = {
            name: mean_loss(state.model, measured, held_out.batches, held_out.count, training)
            for name, held_out in run.valid.items()
        }
        # All ranks save, average and stop by the same number.
        loss = of_first(sum(losses.values()) / len(losses), run.ranks, device)
        lines = run.sample(state.model) if run.sample and run.ranks.first else []
    record["valid_loss"] = loss
    if state.average is not None:
        state.average.notice(loss)
    better = loss < record["best_loss"]
    if better:  # never NaN
        record["best_loss"] = loss
    if tracker:
        tracker.write(_validation_row(losses, loss, state, record["seconds"], run, better))
        for line in lines:
            logger.info("    %s", line)
    return better


def _validation_row(
    losses: Mapping[str, float],
    loss: float,
    state: State,
    seconds: float,
    run: Run,
    better: bool,
) -> dict[str, Any]:
    """Logs a validation, and gives what is kept of it."""
    each = {name: _perplexity(one) for name, one in losses.items()} if len(losses) > 1 else {}
    logger.info(
        "step %d/%d  validation loss %.3f, perplexity %.1f%s%s",
        state.step,
        run.total_steps,
        loss,
        _perplexity(loss),
        " (best)" if better else "",
        "".join(f"  {name} {value:.1f}" for name, value in each.items()),
    )
    return {
        "step": state.step,
        "tokens": state.tokens,
        "valid_loss": loss,
        "valid_perplexity": _perplexity(loss),
        **{f"valid_perplexity_{name}": value for name, value in each.items()},
        "seconds": seconds,
    }


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 50))


@contextlib.contextmanager
def averaged_weights(state: State) -> Iterator[None]:
    """Puts the averaged weights, where they are kept, into the model for a while."""
    if state.average is None:
        yield
        return
    parameters = dict(state.model.named_parameters())
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    _put(parameters, state.average.weights)
    try:
        yield
    finally:
        _put(parameters, kept)


@torch.no_grad()
def _put(parameters: dict[str, nn.Parameter], values: dict[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


@contextlib.contextmanager
def interruptions() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying; a second SIGINT ends the process at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, _frame: Any) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupted(stop: list[int], step: Step, run: Run) -> Interrupted:
    number = stop[0] if stop else signal.SIGTERM
    return Interrupted(
        f"interrupted after step {step.step} of {run.total_steps}; all is saved. "
        f"To go on: {run.resume_hint}",
        int(number),
    )


def steps_within(
    minutes: float,
    model: nn.Module,
    objective: Trainable,
    batches: Batches,
    training: Training,
    *,
    ranks: Ranks,
    valid: Mapping[str, HeldOut],
    valid_objective: Trainable,
) -> int:
    """How many steps fit into `minutes`, validations among them.

    From the speed of a few steps and of a batch of each held-out text, on a copy of the model. Two
    per cent are set aside for checkpoints and samples.

    Args:
        minutes: the budget.
        model: stays as it is.
        objective: of training.
        batches: of training.
        training: the settings.
        ranks: this process among those that train together.
        valid: held-out text by name.
        valid_objective: what gives the validation loss.
    """
    scratch = State.begin(copy.deepcopy(model), training)
    trial = steps(scratch, objective, batches, training, total_steps=15, ranks=ranks)
    step = statistics.median([one.seconds for one in trial][3:])
    validation = 0.0
    for held_out in valid.values():
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            mean_loss(scratch.model, valid_objective, held_out.batches, 1, training)
            times.append(time.perf_counter() - begin)
        validation += held_out.count * statistics.median(times)
    left = 0.98 * minutes * 60 - validation  # the one at the end
    return max(1, int(left / (step + validation / training.evaluate_every)))
