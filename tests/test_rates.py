"""Rate-based back-propagation against its definition, and losses of a step against theirs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_networks import CLASSES, Residual, pictures, seeded, spiking

from hybridsnn.errors import ConfigError
from hybridsnn.learning import RULES
from hybridsnn.memory import LiveMemory
from hybridsnn.model import SpikingModel
from hybridsnn.neurons import RESETS

LABELS = torch.tensor([0, 3, 1, 4])
STEPS = 6


def chain(granularity: str = "layer", reset: str = "soft") -> SpikingModel:
    """Two layers of neurons that leak, with biases and a pool, in double precision."""
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(96, CLASSES),
    )  # fmt: skip
    model = spiking(seeded(network), granularity=granularity, reset=reset).double().train()
    for leak, neuron in zip((0.9, 0.6), model.neurons.values(), strict=True):
        neuron.leak.data.fill_(leak)
    return model


def frames_of(images: Tensor, constant: bool) -> Tensor:
    """`[STEPS, B, ...]`: the images, or ones that change."""
    frames = images.expand(STEPS, *images.shape)
    return frames if constant else frames * (1 + torch.arange(STEPS).view(-1, 1, 1, 1, 1).to(frames)) / 4


def learn(rule: Any, model: SpikingModel, frames: Tensor, labels: Tensor = LABELS) -> tuple[Tensor, Tensor, Any]:
    model.zero_grad(set_to_none=True)
    loss, logits = rule.step(model, frames, labels, lambda loss: loss.backward())
    return loss, logits, {name: p.grad.clone() for name, p in model.body.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
def test_rates_learn_what_their_definition_says(granularity: str, reset: str, constant: bool) -> None:
    model = chain(granularity, reset)
    frames = frames_of(pictures(4).double(), constant)
    loss, logits, got = learn(RULES["rate"](), model, frames)

    weights = {name: value.detach().clone().requires_grad_() for name, value in model.body.named_parameters()}

    def current(layer: int, x: Tensor) -> Tensor:
        weight, bias = weights[f"{(0, 3, 6)[layer]}.weight"], weights[f"{(0, 3, 6)[layer]}.bias"]
        if layer == 2:
            return functional.linear(x.flatten(1), weight, bias)
        return functional.conv2d(functional.avg_pool2d(x, 2) if layer else x, weight, bias, padding=1)

    # Forward: the rate of each layer, and the mean of kappa times the slope of a logistic function.
    rates, derivatives, spikes = [], [], frames
    for layer, name in enumerate(("1", "4")):
        level, leak = weights[f"{name}.threshold"].detach(), float(weights[f"{name}.leak"].detach())
        level = level.view(-1, 1, 1) if level.dim() == 1 else level
        rest, kappa, derivative, fired = torch.zeros(()).double(), 1.0, torch.zeros(()).double(), []
        for t in range(STEPS):
            potential = leak * rest + current(layer, spikes[t]).detach()
            sigma = torch.sigmoid(4 * (potential / level - 1))
            derivative = derivative + kappa * 4 * sigma * (1 - sigma) / level / STEPS
            fired.append((potential >= level).double())
            rest = potential - level * fired[-1] if reset == "soft" else potential * (1 - fired[-1])
            kappa = 1 + leak * kappa
        spikes = torch.stack(fired)
        rates.append(spikes.mean(0))
        derivatives.append(derivative)
    outputs = torch.stack([current(2, s) for s in spikes]).sum(0).detach()

    # Backward: once, with the gradient of the loss by the readout given to the mean current into it.
    x = frames.mean(0)
    for layer in range(2):
        mean = current(layer, x)
        x = rates[layer] + derivatives[layer] * (mean - mean.detach())
    outputs.requires_grad_()
    expected = functional.cross_entropy(outputs, LABELS)
    (error,) = torch.autograd.grad(expected, outputs)
    current(2, x).backward(error)

    torch.testing.assert_close(logits, outputs.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=1e-10)
    assert 0.05 < min(float(rate.mean()) for rate in rates) < 0.95
    learned = {name for name, value in weights.items() if value.grad is not None}
    assert got.keys() == learned and len(learned) == 6
    for name in learned:
        torch.testing.assert_close(got[name], weights[name].grad, rtol=1e-9, atol=1e-12)


def test_at_one_step_rates_are_back_propagation() -> None:
    """Through branches, sums and dropout too, whose masks the mean network shares."""
    model = spiking(seeded(Residual(dropout=0.3))).double().train()
    found = []
    for rule in (RULES["rate"](), RULES["stbp"](surrogate="sigmoid")):
        torch.manual_seed(3)
        found.append(learn(rule, model, pictures(4).double().unsqueeze(0)))
    for got, expected in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    assert found[0][2].keys() == found[1][2].keys()
    for name, value in found[1][2].items():
        torch.testing.assert_close(found[0][2][name], value, rtol=1e-10, atol=1e-10)


def test_memory_does_not_grow_with_time() -> None:
    model, images = chain().float(), pictures(64)

    def peak(timesteps: int) -> int:
        frames = model.encoder(images, torch.arange(64), timesteps)
        with LiveMemory() as memory:
            RULES["rate"]().step(model, frames, torch.arange(64) % CLASSES, lambda loss: loss.backward())
        return memory.peak

    peak(1)  # what is kept for the next call, too, is none of one step's
    assert peak(128) <= 1.01 * peak(16)


@pytest.mark.parametrize("method", ["stop-w", "stbp"])
def test_losses_of_a_step_have_known_values(method: str) -> None:
    model, frames = chain(), frames_of(pictures(4).double(), constant=False)
    currents, readout, _ = model.run(frames)

    def mean(logits: Tensor) -> Tensor:
        return torch.stack([functional.cross_entropy(each, LABELS) for each in logits]).mean()

    expected = {
        "current": mean(currents),
        "readout": mean(readout),
        "tet": 0.9 * mean(currents) + 0.1 * ((currents - 1) ** 2).mean(),
    }
    for name, value in expected.items():
        loss, _, _ = learn(RULES[method](loss=name, tet_weight=0.1), model, frames)
        assert loss.item() == pytest.approx(value.item(), rel=1e-10)
    _, _, plain = learn(RULES[method](loss="current"), model, frames)
    _, _, without = learn(RULES[method](loss="tet", tet_weight=0.0), model, frames)
    _, _, pulled = learn(RULES[method](loss="tet", tet_weight=0.1), model, frames)
    assert all(torch.equal(plain[name], without[name]) for name in plain)
    assert not torch.equal(plain["6.weight"], pulled["6.weight"])


def test_every_rule_learns_from_probabilities_too() -> None:
    """Those of one class are the label; a mixture of labels gives the mixture of their gradients."""
    model, frames, other = chain(), frames_of(pictures(4).double(), constant=True), LABELS.flip(0)
    one, two = (functional.one_hot(labels, CLASSES).double() for labels in (LABELS, other))
    for rule in (entry() for entry in RULES.values()):
        (loss, _, first), (_, _, second) = learn(rule, model, frames), learn(rule, model, frames, other)
        assert learn(rule, model, frames, one)[0].item() == pytest.approx(loss.item(), rel=1e-10)
        _, _, mixed = learn(rule, model, frames, 0.25 * one + 0.75 * two)
        for name, value in mixed.items():
            expected = 0.25 * first[name] + 0.75 * second[name]
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)


def test_a_clock_of_neurons_that_never_fired() -> None:
    """The slope of a neuron before its first spike is that of one which fired so long ago."""
    neuron = chain().neurons["1"]
    neuron.threshold.data.fill_(1.0)
    neuron.leak.data.fill_(1.0)
    for clock in (0, 4, 1000):
        current = torch.tensor([0.25, 0.75, 0.0]).double().view(3, 1, 1).requires_grad_()
        spikes, _ = neuron(current, surrogate=RULES["stdb"](never_fired=clock).spike_derivative)
        gradients = [torch.autograd.grad(spikes[t, 0, 0], current, retain_graph=True)[0][t].item() for t in range(3)]
        expected = [0.3 * torch.tensor(-0.01 * since).double().exp().item() for since in (clock, clock + 1, 1)]
        assert gradients == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ConfigError, match="never_fired"):
        RULES["stdb"](never_fired=-1)
    clocks = {steps: RULES["stdb"]().at(steps).spike_derivative.never for steps in (4, 16, 17, 250)}
    assert clocks == {4: 100, 16: 100, 17: 1000, 250: 1000}
    assert RULES["stdb"](never_fired=7).at(4).spike_derivative.never == 7
