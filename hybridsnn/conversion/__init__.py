"""From a trained network to a spiking one: check, fold, replace, balance."""

from hybridsnn.conversion.activation_scales import apply_thresholds, thresholds_for_activations
from hybridsnn.conversion.balancers import BALANCERS, ActivationMaximum, Balancer, Constant, MaximumCurrent, Percentile
from hybridsnn.conversion.balancers.analog import observe_activations
from hybridsnn.conversion.balancers.base import FittedBalancer, MeasuringBalancer
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.conversion.balancers.lloyd import nearest_ceilings
from hybridsnn.conversion.corrections import CORRECTIONS, Correction
from hybridsnn.conversion.preparation import MAX_POOL_CHOICES
from hybridsnn.conversion.proof import prove_preparation, prove_scales
from hybridsnn.conversion.replacement import GRANULARITIES, spiking_body

__all__ = [
    "BALANCERS",
    "CORRECTIONS",
    "GRANULARITIES",
    "MAX_POOL_CHOICES",
    "ActivationMaximum",
    "Balancer",
    "Calibration",
    "Constant",
    "Correction",
    "FittedBalancer",
    "MaximumCurrent",
    "MeasuringBalancer",
    "Percentile",
    "apply_thresholds",
    "nearest_ceilings",
    "observe_activations",
    "prove_preparation",
    "prove_scales",
    "spiking_body",
    "thresholds_for_activations",
]
