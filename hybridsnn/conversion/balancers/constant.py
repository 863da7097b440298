"""Thresholds that the user gives: for training from scratch."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import fx

from hybridsnn.conversion.balancers.base import Balancer
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.conversion.corrections.base import Correction
from hybridsnn.neurons import SpikingNeuron


class Constant(Balancer):
    """One threshold and leak for all neurons; weights, biases and shortcuts stay as they are."""

    summary: ClassVar[str] = "the number given; nothing is measured: for training from scratch"
    initial_potential: ClassVar[float] = 0.0

    threshold: float = Field(1.0, gt=0, description="The threshold of all neurons.")
    leak: float = Field(
        1.0, ge=0, le=1, description="What a membrane keeps from one time step to the next; 1: integrate-and-fire."
    )
    batch_norm: Literal["fold", "keep"] = Field(
        "fold", description="Fold batch norm into the synapses, or keep it in them."
    )

    @property
    def folds_batch_norm(self) -> bool:
        return self.batch_norm == "fold"

    @torch.no_grad()
    def set_thresholds(
        self, body: fx.GraphModule, draw: Callable[[int], Calibration], corrections: Sequence[Correction] = ()
    ) -> None:
        for module in body.modules():
            if isinstance(module, SpikingNeuron):
                module.threshold.fill_(self.threshold * self.threshold_scale)
                module.leak.fill_(self.leak)
