"""Training one adapted network: best weights on dev kept, degenerate runs noticed."""

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from firth.adaptation.network import AdaptedNetwork, EncodedExamples, score_examples
from firth.config import check_types
from firth.device import Precision
from firth.errors import ConfigError
from firth.inference.forward import Engine
from firth.protocols import Batches, Example, Report, Scores, Task, Trainable
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
    "cut": 0,
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
        elif name == "dropout" and not 0 <= value < 1:
            expected = "a share, at least 0 and below 1"
        if expected:
            raise ConfigError(f"{name} is {value}, expected {expected}")


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
    scorings without improvement training stops.

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
    keep = partial(_fitted, network, _trained(network), training.seed)
    at_step(0)
    every = max(1, min(batches.steps_per_epoch, total_steps), total_steps // 20)
    best: Fitted | None = None
    losses, found, kept = list[float](), list[float](), []
    waited, broken, collapsed = 0, False, False
    for step in steps(state, objective, batches, training, total_steps=total_steps):
        if broken := not np.isfinite(step.loss):
            logger.warning("seed %d: the loss became %s", training.seed, step.loss)
            break
        losses.append(step.loss)
        at_step(step.step)
        if step.step % every and step.step != total_steps:
            continue
        scores = evaluate()
        report, collapsed = task.evaluate(scores, dev), task.degenerate(scores, dev)
        waited = waited + 1 if best and report.score <= best.report.score else 0
        if waited == 0 or _as_good(report, collapsed, best):
            best, kept = replace(keep(report, step.step), degenerate=collapsed), scores
        found.append(report.score)
        if waited >= patience:
            break
    if best is None:  # it broke down before the first scoring
        report = task.evaluate([np.nan_to_num(rows) for rows in evaluate()], dev)
        best = keep(report, state.step)
    network.load_state_dict(best.weights, strict=False)
    _tell_of_dev(found, best, len(dev))
    still = best.steps <= every and _is_flat(losses) and _is_chance(task, kept, best, dev)
    idle = collapsed or best.degenerate or still
    return replace(best, degenerate=broken or (idle and total_steps >= _ENOUGH))


def _as_good(report: Report, collapsed: bool, best: Fitted | None) -> bool:
    """Whether weights are as good on dev as the best before them, and no worse otherwise.

    Few examples give the same score many times, and later weights have learned more.
    """
    return best is None or (report.score == best.report.score and collapsed <= best.degenerate)


def _is_chance(task: Task, scores: Scores, best: Fitted, dev: Sequence[Example]) -> bool:
    """Whether dev is no more than a standard error better than with one answer for everything."""
    if not len(scores):
        return True
    constant = task.evaluate(_one_answer(scores), dev).score
    return best.report.score <= constant + len(dev) ** -0.5


def _one_answer(scores: Scores) -> Scores:
    """The same scores for every example: their mean."""
    if isinstance(scores, np.ndarray):
        return np.broadcast_to(scores.mean(axis=0), scores.shape)
    mean = np.concatenate(scores).mean(axis=0)
    return [np.broadcast_to(mean, rows.shape) for rows in scores]


def _tell_of_dev(found: list[float], best: Fitted, count: int) -> None:
    """Warns where dev cannot tell weights apart."""
    if len(found) > 2 and len(set(found)) == 1:
        logger.warning(
            "seed %d: dev %s was %.3f all the time, so the last weights are kept: %d dev examples "
            "do not tell weights apart; give more of them, with all kinds of labels",
            best.seed,
            best.report.main,
            found[0],
            count,
        )


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
