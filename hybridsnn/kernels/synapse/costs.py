"""What the ways through a synapse take, in nanoseconds of a thread; only the ratios matter.

Fitted on a CPU with AVX-512, to layers of 64 to 4096 channels with 2 to 35 % spikes. With AVX2 everything is slower,
and what is dense by a little more. There is one set of numbers all the same: whether minimal filtering runs, which
rounds unlike the other ways, must not depend on the machine more than it has to.
"""

from hybridsnn.kernels.synapse.event_driven_gradients import Bands
from hybridsnn.kernels.synapse.geometry import Geometry, Parts
from hybridsnn.kernels.synapse.winograd_tiles import Tiling

LIST_INPUT, START_LIST, ADD = 0.25, 8.0, 0.031  # event-driven
LIST_INPUT_TOO, COPY_WEIGHT_TOO, START_LIST_TOO, ADD_TOO = 0.6, 0.4, 12.0, 0.024  # event-driven gradients of weights
MULTIPLY, CORRELATE = 0.012, 0.012  # dense, directly; gradients of weights by a library
TRANSFORM, FILTER = 0.35, 0.0125  # minimal filtering: a value of a transformed tile, a multiplication


def event_driven(geometry: Geometry, share: float) -> float:
    """Of what `share` of the inputs is not 0."""
    lists = geometry.outputs * geometry.kernel_height * Parts.of(geometry).number * geometry.blocks
    inputs = geometry.batch * geometry.channels * geometry.height * geometry.width
    additions = share * geometry.batch * geometry.multiplications
    return LIST_INPUT * inputs + START_LIST * lists + ADD * additions


def direct(geometry: Geometry) -> float:
    """A dense convolution or linear layer."""
    return MULTIPLY * geometry.batch * geometry.multiplications


def winograd(geometry: Geometry, tiling: Tiling) -> float:
    """Minimal filtering."""
    values = geometry.batch * tiling.tiles(geometry.height, geometry.width) * tiling.matrices
    ins, outs = geometry.channels, geometry.out_channels
    return values * (FILTER * ins * outs + TRANSFORM * (ins + outs))


def limit(geometry: Geometry, dense: float) -> float:
    """The share of inputs that are not 0 up to which the event-driven way takes less than `dense`; 0 for never."""
    least = event_driven(geometry, 0.0)
    return max(0.0, (dense - least) / (event_driven(geometry, 1.0) - least))


def event_driven_gradient(geometry: Geometry, share: float) -> float:
    """The gradient of a weight, from inputs of which `share` is not 0."""
    inputs = geometry.batch * geometry.channels * geometry.height * geometry.width
    lists = Bands.of(geometry).chunks * geometry.channels * geometry.taps * geometry.blocks
    additions = share * inputs * geometry.taps * geometry.blocks * geometry.width_of_block
    weight = geometry.taps * geometry.channels * geometry.out_channels
    return LIST_INPUT_TOO * inputs + COPY_WEIGHT_TOO * weight + START_LIST_TOO * lists + ADD_TOO * additions


def dense_gradient(geometry: Geometry, tiling: Tiling | None) -> float:
    """The same by minimal filtering, or of a linear layer by a library."""
    if tiling is not None:
        return winograd(geometry, tiling)
    return CORRELATE * geometry.outputs * geometry.channels * geometry.out_channels
