"""Convolutions by minimal filtering, against PyTorch's own in double precision."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hybridsnn.kernels.synapse import winograd
from hybridsnn.kernels.synapse.winograd import (
    TILINGS,
    Tiling,
    WeightGradient,
    forward,
    input_gradient,
    supports,
    tiling_for,
    transform_weight,
)

# batch, channels in, channels out, height, width
SHAPES = [
    (1, 16, 16, 1, 1),
    (2, 17, 20, 2, 2),
    (3, 20, 17, 3, 3),
    (4, 16, 40, 4, 4),
    (5, 33, 16, 5, 5),
    (2, 17, 17, 8, 8),
    (3, 24, 18, 7, 6),
    (2, 18, 24, 6, 7),
    (2, 16, 17, 1, 4),
    (2, 19, 16, 9, 9),
    (1, 17, 18, 12, 12),
    (2, 20, 17, 16, 16),
    (3, 16, 19, 7, 10),
    (2, 18, 16, 16, 9),
    (1, 512, 16, 8, 8),
    (1, 16, 512, 8, 8),
]
SMALL, LARGE = TILINGS[16], TILINGS[36]
BOTH = pytest.mark.parametrize("tiling", TILINGS.values(), ids=lambda each: f"tiles of {each.outputs}")
# Of the largest value. Spikes follow from the outputs, where 1e-5 would be too much; gradients may be off by 3e-5.
ERROR = {SMALL: 1e-6, LARGE: 4e-6}
MEMORY = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """What `torch.empty` hands out is NaN, so that a value nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads that share even the smallest work."""
    monkeypatch.setattr(winograd, "THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def tensors(shape: tuple[int, ...], memory: str, integers: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, weight, bias and the gradient of the outputs."""
    batch, channels, outputs, height, width = shape
    random = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        if integers:
            return torch.randint(-4, 5, size, generator=random).float()
        return torch.randn(size, generator=random)

    inputs, weight, errors = (
        draw(*size).contiguous(memory_format=MEMORY[memory])
        for size in ((batch, channels, height, width), (outputs, channels, 3, 3), (batch, outputs, height, width))
    )
    return inputs, weight, draw(outputs), errors


def torch_gradients(inputs: Tensor, weight: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    inputs, weight = inputs.double().requires_grad_(), weight.double().requires_grad_()
    of_inputs, of_weight = torch.autograd.grad(F.conv2d(inputs, weight, padding=1), (inputs, weight), errors.double())
    return of_inputs, of_weight


def assert_close(ours: Tensor, expected: Tensor, tiling: Tiling, what: object = "") -> None:
    assert ours.dtype == torch.float32, what
    assert ours.shape == expected.shape, what
    assert (ours - expected).abs().max() <= ERROR[tiling] * expected.abs().max(), what


def check(shape: tuple[int, ...], memory: str, tiling: Tiling) -> None:
    """Results are PyTorch's; pictures come channels-last, the gradient of the weight lies in memory as the weight."""
    what = shape, memory
    inputs, weight, bias, errors = tensors(shape, memory)
    transformed = transform_weight(weight, tiling)
    of_inputs, of_weight = torch_gradients(inputs, weight, errors)
    without_bias = F.conv2d(inputs.double(), weight.double(), padding=1)
    outputs, gradient = forward(inputs, transformed, bias), input_gradient(errors, transformed)
    assert_close(forward(inputs, transformed), without_bias, tiling, what)
    assert_close(outputs, without_bias + bias.double()[:, None, None], tiling, what)
    assert_close(gradient, of_inputs, tiling, what)
    apart, together = WeightGradient(weight, tiling), WeightGradient(weight, tiling)
    apart.add(inputs, errors)
    assert_close(apart.result(), of_weight, tiling, what)
    assert apart.result().stride() == weight.stride(), what
    passed = together.add_and_pass(inputs, errors, transformed)
    assert torch.equal(passed, gradient) and torch.equal(together.result(), apart.result()), what
    for pictures in (outputs, gradient, passed):
        assert pictures.is_contiguous(memory_format=torch.channels_last), what


@BOTH
def test_agrees_with_torch(tiling: Tiling) -> None:
    for shape, memory in product(SHAPES, MEMORY):
        check(shape, memory, tiling)


@BOTH
@pytest.mark.usefixtures("two_threads")
def test_on_two_threads(tiling: Tiling) -> None:
    for shape in SHAPES[:9]:
        check(shape, "channels-last", tiling)


@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_currents_of_spikes(density: float) -> None:
    """Inputs that are 0 or 1 do not cancel; their sums are as close as those of noise."""
    _, weight, _, _ = tensors((1, 512, 16, 8, 8), "channels-last")
    spikes = (torch.rand(2, 512, 8, 8, generator=torch.Generator().manual_seed(1)) < density).float()
    ours = forward(spikes, transform_weight(weight, LARGE))
    assert_close(ours, F.conv2d(spikes.double(), weight.double(), padding=1), LARGE)


@BOTH
@pytest.mark.parametrize(("most", "sizes"), [(0.5, [1] * 5), (1, [1] * 5), (2, [2, 2, 1]), (4.9, [3, 2]), (5, [5])])
def test_a_few_images_at_a_time(most: float, sizes: list[int], tiling: Tiling, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five images in chunks of some, as equal as they can be."""
    inputs, weight, bias, errors = tensors((5, 17, 20, 7, 6), "channels-last")
    transformed = transform_weight(weight, tiling)
    monkeypatch.setattr(winograd, "CHUNK", most * tiling.matrices * tiling.tiles(7, 6))
    chunks = winograd._chunks(tiling, inputs.permute(0, 2, 3, 1), errors.permute(0, 2, 3, 1))
    assert [[len(few) for few in each] for each in chunks] == [[size, size] for size in sizes]
    gradient = WeightGradient(weight, tiling)
    of_inputs, of_weight = torch_gradients(inputs, weight, errors)
    outputs = F.conv2d(inputs.double(), weight.double(), bias.double(), padding=1)
    assert_close(forward(inputs, transformed, bias), outputs, tiling)
    assert_close(input_gradient(errors, transformed), of_inputs, tiling)
    assert_close(gradient.add_and_pass(inputs, errors, transformed), of_inputs, tiling)
    assert_close(gradient.result(), of_weight, tiling)


def test_small_integers_are_exact() -> None:
    """With small tiles, every value on the way is a small multiple of a quarter, and float32 holds it."""
    for shape in SHAPES:
        inputs, weight, bias, errors = tensors(shape, "channels-last", integers=True)
        transformed = transform_weight(weight, SMALL)
        gradient = WeightGradient(weight, SMALL)
        gradient.add(inputs, errors)
        of_inputs, of_weight = torch_gradients(inputs, weight, errors)
        outputs = F.conv2d(inputs.double(), weight.double(), bias.double(), padding=1)
        assert torch.equal(forward(inputs, transformed, bias).double(), outputs), shape
        assert torch.equal(input_gradient(errors, transformed).double(), of_inputs), shape
        assert torch.equal(gradient.result().double(), of_weight), shape


@BOTH
def test_steps_add_up(tiling: Tiling) -> None:
    for shape in SHAPES:
        _, weight, _, _ = tensors(shape, "channels-last")
        gradient, expected = WeightGradient(weight, tiling), torch.zeros_like(weight, dtype=torch.float64)
        for step in range(1, 4):
            inputs, _, _, errors = tensors(shape, "channels-last")
            gradient.add(step * inputs, errors.roll(step, 0))
            expected += torch_gradients(step * inputs, weight, errors.roll(step, 0))[1]
            assert_close(gradient.result(), expected, tiling, shape)


@BOTH
def test_nothing_is_written_to_what_is_read(tiling: Tiling) -> None:
    given = tensors((2, 17, 20, 5, 4), "channels-last")
    inputs, weight, bias, errors = (each.clone() for each in given)
    transformed = transform_weight(weight, tiling)
    kept = transformed.clone()
    forward(inputs, transformed, bias)
    WeightGradient(weight, tiling).add_and_pass(inputs, errors, transformed)
    assert torch.equal(transformed, kept)
    assert all(torch.equal(now, before) for now, before in zip((inputs, weight, bias, errors), given, strict=True))


@BOTH
def test_parameters_that_require_gradients(tiling: Tiling) -> None:
    """The functions are for the inside of an `autograd.Function`; they record nothing themselves."""
    inputs, weight, bias, errors = (each.requires_grad_() for each in tensors((2, 16, 16, 3, 3), "channels-last"))
    transformed = transform_weight(weight, tiling)
    gradient = WeightGradient(weight, tiling)
    assert not forward(inputs, transformed, bias).requires_grad
    assert not gradient.add_and_pass(inputs, errors, transformed).requires_grad
    assert not gradient.result().requires_grad


def test_tiles_follow_from_the_image_alone() -> None:
    """Large ones, unless they are mostly empty; how many images there are must not matter."""
    for batch in (1, 128):
        sides = {side: tiling_for(torch.empty(batch, 64, side, side)).outputs for side in (1, 2, 3, 4, 5, 8, 9, 16, 32)}
        assert sides == {1: 2, 2: 2, 3: 4, 4: 4, 5: 2, 8: 4, 9: 4, 16: 4, 32: 4}


def test_supports() -> None:
    inputs, weight = torch.empty(2, 64, 4, 4), torch.empty(128, 64, 3, 3)
    assert supports(inputs, weight)
    assert supports(inputs, weight, (1, 1), (1, 1), (1, 1), 1)
    refused: dict[str, bool] = {
        "double precision": supports(inputs.double(), weight.double()),
        "half precision": supports(inputs.bfloat16(), weight),
        "another device": supports(inputs.to("meta"), weight.to("meta")),
        "a kernel of one": supports(inputs, weight[:, :, :1, :1]),
        "a flat kernel": supports(inputs, weight[:, :, :1]),
        "one dimension": supports(inputs[0], weight),
        "a stride": supports(inputs, weight, stride=(2, 1)),
        "no padding": supports(inputs, weight, padding=(0, 0)),
        "a dilation": supports(inputs, weight, dilation=(1, 2)),
        "groups": supports(inputs, weight[:, :32], groups=2),
        "three channels in": supports(inputs[:, :3], weight[:, :3]),
        "ten channels out": supports(inputs, weight[:10]),
        "no images": supports(inputs[:0], weight),
    }
    assert not [what for what, answer in refused.items() if answer]
