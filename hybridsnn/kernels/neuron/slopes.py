"""The slopes of surrogate gradients in compiled loops: all kernels of the CPU have them from here."""

from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.neuron.exponential import exponential, sigmoid_slope

SHAPES = {"spike-time": 0, "triangle": 1, "exponential": 2, "sigmoid": 3}  # by the number that the loops know them by
SPIKE_TIME, TRIANGLE, EXPONENTIAL, SIGMOID = SHAPES.values()


@compiled(nogil=True, error_model="numpy")
def heights(level, height, relative, width, scale):  # type: ignore[no-untyped-def]
    """For neurons with thresholds `level`: the unit of distances, and the largest slope."""
    one = level.dtype.type(1)
    for i in range(level.size):
        width[i] = level[i] if relative else one
        scale[i] = height / width[i]


@compiled(nogil=True, error_model="numpy")
def slopes(shape, potential, level, width, scale, slope):  # type: ignore[no-untyped-def]
    """Write ds/dU at membranes before their reset, for the shapes that see the distance to the threshold."""
    zero, one = slope.dtype.type(0), slope.dtype.type(1)
    if shape == TRIANGLE:
        for i in range(slope.size):
            slope[i] = scale[i] * max(zero, one - abs(potential[i] - level[i]) / width[i])
    elif shape == EXPONENTIAL:
        for i in range(slope.size):
            slope[i] = scale[i] * exponential(-abs(potential[i] - level[i]) / width[i])
    elif shape == SIGMOID:
        for i in range(slope.size):
            slope[i] = scale[i] * sigmoid_slope(-abs(potential[i] - level[i]) / width[i], one)
    else:
        slope[:] = slope.dtype.type(float("nan"))  # a number without a formula must not pass for another's
