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
    "OwnRate",
    "Rule",
    "fit",
    "seed_of",
]


@dataclass(frozen=True)
class Rule:
    """An entry of `RULES`: a learning rule for spiking networks.

    Attributes:
        build: (surrogate, steps with a backward pass or None for all) to the rule.
        surrogates: the names it can use; the first is its own.
        thresholds, leaks: whether it learns them; None: where it is asked to.
        some_steps: whether it can leave out the backward pass of some steps.
    """

    summary: str
    build: Callable[[Surrogate, int | None], LearningRule]
    surrogates: tuple[str, ...]
    thresholds: bool | None = None
    leaks: bool | None = None
    some_steps: bool = False


ONLINE = ("exponential", "triangle", "linear")


def _stop(parameters: str, *, thresholds: bool, leaks: bool) -> Rule:
    return Rule(
        f"STOP: {parameters} learn from forward traces, in memory that does not grow with time",
        lambda surrogate, steps: ForwardTraces(surrogate),
        ONLINE,
        thresholds=thresholds,
        leaks=leaks,
    )


RULES = {
    "stdb": Rule(
        "spike timing dependent backpropagation: BPTT with a surrogate of the time since the last spike",
        lambda surrogate, steps: BackPropagationThroughTime(surrogate),
        ("spike-time",),
    ),
    "linear": Rule(
        "BPTT with a triangular surrogate of the distance to the threshold",
        lambda surrogate, steps: BackPropagationThroughTime(surrogate),
        ("linear",),
    ),
    "stop-w": _stop("weights", thresholds=False, leaks=False),
    "stop-wt": _stop("weights and thresholds", thresholds=True, leaks=False),
    "stop-wl": _stop("weights and leaks", thresholds=False, leaks=True),
    "stop-wtl": _stop("weights, thresholds and leaks", thresholds=True, leaks=True),
    "osstop": Rule(
        "one-shot STOP: forward traces, and one backward pass at the last step",
        lambda surrogate, steps: ForwardTraces(surrogate, one_shot=True),
        ONLINE,
    ),
    "stbp": Rule(
        "BPTT with a loss at every step and a detached reset: what STOP is compared with",
        lambda surrogate, steps: BackPropagationThroughTime(surrogate, per_step=True),
        (*ONLINE, "spike-time"),
    ),
    "ottt": Rule(
        "online training through time: the trace rule of stop-w with the triangular surrogate",
        lambda surrogate, steps: ForwardTraces(surrogate),
        ("triangle", "exponential", "linear"),
        thresholds=False,
        leaks=False,
    ),
    "sltt": Rule(
        "spatial learning through time: no traces, each step (or a few drawn ones) learns from itself alone",
        lambda surrogate, steps: ForwardTraces(surrogate, traces=False, backward_steps=steps),
        ("triangle", "exponential", "linear"),
        thresholds=False,
        leaks=False,
        some_steps=True,
    ),
}
