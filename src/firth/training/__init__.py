"""Optimisation: the loop, optimizers, schedules, checkpoints, data parallel."""

from firth.training.loop import BUDGETS, State, Step, Training, mean_loss, steps
from firth.training.optimizers import SGD, Adagrad, AdamW, Muon
from firth.training.run import HeldOut, Run, steps_within, train
from firth.training.schedules import Schedule

__all__ = [
    "BUDGETS",
    "SGD",
    "Adagrad",
    "AdamW",
    "HeldOut",
    "Muon",
    "Run",
    "Schedule",
    "State",
    "Step",
    "Training",
    "mean_loss",
    "steps",
    "steps_within",
    "train",
]
