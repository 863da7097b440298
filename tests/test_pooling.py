"""Average pools of bits, and errors on their way back, against PyTorch's own."""

import pytest
import torch
from torch.nn import functional

from hybridsnn.kernels.neuron import reference
from hybridsnn.kernels.pooling import of_bits, spread


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [(1, 1), (2, 2), (2, 3), (5, 1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_errors_are_shared_by_a_window(window: tuple[int, int], dtype: torch.dtype, channels_last: bool) -> None:
    for batch, channels, rows, columns in ((1, 1, 1, 1), (3, 7, 4, 5), (2, 64, 2, 3)):
        error = torch.randn(batch, channels, rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype)
        if channels_last:
            error = error.contiguous(memory_format=torch.channels_last)
        inputs = torch.zeros(batch, channels, rows * window[0], columns * window[1], dtype=torch.float64)
        outputs = functional.avg_pool2d(inputs.requires_grad_(), window)
        (expected,) = torch.autograd.grad(outputs, inputs, error.double())
        found = spread(error, *window)
        assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, expected.float().to(dtype) if dtype != torch.float64 else expected)


@pytest.mark.parametrize("threads", [2, 3])
def test_on_several_threads(threads: int) -> None:
    error = torch.randn(9, 64, 31, 17, generator=torch.Generator().manual_seed(0))
    expected, before = spread(error, 2, 2), torch.get_num_threads()
    torch.set_num_threads(threads)
    found = spread(error, 2, 2)
    torch.set_num_threads(before)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [(1, 1), (2, 2), (3, 2), (6, 4), (1, 4)])
@pytest.mark.parametrize("threads", [1, 2])
def test_means_of_bits_are_those_of_spikes(window: tuple[int, int], dtype: torch.dtype, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for steps, batch, channels in ((1, 1, 1), (11, 3, 5), (8, 2, 64), (25, 4, 70)):
        random = torch.Generator().manual_seed(steps)
        bits = torch.randint(256, ((steps + 7) // 8, batch, 6, 12, channels), generator=random, dtype=torch.uint8)
        bits = bits.permute(0, 1, 4, 2, 3)
        spikes = reference.unpack(bits, steps, dtype)
        found = of_bits(bits, steps, dtype, *window)
        assert found is not None and found.dtype == dtype
        assert found.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found.flatten(0, 1), functional.avg_pool2d(spikes.flatten(0, 1), window))
    torch.set_num_threads(before)


def test_other_bits_are_left_to_others() -> None:
    bits = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8)
    assert of_bits(bits, 5, torch.float32, 2, 2) is None  # not channels-last
    last = bits.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert of_bits(last, 5, torch.float16, 2, 2) is None
    assert of_bits(last, 5, torch.float32, 2, 2) is not None
