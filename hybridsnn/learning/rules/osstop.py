"""One-shot STOP."""

from typing import ClassVar

from hybridsnn.learning.rules.base import LearnsIfAsked
from hybridsnn.learning.rules.forward_traces import ForwardTraces


class OSSTOP(LearnsIfAsked, ForwardTraces):
    """STOP with one backward pass, from the readout at the last step."""

    summary: ClassVar[str] = "one-shot STOP: forward traces, and one backward pass at the last step"
    one_shot: ClassVar[bool] = True
