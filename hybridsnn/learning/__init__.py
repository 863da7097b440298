"""Learning rules for training networks, by name, and the loop that runs them."""

from hybridsnn.learning.loop import Encode, Targets, fit, seed_of
from hybridsnn.learning.optimisation import OPTIMISERS, SCHEDULES, Optimisation, OwnRate
from hybridsnn.learning.rules import RULES
from hybridsnn.learning.rules.backpropagation import BackPropagation
from hybridsnn.learning.rules.base import LearningRule

__all__ = [
    "OPTIMISERS",
    "RULES",
    "SCHEDULES",
    "BackPropagation",
    "Encode",
    "LearningRule",
    "Optimisation",
    "OwnRate",
    "Targets",
    "fit",
    "seed_of",
]
