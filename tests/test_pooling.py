"""Errors through an average pool, against automatic differentiation."""

import pytest
import torch
from torch.nn import functional

from hybridsnn.kernels.pooling import spread


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
