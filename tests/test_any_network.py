"""Networks written in all ways that PyTorch allows: what converts is right in every layer, what does not is refused."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from toy_networks import CLASSES, SHAPE, pictures, seeded

from hybridsnn.conversion import (
    BALANCERS,
    GRANULARITIES,
    Calibration,
    MeasuringBalancer,
    apply_thresholds,
    prove_preparation,
    prove_scales,
    spiking_body,
)
from hybridsnn.conversion.preparation import prepare
from hybridsnn.encoders import Encoder
from hybridsnn.errors import ConversionError
from hybridsnn.model import SpikingModel
from hybridsnn.program.gradients import Automatic, Bits
from hybridsnn.surrogates import SURROGATES

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import supported

Forward = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    """Layers to choose from, and a forward of one's own."""

    def __init__(self, forward: Forward, **modules: nn.Module):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.third, self.strided = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.head, self.narrow, self.line = nn.Linear(256, CLASSES), nn.Linear(4, CLASSES), nn.Linear(64, 12)
        self.norm, self.norm_of_line, self.norm_of_input = nn.BatchNorm2d(4), nn.BatchNorm1d(4), nn.BatchNorm2d(2)
        self.act, self.in_place, self.six, self.pool = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.AvgPool2d(2)
        self.hard = nn.Hardtanh(0.0, 0.75, inplace=True)
        self.max, self.max_line = nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1)
        self.body = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, images: Tensor, unused: int = 3, flag: bool | None = None) -> Any:
        return self.body(self, images)


def tied(net: Any) -> Any:
    net.second.weight, net.twin.bias = net.twin.weight, net.second.bias
    return net


def aliased(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    z = functional.relu_(y)
    return net.head((net.second(z) + y).relu().flatten(1))


def bare_statements(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    net.in_place(y)
    y = net.second(y)
    y.relu_()
    z = net.first(x).relu()
    y.add_(z)
    net.act(y)  # not in place: changes nothing
    return net.head(y.flatten(1))


def kept(net: Any, x: Tensor) -> Tensor:
    y = net.act(net.first(x))
    keep = y
    y += net.act(net.second(y))
    return net.head((net.act(net.second(keep)) + y).flatten(1))


def through_views(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    z = y.flatten(1)
    z.relu_()
    return net.head(z)


def matrix_of_tokens(net: Any, x: Tensor) -> Tensor:
    """Tokens are the rows of an image's channels."""
    return net.narrow(net.act(net.line(net.act(net.first(x)).flatten(2))).mean(-1))


def turned(net: Any, x: Tensor) -> Tensor:
    return net.narrow(torch.relu(functional.linear(x.flatten(2).mT, net.first.weight[:, :, 1, 1])).mean(1))


def dense(net: Any, x: Tensor) -> Tensor:
    one = net.act(net.first(x))
    two = net.act(net.second(one))
    three = net.act(net.wide(torch.cat([one, two], 1)))
    return net.head(net.act(net.third(torch.cat((two, three), dim=1))).flatten(1))


def normed_pile(net: Any, x: Tensor) -> Tensor:
    one = net.act(net.first(x))
    pile = torch.cat([one, net.second(one)], 1)
    return net.head(net.third(net.act(net.pile_norm(pile))).relu().flatten(1))


def shuffled(net: Any, x: Tensor) -> Tensor:
    one, two = net.act(net.third(net.act(net.wide8(x)))).chunk(2, dim=1)
    y = torch.cat([one, net.act(net.pair(two))], 1)
    batch, channels, height, width = y.shape
    y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)
    return net.head(net.act(net.second(y)).flatten(1))


def arithmetic(net: Any, x: Tensor) -> Tensor:
    y = net.act(net.first(x * 2 - 0.5) * 0.5 + 1)
    z = net.act((1 - net.second(y)) / 3)
    y = sum([y, z, -z * 0.25, torch.sub(z, y, alpha=0.5)])
    return net.head(net.act(torch.add(net.second(y), other=y, alpha=0.5)).flatten(1)) - 0.25


def scaled_channels(net: Any, x: Tensor) -> Tensor:
    y = net.act(net.first(x) * net.gamma + net.beta)
    return net.head((net.gamma * y).flatten(1)) * net.temperature


def asks_for_shapes(net: Any, x: Tensor) -> Tensor:
    if x.shape[-1] < 4 or x.dim() != 4 or x.size(1) != 2 or len(x) < 1:
        raise ValueError("too small")
    y = net.act(net.first(x))
    height, width = y.shape[2:]
    if height % 2 == 0:
        y = functional.avg_pool2d(y, (height // 4, width // 4), padding=0)
    return net.narrow(functional.adaptive_avg_pool2d(y, (1, 1)).squeeze(-1).squeeze(2))


def laid_out(net: Any, x: Tensor) -> Tensor:
    y = net.act(net.first(nn.functional.pad(x, (1, 1, 0, 2)))).permute(0, 2, 3, 1)[:, :8, 1:-1]
    y = y.movedim(3, 1) if False else y.permute(0, 3, 1, 2).flip(2).unsqueeze(2).squeeze(2)
    return net.head(net.act(net.second(net.zeros(y)[:, :, 1:, :-1])).reshape(-1, 256))


def resized(net: Any, x: Tensor) -> Tensor:
    y = functional.interpolate(net.act(net.first(x)), scale_factor=2.0)
    y = functional.interpolate(net.act(net.second(y)), size=(8, 8), mode="bilinear", align_corners=False)
    return net.head(net.act(net.second(y)).flatten(1))


def summed(net: Any, x: Tensor) -> Tensor:
    return net.narrow(net.act(net.second(net.act(net.first(x)))).sum((-2, -1)) / 64)


def channel_mean(net: Any, x: Tensor) -> Tensor:
    return net.line(net.act(net.first(x)).mean(1).flatten(1)).relu()[:, :CLASSES]


def clipped(net: Any, x: Tensor) -> Tensor:
    y = net.six(net.first(x) * 6)
    y = net.hard(net.second(y))
    y = functional.relu6(net.second(y)) + net.first(x).clamp(0, 0.5) + functional.hardtanh(y, 0, 1.5)
    return net.head(torch.clamp(net.second(y), min=0).flatten(1))


def residual(net: Any, x: Tensor) -> Tensor:
    y = net.act(net.first(x))
    return net.head(net.act(net.second(net.act(net.second(y))) + y).flatten(1))


def pool_then_sum(net: Any, x: Tensor) -> Tensor:
    y = net.act(net.first(x))
    return net.head(functional.pad(net.pool(net.second(y)) + net.pool(y), (0, 4, 4, 0)).relu().flatten(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ends in a ReLU": lambda: Net(lambda net, x: net.act(net.head(net.act(net.first(x)).flatten(1)))),
    "repeated over space": lambda: Net(lambda net, x: net.head(
        net.act(net.second(y := net.act(net.first(x))) + y.mean((2, 3), keepdim=True)).flatten(1))),
    "ends in channels": lambda: Net(lambda net, x: net.act(net.first(x)).mean((2, 3))),
    **{f.__name__: (lambda f=f: Net(f)) for f in (aliased, bare_statements, kept, through_views, matrix_of_tokens,
       turned, arithmetic, asks_for_shapes, resized, summed, channel_mean, clipped, residual, pool_then_sum)},
    "dense": lambda: Net(dense, wide=nn.Conv2d(8, 4, 1)),
    "normed pile": lambda: Net(normed_pile, pile_norm=nn.BatchNorm2d(8)),
    "shuffled": lambda: Net(shuffled, wide8=nn.Conv2d(2, 8, 1), pair=nn.Conv2d(2, 2, 3, padding=1)),
    "scaled channels": lambda: Net(scaled_channels, gamma=nn.Parameter(torch.linspace(0.5, -1.5, 4).view(4, 1, 1)),
                                   beta=nn.Parameter(torch.linspace(0, 1, 4).view(1, 4, 1, 1)),
                                   temperature=nn.Parameter(torch.tensor(0.7))),
    "laid out": lambda: Net(laid_out, zeros=nn.ZeroPad2d((0, 1, 1, 0))),
    "norm of tokens": lambda: Net(lambda net, x: net.narrow(
        net.act(net.norm_of_line(net.line(net.first(x).flatten(2)))).mean(2))),
    "norm first": lambda: Net(lambda net, x: net.head(net.act(net.first(net.norm_of_input(x))).flatten(1))),
    "norm after a ReLU": lambda: Net(lambda net, x: net.head(net.second(net.norm(net.act(net.first(x)))).flatten(1))),
    "norm of a branch": lambda: Net(lambda net, x: net.head(net.act(net.norm(y := net.first(x)) + y).flatten(1))),
    "norm as a function": lambda: Net(lambda net, x: net.head(net.act(functional.batch_norm(net.first(x),
        net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias)).flatten(1))),
    "tied": lambda: tied(Net(lambda net, x: net.head(
        net.act(net.twin(net.act(net.second(net.act(net.first(x)))))).flatten(1)), twin=nn.Conv2d(4, 4, 3, padding=1))),
    "weights as arguments": lambda: Net(lambda net, x: net.head(net.act(functional.conv2d(net.act(net.first(x)),
        net.second.weight - net.second.weight.mean(), net.second.bias, 1, 1)).flatten(1))),
    "volumes": lambda: Net(lambda net, x: net.head(net.act(net.flat(net.act(net.deep(x.unsqueeze(2))))).flatten(1)),
                           deep=nn.Conv3d(2, 4, (1, 3, 3), padding=(0, 1, 1)),
                           flat=nn.ConvTranspose3d(4, 4, 1, groups=2)),
    "lines": lambda: Net(lambda net, x: net.head(net.act(net.back(net.act(net.along(x.flatten(2))))).flatten(1)),
                         along=nn.Conv1d(2, 4, 4, 4, dilation=1), back=nn.ConvTranspose1d(4, 4, 4, 4)),
    "transposed": lambda: Net(lambda net, x: net.head(net.act(net.up(net.act(net.strided(net.act(net.first(x))))) +
                                                              net.first(x)).flatten(1)),
                              up=nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1, groups=2)),
    "transposed with a norm": lambda: Net(lambda net, x: net.head(
        net.act(net.norm(net.up(net.act(net.strided(net.act(net.first(x))))))).flatten(1)),
        up=nn.ConvTranspose2d(6, 4, 4, 2, 1, bias=False)),
    "borders": lambda: Net(lambda net, x: net.head(net.act(net.reflected(net.act(net.dilated(x)))).flatten(1)),
                           dilated=nn.Conv2d(2, 8, 3, padding="same", dilation=2, padding_mode="circular"),
                           reflected=nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect", groups=4)),
    "bound to a sequence": lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.PixelShuffle(2),
                                                 nn.ReLU6(), nn.Flatten(), nn.Linear(128, CLASSES)),
}  # fmt: skip


def calibration(images: Tensor) -> Calibration:
    return Calibration(images, torch.arange(len(images)), Encoder("direct"), timesteps=64)


def balanced(network: nn.Module, granularity: str, images: Tensor, balancer: str = "activation-max", **options: Any):
    """The spiking body before and after balancing."""
    body = spiking_body(network, tuple(images.shape[1:]), granularity=granularity, initial_potential=0.5, **options)
    before = copy.deepcopy(body)
    BALANCERS[balancer]().balance(body, calibration(images))
    return before, body


def rates(body: torch.fx.GraphModule, images: Tensor, timesteps: int) -> Tensor:
    with torch.no_grad():
        frames = images.expand(timesteps, *images.shape)
        return SpikingModel(body, Encoder("direct")).eval()(frames)[0][-1] / timesteps


def misfit(outputs: Tensor, logits: Tensor) -> float:
    """What the best multiple of the logits leaves of the outputs, relative to them."""
    outputs, logits = outputs.double().flatten(), logits.double().flatten()
    return float((outputs - logits * (outputs @ logits) / (logits @ logits)).norm() / outputs.norm())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_converts_is_right(name: str, granularity: str) -> None:
    """Prepared, rescaled and spiking; the original is not changed."""
    network = seeded(NETWORKS[name]()).double()
    state = copy.deepcopy(network.state_dict())
    images = pictures(5).double()
    prove_preparation(network, images)
    before, body = balanced(network, granularity, images)
    prove_scales(before, body, images, corrected=False)
    logits = network(images.clone()).detach()
    assert misfit(rates(body, images, 400), logits) < 0.06
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    again = spiking_body(NETWORKS[name](), SHAPE, granularity=granularity, initial_potential=0.5)
    again.load_state_dict(body.state_dict())


@pytest.mark.parametrize(
    "balancer", [name for name, entry in BALANCERS.items() if issubclass(entry, MeasuringBalancer)]
)
def test_every_balancer_keeps_to_ceilings_and_scales(balancer: str) -> None:
    """A ReLU with a ceiling saturates in spikes where it does in the ANN: no threshold stands for more."""
    network = seeded(NETWORKS["clipped"]())
    images = 2 * pictures(6)
    before, body = balanced(network, "layer", images, balancer)
    prove_scales(before, body, images, corrected=False)
    outputs, logits = rates(body, images, 400), network(images.clone()).detach()
    assert misfit(outputs, logits) < (0.5 if balancer in ("ltb", "percentile") else 0.1)


def test_a_neuron_saturates_exactly_where_its_relu_does() -> None:
    """The count of spikes is that of the clipped current, whatever the threshold that was asked for."""
    network = nn.Sequential(nn.Linear(1, 1), nn.ReLU6())
    with torch.no_grad():
        network[0].weight.fill_(1.0), network[0].bias.zero_()
    images = torch.tensor([[1.5], [3.0], [6.0], [60.0], [-1.0]])
    for asked in (3.0, 6.0, 100.0):
        body = spiking_body(network, (1,))
        threshold = apply_thresholds(body, {"1": torch.tensor(asked)}).thresholds
        given = min(asked, 6.0)
        assert [float(value) for value in threshold.values()] == [given]
        expected = images.clamp(0, given) / given
        torch.testing.assert_close(rates(body, images, 8), expected, rtol=0, atol=0)


NORMALISED: dict[str, Callable[[nn.Module], Any]] = {
    "weight norm": lambda conv: weight_norm(conv),
    "weight norm by parametrisation": lambda conv: parametrizations.weight_norm(conv),
    "spectral norm": lambda conv: spectral_norm(conv),
    "spectral norm by parametrisation": lambda conv: parametrizations.spectral_norm(conv),
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NORMALISED)
def test_computed_weights_become_plain_ones(name: str) -> None:
    network = seeded(NETWORKS["residual"]())
    NORMALISED[name](network.second)
    network(pictures(2))
    network.eval()
    images = pictures(4)
    before, body = balanced(network, "channel", images)
    prove_preparation(network, images)
    prove_scales(before, body, images, corrected=False)
    assert misfit(rates(body, images, 256), network(images).detach()) < 0.06


def test_half_precision_networks_convert() -> None:
    network = seeded(NETWORKS["bare_statements"]()).bfloat16()
    images = pictures(3).bfloat16()
    _, body = balanced(network, "channel", images)
    assert any("weighting" in name for name, _ in body.named_modules())
    assert {parameter.dtype for parameter in body.parameters() if parameter.dim() > 1} == {torch.bfloat16}
    assert misfit(rates(body, images, 64), network(images.clone()).detach()) < 0.2


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_volumes_are_not_taken_for_events(granularity: str) -> None:
    network = seeded(
        nn.Sequential(nn.Conv3d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 2))
    )
    images = pictures(4, (1, 4, 5, 6))
    before, body = balanced(network, granularity, images)
    prove_scales(before, body, images, corrected=False)
    assert misfit(rates(body, images, 256), network(images).detach()) < 0.06


# Max pools.


def pooled(net: Any, x: Tensor) -> Tensor:
    y = net.max(net.act(net.first(x)))
    y = functional.max_pool2d(net.act(net.second(y)), 3, 1, padding=1) + net.max_line(net.first(x))
    return net.narrow(net.act(y).mean((2, 3)))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_gate_gives_the_largest_count_exactly(granularity: str) -> None:
    network = seeded(Net(pooled))
    images = pictures(5)
    before, body = balanced(network, granularity, images, max_pool="gate")
    prove_preparation(network, images)
    prove_scales(before, body, images, corrected=False)
    model = SpikingModel(body, Encoder("poisson")).eval()
    seen: dict[str, Tensor] = {}
    body.get_submodule("max").register_forward_hook(lambda module, args, result: seen.update(x=args[0], y=result[0]))
    frames = model.encoder(images, torch.arange(5), 20)
    outputs, state = model(frames)
    assert set(seen["x"].unique().tolist()) == set(seen["y"].unique().tolist()) == {0, 1}
    assert torch.equal(
        seen["y"].cumsum(0), torch.stack([functional.max_pool2d(sums, 2) for sums in seen["x"].cumsum(0)])
    )
    first, state = model(frames[:7])
    second, _ = model(frames[7:], state)
    torch.testing.assert_close(torch.cat([first, second]), outputs)
    assert misfit(rates(body, images, 400), network(images).detach()) < 0.06


def test_a_max_pool_moves_before_the_neurons_where_that_is_equal() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.act(net.first(x))
        return net.narrow(net.max(y).mean((2, 3))) + net.head(y.flatten(1))

    network, images = seeded(Net(forward)), pictures(5)
    moved = prepare(network, SHAPE, max_pool="move")
    torch.testing.assert_close(moved(images), network(images))
    before, body = balanced(network, "channel", images, max_pool="move")
    assert sum(type(module).__name__ == "SpikingNeuron" for module in body.modules()) == 2
    prove_scales(before, body, images, corrected=False)
    assert misfit(rates(body, images, 400), network(images).detach()) < 0.06  # the currents are constant
    with pytest.raises(ConversionError, match=r"'max' does not follow a ReLU, .* --max-pool gate"):
        spiking_body(Net(lambda net, x: net.max(torch.cat([net.act(net.first(x))] * 2, 1))), SHAPE, max_pool="move")


def test_an_average_pool_in_the_place_of_a_max_pool_is_told() -> None:
    network = seeded(Net(pooled))
    with pytest.warns(UserWarning, match="becomes an average pool, which is another function"):
        body = spiking_body(network, SHAPE, max_pool="average")
    assert not any("Max" in type(module).__name__ for module in body.modules())
    assert sum(type(module).__name__ == "AvgPool2d" for module in body.modules()) == 3


# Refusals.


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(2, 5, 8), 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(images).flatten(1).relu() * self.calls


def views_in_place(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    y[:, :2].relu_()
    return net.head(y.relu().flatten(1))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "tuple": (lambda: Net(lambda net, x: (net.act(net.first(x)), x)), "Net returns a tuple, must return one tensor"),
    "dictionary": (lambda: Net(lambda net, x: {"out": net.act(net.first(x))}), "Net returns a dict, must return one"),
    "constant": (lambda: Net(lambda net, x: torch.zeros(x.shape[0], 5)), "the answer does not depend on the images"),
    "batch merged": (lambda: Net(lambda net, x: net.act(net.first(x)).reshape(-1, 64)),
                     r"'reshape' \(reshape\) has no spiking counterpart; it mixes the images of a batch"),
    "batch averaged": (lambda: Net(lambda net, x: net.head((net.act(y := net.first(x)) - y.mean(0)).flatten(1))),
                       r"\(mean\) .* mixes the images"),
    "batch averaged, kept": (lambda: Net(lambda net, x: net.act(net.first(x) - net.first(x).mean(0, keepdim=True))),
                             r"\(mean\) .* mixes the images"),
    "batch moved": (lambda: Net(lambda net, x: net.act(net.first(x)).permute(1, 0, 2, 3)), r"\(permute\) .* batch"),
    "batch turned": (lambda: Net(lambda net, x: net.act(net.first(x)).flip(0)), r"\(flip\) .* order of images"),
    "batch picked": (lambda: Net(lambda net, x: net.act(net.first(x))[0]), r"\(getitem\) .* mixes the images"),
    "batch counted": (lambda: Net(lambda net, x: net.act(net.first(x)) / x.size(0)), "must not depend on the other im"),
    "chance": (lambda: Net(lambda net, x: net.act(net.first(x) + torch.randn(4, 8, 8))), "on chance"),
    "calls": (Counting, "earlier calls"),
    "dropout in evaluation": (lambda: Net(lambda net, x: functional.dropout(net.act(net.first(x)))),
                              "training=self.training"),
    "part changed in place": (lambda: Net(views_in_place), "changes a part of 'first' in place, which is used after"),
    "branch on values": (lambda: Net(lambda net, x: net.act(net.first(x)) if x.sum() > 0 else x), "not branch on val"),
    "gates": (lambda: Net(lambda net, x: net.first(x).relu() * torch.sigmoid(net.first(x))),
              r"\(sigmoid\) has no .*; 'mul' \(mul\) has no .* cannot be multiplied"),
    "leaky": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 4, 3), nn.LeakyReLU(), nn.SiLU()),
              r"'1' and '3' \(LeakyReLU\) have no spiking .* negative values; train with ReLU; '4' \(SiLU\) has no"),
    "curved in place": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.SiLU(inplace=True)), r"'2' \(SiLU\) h"),
    "shifted": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.Hardtanh(-1, 1)), r"'1' \(Hardtanh\) .* ReLU6"),
    "own statistics": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()),
                       "train with batch norm"),
    "shapes added": (lambda: Net(lambda net, x: (y := net.act(net.first(x))) + y.mean(1, keepdim=True)),
                     "different channels"),
    "indices": (lambda: Net(lambda net, x: net.pick(net.act(net.first(x)))[0],
                            pick=nn.MaxPool2d(2, return_indices=True)),
                "leave return_indices out"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_wrong_is_refused_in_one_line(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ConversionError, match=f"^network: .*{message}") as error:
        spiking_body(make(), SHAPE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("place", ["", "second"])
def test_hooks_are_refused(place: str, kind: str) -> None:
    network = Net(residual)
    getattr(network.get_submodule(place), kind)(lambda *given: None)
    with pytest.raises(ConversionError, match=f"'{place or 'Net'}' has forward or backward hooks"):
        spiking_body(network, SHAPE)


# The proof.


def test_a_proof_finds_what_is_wrong() -> None:
    """Each of these faults would leave a network that runs and answers."""
    network, images = seeded(NETWORKS["residual"]()), pictures(4)
    before, body = balanced(network, "channel", images)

    def broken(change: Callable[[Any], None], *, corrected: bool = False) -> str:
        other = copy.deepcopy(body)
        with torch.no_grad():
            change(other)
        with pytest.raises(ConversionError) as error:
            prove_scales(before, other, images, corrected=corrected)
        return str(error.value)

    assert "the weight of 'second_2'" in broken(lambda net: net.second_2.weight.mul_(1.01))
    assert "the bias of 'second'" in broken(lambda net: net.second.bias.add_(0.01))
    twice = copy.deepcopy(before)
    with torch.no_grad():
        twice.second.weight[2].mul_(3)
    with pytest.raises(ConversionError, match="the weight of 'second' is not what the thresholds imply"):
        prove_scales(twice, body, images, corrected=False)
    prepared = prepare(network, SHAPE)
    with torch.no_grad():
        prepared.second.bias[3] += 0.1
    with pytest.raises(ConversionError, match=r"prepared network differs from the original at 'act_2'|at 'output'"):
        prove_preparation(network, images, prepared)


# Learning goes through all of it, and whole libraries convert.


@pytest.mark.parametrize("name", ["transposed", "dense", "shuffled", "norm after a ReLU", "scaled channels"])
def test_gradients_through_time_do_not_depend_on_how_they_come_about(name: str) -> None:
    images, surrogate = pictures(3).double(), SURROGATES["linear"]
    _, body = balanced(seeded(NETWORKS[name]()).double(), "channel", images)
    gradients = []
    for gradient in (Automatic(surrogate), Bits(surrogate, (2, 3))):
        model = SpikingModel(copy.deepcopy(body), Encoder("direct")).eval()
        model.run(images.expand(5, *images.shape), gradient=gradient).currents.sum(0).square().sum().backward()
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.requires_grad})
    assert any(bool(value.any()) for value in gradients[0].values())
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-9, atol=1e-9)


def test_a_network_of_another_library_tends_to_the_ann() -> None:
    outcome = supported.trial("torchvision:squeezenet1_1", (8, 64), 32)
    assert outcome.rests is not None and outcome.rests[1] < 0.5 * outcome.rests[0]


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "torchvision:resnet18", "timm:regnetx_002"])
def test_networks_of_other_libraries_pass_the_proof(name: str) -> None:
    """Deep ones with random weights need many steps; what they tend to is what the proof compares."""
    if name.startswith("timm"):
        pytest.importorskip("timm")
    assert supported.trial(name, (1,), 32).rests is not None


def test_others_are_refused_with_the_reason() -> None:
    outcome = supported.trial("torchvision:mobilenet_v3_small", (8,), 32)
    assert outcome.rests is None
    assert "Hardswish" in outcome.note and "no squeeze-and-excitation" in outcome.note and "\n" not in outcome.note
