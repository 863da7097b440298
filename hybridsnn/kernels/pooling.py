"""Average pools whose windows tile the image: of spikes that are kept as bits, and of errors on the way back."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.neuron.halves import array, number, stored
from hybridsnn.kernels.threads import over_ranges

VALUES = 2**17  # to read that are worth waking a thread for


def window_of(pool: Any, inputs: torch.Size, outputs: torch.Size) -> tuple[int, int] | None:
    """The window of an average pool, `[C, H, W]` to `[C, H, W]`; None if windows overlap or do not tile the image."""
    high, wide = (pool.kernel_size,) * 2 if isinstance(pool.kernel_size, int) else pool.kernel_size
    plain = pool.stride in (pool.kernel_size, (high, wide)) and pool.padding in (0, (0, 0))
    whole = len(outputs) == 3 and tuple(inputs) == (outputs[0], outputs[1] * high, outputs[2] * wide)
    return (high, wide) if plain and whole and pool.divisor_override is None else None


def of_bits(bits: Tensor, steps: int, dtype: torch.dtype, high: int, wide: int) -> Tensor | None:
    """The means of windows of `high` by `wide` spikes, `[steps, B, C, H / high, W / wide]`, channels-last.

    None if bits lie otherwise, or nothing is compiled for their device and type.

    Args:
        bits: of spikes `[steps, B, C, H, W]`, see `hybridsnn.kernels.neuron.Kernel`.
        steps, dtype: how many there are, and the type of the means.
        high, wide: of a window; divisors of H and W.
    """
    words, batch, channels, rows, columns = bits.shape
    lines = bits.permute(0, 1, 3, 4, 2)
    if not (_is_compiled(bits.device, dtype) and lines.is_contiguous()):
        return None
    means = torch.empty(steps, batch, rows // high, columns // wide, channels, dtype=dtype)
    number_of_lines = batch * (rows // high)
    flat = array(means.view(steps, number_of_lines, -1))
    smallest = max(1, VALUES // (steps * high * columns * channels))
    size = (np.float64 if dtype == torch.float64 else np.float32)(high * wide)
    packed = lines.reshape(words, batch * rows, -1).numpy()
    over_ranges(_means, number_of_lines, smallest, packed, channels, high, wide, size, flat)
    return means.permute(0, 1, 4, 2, 3)


def _is_compiled(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cpu" and dtype in (torch.float32, torch.float64, torch.bfloat16)


def spread(error: Tensor, high: int, wide: int) -> Tensor:
    """Errors `[N, C, H, W]` of the outputs of windows of `high` by `wide` to those of the inputs, channels-last.

    Each input of a window gets its share: `[N, C, H * high, W * wide]`.
    """
    batch, channels, rows, columns = error.shape
    if _is_compiled(error.device, error.dtype):
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


@compiled(nogil=True, error_model="numpy")
def _spread(begin: Any, end: Any, error: Any, channels: Any, high: Any, wide: Any, inputs: Any) -> None:
    """For lines of windows begin, begin + 1, ..., counted over all images."""
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


@compiled(nogil=True, error_model="numpy")
def _means(begin: Any, end: Any, bits: Any, channels: Any, high: Any, wide: Any, window: Any, means: Any) -> None:
    """For lines of windows begin, begin + 1, ..., counted over all images."""
    counts = np.empty(means.shape[2] * wide, np.uint8)
    for line in range(begin, end):
        for t in range(means.shape[0]):
            word, shift, one = bits[t >> 3], np.uint8(t & 7), np.uint8(1)
            counts[:] = 0
            for below in range(high):
                source = word[line * high + below]
                for i in range(counts.size):
                    counts[i] += (source[i] >> shift) & one
            for first in range(0, means.shape[2], channels):
                some = counts[first * wide : (first + channels) * wide]
                mean = means[t, line, first : first + channels]
                for pixel in range(1, wide):
                    other = some[pixel * channels : (pixel + 1) * channels]
                    for i in range(channels):
                        some[i] += other[i]
                for i in range(channels):
                    mean[i] = stored(some[i] / window, mean)
