"""From a trained network to a spiking one: check, fold, replace, balance."""

import torch
from torch import Tensor, fx

from hybridsnn.conversion.activation_scales import apply_thresholds
from hybridsnn.conversion.balancers import BALANCERS, Balancer, Calibration
from hybridsnn.conversion.preparation import MAX_POOL_CHOICES
from hybridsnn.conversion.replacement import GRANULARITIES, for_measuring, spiking_body
from hybridsnn.neurons import SpikingNeuron

__all__ = [
    "BALANCERS",
    "GRANULARITIES",
    "MAX_POOL_CHOICES",
    "Balancer",
    "Calibration",
    "apply_thresholds",
    "balance",
    "set_constants",
    "spiking_body",
]


def balance(
    body: fx.GraphModule, balancer: Balancer, calibration: Calibration, threshold_scale: float = 1.0
) -> dict[str, Tensor]:
    """Find thresholds and put them, and the weights they imply, into a spiking body with the ANN's weights.

    Args:
        body: is changed in place.
        balancer: an entry of `BALANCERS` that measures thresholds.
        calibration: what thresholds are measured on.
        threshold_scale: a factor on all thresholds, below 1 to spike earlier at few time steps.

    Returns:
        The thresholds by the name of the neuron, as they are in the body now: scalar or `[channels]`, scalar too
        where all neurons of a layer have the same one each.
    """
    assert balancer.thresholds is not None  # else there is nothing to measure: see `set_constants`
    thresholds = balancer.thresholds(for_measuring(body), calibration)
    scaled = {name: threshold * threshold_scale for name, threshold in thresholds.items()}
    apply_thresholds(body, scaled, calibration.encoder.scale)
    return scaled


@torch.no_grad()
def set_constants(body: fx.GraphModule, threshold: float, leak: float = 1.0) -> None:
    """Give all neurons of a spiking body one threshold and leak; weights, biases and shortcuts stay as they are.

    Args:
        body: is changed in place.
        threshold: above 0.
        leak: in [0, 1]; 1 makes integrate-and-fire neurons.
    """
    for module in body.modules():
        if isinstance(module, SpikingNeuron):
            module.threshold.fill_(threshold)
            module.leak.fill_(leak)
