"""AdamW, Muon for matrices with AdamW for the rest, Adagrad, SGD; averages of weights."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from firth.errors import ConfigError
from firth.training.muon import StackedMuon

NamedParameters = Iterable[tuple[str, nn.Parameter]]


def _check(optimizer: object) -> None:
    """Refuses what no optimizer can be set to, where it is given."""
    for name, value in vars(optimizer).items():
        share = name in ("beta1", "beta2", "momentum")
        if isinstance(value, (int, float)) and not 0 <= value < (1 if share else math.inf):
            expected = "from 0 to below 1" if share else "at least 0"
            raise ConfigError(
                f"{type(optimizer).__name__}.{name} is {value:g}, expected {expected}"
            )


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019), with Adam's bias correction.

    Matrices and embeddings decay; biases and norms do not (Devlin et al. 2019, google-research/bert
    `optimization.py`).
    """

    lr: float = 5e-4
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.98
    """Decay of the mean of their squares."""
    eps: float = 1e-6
    """Added to the root of the mean square."""
    weight_decay: float = 0.01
    """Of matrices and embeddings, times the rate."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, parameters: NamedParameters) -> list[torch.optim.Optimizer]:
        """Optimizers over the trainable `parameters`; each group remembers its `peak_lr`."""
        trainable = [p for _, p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [
            {**group, "lr": self.lr, "peak_lr": self.lr} for group in groups if group["params"]
        ]
        betas = (self.beta1, self.beta2)
        return [torch.optim.AdamW(groups, lr=self.lr, betas=betas, eps=self.eps, fused=True)]


@dataclass(frozen=True, kw_only=True)
class Muon:
    """Muon (Jordan et al. 2024) for the matrices between states, AdamW for everything else.

    Muon's update is the momentum matrix made orthogonal by five Newton-Schulz steps. Embeddings,
    output matrices, tables of distances, biases and norms go to `rest`; the layers' matrices, and
    those that a head has before its output, to Muon. The matrices of
    queries, keys and values, which lie in one parameter here, are made orthogonal one by one, as
    are those of a gated feed-forward layer.
    """

    lr: float = 0.01
    """Peak learning rate."""
    momentum: float = 0.95
    """Decay of the mean of gradients, which is taken in Nesterov's form."""
    weight_decay: float = 0.1
    """Of the matrices, times the rate."""
    rest: AdamW = field(default_factory=lambda: AdamW(lr=2e-3, beta2=0.95))
    """For everything else."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, parameters: NamedParameters) -> list[torch.optim.Optimizer]:
        """See `AdamW.build`."""
        named = [(name, p) for name, p in parameters if p.requires_grad]
        tables = ("embeddings.", "distances.", "pair_head.")
        matrices = [
            p
            for n, p in named
            if p.ndim == 2 and n != "head.weight" and not any(table in n for table in tables)
        ]
        chosen = {id(p) for p in matrices}
        rest = self.rest.build((name, p) for name, p in named if id(p) not in chosen)
        if not matrices:
            return rest
        parts = _parts(named)
        groups = [
            {"params": chosen, "parts": count, "peak_lr": self.lr}
            for count in sorted(set(parts.values()))
            if (chosen := [p for p in matrices if parts[id(p)] == count])
        ]
        muon = StackedMuon(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        return [muon, *rest]


_FUSED = {"qkv": ("out", 3), "kv": ("out", 2), "up": ("down", 2)}
"""Parameters that may hold several matrices: what takes the outcome of one, and their number.

Queries that share keys and values, and layers without a gate, have another number of rows.
"""


def _parts(named: Sequence[tuple[str, nn.Parameter]]) -> dict[int, int]:
    """How many matrices each parameter holds, one above the other, by its id."""
    by_name, parts = dict(named), dict.fromkeys((id(p) for _, p in named), 1)
    for name, p in named:
        stem, kind = name.removesuffix(".weight").rpartition(".")[::2]
        if kind in _FUSED:
            after, count = _FUSED[kind]
            if p.shape[0] == count * by_name[f"{stem}.{after}.weight"].shape[1]:
                parts[id(p)] = count
    return parts


@dataclass(frozen=True, kw_only=True)
class Adagrad:
    """Adagrad (Duchi et al. 2011), which ELMo was trained with: w -= lr g / sqrt(sum of g^2).

    The program bilm-tf begins its sums with 1 and has gradients of 20 times the loss (a step has 20
    words), clipped at 10. That is a beginning of 1/400 and `Training.clip` 0.5 for those of the
    loss itself.
    """

    lr: float = 0.2
    """Peak learning rate."""
    initial: float = 1 / 400
    """What the sums of squares begin with."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, parameters: NamedParameters) -> list[torch.optim.Optimizer]:
        """See `AdamW.build`."""
        groups = [{"params": [p for _, p in parameters if p.requires_grad], "peak_lr": self.lr}]
        return [torch.optim.Adagrad(groups, lr=self.lr, initial_accumulator_value=self.initial)]


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Plain stochastic gradient descent; with `Training.nonmonotone` it is NT-ASGD."""

    lr: float = 30.0
    """Peak learning rate."""
    weight_decay: float = 1.2e-6
    """Of all weights, added to the gradient."""

    def __post_init__(self) -> None:
        _check(self)

    def build(self, parameters: NamedParameters) -> list[torch.optim.Optimizer]:
        """See `AdamW.build`."""
        groups = [{"params": [p for _, p in parameters if p.requires_grad], "peak_lr": self.lr}]
        return [torch.optim.SGD(groups, lr=self.lr, weight_decay=self.weight_decay)]


Optimizer = AdamW | Muon | Adagrad | SGD


def set_learning_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> float:
    """Sets every group to `factor` times its peak rate; returns the first group's rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
    return optimizers[0].param_groups[0]["lr"]


def scaled(optimizer: Optimizer, factor: float) -> Optimizer:
    """The same optimizer with all its peak rates times `factor`."""
    if isinstance(optimizer, Muon):
        rest = replace(optimizer.rest, lr=optimizer.rest.lr * factor)
        return replace(optimizer, lr=optimizer.lr * factor, rest=rest)
    return replace(optimizer, lr=optimizer.lr * factor)


def by_depth(
    optimizer: Optimizer,
    model: nn.Module,
    groups: Sequence[Sequence[nn.Parameter]],
    decay: float,
) -> list[torch.optim.Optimizer]:
    """Optimizers with a rate for each group (Howard and Ruder 2018, section 3.2).

    Args:
        optimizer: with the rate of the first group.
        model: that has the parameters, for their names.
        groups: from the top of the network down; one may be empty.
        decay: eta^(l-1) = eta^l / decay.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    return [
        one
        for depth, group in enumerate(groups)
        if group
        for one in scaled(optimizer, decay**-depth).build((names[id(p)], p) for p in group)
    ]


class WeightAverage:
    """Exponential moving average of weights: a = d a + (1 - d) w, d = min(decay, (1+t)/(10+t)).

    The ramp lets it forget the random start (as TensorFlow's `ExponentialMovingAverage` does).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    def notice(self, loss: float) -> None:
        """Takes note of a validation loss."""

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after a step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, 1 - decay)  # type: ignore[attr-defined]

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must keep."""
        return self.weights

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `tensors` gave."""
        for name, tensor in tensors.items():
            self.weights[name].copy_(tensor)


class NonMonotoneAverage(WeightAverage):
    """The mean of all weights since validation stopped improving (Merity et al. 2018, algorithm 1).

    Averaging begins when a validation loss is worse than the best of those more than `patience`
    validations ago; until then the average is the current weights.
    """

    _LOSSES, _COUNT = "nonmonotone.losses", "nonmonotone.count"

    def __init__(self, model: nn.Module, patience: int) -> None:
        super().__init__(model, decay=0.0)
        self.patience = patience
        self.losses: list[float] = []
        self.count: int | None = None
        """Steps that are averaged; None before averaging begins."""

    def notice(self, loss: float) -> None:
        """See the class."""
        earlier = [x for x in self.losses[: -self.patience] if math.isfinite(x)]
        if self.count is None and earlier and loss > min(earlier):
            self.count = 0
        self.losses.append(loss)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after a step."""
        share = 1.0
        if self.count is not None:
            self.count += 1
            share = 1.0 / self.count
        current = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(list(self.weights.values()), current, share)  # type: ignore[attr-defined]

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must keep."""
        return {
            **self.weights,
            self._LOSSES: torch.tensor(self.losses, dtype=torch.float64),
            self._COUNT: torch.tensor(-1 if self.count is None else self.count),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `tensors` gave."""
        own = (self._LOSSES, self._COUNT)
        super().restore({name: one for name, one in tensors.items() if name not in own})
        self.losses = tensors[self._LOSSES].tolist()
        count = int(tensors[self._COUNT])
        self.count = None if count < 0 else count
