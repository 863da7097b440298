"""Learning rules for fine-tuning spiking networks, by name, and the loop that runs them."""

from collections.abc import Callable
from dataclasses import dataclass

from hybridsnn.learning.bptt import BackPropagation, BackPropagationThroughTime, LearningRule
from hybridsnn.learning.loop import Encode, fit, seed_of
from hybridsnn.learning.optimisation import OPTIMISERS, SCHEDULES, Optimisation, OwnRate
from hybridsnn.learning.stop import ForwardTraces
from hybridsnn.surrogates import Surrogate

__all__ = [
    "OPTIMISERS",
    "RULES",
    "SCHEDULES",
    "BackPropagation",
    "Encode",
    "LearningRule",
    "Optimisation",
    "Options",
    "OwnRate",
    "Rule",
    "fit",
    "seed_of",
]


@dataclass(frozen=True)
class Options:
    """What can be chosen about a learning rule.

    Attributes:
        backward_steps: how many steps have a backward pass; None: all.
        readout_loss: the loss of a step is that of the readout, not of what flows into it at the step.
        memory_budget: bytes for a training step, besides weights and their gradients; None: see the rule.
    """

    surrogate: Surrogate
    backward_steps: int | None = None
    readout_loss: bool = False
    memory_budget: int | None = None


@dataclass(frozen=True)
class Rule:
    """An entry of `RULES`: a learning rule for spiking networks.

    Attributes:
        build: gives the rule.
        surrogates: the names it can use; the first is its own.
        thresholds, leaks: whether it learns them; None: where it is asked to.
        some_steps: whether it can leave out the backward pass of some steps.
        loss_per_step: whether it has a loss at every step.
        keeps_spikes: whether it keeps those of the whole run, and so can be given a memory budget.
    """

    summary: str
    build: Callable[[Options], LearningRule]
    surrogates: tuple[str, ...]
    thresholds: bool | None = None
    leaks: bool | None = None
    some_steps: bool = False
    loss_per_step: bool = True
    keeps_spikes: bool = False


ONLINE = ("exponential", "triangle", "linear")


def _stop(parameters: str, *, thresholds: bool, leaks: bool) -> Rule:
    return Rule(
        f"STOP: {parameters} learn from forward traces, in memory that does not grow with time",
        lambda options: ForwardTraces(options.surrogate, readout_loss=options.readout_loss),
        ONLINE,
        thresholds=thresholds,
        leaks=leaks,
    )


RULES = {
    "stdb": Rule(
        "spike timing dependent backpropagation: BPTT with a surrogate of the time since the last spike",
        lambda options: BackPropagationThroughTime(options.surrogate, memory_budget=options.memory_budget),
        ("spike-time",),
        loss_per_step=False,
        keeps_spikes=True,
    ),
    "linear": Rule(
        "BPTT with a triangular surrogate of the distance to the threshold",
        lambda options: BackPropagationThroughTime(options.surrogate, memory_budget=options.memory_budget),
        ("linear",),
        loss_per_step=False,
        keeps_spikes=True,
    ),
    "stop-w": _stop("weights", thresholds=False, leaks=False),
    "stop-wt": _stop("weights and thresholds", thresholds=True, leaks=False),
    "stop-wl": _stop("weights and leaks", thresholds=False, leaks=True),
    "stop-wtl": _stop("weights, thresholds and leaks", thresholds=True, leaks=True),
    "osstop": Rule(
        "one-shot STOP: forward traces, and one backward pass at the last step",
        lambda options: ForwardTraces(options.surrogate, one_shot=True),
        ONLINE,
        loss_per_step=False,
    ),
    "stbp": Rule(
        "BPTT with a loss at every step and a detached reset: what STOP is compared with",
        lambda options: BackPropagationThroughTime(
            options.surrogate,
            per_step=True,
            readout_loss=options.readout_loss,
            memory_budget=options.memory_budget,
        ),
        (*ONLINE, "spike-time"),
        keeps_spikes=True,
    ),
    "ottt": Rule(
        "online training through time: the trace rule of stop-w with the triangular surrogate",
        lambda options: ForwardTraces(options.surrogate, readout_loss=options.readout_loss),
        ("triangle", "exponential", "linear"),
        thresholds=False,
        leaks=False,
    ),
    "sltt": Rule(
        "spatial learning through time: no traces, each step (or a few drawn ones) learns from itself alone",
        lambda options: ForwardTraces(
            options.surrogate, traces=False, backward_steps=options.backward_steps, readout_loss=options.readout_loss
        ),
        ("triangle", "exponential", "linear"),
        thresholds=False,
        leaks=False,
        some_steps=True,
    ),
}
