"""Conversion: thresholds against brute force, spiking networks against the networks they came from, and refusals."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_networks import CLASSES, SHAPE, Residual, encodable, exact, pictures, seeded

from hybridsnn.conversion import (
    BALANCERS,
    GRANULARITIES,
    Calibration,
    Constant,
    FittedBalancer,
    MeasuringBalancer,
    apply_thresholds,
    spiking_body,
)
from hybridsnn.conversion.balancers import calibration as calibrations
from hybridsnn.conversion.balancers import sweep as sweeps
from hybridsnn.conversion.preparation import prepare
from hybridsnn.encoders import ENCODERS, Encoder
from hybridsnn.errors import ConfigError, ConversionError
from hybridsnn.model import SpikingModel
from hybridsnn.networks import NETWORKS, NetworkSpec
from hybridsnn.neurons import RESETS

MEASURING = [name for name, balancer in BALANCERS.items() if issubclass(balancer, MeasuringBalancer)]
# The thresholds of "ltb" stay below the largest activations, whatever T is.
CONVERGING = [name for name in MEASURING if name != "ltb"]


def chain(bias: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1, bias=bias),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 10, bias=bias),
        nn.ReLU(),
        nn.Linear(10, CLASSES, bias=bias),
    )


class Net(nn.Module):
    """Some layers, with biases, and a forward of one's own."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.grouped, self.pointwise = nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.Conv2d(8, 4, 1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm, self.flat_norm, self.hidden = nn.BatchNorm2d(4), nn.BatchNorm1d(9), nn.Linear(256, 9)
        self.act, self.pool = nn.ReLU(), nn.AvgPool2d(2)
        self.head, self.narrow, self.nine = nn.Linear(256, CLASSES), nn.Linear(4, CLASSES), nn.Linear(9, CLASSES)
        self.body = forward

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self, images)


def shared_modules(net: Any, x: Tensor) -> Tensor:
    return net.head(net.act(net.second(net.act(net.second(net.act(net.first(x)))))).flatten(1))


def functional_relus(net: Any, x: Tensor) -> Tensor:
    batch = x.size(0)
    x = functional.relu(net.first(x), inplace=True)
    return net.head(functional.dropout(net.second(x).relu(), 0.3, training=net.training).view(batch, -1))


def two_rectified(net: Any, x: Tensor) -> Tensor:
    x = net.first(x)
    return net.head((torch.relu(net.second(x)) + torch.relu(net.depthwise(x))).flatten(1))


def identity_shortcut(net: Any, x: Tensor) -> Tensor:
    x = torch.relu(net.first(x))
    y = net.second(x)
    y += x
    return net.head(torch.relu(y).flatten(1))


def doubled(net: Any, x: Tensor) -> Tensor:
    x = net.first(x)
    return net.head(torch.relu(x + x).flatten(1))


def summand_of_two_sums(net: Any, x: Tensor) -> Tensor:
    one = torch.relu(net.first(x))
    other = torch.relu(net.depthwise(one))
    both = net.second(one)
    return net.head((torch.relu(one + both) + torch.relu(other + both)).flatten(1))


def folded_norms(net: Any, x: Tensor) -> Tensor:
    x = torch.relu(net.norm(net.first(x)))
    return net.nine(torch.relu(net.flat_norm(net.hidden(torch.flatten(x, 1)))))


def separable(net: Any, x: Tensor) -> Tensor:
    x = torch.relu(net.depthwise(torch.relu(net.first(x))))
    x = torch.relu(net.pointwise(torch.relu(net.grouped(x))))
    return net.narrow(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def averaged(net: Any, x: Tensor) -> Tensor:
    return net.narrow(functional.avg_pool2d(torch.relu(net.second(torch.relu(net.first(x)))), 2).mean((2, 3)))


def heads_added(net: Any, x: Tensor) -> Tensor:
    x = torch.relu(net.first(x))
    return net.head(torch.relu(net.second(x)).flatten(1)) + net.narrow(x.mean((2, 3)))


FORWARDS = [shared_modules, functional_relus, two_rectified, identity_shortcut, doubled, summand_of_two_sums,
            folded_norms, separable, averaged, heads_added]  # fmt: skip
ZOO: dict[str, Callable[[], nn.Module]] = {
    "chain": chain,
    "chain with biases": lambda: chain(bias=True),
    "residual": Residual,
    "residual with batch norm": lambda: Residual(batch_norm=True),
    **{forward.__name__: (lambda forward=forward: Net(forward)) for forward in FORWARDS},
}


def calibration(
    images: Tensor, encoder: str = "direct", scale: float = 1.0, seed: int = 0, timesteps: int = 16
) -> Calibration:
    return Calibration(images, torch.arange(len(images)), Encoder(encoder, scale), seed, timesteps=timesteps)


def balance(
    body: torch.fx.GraphModule, name: str, chosen: Calibration, timesteps: int = 16, **options: float
) -> dict[str, Tensor]:
    """Balance with those of the options that the balancer has."""
    entry, options = BALANCERS[name], {"calibration_timesteps": timesteps} | options
    balancer: Any = entry(**{option: value for option, value in options.items() if option in entry.model_fields})
    return balancer.balance(body, chosen)


def nobody_draws(count: int) -> Calibration:
    raise PermissionError("asked for images")


def set_constants(body: torch.fx.GraphModule, **options: float) -> None:
    Constant(**options).set_thresholds(body, nobody_draws)


def readout(body: torch.fx.GraphModule, encoder: Encoder, images: Tensor, timesteps: int) -> Tensor:
    """The mean output per step, `[B, K]`."""
    model = SpikingModel(body, encoder).eval()
    with torch.no_grad():
        outputs, _ = model(encoder(images, torch.arange(len(images)), timesteps, seed=9))
    return outputs[-1] / timesteps


def fit(outputs: Tensor, logits: Tensor) -> tuple[float, float]:
    """The factor of the best `outputs = factor * logits`, and the size of what it leaves relative to the outputs."""
    outputs, logits = outputs.double(), logits.double()
    factor = (outputs * logits).sum() / logits.square().sum()
    return float(factor), float((outputs - factor * logits).norm() / outputs.norm())


@pytest.mark.parametrize("network", ZOO)
def test_with_time_a_spiking_network_becomes_its_original(network: str) -> None:
    """Its readout is proportional to the logits, up to the rounding of rates; pixels may be larger than 1.

    With every granularity, and with every balancer; all pairs of them meet in the networks together.
    """
    original = seeded(ZOO[network]())
    place = list(ZOO).index(network)
    for turn, granularity in enumerate(GRANULARITIES):
        balancer = CONVERGING[(place + turn) % len(CONVERGING)]
        scale = (1.0, 2.5)[(place // len(CONVERGING) + turn) % 2]
        images = pictures(6) * scale
        body = spiking_body(original, SHAPE, granularity=granularity)
        chosen = calibration(images, scale=scale, timesteps=256)
        balance(body, balancer, chosen, timesteps=48, percentile=100.0)
        logits = original(images).detach()
        outputs = readout(body, chosen.encoder, images, 256)
        factor, rest = fit(outputs, logits)
        assert factor > 0 and rest < 0.05, (balancer, granularity, scale)
        assert np.corrcoef(outputs.flatten(), logits.flatten())[0, 1] > 0.99, (balancer, granularity, scale)


@pytest.mark.parametrize("threshold_scale", [1.0, 2.0])
@pytest.mark.parametrize("balancer", CONVERGING)
def test_a_chain_s_readout_is_the_logits_over_all_thresholds(balancer: str, threshold_scale: float) -> None:
    original = seeded(chain(bias=True))
    images = pictures(6) * 1.5
    body = spiking_body(original, SHAPE)
    chosen = calibration(images, scale=1.5, timesteps=1500)
    thresholds = balance(body, balancer, chosen, timesteps=64, percentile=100.0, threshold_scale=threshold_scale)
    factor, rest = fit(readout(body, chosen.encoder, images, 1500), original(images).detach())
    product = 1.5 * math.prod(float(threshold) for threshold in thresholds.values())
    assert factor * product == pytest.approx(1, rel=0.03) and rest < 0.04


@pytest.mark.parametrize("balancer", CONVERGING)
def test_random_spikes_find_the_logits_too(balancer: str) -> None:
    original = seeded(ZOO["residual"]())
    images = pictures(6)
    body = spiking_body(original, SHAPE, initial_potential=0.5)
    chosen = calibration(images, "poisson", timesteps=1500)
    balance(body, balancer, chosen, timesteps=200, percentile=100.0)
    _, rest = fit(readout(body, chosen.encoder, images, 1500), original(images).detach())
    assert rest < 0.15


@pytest.mark.parametrize("balancer", MEASURING)
def test_a_threshold_scale_is_a_factor(balancer: str) -> None:
    """Weights without biases stay copies, and the body tells the thresholds that were returned."""
    original = exact(seeded(chain()))
    bodies = [spiking_body(original, SHAPE) for _ in range(2)]
    whole = balance(bodies[0], balancer, calibration(pictures(5)))
    scaled = balance(bodies[1], balancer, calibration(pictures(5)), threshold_scale=0.75)
    for place, (name, threshold) in enumerate(whole.items()):
        # Where later thresholds are fitted to the spikes of earlier layers, these are no longer the same.
        if place == 0 or not issubclass(BALANCERS[balancer], FittedBalancer):
            assert torch.equal(scaled[name], threshold * 0.75)
        assert torch.equal(bodies[1].get_submodule(name).get_parameter("threshold"), scaled[name])
    originals = dict(original.named_parameters())
    copies = {name: value for name, value in bodies[1].named_parameters() if name in originals}
    assert len(copies) == len(originals)
    assert all(torch.equal(value, originals[name]) for name, value in copies.items())


def brute_force(network: nn.Sequential, chosen: Calibration, timesteps: int) -> list[float]:
    """`max` in plain words: for each layer of neurons, simulate what comes before it anew, image by image."""
    thresholds: list[float] = []
    for target in range(sum(isinstance(layer, nn.ReLU) for layer in network)):
        largest = -math.inf
        for place in range(len(chosen.images)):
            images, indices = chosen.images[place : place + 1], chosen.indices[place : place + 1]
            membranes: dict[int, Tensor] = {}
            for t in range(timesteps):
                values = chosen.encoder(images, indices, 1, start=t, seed=chosen.seed)[0]
                neuron = 0
                for layer in network:
                    if not isinstance(layer, nn.ReLU):
                        values = layer(values)
                        continue
                    if neuron == target:
                        largest = max(largest, values.max().item())
                        break
                    membrane = membranes.get(neuron, torch.zeros(())) + values
                    spikes = (membrane >= thresholds[neuron]).to(values.dtype)
                    membranes[neuron] = membrane - thresholds[neuron] * spikes
                    values, neuron = spikes, neuron + 1
        thresholds.append(largest if largest > 0 else 1.0)
    return thresholds


@pytest.mark.parametrize("encoder", ENCODERS)
@torch.no_grad()
def test_max_is_the_layer_by_layer_simulation(encoder: str) -> None:
    network = exact(seeded(chain()))
    chosen = calibration(encodable(encoder, 5, 11), encoder, seed=4)
    # Of recordings there are 11 frames, however many steps are asked for.
    timesteps = 100 if ENCODERS[encoder].events else 11
    thresholds = balance(spiking_body(network, SHAPE), "max", chosen, timesteps)
    found = [threshold.item() for threshold in thresholds.values()]
    assert found == brute_force(network, chosen, 11)
    assert len(set(found)) == 3


@pytest.mark.parametrize("encoder", ENCODERS)
@torch.no_grad()
def test_max_balances_residual_blocks(encoder: str) -> None:
    """In units of the original: a neuron's spike carries its amplitude, the largest current that it ever gets."""
    network: Any = seeded(Residual()).double()
    images = encodable(encoder, 4, 10).double()
    chosen = calibration(images, encoder)
    thresholds = balance(spiking_body(network, SHAPE).double(), "max", chosen, timesteps=10)

    amplitudes: list[float] = []

    def simulate(target: int) -> float:
        largest = -math.inf
        for place in range(len(images)):
            membranes: dict[int, Tensor] = {}

            def fire(neuron: int, current: Tensor, membranes: dict[int, Tensor] = membranes) -> Tensor:
                nonlocal largest
                if neuron >= target:
                    largest = max(largest, current.max().item()) if neuron == target else largest
                    return torch.zeros_like(current)
                membrane = membranes.get(neuron, 0) + current
                sent = (membrane >= amplitudes[neuron]).double() * amplitudes[neuron]
                membranes[neuron] = membrane - sent
                return sent

            for t in range(10):
                x = chosen.encoder(images[place : place + 1], torch.tensor([place]), 1, start=t)[0]
                x = network.stem[3](fire(0, network.stem[0](x)))
                x = fire(2, network.same.residual[3](fire(1, network.same.residual[0](x))) + x)
                shortcut = network.other.shortcut(x)
                fire(4, network.other.residual[3](fire(3, network.other.residual[0](x))) + shortcut)
        return largest

    for target in range(5):
        amplitudes.append(simulate(target))
    stem, same_inner, same, other_inner, other = amplitudes
    expected = {
        "stem.1": stem,
        "same.residual.1": same_inner / stem,
        "same.relu": same / stem,
        "other.residual.1": other_inner / same,
        "other.relu": other / other_inner,
    }
    assert {name: float(value) for name, value in thresholds.items()} == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("balancer", MEASURING)
def test_thresholds_do_not_depend_on_order_or_batches(
    balancer: str, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = exact(seeded(chain())).double()
    granularity = list(GRANULARITIES)[(MEASURING.index(balancer) + list(ENCODERS).index(encoder)) % len(GRANULARITIES)]
    images, order = encodable(encoder, 7, 16).double(), torch.tensor([3, 6, 0, 1, 5, 2, 4])
    whole = calibration(images, encoder)
    shuffled = replace(whole, images=images[order], indices=order)

    def thresholds(chosen: Calibration) -> dict[str, Tensor]:
        body = spiking_body(network, SHAPE, granularity=granularity).double()
        return balance(body, balancer, chosen, percentile=97.0)

    expected = thresholds(whole)
    assert all(value.shape == (value.shape[:1] if granularity == "channel" else ()) for value in expected.values())
    for chosen, frames, room in (
        (whole, 16, 2**30),
        (shuffled, 48, 0),
        (whole, 48, 9000),
        (shuffled, 48, 9000),
        (shuffled, 10**6, 2**30),
    ):
        monkeypatch.setattr(calibrations, "FRAMES", frames)
        monkeypatch.setattr(sweeps, "CURRENTS", room)  # those that do not fit are computed again
        for name, value in thresholds(chosen).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=0)


def activations_of(network: nn.Module, images: Tensor) -> list[np.ndarray]:
    """What each ReLU gives, `[B, C, ...]`, in the order of the layers."""
    found: list[np.ndarray] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: found.append(output.detach().numpy()))
        for module in network.modules()
        if isinstance(module, nn.ReLU)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return found


def nearest_rank(values: np.ndarray, percentile: float) -> float:
    """The smallest positive value that so many percent of the positive values do not exceed."""
    positive = np.sort(values[values > 0])
    return float(positive[math.ceil(percentile * len(positive) / 100 - 1e-9) - 1])


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    ("balancer", "percentile", "batch"),
    [
        ("activation-max", 50.0, 2),
        ("percentile", 100.0, 2),
        ("percentile", 99.9, 100),
        ("percentile", 90.0, 2),
        ("percentile", 33.0, 100),
    ],
)
def test_thresholds_from_activations(
    balancer: str, percentile: float, batch: int, granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each spike stands for the chosen activation, in units of the largest one of the layer before."""
    monkeypatch.setattr(calibrations, "FRAMES", 16 * batch)
    network = seeded(chain(bias=True)).double()
    images = pictures(7).double()
    body = spiking_body(network, SHAPE, granularity=granularity).double()
    thresholds = balance(body, balancer, calibration(images, scale=2.0), percentile=percentile)
    share = percentile if balancer == "percentile" else 100.0
    unit = 2.0
    for threshold, values in zip(thresholds.values(), activations_of(network, images), strict=True):
        groups = np.moveaxis(values, 1, 0) if granularity == "channel" else [values]
        chosen = [nearest_rank(group, share) if (group > 0).any() else unit for group in groups]
        np.testing.assert_allclose(threshold.flatten(), np.array(chosen) / unit, rtol=1e-12)
        unit = max(chosen)


@pytest.mark.parametrize("balancer", ["activation-max", "percentile"])
def test_activations_of_events_are_those_of_their_mean(balancer: str) -> None:
    frames = encodable("event", 4, 6)
    body, other = (spiking_body(seeded(chain(bias=True)), SHAPE) for _ in range(2))
    found = balance(body, balancer, calibration(frames, "event"))
    assert found == balance(other, balancer, calibration(frames.mean(1)))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("balancer", MEASURING)
def test_a_layer_that_never_fires_keeps_a_threshold(balancer: str, granularity: str) -> None:
    network = seeded(chain())
    with torch.no_grad():
        network[4].weight.copy_(-network[4].weight.abs())
    body = spiking_body(network, SHAPE, granularity=granularity)
    chosen = calibration(pictures(4))
    thresholds = balance(body, balancer, chosen)
    assert [bool((value == 1).all()) for value in thresholds.values()] == [False, True, True]
    assert torch.equal(readout(body, chosen.encoder, chosen.images, 8), torch.zeros(4, CLASSES))


@pytest.mark.parametrize("network", ZOO)
def test_preparation_changes_neither_function_nor_original(network: str) -> None:
    original = seeded(ZOO[network]()).double().train()
    before = copy.deepcopy(original.state_dict())
    images = pictures(3).double()
    prepared = prepare(original, SHAPE)
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in prepared.modules())
    spiking_body(original, SHAPE)
    assert original.training and all(module.training for module in original.modules())
    assert original.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    torch.testing.assert_close(prepared.eval()(images), original.eval()(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("network", ZOO)
def test_a_body_can_be_rebuilt_from_fresh_weights(network: str) -> None:
    granularity = list(GRANULARITIES)[list(ZOO).index(network) % len(GRANULARITIES)]
    images = pictures(3)
    body = spiking_body(seeded(ZOO[network]()), SHAPE, granularity=granularity)
    balance(body, "activation-max", calibration(images))
    again = spiking_body(ZOO[network](), SHAPE, granularity=granularity)
    again.load_state_dict(body.state_dict(), strict=True)
    outputs = readout(body, Encoder("direct"), images, 20)
    assert torch.equal(readout(again, Encoder("direct"), images, 20), outputs)
    assert outputs.abs().max() > 0


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_registry_becomes_spiking(name: str) -> None:
    batch_norm = list(NETWORKS).index(name) % 2 == 0  # of each family there are both
    side = max(8, NETWORKS[name].smallest)
    shape = (1, side, side)
    original = NetworkSpec(name, shape, 3, width=0.04, batch_norm=batch_norm).build()
    body = spiking_body(seeded(original), shape)
    rectified = sum(isinstance(module, nn.ReLU) for module in original.modules())
    chosen = calibration(pictures(2, shape))
    assert len(balance(body, "activation-max", chosen)) == rectified
    assert readout(body, chosen.encoder, chosen.images, 2).isfinite().all()


@pytest.mark.parametrize("balancer", MEASURING)
@pytest.mark.parametrize("network", ["chain with biases", "residual"])
def test_every_neuron_of_a_layer_starts_at_its_layer_s_threshold(network: str, balancer: str) -> None:
    original = seeded(ZOO[network]())
    chosen = calibration(pictures(4))
    bodies = [spiking_body(original, SHAPE, granularity=granularity) for granularity in ("layer", "neuron")]
    by_layer, by_neuron = (balance(body, balancer, chosen) for body in bodies)
    assert by_neuron == by_layer
    trains: list[dict[str, Tensor]] = [{}, {}]
    outputs = []
    for body, train in zip(bodies, trains, strict=True):
        frames = chosen.encoder(chosen.images, chosen.indices, 20)
        outputs.append(SpikingModel(body, chosen.encoder).eval()(frames, observe=train.__setitem__)[0])
    assert torch.equal(*outputs) and outputs[0].abs().max() > 0
    for name, spikes in trains[1].items():
        threshold = bodies[1].get_submodule(name).get_parameter("threshold")
        assert threshold.shape == spikes.shape[2:]
        assert (threshold == by_layer[name]).all()
        assert bodies[1].get_submodule(name).get_parameter("leak").shape == ()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_constants_leave_weights_as_they_are(granularity: str) -> None:
    for network in ("chain with biases", "residual with batch norm", "summand_of_two_sums"):
        body = spiking_body(seeded(ZOO[network]()), SHAPE, granularity=granularity)
        before = copy.deepcopy(body.state_dict())
        set_constants(body, threshold=0.7, leak=0.25)
        for name, value in body.state_dict().items():
            given = {"threshold": 0.7, "leak": 0.25}.get(name.rpartition(".")[2])
            expected = before[name] if given is None else torch.full_like(value, given)
            assert torch.equal(value, expected), f"{name} of {network}"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("percentile", {"percentile": 101.0}, "Percentile.percentile: got 101.0, must be less than or equal to 100"),
        ("max", {"calibration_timesteps": 0}, "MaximumCurrent.calibration_timesteps: got 0, must be greater than 0"),
        ("max", {"calibration_images": 2.5}, "MaximumCurrent.calibration_images: got 2.5, must be a valid integer"),
        ("constant", {"batch_norm": "drop"}, "Constant.batch_norm: got 'drop', must be 'fold' or 'keep'"),
        (
            "activation-max",
            {"percentile": 99.0},
            "ActivationMaximum: unknown 'percentile'. Choices: calib",
        ),
    ],
)
def test_options_of_balancers_are_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        BALANCERS[name](**options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize("reset", RESETS)
def test_neurons_are_as_asked(reset: str) -> None:
    model = SpikingModel(spiking_body(Residual(), SHAPE, reset=reset, initial_potential=0.5), Encoder("direct"))
    assert {(neuron.reset, neuron.initial_potential) for neuron in model.neurons.values()} == {(reset, 0.5)}


def test_weights_and_thresholds_keep_the_scales_apart() -> None:
    """Per channel, the scales of a layer's channels go into the columns of the next synapse, biases into its unit."""
    network: Any = seeded(chain(bias=True)).double()
    body: Any = spiking_body(network, SHAPE, granularity="channel").double()
    chosen = {
        "1": torch.tensor([1.0, 2.0, 4.0, 0.5]).double(),
        "5": torch.linspace(0.5, 3, 6).double(),
        "8": torch.ones(10).double(),
    }
    apply_thresholds(body, chosen, input_scale=2.0)
    first, second, third = (body.get_submodule(name) for name in ("0", "4", "7"))
    assert torch.equal(first.weight, network[0].weight)
    torch.testing.assert_close(first.bias, network[0].bias / 2)
    torch.testing.assert_close(second.weight, network[4].weight * (chosen["1"] / 4).view(1, 4, 1, 1))
    torch.testing.assert_close(second.bias, network[4].bias / 8)
    torch.testing.assert_close(third.weight, network[7].weight * (chosen["5"] / 3).repeat_interleave(16))
    torch.testing.assert_close(third.bias, network[7].bias / 24)


class Wrapped(nn.Module):
    """A forward that uses what the refused networks need."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module):
        super().__init__()
        self.conv, self.act = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()
        for name, module in modules.items():
            setattr(self, name, module)
        self.body = forward

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self, images)


class Several(Wrapped):
    def forward(self, images: Tensor, others: Tensor) -> Tensor:  # type: ignore[override]
        return self.act(self.conv(images + others))


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "max pool": (Wrapped(lambda net, x: net.pool(net.act(net.conv(x))), pool=nn.MaxPool2d(2)),
                 r"'pool' \(MaxPool2d\) has no spiking counterpart; train with average pools, or convert with "),
    "functional max pool": (Wrapped(lambda net, x: functional.max_pool2d(net.act(net.conv(x)), 2)),
                            r"max_pool2d.* train with average pools"),
    "silu": (Wrapped(lambda net, x: net.silu(net.act(net.conv(x))), silu=nn.SiLU()), r"'silu' \(SiLU\) has no spiking"),
    "gelu": (Wrapped(lambda net, x: functional.gelu(net.act(net.conv(x)))), r"\(gelu\) has no spiking"),
    "norm without statistics": (Wrapped(lambda net, x: net.act(net.norm(net.conv(x))),
                                        norm=nn.BatchNorm2d(4, track_running_stats=False)), "no running statistics"),
    "branches": (Wrapped(lambda net, x: net.act(net.conv(x)) if x.sum() > 0 else x), "cannot be captured as a graph"),
    "no relu": (Wrapped(lambda net, x: net.conv(x)), "Wrapped has no ReLU, so nothing in it would spike"),
    "several inputs": (Several(lambda net, x: x), "takes several inputs, must take one"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_spike_is_refused_by_name(case: str) -> None:
    network, message = REFUSED[case]
    with pytest.raises(ConversionError, match=f"network: .*{message}") as error:
        spiking_body(network, SHAPE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", ["max pool", "functional max pool"])
def test_a_max_pool_can_pass_any_spike(case: str) -> None:
    body = spiking_body(REFUSED[case][0], SHAPE, max_pool="any-spike")
    frames = pictures(2).unsqueeze(0).expand(3, -1, -1, -1, -1)
    trains: dict[str, Tensor] = {}
    with torch.no_grad():
        outputs, _ = SpikingModel(body, Encoder("direct"))(frames, observe=trains.__setitem__)
    (spikes,) = trains.values()
    any_spike = spikes.unflatten(3, (4, 2)).unflatten(5, (4, 2)).amax((4, 6))
    assert torch.equal(outputs, any_spike.cumsum(0))


@pytest.mark.parametrize("network", ["residual with batch norm", "folded_norms"])
def test_kept_batch_norm_is_a_part_of_the_synapse(network: str) -> None:
    """It spikes like the folded one, and learns statistics of all time steps in training mode."""
    original = seeded(ZOO[network]()).double()
    images, outputs = pictures(5).double(), {}
    for fold in (True, False):
        body = spiking_body(original, SHAPE, fold_batch_norm=fold).double()
        set_constants(body, threshold=0.5, leak=0.75)
        outputs[fold] = SpikingModel(body, Encoder("direct")).eval()(images.expand(12, *images.shape))[0]
    torch.testing.assert_close(outputs[False], outputs[True])
    assert outputs[True].abs().max() > 0

    norm = next(module for module in body.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.weight.requires_grad and norm.num_batches_tracked == 0
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    before = norm.running_mean.clone()
    frames = Encoder("poisson")(images, torch.arange(5), 12)
    SpikingModel(body, Encoder("poisson")).train()(frames)
    assert len(seen[0]) == 12 * 5 and norm.num_batches_tracked == 1
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * seen[0].mean((0, 2, 3)))


def test_kept_batch_norm_needs_statistics() -> None:
    with pytest.raises(ConversionError, match="no running statistics"):
        spiking_body(REFUSED["norm without statistics"][0], SHAPE, fold_batch_norm=False)


def test_kept_batch_norm_is_refused_by_balancing() -> None:
    network = seeded(Residual(batch_norm=True))
    body = spiking_body(network, SHAPE, fold_batch_norm=False)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in body.modules()) == 5
    with pytest.raises(ConversionError, match=r"batch norm 'same.residual.1' is kept"):
        balance(body, "activation-max", calibration(pictures(2)))
