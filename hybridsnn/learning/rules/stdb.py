"""STDB, the rule of the hybrid paper."""

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from hybridsnn.config import Choice
from hybridsnn.learning.rules.base import SURROGATE
from hybridsnn.learning.rules.through_time import BackPropagationThroughTime
from hybridsnn.surrogates import NEVER, SURROGATES, Surrogate


class STDB(BackPropagationThroughTime):
    """Spike timing dependent backpropagation (Rathi et al., ICLR 2020)."""

    summary: ClassVar[str] = (
        "spike timing dependent backpropagation: BPTT with a surrogate of the time since the last spike"
    )

    surrogate: Annotated[str, Choice(SURROGATES, "surrogate", lambda surrogate: not surrogate.needs_membrane)] = Field(
        "spike-time", description=SURROGATE
    )
    never_fired: int = Field(
        NEVER,
        ge=0,
        description="How many steps before the first a neuron that has not fired yet counts as having fired (hybrid "
        "paper: 1000, so that it hardly learns).",
    )

    @property
    def spike_derivative(self) -> Surrogate:
        return replace(super().spike_derivative, never=self.never_fired)
