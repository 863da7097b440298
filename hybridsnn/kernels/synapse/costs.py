"""What synapses that cost as much as there are spikes take, and the dense ways: when to use which."""

from torch import Tensor

from hybridsnn.kernels.synapse import winograd
from hybridsnn.kernels.synapse.event_driven import Bands, Geometry, Pair, Parts
from hybridsnn.kernels.synapse.vectors import WIDTH

# Nanoseconds of a thread of an AVX2 machine; only their ratios matter. Fitted to layers of 64 to 8192 channels with
# 2 to 35 % spikes, of which they predict most within a sixth.
LIST_INPUT, COPY_WEIGHT, START_LIST, ADD = 0.45, 0.67, 7.2, 0.051  # outputs
LIST_INPUT_TOO, COPY_WEIGHT_TOO, START_LIST_TOO, ADD_TOO = 0.8, 0.65, 19.0, 0.046  # gradients of weights
MULTIPLY, CONVOLVE, CORRELATE = 0.024, 0.020, 0.029  # dense: linear layers, convolutions, their gradients
TRANSFORM, FILTER = 0.45, 0.028  # minimal filtering: a value of a transformed tile, a multiplication


def pays(share: float, inputs: Tensor, weight: Tensor, stride: Pair = (1, 1), padding: Pair = (1, 1)) -> bool:
    """Whether `event_driven.convolution` or `event_driven.linear` is faster than the fastest dense way.

    Args:
        share: of the inputs that is not 0, see `event_driven.density`.
        inputs, weight: `[N, in, H, W]` and `[out, in, *, *]`, or `[N, in]` and `[out, in]`; only sizes count.
        stride, padding: of height and width, of a convolution.
    """
    geometry = Geometry.of(inputs, weight, stride, padding)
    lists = geometry.outputs * geometry.kernel_height * Parts.of(geometry).number * geometry.blocks
    additions = share * geometry.batch * geometry.channels * geometry.taps_inside * geometry.blocks * WIDTH
    cost = LIST_INPUT * inputs.numel() + COPY_WEIGHT * weight.numel() + START_LIST * lists + ADD * additions
    return cost < _dense_cost(inputs, weight, geometry, CONVOLVE)


def weight_gradient_pays(share: float, inputs: Tensor, weight: Tensor, padding: Pair = (1, 1)) -> bool:
    """The same for `event_driven.convolution_weight_gradient` and `event_driven.linear_weight_gradient`."""
    geometry = Geometry.of(inputs, weight, (1, 1), padding)
    lists = Bands.of(geometry).chunks * geometry.channels * geometry.taps * geometry.blocks
    additions = share * inputs.numel() * geometry.taps * geometry.blocks * WIDTH
    cost = (
        LIST_INPUT_TOO * inputs.numel()
        + COPY_WEIGHT_TOO * weight.numel()
        + START_LIST_TOO * lists
        + ADD_TOO * additions
    )
    return cost < _dense_cost(inputs, weight, geometry, CORRELATE)


def _dense_cost(inputs: Tensor, weight: Tensor, geometry: Geometry, direct: float) -> float:
    """What the faster of PyTorch and minimal filtering takes; `direct` is a multiplication of PyTorch's."""
    multiplications = geometry.outputs * weight.numel()
    if weight.dim() == 2:
        return MULTIPLY * multiplications
    steps = (geometry.stride_y, geometry.stride_x), (geometry.above, geometry.before)
    if not winograd.supports(inputs, weight, *steps):
        return direct * multiplications
    tiling = winograd.tiling_for(inputs)
    values = geometry.batch * tiling.tiles(geometry.height, geometry.width) * tiling.matrices
    ins, outs = geometry.channels, geometry.out_channels
    return min(direct * multiplications, values * (FILTER * ins * outs + TRANSFORM * (ins + outs)))
