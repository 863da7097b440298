"""Optimisers and learning-rate schedules, by name; a schedule is a function of progress and keeps no state."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hybridsnn.errors import ConfigError
from hybridsnn.registry import look_up


@dataclass(frozen=True)
class Schedule:
    """An entry of `SCHEDULES`: `factor(progress in [0, 1))` multiplies the learning rate."""

    summary: str
    factor: Callable[[float], float]


WARM_UP, START, END = 0.3, 1 / 25, 1 / 25e4  # those of torch's OneCycleLR


def _one_cycle(progress: float) -> float:
    if progress < WARM_UP:
        return START + (1 - START) * progress / WARM_UP
    return 1 - (1 - END) * (progress - WARM_UP) / (1 - WARM_UP)


SCHEDULES = {
    "constant": Schedule("constant learning rate", lambda progress: 1.0),
    "step": Schedule(
        "divided by 10 after 60, 80 and 90 % of the training (hybrid paper)",
        lambda progress: 0.1 ** sum(progress >= mark for mark in (0.6, 0.8, 0.9)),
    ),
    "cosine": Schedule(
        "half a cosine from the initial learning rate to 0", lambda progress: 0.5 * (1 + math.cos(math.pi * progress))
    ),
    "one-cycle": Schedule(
        "up from 1/25 of the learning rate in the first 30 % of the training, then down to 0, in straight lines",
        _one_cycle,
    ),
}


@dataclass(frozen=True)
class OptimiserKind:
    """An entry of `OPTIMISERS`: `build(parameter groups, learning rate, momentum)`."""

    summary: str
    build: Callable[[Any, float, float], torch.optim.Optimizer]


def _nesterov(groups: Any, rate: float, momentum: float) -> torch.optim.Optimizer:
    if momentum == 0:
        raise ConfigError("momentum: got 0, 'nesterov' needs one above 0; give it, or choose the optimizer 'sgd'")
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=True, fused=True)


OPTIMISERS = {
    "sgd": OptimiserKind(
        "stochastic gradient descent with momentum",
        lambda groups, rate, momentum: torch.optim.SGD(groups, lr=rate, momentum=momentum, fused=True),
    ),
    "nesterov": OptimiserKind("stochastic gradient descent with Nesterov momentum", _nesterov),
    "adam": OptimiserKind(
        "Adam with amsgrad and L2 weight decay (hybrid paper)",
        lambda groups, rate, momentum: torch.optim.Adam(groups, lr=rate, amsgrad=True, fused=True),
    ),
    "adamw": OptimiserKind(
        "Adam with decoupled weight decay",
        lambda groups, rate, momentum: torch.optim.AdamW(groups, lr=rate, fused=True),
    ),
}


@dataclass(frozen=True)
class OwnRate:
    """Parameters with a learning rate and a weight decay of their own: thresholds, leaks, ceilings."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Optimisation:
    """Optimiser, schedule and hyperparameters of a training.

    Attributes:
        optimiser, schedule: names in `OPTIMISERS`, `SCHEDULES`.
        learning_rate, momentum, weight_decay: of weights.
        epochs: number of epochs.
        decay_biases: whether weight decay applies to biases and norms too: to parameters of one dimension or none.
        average_decay: see `MovingAverage`.
    """

    optimiser: str
    schedule: str
    learning_rate: float
    momentum: float
    weight_decay: float
    epochs: int
    decay_biases: bool = True
    average_decay: float = 0.0

    def build(self, model: nn.Module, own_rates: Sequence[OwnRate] = ()) -> torch.optim.Optimizer:
        """An optimiser for the parameters of a model that require gradients."""
        special = {id(parameter) for group in own_rates for parameter in group.parameters}
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        weights = [parameter for parameter in learned if id(parameter) not in special]
        spared = [] if self.decay_biases else [parameter for parameter in weights if parameter.dim() < 2]
        decayed = weights if self.decay_biases else [parameter for parameter in weights if parameter.dim() >= 2]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay, "start": self.learning_rate},
            {"params": spared, "weight_decay": 0.0, "start": self.learning_rate},
            *(
                {"params": list(group.parameters), "weight_decay": group.weight_decay, "start": group.learning_rate}
                for group in own_rates
            ),
        ]
        kind = look_up(OPTIMISERS, self.optimiser, "optimizer")
        return kind.build([group for group in groups if group["params"]], self.learning_rate, self.momentum)

    def set_rate(self, optimiser: torch.optim.Optimizer, progress: float) -> float:
        """Set the learning rates for `progress` in [0, 1); returns that of the weights."""
        factor = look_up(SCHEDULES, self.schedule, "schedule").factor(progress)
        for group in optimiser.param_groups:
            group["lr"] = group["start"] * factor
        return self.learning_rate * factor
