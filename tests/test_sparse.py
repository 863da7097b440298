"""Synapses that cost as much as there are spikes, against PyTorch's own in double precision."""

from collections.abc import Iterator
from itertools import product

import numba
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybridsnn.kernels.synapse import choice, costs, direct, event_driven_gradients, geometry, lists, vectors
from hybridsnn.kernels.synapse.event_driven import convolution, linear
from hybridsnn.kernels.synapse.event_driven_gradients import convolution_weight_gradient, linear_weight_gradient
from hybridsnn.kernels.synapse.geometry import Geometry, supports
from hybridsnn.kernels.synapse.lists import density
from hybridsnn.kernels.synapse.winograd_tiles import TILINGS

# batch, channels in, channels out, height, width
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 17, 20, 2, 2),
    (3, 70, 64, 5, 7),
    (2, 64, 65, 1, 9),
    (2, 200, 129, 4, 3),
    (1, 300, 64, 3, 3),
    (1, 5, 70, 20, 33),
]
MEMORY = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@pytest.fixture(autouse=True)
def uninitialised_memory_is_odd() -> Iterator[None]:
    """What `torch.empty` hands out is NaN or the largest integer, so that a value nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Threads that share even the smallest work."""
    monkeypatch.setattr(lists, "VALUES", 1)
    monkeypatch.setattr(geometry, "ADDITIONS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def spikes(*size: int, share: float = 0.2, seed: int = 0) -> Tensor:
    return (torch.rand(size, generator=torch.Generator().manual_seed(seed)) < share).float()


def sixteenths(*size: int, seed: int = 1) -> Tensor:
    return torch.randint(-32, 33, size, generator=torch.Generator().manual_seed(seed)) / 16


def noise(*size: int, seed: int = 2) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def torch_weight_gradient(inputs: Tensor, errors: Tensor, kernel: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    weight = torch.zeros(errors.shape[1], inputs.shape[1], *kernel, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(F.conv2d(inputs.double(), weight, padding=padding), weight, errors.double())
    return gradient


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert ours.dtype == torch.float32
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.usefixtures("threads")
def test_convolutions_of_spikes_are_exact() -> None:
    """Sums of sixteenths have no rounding, so every bit is known."""
    for shape, memory in product(SHAPES, MEMORY):
        batch, channels, outputs, height, width = shape
        inputs, weight, errors = (
            each.contiguous(memory_format=MEMORY[memory])
            for each in (
                spikes(batch, channels, height, width),
                sixteenths(outputs, channels, 3, 3),
                sixteenths(batch, outputs, height, width),
            )
        )
        bias, what = sixteenths(outputs), (shape, memory)
        expected = F.conv2d(inputs.double(), weight.double(), padding=1)
        assert torch.equal(convolution(inputs, weight).double(), expected), what
        ours = convolution(inputs, weight, bias)
        assert torch.equal(ours.double(), expected + bias.double()[:, None, None]), what
        assert ours.is_contiguous(memory_format=torch.channels_last), what
        gradient = convolution_weight_gradient(inputs, errors)
        assert torch.equal(gradient.double(), torch_weight_gradient(inputs, errors, (3, 3), (1, 1))), what
        assert gradient.is_contiguous(memory_format=torch.channels_last), what


@pytest.mark.usefixtures("threads")
def test_linear_layers_of_spikes_are_exact() -> None:
    for batch, channels, outputs in ((1, 1, 1), (3, 64, 64), (5, 130, 71), (2, 1300, 10)):
        inputs, weight, bias = spikes(batch, channels), sixteenths(outputs, channels), sixteenths(outputs)
        errors, before = sixteenths(batch, outputs), sixteenths(outputs, channels, seed=5)
        plain, what = F.linear(inputs.double(), weight.double()), (batch, channels, outputs)
        assert torch.equal(linear(inputs, weight).double(), plain), what
        assert torch.equal(linear(inputs, weight, bias).double(), plain + bias.double()), what
        expected = errors.double().t() @ inputs.double()
        assert torch.equal(linear_weight_gradient(inputs, errors).double(), expected), what
        total = before.clone()
        assert linear_weight_gradient(inputs, errors, into=total) is total
        assert torch.equal(total.double(), before.double() + expected), what


@pytest.mark.parametrize("rows", [1, 7, 40, 100])
def test_pieces_of_any_size(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However weights and images are cut to fit the cache."""
    inputs, weight, errors = spikes(3, 70, 6, 5), sixteenths(66, 70, 3, 3), sixteenths(3, 66, 6, 5)
    for module, name in ((geometry, "ROWS"), (event_driven_gradients, "ROWS"), (event_driven_gradients, "SUMS")):
        monkeypatch.setattr(module, name, rows)
    assert torch.equal(convolution(inputs, weight).double(), F.conv2d(inputs.double(), weight.double(), padding=1))
    expected = torch_weight_gradient(inputs, errors, (3, 3), (1, 1))
    assert torch.equal(convolution_weight_gradient(inputs, errors).double(), expected)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 3), (5, 1), (4, 4)])
def test_kernels_strides_and_padding(kernel: tuple[int, int]) -> None:
    for padding in ((0, 0), (1, 2), (3, 0), (6, 5)):
        inputs, weight = spikes(2, 9, 6, 7), sixteenths(10, 9, *kernel)
        for stride in ((1, 1), (2, 1), (3, 2), (4, 5)):
            expected = F.conv2d(inputs.double(), weight.double(), stride=stride, padding=padding)
            for way in (convolution, direct.convolution):
                ours = way(inputs, weight, None, stride, padding)
                assert torch.equal(ours.double(), expected), (way, padding, stride)
        errors = sixteenths(*F.conv2d(inputs, weight, padding=padding).shape)
        expected = torch_weight_gradient(inputs, errors, kernel, padding)
        assert torch.equal(convolution_weight_gradient(inputs, errors, padding).double(), expected), padding


@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 1.0])
def test_any_values(share: float) -> None:
    """Inputs need not be spikes: traces and averages of spikes are numbers of either sign."""
    inputs = spikes(2, 130, 6, 5, share=share) * noise(2, 130, 6, 5)
    weight, bias, errors = noise(70, 130, 3, 3), noise(70), noise(2, 70, 6, 5)
    expected = F.conv2d(inputs.double(), weight.double(), bias.double(), padding=1)
    assert_close(convolution(inputs, weight, bias), expected)
    assert_close(convolution_weight_gradient(inputs, errors), torch_weight_gradient(inputs, errors, (3, 3), (1, 1)))
    flat, flat_weight, flat_errors = inputs.flatten(1), noise(70, 3900), noise(2, 70)
    assert_close(linear(flat, flat_weight, bias), F.linear(flat.double(), flat_weight.double(), bias.double()))
    assert_close(linear_weight_gradient(flat, flat_errors), flat_errors.double().t() @ flat.double())


@pytest.mark.usefixtures("threads")
def test_no_bit_depends_on_how_a_batch_is_cut() -> None:
    inputs, weight = spikes(7, 130, 5, 4), noise(70, 130, 3, 3)
    whole = convolution(inputs, weight)
    for sizes in ([1] * 7, [3, 4], [6, 1]):
        assert torch.equal(torch.cat([convolution(few, weight) for few in inputs.split(sizes)]), whole)
    flat, flat_weight, errors = inputs.flatten(1), noise(70, 2600), noise(7, 70)
    outputs, gradient = linear(flat, flat_weight), linear_weight_gradient(flat, errors)
    for sizes in ([1] * 7, [3, 4], [6, 1]):
        assert torch.equal(torch.cat([linear(few, flat_weight) for few in flat.split(sizes)]), outputs)
        total = torch.zeros_like(gradient)
        for few, few_errors in zip(flat.split(sizes), errors.split(sizes), strict=True):
            linear_weight_gradient(few, few_errors, into=total)
        assert torch.equal(total, gradient)


def test_no_bit_depends_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weight, errors = spikes(5, 130, 5, 4), noise(140, 130, 3, 3), noise(5, 140, 5, 4)
    alone = convolution(inputs, weight), convolution_weight_gradient(inputs, errors)
    monkeypatch.setattr(lists, "VALUES", 1)
    monkeypatch.setattr(geometry, "ADDITIONS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together = convolution(inputs, weight), convolution_weight_gradient(inputs, errors)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_inputs_that_skip_memory() -> None:
    every = spikes(4, 40, 10, 9)
    some, weight, errors = every[::2, 1::3, :, ::2], sixteenths(20, 13, 3, 3), sixteenths(2, 20, 10, 9)[..., :5]
    assert torch.equal(convolution(some, weight), F.conv2d(some, weight, padding=1))
    expected = torch_weight_gradient(some, errors, (3, 3), (1, 1))
    assert torch.equal(convolution_weight_gradient(some, errors).double(), expected)
    assert density(some) == pytest.approx(some.mean().item())


def test_nothing_is_written_to_what_is_read_and_nothing_is_recorded() -> None:
    given = spikes(2, 17, 5, 4), noise(20, 17, 3, 3), noise(20), noise(2, 20, 5, 4)
    inputs, weight, bias, errors = (each.clone().requires_grad_() for each in given)
    assert not convolution(inputs, weight, bias).requires_grad
    assert not convolution_weight_gradient(inputs, errors).requires_grad
    assert all(torch.equal(now, before) for now, before in zip((inputs, weight, bias, errors), given, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.usefixtures("threads")
def test_density(share: float) -> None:
    for values in (spikes(3, 5, 7, 9, share=share), -spikes(1000, share=share), torch.zeros(0)):
        assert density(values) == values.count_nonzero() / max(1, values.numel())


def test_supports() -> None:
    inputs, weight = torch.empty(2, 6, 4, 4), torch.empty(8, 6, 3, 3)
    assert supports(inputs, weight)
    assert supports(inputs[..., 0, 0], weight[..., 0, 0])
    refused: dict[str, bool] = {
        "double precision": supports(inputs.double(), weight.double()),
        "half precision": supports(inputs.bfloat16(), weight),
        "another device": supports(inputs.to("meta"), weight.to("meta")),
        "one dimension": supports(inputs[0, 0], weight[0]),
        "sequences": supports(inputs[..., 0], weight[..., 0]),
        "a dilation": supports(inputs, weight, dilation=(1, 2)),
        "groups": supports(inputs, weight[:, :3], groups=2),
        "no images": supports(inputs[:0], weight),
    }
    assert not [what for what, answer in refused.items() if answer]


# channels in, channels out, side
LAYERS = [(64, 64, 32), (128, 128, 16), (256, 256, 8), (512, 512, 4)]


@pytest.mark.parametrize("layer", LAYERS)
def test_what_pays_in_convolutions(layer: tuple[int, ...]) -> None:
    channels, outputs, side = layer
    for batch in (1, 160):
        plan = choice.Plan.of(nn.Conv2d(channels, outputs, 3, padding=1), torch.empty(batch, channels, side, side))
        assert plan is not None
        assert plan.tiling is TILINGS[36]
        assert 0.04 <= plan.limit <= 0.3
    geometry = plan.frame._replace(batch=160)
    costs_of_gradient = [costs.event_driven_gradient(geometry, share / 100) for share in range(101)]
    assert costs_of_gradient == sorted(costs_of_gradient)
    assert 4 <= sum(cost < costs.dense_gradient(geometry, TILINGS[36]) for cost in costs_of_gradient) <= 60


def test_what_pays_in_linear_layers() -> None:
    plan = choice.Plan.of(nn.Linear(4096, 4096), torch.empty(1, 4096))
    assert plan is not None and plan.tiling is None
    assert plan.event_driven_pays(0.2, 256) and not plan.event_driven_pays(0.8, 256)


def test_tiny_images_are_not_tiled() -> None:
    """Most taps lie outside of them, where nothing is to be multiplied."""
    plan = choice.Plan.of(nn.Conv2d(64, 64, 3, padding=1), torch.empty(1, 64, 2, 2))
    assert plan is not None and plan.tiling is None


def test_taps_outside_of_an_image_cost_nothing() -> None:
    sizes = Geometry.of(torch.empty(1, 8, 2, 5), torch.empty(8, 8, 3, 3), (1, 2), (1, 1))
    assert sizes.taps_inside == int(F.conv2d(torch.ones(1, 1, 2, 5), torch.ones(1, 1, 3, 3), None, (1, 2), 1).sum())


def test_transpose() -> None:
    for rows, columns in ((1, 1), (8, 8), (7, 16), (17, 9), (24, 40)):
        source = np.random.default_rng(0).random((columns + 2, rows + 3), np.float32)
        target = np.zeros((rows + 1, columns + 5), np.float32)
        vectors.transpose(source.ravel(), rows + 3, rows + 3, target.ravel(), 2, columns + 5, rows, columns)
        assert np.array_equal(target[:rows, 2 : columns + 2], source[1 : columns + 1, :rows].T)
        assert np.count_nonzero(target) == rows * columns


def test_masks() -> None:
    @numba.njit
    def masks(values, at):  # type: ignore[no-untyped-def]
        mask = vectors.active(values, at)
        return mask, vectors.bits(mask), vectors.lowest(mask)

    values = np.zeros(100, np.float32)
    values[[9, 10, 20, 73, 74]] = 1, 2, -0.25, np.nan, 1
    values[30] = -0.0
    assert masks(values, 10) == (1 | 1 << 10 | 1 << 63, 3, 0)
    assert masks(values, 11) == (1 << 9 | 1 << 62 | 1 << 63, 3, 9)
