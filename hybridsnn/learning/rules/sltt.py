"""Spatial learning through time."""

from typing import ClassVar

import torch
from pydantic import Field

from hybridsnn.learning.rules.base import SURROGATE, LossAtEachStep, SurrogateOfDistance
from hybridsnn.learning.rules.forward_traces import ForwardTraces


class SLTT(LossAtEachStep, ForwardTraces):
    """Spatial learning through time (Meng et al., ICCV 2023): no trace, each step learns from itself alone."""

    summary: ClassVar[str] = (
        "spatial learning through time: no traces, each step (or a few drawn ones) learns from itself alone"
    )
    traces: ClassVar[bool] = False

    surrogate: SurrogateOfDistance = Field("triangle", description=SURROGATE)
    backward_steps: int | None = Field(
        None,
        gt=0,
        description="How many time steps, drawn anew for each batch, have a backward pass (SLTT-K); unset: all.",
    )

    def _learning_steps(self, timesteps: int) -> set[int]:
        if self.backward_steps is None or self.backward_steps >= timesteps:
            return super()._learning_steps(timesteps)
        return set(torch.randperm(timesteps)[: self.backward_steps].tolist())
