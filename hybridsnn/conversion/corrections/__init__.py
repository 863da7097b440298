"""What corrects a balanced layer, by name, one file each; a correction's fields are its options."""

from hybridsnn.conversion.corrections.base import Correction
from hybridsnn.conversion.corrections.bias import Bias
from hybridsnn.conversion.corrections.gradient_descent import GradientDescent
from hybridsnn.conversion.corrections.potential import Potential
from hybridsnn.conversion.corrections.weights import Weights

CORRECTIONS: dict[str, type[Correction]] = {
    "weights": Weights,
    "gradient-descent": GradientDescent,
    "bias": Bias,
    "potential": Potential,
}
