"""Learning rules for fine-tuning spiking networks, by name, and the loop that runs them."""

from dataclasses import dataclass

from hybridsnn.learning.bptt import BackPropagation, BackPropagationThroughTime, LearningRule
from hybridsnn.learning.loop import fit, seed_of
from hybridsnn.learning.optimisation import OPTIMISERS, SCHEDULES, Optimisation
from hybridsnn.surrogates import SURROGATES

__all__ = [
    "OPTIMISERS",
    "RULES",
    "SCHEDULES",
    "BackPropagation",
    "LearningRule",
    "Optimisation",
    "Rule",
    "fit",
    "seed_of",
]


@dataclass(frozen=True)
class Rule:
    """An entry of `RULES`: a learning rule for spiking networks."""

    summary: str
    rule: LearningRule


RULES = {
    "stdb": Rule(
        "spike timing dependent backpropagation: BPTT with a surrogate of the time since the last spike",
        BackPropagationThroughTime(SURROGATES["spike-time"]),
    ),
    "linear": Rule(
        "BPTT with a triangular surrogate of the distance to the threshold",
        BackPropagationThroughTime(SURROGATES["linear"]),
    ),
}
