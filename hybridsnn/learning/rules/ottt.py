"""Online training through time."""

from typing import ClassVar

from pydantic import Field

from hybridsnn.learning.rules.base import SURROGATE, LossAtEachStep, SurrogateOfDistance
from hybridsnn.learning.rules.forward_traces import ForwardTraces


class OTTT(LossAtEachStep, ForwardTraces):
    """Online training through time (Xiao et al., NeurIPS 2022), with the triangular surrogate."""

    summary: ClassVar[str] = "online training through time: the trace rule of stop-w with the triangular surrogate"

    surrogate: SurrogateOfDistance = Field("triangle", description=SURROGATE)
