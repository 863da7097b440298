"""STOP: weights, thresholds and leaks learn from traces, one method for each choice of them."""

from typing import ClassVar

from hybridsnn.learning.rules.base import LossAtEachStep
from hybridsnn.learning.rules.forward_traces import ForwardTraces


class StopW(LossAtEachStep, ForwardTraces):
    """Spatiotemporal orthogonal propagation of weights."""

    summary: ClassVar[str] = "STOP: weights learn from forward traces, in memory that does not grow with time"


class StopWT(StopW):
    """Of weights and thresholds."""

    summary: ClassVar[str] = "STOP: weights and thresholds learn from forward traces"

    @property
    def learns_thresholds(self) -> bool:
        return True


class StopWL(StopW):
    """Of weights and leaks."""

    summary: ClassVar[str] = "STOP: weights and leaks learn from forward traces"

    @property
    def learns_leaks(self) -> bool:
        return True


class StopWTL(StopWT, StopWL):
    """Of weights, thresholds and leaks."""

    summary: ClassVar[str] = "STOP: weights, thresholds and leaks learn from forward traces"
