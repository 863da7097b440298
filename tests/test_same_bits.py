"""No bit of a result in float32 depends on the other frames, on their order, on chunks of time, or on threads."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridsnn.conversion import spiking_body
from hybridsnn.encoders import Encoder
from hybridsnn.kernels.synapse import choice, direct, event_driven, geometry, lists, winograd
from hybridsnn.kernels.synapse.choice import Plan, transmit
from hybridsnn.model import SpikingModel
from hybridsnn.networks import NetworkSpec

FRAMES = 9

# A layer, and the shape of its inputs.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "first": (lambda: nn.Conv2d(3, 64, 3, padding=1), (3, 9, 8)),
    "narrow": (lambda: nn.Conv2d(16, 16, 3, padding=1), (16, 7, 5)),
    "tiled": (lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 8, 9)),
    "tiled, uneven": (lambda: nn.Conv2d(66, 150, 3, padding=1, bias=False), (66, 5, 6)),
    "tiny images": (lambda: nn.Conv2d(70, 130, 3, padding=1), (70, 2, 2)),
    "stride": (lambda: nn.Conv2d(20, 40, 3, stride=2, padding=1), (20, 9, 9)),
    "shortcut": (lambda: nn.Conv2d(32, 70, 1, stride=2, bias=False), (32, 8, 7)),
    "large kernel": (lambda: nn.Conv2d(5, 33, (5, 3), stride=(1, 2), padding=(3, 0)), (5, 6, 9)),
    "many channels": (lambda: nn.Conv2d(700, 20, 3, padding=1), (700, 3, 4)),
    "linear": (lambda: nn.Linear(1300, 70), (1300,)),
    "linear, narrow": (lambda: nn.Linear(600, 10, bias=False), (600,)),
}


def frames_of(kind: str, shape: tuple[int, ...]) -> Tensor:
    random = torch.Generator().manual_seed(1)
    noise = torch.rand(FRAMES, *shape, generator=random)
    shares = torch.linspace(0, 0.6, FRAMES).view(-1, *[1] * len(shape))  # some frames for either kernel
    if kind == "spikes":
        return (noise < shares).float()
    if kind == "averages":
        return (4 * noise * (noise < shares)).ceil() / 4
    if kind == "signs":
        return (noise < shares).float() * torch.randn(noise.shape, generator=random).sign()
    return torch.randn(noise.shape, generator=random)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Threads that share even the smallest work."""
    for module, name in ((lists, "VALUES"), (geometry, "ADDITIONS"), (winograd, "THREAD")):
        monkeypatch.setattr(module, name, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["spikes", "averages", "signs", "noise"])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_frame_alone_and_among_others(name: str, kind: str, threads: int) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, frames = build(), frames_of(kind, shape)
    whole = transmit(layer, frames)
    expected = layer.double()(frames.double())
    layer.float()
    assert (whole - expected).abs().max() <= 1e-5 * expected.abs().max()
    for sizes in ([1] * FRAMES, [2, 7]):
        assert torch.equal(torch.cat([transmit(layer, few) for few in frames.split(sizes)]), whole)
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(2))
    assert torch.equal(transmit(layer, frames[order]), whole[order])


@pytest.mark.parametrize("kind", ["spikes", "averages", "signs", "noise"])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_what_adds_nothing_may_be_left_out(name: str, kind: str) -> None:
    """So that time alone decides between the two ways."""
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer: Any = build()
    frames = frames_of(kind, shape)
    if isinstance(layer, nn.Linear):
        both = [way.linear(frames, layer.weight, layer.bias) for way in (direct, event_driven)]
    else:
        sizes = layer.stride, layer.padding
        both = [way.convolution(frames, layer.weight, layer.bias, *sizes) for way in (direct, event_driven)]
    assert torch.equal(*both)


def test_tiles_are_for_frames_that_are_dense() -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1)
    plans = [Plan.of(layer, torch.empty(batch, 64, 8, 8)) for batch in (1, 500)]
    assert plans[0] == plans[1]
    assert plans[0] is not None and plans[0].tiling is not None
    assert 0 < plans[0].limit < 0.6, "some of the frames above go this way, some that way"


def doubled(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return 2 * output


def halved(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0] / 2


class Negative(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return -super().forward(input)


@torch.no_grad()
def test_modules_that_are_more_than_their_weights_run_themselves() -> None:
    frames = frames_of("spikes", (64, 6, 6))
    for hook in (nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook):
        layer = nn.Conv2d(64, 64, 3, padding=1)
        plain = transmit(layer, frames)
        handle = hook(layer, doubled if hook is nn.Module.register_forward_hook else halved)  # type: ignore[operator]
        assert choice.Plan.of(layer, frames) is None
        assert torch.equal(transmit(layer, frames), layer(frames))
        assert not torch.allclose(transmit(layer, frames), plain)
        handle.remove()
        assert torch.equal(transmit(layer, frames), plain)
    layer = Negative(64, 3)
    assert torch.equal(transmit(layer, frames[..., 0, 0]), layer(frames[..., 0, 0]))


@pytest.mark.parametrize("name", ["vgg5", "resnet20"])
@torch.no_grad()
def test_networks_at_full_width(name: str) -> None:
    """Outputs and every neuron's spikes, with real weights."""
    torch.manual_seed(0)
    body = spiking_body(NetworkSpec(name, (3, 32, 32), 10, dropout=0.0).build().eval(), (3, 32, 32))
    model = SpikingModel(body, Encoder("poisson")).to(memory_format=torch.channels_last).eval()
    for neurons in model.neurons.values():
        neurons.threshold.fill_(0.4)
    batch, steps = 3, 4
    frames = model.encoder(2 * torch.rand(batch, 3, 32, 32) - 1, torch.arange(batch), steps)

    def run(some: slice, chunk: int) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        state = None
        for start in range(0, steps, chunk):
            outputs, state = model(
                frames[start : start + chunk, some],
                state,
                observe=lambda layer, spikes: parts.setdefault(layer, []).append(spikes),
            )
            parts.setdefault("outputs", []).append(outputs)
        return {layer: torch.cat(values) for layer, values in parts.items()}

    whole = run(slice(None), steps)
    assert all(values.any() for values in whole.values())
    for first in range(batch):
        alone = run(slice(first, first + 1), 1 if first else 3)
        different = [
            layer for layer, values in whole.items() if not torch.equal(values[:, first : first + 1], alone[layer])
        ]
        assert not different
