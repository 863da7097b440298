"""Synapses that learn in half precision, against PyTorch's own in double precision."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridsnn.kernels.synapse import patches
from hybridsnn.kernels.synapse.choice import transmit
from hybridsnn.kernels.synapse.half import HalfSynapse
from hybridsnn.kernels.synapse.learning_ways import learning_synapse

MODULES = {
    "pixels": (nn.Conv2d(5, 7, 3, padding=1), (6, 5, 2, 2)),
    "one pixel": (nn.Conv2d(5, 7, (3, 5), padding=(1, 2), bias=False), (6, 5, 1, 1)),
    "a line of pixels": (nn.Conv2d(5, 7, (1, 3), padding=(0, 1)), (6, 5, 1, 4)),
    "small, with a stride": (nn.Conv2d(5, 7, 3, padding=1, stride=2), (6, 5, 2, 2)),
    "small, in groups": (nn.Conv2d(6, 4, 3, padding=1, groups=2), (6, 6, 2, 2)),
    "small, without padding": (nn.Conv2d(5, 7, 2), (6, 5, 2, 2)),
    "pictures": (nn.Conv2d(5, 7, 3, padding=1), (2, 5, 6, 9)),
    "sound": (nn.Conv1d(5, 7, 3), (2, 5, 9)),
    "linear": (nn.Linear(20, 7), (9, 20)),
}


def exact(*size: int, seed: int) -> Tensor:
    """Numbers of few bits, whose products bfloat16 rounds only once summed."""
    return torch.randint(-8, 9, size, generator=torch.Generator().manual_seed(seed)).float() / 8


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_outputs_and_gradients_are_rounded_once(name: str, channels_last: bool) -> None:
    original, shape = MODULES[name]
    module: Any = deepcopy(original)
    values = exact(*shape, seed=0)
    for place, parameter in enumerate(module.parameters()):
        parameter.data = exact(*parameter.shape, seed=place + 1)
    if channels_last and values.dim() == 4:
        module, values = (
            module.to(memory_format=torch.channels_last),
            values.contiguous(memory_format=torch.channels_last),
        )
    true, inputs = deepcopy(module).double(), values.double().requires_grad_()
    outputs = true(inputs)
    error = exact(*outputs.shape, seed=9)
    outputs.backward(error.double())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        synapse = learning_synapse(module, values, many=True)
        found = synapse.forward(values)
        assert torch.equal(transmit(module, values), found)
    assert isinstance(synapse, HalfSynapse) and found.dtype == torch.bfloat16
    assert torch.equal(found, outputs.to(torch.bfloat16))
    for _ in range(2):
        passed = synapse.backward(error.bfloat16(), values, 1.0, True)
        assert passed is not None and torch.equal(passed, inputs.grad.to(torch.bfloat16))
    for parameter, expected in zip(module.parameters(), true.parameters(), strict=True):
        assert parameter.grad.dtype == torch.float32 and parameter.grad.stride() == parameter.stride()
        assert torch.equal(parameter.grad, 2 * expected.grad.to(torch.bfloat16).float())
    assert synapse.backward(error.bfloat16(), values, 1.0, False) is None


def test_few_pixels_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    convolution = patches.convolution
    monkeypatch.setattr(patches, "convolution", lambda *arguments: taken.append(1) or convolution(*arguments))
    for name, (module, shape) in MODULES.items():
        taken.clear()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            learning_synapse(module, torch.zeros(shape), many=True).forward(torch.zeros(shape))
            transmit(module, torch.zeros(shape))
        assert len(taken) == 2 * (name in ("pixels", "one pixel", "a line of pixels"))
