"""Steps of several threads on the same weights, without locks (Recht et al. 2011, Hogwild!)."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Protocol

import numpy as np

from firth.models.static import Static

Arrays = dict[str, np.ndarray]
"""Weights, and whatever else training changes, by name."""


@dataclass(frozen=True)
class Done:
    """What one stretch or many gave."""

    loss: float = 0.0
    """Summed over what was measured."""
    measured: int = 0
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 1

    @property
    def mean(self) -> float | None:
        """Loss of a prediction; None where none was measured."""
        return self.loss / self.measured if self.measured else None


class Learner(Protocol):
    """Weights with a way to learn a stretch."""

    arrays: Arrays
    steps_per_epoch: int

    def learn(self, step: int, progress: float | None) -> Done:
        """One step; without `progress` nothing changes, though the time is the same."""
        ...

    def fill(self, model: Static) -> None:
        """Puts the finished vectors into a model."""
        ...


def run_steps(
    learning: Learner,
    first: int,
    last: int,
    *,
    total: int | None,
    threads: int,
    enough: Callable[[], bool] = lambda: False,
) -> Done:
    """Learns steps `first` to `last` of `total` on some threads.

    Args:
        learning: what learns.
        first: step.
        last: step behind the last one.
        total: steps of the whole run, for the learning rate; None to change nothing.
        threads: with one, the result is exactly reproducible.
        enough: asked after each step; where it says so, no thread begins another one.

    Returns:
        What the steps gave, how many there were, and the wall-clock time.
    """
    begin = time.perf_counter()
    turns, parts, errors = itertools.count(first), list[Done](), list[BaseException]()

    def work() -> None:
        try:
            while not errors and (step := next(turns)) < last:
                parts.append(learning.learn(step, None if total is None else step / total))
                if enough():
                    return
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]
    return replace(added_up(parts), seconds=time.perf_counter() - begin)


def added_up(parts: Sequence[Done]) -> Done:
    """All parts together."""
    sums = [sum(values) for values in zip(*map(astuple, parts), strict=True)]
    return Done(*sums) if parts else Done(steps=0)


def steps_in_minutes(minutes: float, learning: Learner, threads: int) -> int:
    """How many steps fit into `minutes`, from the speed of a few that change nothing."""
    count = min(learning.steps_per_epoch, 20 * threads)
    seconds = run_steps(learning, 0, count, total=None, threads=threads).seconds
    return max(1, int(0.96 * minutes * 60 * count / seconds))
