"""The way back through an average pool whose windows tile the picture."""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from hybridsnn.kernels.neuron.halves import array, number, stored
from hybridsnn.kernels.threads import over_ranges

VALUES = 2**17  # errors to read that are worth waking a thread for


def spread(error: Tensor, high: int, wide: int) -> Tensor:
    """Errors `[N, C, H, W]` of the outputs of windows of `high` by `wide` to those of the inputs, channels-last.

    Each input of a window gets its share: `[N, C, H * high, W * wide]`.
    """
    batch, channels, rows, columns = error.shape
    if error.device.type == "cpu" and error.dtype in (torch.float32, torch.float64, torch.bfloat16):
        lines = error.permute(0, 2, 3, 1).reshape(batch * rows, -1).contiguous()
        inputs = torch.empty(batch, rows * high, columns * wide, channels, dtype=error.dtype)
        smallest = max(1, VALUES // lines.shape[1])
        flat = array(inputs.view(batch * rows * high, -1))
        over_ranges(_spread, len(lines), smallest, array(lines), channels, high, wide, flat)
    else:
        share = (error / (high * wide)).permute(0, 2, 3, 1).reshape(batch, rows, 1, columns, 1, channels)
        inputs = share.expand(batch, rows, high, columns, wide, channels)
        inputs = inputs.reshape(batch, rows * high, columns * wide, channels).contiguous()
    return inputs.permute(0, 3, 1, 2)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _spread(begin: Any, end: Any, error: Any, channels: Any, high: Any, wide: Any, inputs: Any) -> None:
    """For lines of windows begin, begin + 1, ..., counted over all pictures."""
    window = np.float32(high * wide)
    for line in range(begin, end):
        above = inputs[line * high]
        for first in range(0, error.shape[1], channels):
            share, one = error[line, first : first + channels], above[first * wide : first * wide + channels]
            for i in range(channels):
                one[i] = stored(number(share[i]) / window, one)
            for pixel in range(1, wide):
                other = above[first * wide + pixel * channels : first * wide + (pixel + 1) * channels]
                for i in range(channels):
                    other[i] = one[i]
        for below in range(1, high):
            inputs[line * high + below] = above
