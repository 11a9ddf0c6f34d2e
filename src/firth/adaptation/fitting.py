"""Training one adapted network: best weights on dev kept, degenerate runs noticed."""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from firth.adaptation.network import AdaptedNetwork, EncodedExamples, score_examples
from firth.config import check_types
from firth.device import Precision
from firth.errors import ConfigError
from firth.inference.forward import Engine
from firth.protocols import Batches, Example, Report, Scores, Task, Trainable, Unit
from firth.text.batches import BucketedBatches
from firth.training.loop import State, Training, steps

logger = logging.getLogger(__name__)

_ENOUGH = 40
"""A run meant to be shorter that gives one answer for everything is unfinished, not degenerate."""

_FLAT = 0.99
"""A training loss that ends above this share of its beginning has not moved."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What one seed gave."""

    weights: dict[str, torch.Tensor]
    """Of the trained part, with the running means of norms, at its best on dev."""
    report: Report
    """On dev, at the best point."""
    seed: int
    steps: int
    degenerate: bool
    """Whether the run ends in one answer for everything or is at its best with one, or neither its
    loss ever moved nor its score on dev."""
    interrupted: bool = False
    """Whether Ctrl-C ended the run: its best is the best so far."""


_LEAST = {
    "min_steps": 0,
    "batch_size": 1,
    "hidden_size": 1,
    "num_layers": 1,
    "patience": 1,
    "restarts": 0,
    "max_length": 3,
    "weight_decay": 0,
    "mix_penalty": 0,
    "warmup": 0,
    "ratio": 1,
}
_MORE_THAN_ZERO = ("epochs", "lr", "decay")


def check_settings(adaptation: object) -> None:
    """Refuses settings of an adaptation that nothing can be trained with.

    Raises:
        ConfigError: if one is out of its range, or of another type.
    """
    check_types(adaptation)
    for name, value in vars(adaptation).items():
        expected = None
        if value is None:
            continue
        if name in _LEAST and not _LEAST[name] <= value < math.inf:
            expected = f"at least {_LEAST[name]}"
        elif name in _MORE_THAN_ZERO and not 0 < value < math.inf:
            expected = "a number above 0"
        elif name in ("dropout", "cut") and not 0 <= value < 1:
            expected = "a share, at least 0 and below 1"
        if expected:
            raise ConfigError(f"{name} is {value}, expected {expected}")


def idle_settings(adaptation: object, unit: Unit) -> Iterator[tuple[str, str]]:
    """Those settings of an adaptation that others, or a task of this unit, make idle, each with the
    reason.
    """
    given = vars(adaptation)
    pooling = ""
    if unit == "sequence" and given.get("concat_pooling"):
        pooling = "concat_pooling is on"
    elif unit == "sequence" and given.get("task_network", "head") != "head":
        pooling = "the task network reads all tokens of a text"
    reasons = {
        "hidden_size": "task_network is the head" if given.get("task_network") == "head" else "",
        "min_steps": "epochs are given" if given.get("epochs") is not None else "",
        "mix_penalty": "one layer is no mix" if given.get("layers", "all") != "all" else "",
        "pooling": pooling,
        "cut": "the rate is constant" if not given.get("slanted", True) else "",
    }
    reasons |= {"num_layers": reasons["hidden_size"], "ratio": reasons["cut"]}
    for name, reason in reasons.items():
        if reason and name in given and given[name] != getattr(type(adaptation), name):
            yield name, reason


def labelled_batches(
    task: Task, train: tuple[Sequence[Example], EncodedExamples], batch_size: int, seed: int
) -> BucketedBatches:
    """batch(step) of labelled examples."""
    examples, data = train
    targets = task.targets(examples)
    return BucketedBatches(
        data.lengths, lambda chosen: data.batch(chosen, targets), batch_size=batch_size, seed=seed
    )


def scorer(
    network: AdaptedNetwork, data: EncodedExamples, precision: Precision
) -> Callable[[], Scores]:
    """A function that scores examples with the network as it is when called."""
    return lambda: score_examples(Engine.of(network, precision, data.longest), data)


def fit(
    network: nn.Module,
    task: Task,
    objective: Trainable,
    batches: Batches,
    training: Training,
    *,
    evaluate: Callable[[], Scores],
    dev: Sequence[Example],
    total_steps: int,
    patience: int,
    state: State | None = None,
    at_step: Callable[[int], None] = lambda _step: None,
) -> Fitted:
    """Trains `network` in place and keeps its best weights on dev, of equal ones the last.

    Dev is scored twenty times a run, or after each epoch where epochs are longer; after `patience`
    scorings without improvement training stops, and by Ctrl-C once dev has been scored.

    Args:
        network: what is trained; frozen parameters have `requires_grad` off.
        task: for the metrics.
        objective: gives `loss(network, batch)`.
        batches: batch(step).
        training: optimizer, schedule and seed.
        evaluate: scores the dev examples with the network as it is.
        dev: those examples.
        total_steps: where the schedule ends.
        patience: scorings without improvement before stopping.
        state: with optimizers of another kind than the setting's.
        at_step: called before each step with the steps done, for instance to freeze parameters.
    """
    state = State.begin(network, training) if state is None else state
    course = _Course(task, dev, partial(_fitted, network, _trained(network), training.seed))
    at_step(0)
    every = max(1, min(batches.steps_per_epoch, total_steps), total_steps // 20)
    losses, broken = list[float](), False
    with _ended_by_interruption(course):
        for step in steps(state, objective, batches, training, total_steps=total_steps):
            if broken := not np.isfinite(step.loss):
                logger.warning("seed %d: the loss became %s", training.seed, step.loss)
                break
            losses.append(step.loss)
            at_step(step.step)
            if step.step % every == 0 or step.step == total_steps:
                course.look(evaluate(), step.step)
                course.tell(step.step, total_steps, losses[-every:])
            if course.waited >= patience:
                break
    if (best := course.best) is None:  # it broke down before the first scoring
        report = task.evaluate([np.nan_to_num(rows) for rows in evaluate()], dev)
        best = course.keep(report, state.step)
    network.load_state_dict(best.weights, strict=False)
    if course.interrupted:
        return replace(best, degenerate=False, interrupted=True)
    idle = course.ends_idle(flat=_is_flat(losses))
    return replace(best, degenerate=broken or (idle and total_steps >= _ENOUGH))


_QUIET = 10.0
"""Seconds of a run after which a scoring is logged."""


@dataclass
class _Course:
    """What dev says of the weights of a run, scoring by scoring."""

    task: Task
    dev: Sequence[Example]
    keep: Callable[[Report, int], Fitted]
    """Of the weights as they are."""
    best: Fitted | None = None
    scores: Scores = field(default_factory=list)
    """On dev, of the best weights."""
    found: list[float] = field(default_factory=list)
    """The main metric at each scoring."""
    waited: int = 0
    """Scorings since the metric was higher than ever."""
    collapsed: bool = False
    """Whether the last scoring gave one answer for everything."""
    interrupted: bool = False
    """Whether Ctrl-C ended the run."""
    told: float = field(default_factory=time.monotonic)
    """When a scoring was logged last."""

    def look(self, scores: Scores, step: int) -> None:
        """Takes dev's scores after a step, and keeps the weights if they are the best.

        Of weights that are as good the last are, unless they have collapsed since: few examples
        give the same score many times, and later weights have learned more.
        """
        report, best = self.task.evaluate(scores, self.dev), self.best
        self.collapsed = self.task.degenerate(scores, self.dev)
        higher = best is None or report.score > best.report.score
        self.waited = 0 if higher else self.waited + 1
        self.found.append(report.score)
        if best is None or higher or self._as_good(report, best):
            kept = self.keep(report, step)
            self.best, self.scores = replace(kept, degenerate=self.collapsed), scores

    def _as_good(self, report: Report, best: Fitted) -> bool:
        return report.score == best.report.score and self.collapsed <= best.degenerate

    def tell(self, step: int, total: int, losses: Sequence[float]) -> None:
        """Logs the last scoring, now and then, with the losses before it."""
        if self.best is None or time.monotonic() - self.told <= _QUIET:
            return
        logger.info(
            "seed %d: step %d of %d  loss %.3f  dev %s %.4f",
            *(self.best.seed, step, total, np.mean(losses)),
            *(self.best.report.main, self.found[-1]),
        )
        self.told = time.monotonic()

    def ends_idle(self, *, flat: bool) -> bool:
        """Whether the run gives one answer for everything, or neither its loss (`flat`) nor dev
        moved. Warns where it is dev alone that did not.
        """
        if not flat:
            self._warn_of_dev()
        still = flat and not self.improved and self._is_chance()
        return self.collapsed or still or (self.best is not None and self.best.degenerate)

    def _is_chance(self) -> bool:
        """Whether dev is no more than a standard error better than with one answer for all."""
        if self.best is None:
            return True
        constant = self.task.evaluate(_one_answer(self.scores), self.dev).score
        return self.best.report.score <= constant + len(self.dev) ** -0.5

    @property
    def improved(self) -> bool:
        """Whether a scoring was better than the first."""
        return any(score > self.found[0] for score in self.found)

    def _warn_of_dev(self) -> None:
        """Says where dev cannot tell weights apart."""
        if self.best is not None and len(self.found) > 2 and len(set(self.found)) == 1:
            logger.warning(
                "seed %d: dev %s was %.3f all the time, so the last weights are kept: %d dev "
                "examples do not tell weights apart; give more of them, with all kinds of labels",
                self.best.seed,
                self.best.report.main,
                self.found[0],
                len(self.dev),
            )


@contextmanager
def _ended_by_interruption(course: _Course) -> Iterator[None]:
    """Ctrl-C ends what is done here quietly, unless there is nothing yet to keep."""
    try:
        yield
    except KeyboardInterrupt:
        if course.best is None:
            raise
        course.interrupted = True


def _one_answer(scores: Scores) -> Scores:
    """The same scores for every example: their mean."""
    if isinstance(scores, np.ndarray):
        return np.broadcast_to(scores.mean(axis=0), scores.shape)
    mean = np.concatenate(scores).mean(axis=0)
    return [np.broadcast_to(mean, rows.shape) for rows in scores]


def _is_flat(losses: list[float]) -> bool:
    if not losses:
        return False
    tenth = max(1, len(losses) // 10)
    return bool(np.mean(losses[-tenth:]) > _FLAT * np.mean(losses[:tenth]))


def _trained(network: nn.Module) -> frozenset[str]:
    """The names of what training may change: parameters that take part, and buffers."""
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    return frozenset(network.state_dict().keys() - frozen)


def _fitted(
    network: nn.Module, names: frozenset[str], seed: int, report: Report, steps_done: int
) -> Fitted:
    weights = {n: t.detach().clone() for n, t in network.state_dict().items() if n in names}
    return Fitted(weights=weights, report=report, seed=seed, steps=steps_done, degenerate=False)


def with_restarts(
    run: Callable[[int], Fitted], seed: int, restarts: int, taken: set[int]
) -> Fitted:
    """Runs `seed`; while the result is degenerate, tries up to `restarts` other seeds instead.

    Args:
        run: what a seed gives.
        seed: the first to try.
        restarts: most others to try.
        taken: seeds that are not to be tried; those that are come among them.
    """
    fitted = run(seed)
    for attempt in range(1, restarts + 1):
        if not fitted.degenerate:
            break
        other = next(s for s in itertools.count(seed + 1000 * attempt) if s not in taken)
        taken.add(other)
        logger.warning(
            "seed %d gave a degenerate run (dev %s %.3f: one answer for everything, or a loss that "
            "never moved); restarting with seed %d",
            fitted.seed,
            fitted.report.main,
            fitted.report.score,
            other,
        )
        fitted = run(other)
    return fitted
