"""STDB, the rule of the hybrid paper."""

from typing import Annotated, ClassVar

from pydantic import Field

from hybridsnn.config import Choice
from hybridsnn.learning.rules.base import SURROGATE
from hybridsnn.learning.rules.through_time import BackPropagationThroughTime
from hybridsnn.surrogates import SURROGATES


class STDB(BackPropagationThroughTime):
    """Spike timing dependent backpropagation (Rathi et al., ICLR 2020)."""

    summary: ClassVar[str] = (
        "spike timing dependent backpropagation: BPTT with a surrogate of the time since the last spike"
    )

    surrogate: Annotated[str, Choice(SURROGATES, "surrogate", lambda surrogate: not surrogate.needs_membrane)] = Field(
        "spike-time", description=SURROGATE
    )
