"""A layer's threshold follows from a percentile of the ANN's activations, which outliers do not move."""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, fx

from hybridsnn.conversion.activation_scales import thresholds_for_activations
from hybridsnn.conversion.balancers.analog import observe_activations
from hybridsnn.conversion.balancers.base import MeasuringBalancer
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.neurons import SpikingNeuron


class Percentile(MeasuringBalancer):
    """A percentile of the non-zero activations of the ANN (Rueckauer et al., 2017); nothing is simulated.

    The value that the given share of them does not exceed (nearest rank), exact: only the largest activations are
    kept, as many as can lie above it.
    """

    summary: ClassVar[str] = "a percentile of the ANN's non-zero activations, robust to outliers"

    percentile: float = Field(
        99.9, gt=0, le=100, description="Per cent of a layer's non-zero activations that do not exceed its threshold."
    )

    @torch.no_grad()
    def measure(self, body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
        share = self.percentile / 100
        images = len(calibration.images)
        kept: dict[str, Tensor] = {}  # the largest activations, descending, [groups, k]
        positive: dict[str, Tensor] = {}  # how many are above 0, [groups]
        per_channel = {
            name: module.threshold.dim() == 1
            for name, module in body.named_modules()
            if isinstance(module, SpikingNeuron)
        }

        def observe(name: str, activation: Tensor) -> None:
            rows = activation.transpose(0, 1).flatten(1) if per_channel[name] else activation.reshape(1, -1)
            limit = math.ceil((1 - share) * rows.shape[1] / len(activation) * images) + 1
            rows_so_far = torch.cat([kept[name], rows], 1) if name in kept else rows
            kept[name] = rows_so_far.topk(min(limit, rows_so_far.shape[1]), dim=1).values
            positive[name] = positive.get(name, 0) + (rows > 0).sum(1)

        observe_activations(body, calibration, observe)
        activations = {}
        for name, largest in kept.items():
            count = positive[name]
            # Ascending rank ceil(share * count), counted from the largest; the tolerance keeps 0.999 * 1000 at 999.
            place = count - torch.ceil(share * count.double() - 1e-9).long()
            chosen = largest.gather(1, place.clamp(0, largest.shape[1] - 1).unsqueeze(1)).squeeze(1)
            activations[name] = chosen if per_channel[name] else chosen[0]
            calibration.advance(name)
        return thresholds_for_activations(body, activations, calibration.encoder.scale)
