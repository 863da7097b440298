"""From a trained network to a spiking one: check, fold, replace, balance."""

import copy

from torch import Tensor, fx

from hybridsnn.conversion.balancers import BALANCERS, Balancer, Calibration
from hybridsnn.conversion.preparation import MAX_POOL_CHOICES
from hybridsnn.conversion.replacement import GRANULARITIES, spiking_body
from hybridsnn.conversion.scales import apply_thresholds

__all__ = [
    "BALANCERS",
    "GRANULARITIES",
    "MAX_POOL_CHOICES",
    "Balancer",
    "Calibration",
    "apply_thresholds",
    "balance",
    "spiking_body",
]


def balance(
    body: fx.GraphModule, balancer: Balancer, calibration: Calibration, threshold_scale: float = 1.0
) -> dict[str, Tensor]:
    """Find thresholds and put them, and the weights they imply, into a spiking body with the ANN's weights.

    Args:
        body: is changed in place.
        balancer: an entry of `BALANCERS`.
        calibration: what thresholds are measured on.
        threshold_scale: a factor on all thresholds, below 1 to spike earlier at few time steps.

    Returns:
        The thresholds by the name of the neuron, as they are in the body now.
    """
    thresholds = balancer.thresholds(copy.deepcopy(body), calibration)
    scaled = {name: threshold * threshold_scale for name, threshold in thresholds.items()}
    apply_thresholds(body, scaled, calibration.encoder.scale)
    return scaled
