"""The training loop: a generator of steps that anyone may drive; a step depends on its number."""

import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from firth.config import check_types
from firth.device import Precision, compute_dtype, computing, fast_float32
from firth.errors import ConfigError
from firth.protocols import Batch, BatchAt, Trainable
from firth.training.distributed import Ranks, add_up, add_up_gradients
from firth.training.optimizers import (
    AdamW,
    NonMonotoneAverage,
    Optimizer,
    WeightAverage,
    by_depth,
    set_learning_rates,
)
from firth.training.schedules import Schedule

BUDGETS = ("steps", "tokens", "epochs", "minutes")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train. Give one budget: `steps`, `tokens`, `epochs` or `minutes`."""

    steps: int | None = None
    """Budget in steps."""
    tokens: int | None = None
    """Budget in tokens."""
    epochs: float | None = None
    """Budget in passes over the text."""
    minutes: float | None = None
    """Wall-clock minutes: throughput is measured first, then the number of steps is fixed."""
    batch_tokens: int = 8192
    """Tokens of a step, all micro-batches and processes together."""
    accumulation: int = 1
    """Micro-batches a step; their gradients add up to those of the whole batch, up to rounding and
    to the masks of dropout, which every part has of its own."""
    optimizer: Optimizer = field(default_factory=AdamW)
    """What turns gradients into updates."""
    schedule: Schedule = field(default_factory=Schedule)
    """Of the learning rate."""
    layer_decay: float = 1.0
    """By what the learning rate is divided from each layer to the one below it: discriminative
    fine-tuning (Howard and Ruder 2018, section 3.2; 2.6 there); 1 for one rate."""
    clip: float = 1.0
    """Largest gradient norm; 0 for none."""
    average: float = 0.0
    """Decay of the exponential moving average of the weights; 0 for none."""
    nonmonotone: int = 0
    """Validations after which, if none of them improved, the plain average of the weights begins
    (NT-ASGD, Merity et al. 2018, section 3; 5 there); 0 for no such average."""
    precision: Precision = "auto"
    """Of the matrix products; auto: bfloat16 where the processor is fast at it."""
    compile: bool = False
    """Whether the network is compiled (torch.compile); for GPUs."""
    seed: int = 0
    """Of weights, order, masks and dropout."""
    log_every: int = 50
    """Steps from one line of the log to the next."""
    evaluate_every: int = 500
    """Steps from one validation to the next."""
    save_every: int = 500
    """Steps from one checkpoint to the next."""
    workers: int = 1
    """Threads that prepare batches ahead; any number gives the same batches."""

    def __post_init__(self) -> None:
        check_types(self)
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"give one budget, not several: {', '.join(given)}")
        for name in given:
            value, least = getattr(self, name), 1 if name in ("steps", "tokens") else 0
            if not least <= value < math.inf or value == 0:
                expected = f"at least {least}" if least else "a number above 0"
                raise ConfigError(f"Training.{name} is {value}, expected {expected}")
        for name in ("clip", "seed", "workers", "nonmonotone"):
            if getattr(self, name) < 0:
                raise ConfigError(f"Training.{name} is {getattr(self, name)}, expected at least 0")
        if self.seed >= 2**63:
            raise ConfigError(f"Training.seed is {self.seed}, expected one below 2^63")
        if not 0 <= self.average < 1:
            raise ConfigError(f"Training.average is {self.average}, expected from 0 to below 1")
        if self.layer_decay <= 0:
            raise ConfigError(f"Training.layer_decay is {self.layer_decay}, expected more than 0")
        if self.average and self.nonmonotone:
            raise ConfigError("give training.average or training.nonmonotone, not both")
        for name in ("batch_tokens", "accumulation", "log_every", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"Training.{name} is {getattr(self, name)}, expected at least 1")

    def fixed_steps(self, steps_per_epoch: int, tokens_per_epoch: int | None = None) -> int | None:
        """The number of steps of the budget, or None for `minutes`.

        Args:
            steps_per_epoch: of the text.
            tokens_per_epoch: of the text, whose batches may be smaller than `batch_tokens`; None if
                they are not.
        """
        if self.tokens is not None:
            whole = steps_per_epoch * self.batch_tokens
            return max(1, round(self.tokens * steps_per_epoch / (tokens_per_epoch or whole)))
        if self.epochs is not None:
            return max(1, round(self.epochs * steps_per_epoch))
        return self.steps


@dataclass(frozen=True, kw_only=True)
class Step:
    """What happened in one step."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean over the step's predictions, in nats."""
    num_predictions: int
    num_tokens: int
    seconds: float
    learning_rate: float
    gradient_norm: float
    parts: dict[str, float] = field(default_factory=dict)
    """What a loss of several parts names, over the step's predictions."""


@dataclass
class State:
    """What training changes: weights, moments, averages, and how far it has come."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    average: WeightAverage | None
    step: int = 0
    tokens: int = 0

    @staticmethod
    def begin(model: nn.Module, training: Training) -> "State":
        """The state before the first step."""
        average = WeightAverage(model, training.average) if training.average else None
        if training.nonmonotone:
            average = NonMonotoneAverage(model, training.nonmonotone)
        return State(model, _optimizers(model, training), average)


def _optimizers(model: nn.Module, training: Training) -> list[torch.optim.Optimizer]:
    if training.layer_decay == 1.0:
        return training.optimizer.build(model.named_parameters())
    groups = model.layer_groups()[::-1]  # type: ignore[operator]
    # The head learns with the top, the softmax too where the embeddings are its matrix: in the
    # published program of ULMFiT they are in the group of the softmax.
    softmax = getattr(model, "output_matrix", None)
    groups = [[p for p in group if p is not softmax] for group in groups]
    inside = {id(p) for group in groups for p in group}
    above = [p for p in model.parameters() if id(p) not in inside]
    groups = [[*above, *groups[0]], *groups[1:]]
    return by_depth(training.optimizer, model, groups, training.layer_decay)


def seed_step(seed: int, step: int, part: int) -> None:
    """Seeds dropout for one part of one step's batch."""
    state = np.random.SeedSequence((seed, step, part)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))


def steps(
    state: State,
    objective: Trainable,
    batches: BatchAt,
    training: Training,
    *,
    total_steps: int,
    ranks: Ranks = Ranks(),  # noqa: B008  (frozen)
) -> Iterator[Step]:
    """Trains from `state.step` to `total_steps`, yielding after each step.

    The step's batch is cut into accumulation x ranks parts. Each part's loss is divided by the
    number of predictions of the whole batch, so the parts' gradients add up to the batch's.

    Args:
        state: changed in place; may come from a checkpoint.
        objective: gives `loss(model, batch)`.
        batches: batch as a function of the step.
        training: the settings.
        total_steps: where the schedule ends.
        ranks: this process among those that train together.
    """
    state.model.train()
    model = _compiled(state.model) if training.compile else state.model
    begin = time.perf_counter()
    for batch in _ahead(batches, state.step, total_steps, training.workers):
        factor = training.schedule(state.step, total_steps) * batch.rate
        rate = set_learning_rates(state.optimizers, factor)
        total, parts = _accumulate(model, objective, batch, training, state.step, ranks)
        add_up_gradients(state.model, ranks)
        add_up([total, *parts.values()], ranks)
        with fast_float32(next(state.model.parameters()).device):
            norm = _update(state, training.clip)
        num_tokens = batch.num_tokens + (batch.source.num_tokens if batch.source else 0)
        state.step += 1
        state.tokens += num_tokens
        if state.average is not None:
            state.average.update(state.model, state.step)
        yield Step(
            step=state.step,
            loss=float(total),
            num_predictions=batch.num_predictions,
            num_tokens=num_tokens,
            seconds=time.perf_counter() - begin,
            learning_rate=rate,
            gradient_norm=float(norm),
            parts={name: float(value) for name, value in parts.items()},
        )
        state.model.train()  # the caller may have evaluated
        begin = time.perf_counter()


def _compiled(model: nn.Module) -> Any:
    # On CUDA most batches of full sequences have one size, for which kernels can be made to measure
    # ("automatic" sizes); on the CPU nearly every batch has another.
    on_cpu = next(model.parameters()).device.type == "cpu"
    return torch.compile(model, dynamic=True if on_cpu else None)


def _accumulate(
    model: Any, objective: Trainable, batch: Batch, training: Training, step: int, ranks: Ranks
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Adds up the gradients of this process's parts of a batch.

    Returns:
        their share of the loss, and of what the loss names.
    """
    device = next(model.parameters()).device
    dtype = compute_dtype(training.precision, device)
    # The last batch of an epoch may have fewer sequences than there are parts to give.
    batches = batch.split(min(training.accumulation * ranks.world, batch.num_sequences))
    count = max(1, batch.num_predictions)
    first = ranks.rank * training.accumulation
    total, named = torch.zeros((), device=device), dict[str, torch.Tensor]()
    for part in range(first, first + training.accumulation):
        if part >= len(batches) > first:
            break
        # A process without a part takes the last one for nothing, to bring what the others add up.
        share = float(part < len(batches)) / count
        seed_step(training.seed, step, part)
        with computing(dtype, device):
            found = objective.loss(model, batches[min(part, len(batches) - 1)].to(device))
            loss = found.total * share
        with fast_float32(device):
            loss.backward()
        total += loss.detach()
        for name, value in found.parts.items():
            named[name] = named.get(name, 0.0) + value.detach().float() * share
    return total, named


def _update(state: State, clip: float) -> torch.Tensor:
    """Clips, applies and clears the gradients; returns their norm before clipping."""
    parameters = [p for p in state.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])  # type: ignore[misc]
    # Times exactly 1 otherwise: a pass over all gradients saved. On CUDA it is the lesser cost, as
    # looking at the norm would wait for the backward pass.
    if clip and (norm.is_cuda or not norm < clip):
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


def _ahead(batches: BatchAt, first: int, last: int, workers: int) -> Iterator[Batch]:
    """Batches `first` to `last` in order, prepared by `workers` threads."""
    if workers == 0:
        yield from map(batches, range(first, last))
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="firth-batches") as pool:
        waiting = deque(
            pool.submit(batches, s) for s in range(first, min(last, first + workers + 1))
        )
        for step in range(first + len(waiting), last + len(waiting)):
            batch = waiting.popleft().result()
            if step < last:
                waiting.append(pool.submit(batches, step))
            yield batch
            if not waiting:
                return


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    objective: Trainable,
    batches: BatchAt,
    num_batches: int,
    training: Training,
) -> float:
    """Mean loss over the predictions of the first `num_batches` batches, in nats, dropout off.

    Without a prediction it is NaN.
    """
    device = next(model.parameters()).device
    dtype = compute_dtype(training.precision, device)
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with computing(dtype, device):
        for step in range(num_batches):
            batch = batches(step)
            total += float(objective.loss(model, batch.to(device)).total)
            count += batch.num_predictions
    model.train(was_training)
    return total / count if count else math.nan
