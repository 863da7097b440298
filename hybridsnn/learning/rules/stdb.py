"""STDB, the rule of the hybrid paper."""

from dataclasses import replace
from typing import Annotated, ClassVar, Self

from pydantic import Field

from hybridsnn.config import Choice
from hybridsnn.learning.rules.base import SURROGATE
from hybridsnn.learning.rules.through_time import BackPropagationThroughTime
from hybridsnn.surrogates import NEVER, SURROGATES, Surrogate

FEW = 16  # time steps
RECENT = 100  # steps: exp(-1) of the slope of a neuron that has just fired


class STDB(BackPropagationThroughTime):
    """Spike timing dependent backpropagation (Rathi et al., ICLR 2020)."""

    summary: ClassVar[str] = (
        "spike timing dependent backpropagation: BPTT with a surrogate of the time since the last spike"
    )

    surrogate: Annotated[str, Choice(SURROGATES, "surrogate", lambda surrogate: not surrogate.needs_membrane)] = Field(
        "spike-time", description=SURROGATE
    )
    never_fired: int | None = Field(
        None,
        ge=0,
        description=f"How many steps before the first a neuron that has not fired yet counts as having fired. Unset: "
        f"{NEVER}, as in the hybrid paper, so that it hardly learns; {RECENT} up to T = {FEW}, where many never fire.",
    )

    def at(self, timesteps: int) -> Self:
        if self.never_fired is not None:
            return self
        return self.model_copy(update={"never_fired": RECENT if timesteps <= FEW else NEVER})

    @property
    def spike_derivative(self) -> Surrogate:
        return replace(super().spike_derivative, never=NEVER if self.never_fired is None else self.never_fired)
