"""What sets thresholds, by name, one file each; a balancer's fields are its options."""

from hybridsnn.conversion.balancers.activation_maximum import ActivationMaximum
from hybridsnn.conversion.balancers.automatic import Automatic
from hybridsnn.conversion.balancers.base import Balancer
from hybridsnn.conversion.balancers.constant import Constant
from hybridsnn.conversion.balancers.lloyd import Lloyd
from hybridsnn.conversion.balancers.local_threshold import LocalThreshold
from hybridsnn.conversion.balancers.maximum_current import MaximumCurrent
from hybridsnn.conversion.balancers.mean_squared_error import MeanSquaredError
from hybridsnn.conversion.balancers.percentile import Percentile
from hybridsnn.conversion.balancers.qcfs import LearnedCeilings

BALANCERS: dict[str, type[Balancer]] = {
    "max": MaximumCurrent,
    "activation-max": ActivationMaximum,
    "percentile": Percentile,
    "mmse": MeanSquaredError,
    "lloyd": Lloyd,
    "ltb": LocalThreshold,
    "qcfs": LearnedCeilings,
    "constant": Constant,
    "auto": Automatic,
}
