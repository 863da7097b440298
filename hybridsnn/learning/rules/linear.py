"""Back-propagation through time as the hybrid paper's code advises it where STDB becomes unstable."""

from typing import Annotated, ClassVar

from pydantic import Field

from hybridsnn.config import Choice
from hybridsnn.learning.rules.base import SURROGATE
from hybridsnn.learning.rules.through_time import BackPropagationThroughTime
from hybridsnn.surrogates import SURROGATES


class LinearBPTT(BackPropagationThroughTime):
    """BPTT with the linear surrogate of Bellec et al. (NeurIPS 2018)."""

    summary: ClassVar[str] = "BPTT with a triangular surrogate of the distance to the threshold"

    surrogate: Annotated[str, Choice(SURROGATES, "surrogate", lambda surrogate: surrogate.shape == "triangle")] = Field(
        "linear", description=SURROGATE
    )
