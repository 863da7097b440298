"""STOP and its neighbours: the recursions of docs/stop.md in plain loops, and autograd where it must agree."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numba
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_networks import CLASSES, Residual, pictures, seeded, surrogates_of

from hybridsnn.conversion import spiking_body
from hybridsnn.encoders import Encoder
from hybridsnn.errors import ConfigError
from hybridsnn.kernels.neuron import KERNELS, online, reference
from hybridsnn.kernels.neuron.exponential import exponential
from hybridsnn.kernels.synapse.learning_ways import FastConvolution, learning_synapse
from hybridsnn.learning import RULES
from hybridsnn.learning.rules.forward_traces import ForwardTraces
from hybridsnn.memory import LiveMemory
from hybridsnn.model import SpikingModel
from hybridsnn.neurons import NEVER, SpikingNeuron
from hybridsnn.surrogates import SURROGATES

# ds/dU of the distance U - threshold, and the threshold: of all that see it. test_kernels.py has their equations.
SLOPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    name: lambda distance, threshold, of=surrogate: of.slope(threshold + distance, threshold, torch.zeros(()))
    for name, surrogate in SURROGATES.items()
    if not surrogate.needs_clock
}
Gradients = dict[str, Tensor]
HERE = [name for name, kernel in KERNELS.items() if kernel.supports(torch.zeros(1))]


# Models and what they learn.


def model_of(
    network: nn.Module, shape: tuple[int, ...], *, readout_leak: float = 1.0, seed: int = 0, **options: Any
) -> SpikingModel:
    """In float64 and in training, with thresholds and leaks that learn and differ from layer to layer."""
    body = spiking_body(seeded(network, seed=seed), shape, fold_batch_norm=False, **options)
    model = SpikingModel(body, Encoder("direct"), readout_leak=readout_leak).double().train()
    random = torch.Generator().manual_seed(seed)
    for place, neuron in enumerate(model.neurons.values()):
        neuron.threshold.data = 0.3 + 0.3 * torch.rand(neuron.threshold.shape, generator=random, dtype=torch.float64)
        neuron.leak.data.fill_((0.8, 0.55, 0.95, 0.3, 0.7)[place % 5])
        neuron.requires_grad_()
    return model


def frames_of(timesteps: int, shape: tuple[int, ...], *, constant: bool, batch: int = 5) -> Tensor:
    """`[timesteps, batch, *shape]`."""
    random = torch.Generator().manual_seed(timesteps)
    frames = torch.rand(1 if constant else timesteps, batch, *shape, generator=random, dtype=torch.float64)
    return frames.expand(timesteps, *frames.shape[1:])


def labels_of(classes: int, batch: int = 5) -> Tensor:
    return torch.arange(batch) % classes


def learn(rule: Any, model: SpikingModel, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Gradients]:
    """Loss, logits and the gradients of all that learns, by name."""
    model.zero_grad(set_to_none=True)
    loss, logits = rule.step(model, frames, labels, lambda loss: loss.backward())
    assert not loss.requires_grad and not logits.requires_grad
    return loss, logits, {name: p.grad.clone() for name, p in model.body.named_parameters() if p.grad is not None}


def rule_of(name: str, surrogate: str = "exponential", steps: int | None = None, readout_loss: bool = False) -> Any:
    options: dict[str, Any] = {"surrogate": surrogate}
    options |= {"backward_steps": steps} if steps is not None else {}
    options |= {"loss": "readout"} if readout_loss else {}
    return RULES[name](**options)


def assert_same(got: Gradients, expected: Gradients, tolerance: float = 1e-10) -> None:
    """To within a share of the largest entry of each; and not all 0, which would be the same too easily."""
    assert got.keys() == expected.keys() and got
    for name, value in expected.items():
        scale = value.abs().max().item()
        assert got[name].shape == value.shape, name
        assert (got[name] - value).abs().max().item() <= tolerance * scale, name
    assert max(value.abs().max().item() for value in expected.values()) > 1e-3


# Back-propagation through time, in a loop of its own.


class Fire(torch.autograd.Function):
    """1 where the distance to the threshold is 0 or more; backward, the slope it was given."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return (distance >= 0).to(distance)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0], None


def spread(threshold: Tensor, current: Tensor) -> Tensor:
    """A threshold `[]`, `[channels]` or `[*N]` over currents `[B, *N]`."""
    if threshold.dim() == 1:
        threshold = threshold.view(-1, *[1] * (current.dim() - 2))
    return threshold.expand_as(current)


class LoopNeuron:
    """Autograd does it all; the spike of the reset is a constant, and so is the whole past if `forgets`."""

    def __init__(self, neuron: SpikingNeuron, surrogate: str, forgets: bool):
        self.neuron, self.slope, self.forgets = neuron, SLOPES[surrogate], forgets
        self.rest: Any = None

    def __call__(self, current: Tensor) -> Tensor:
        threshold = spread(self.neuron.threshold, current)
        if self.rest is None:
            self.rest = self.neuron.initial_potential * threshold.detach()
        potential = self.neuron.leak * self.rest + current
        distance = potential - threshold
        spikes = Fire.apply(distance, self.slope(distance.detach(), threshold.detach()))
        self.rest = potential - threshold * spikes.detach()
        if self.forgets:
            self.rest = self.rest.detach()
        return spikes


def currents_over_time(model: SpikingModel, frames: Tensor, surrogate: str, *, forgets: bool = False) -> list[Tensor]:
    """What flows into the readout of an `nn.Sequential` at each step."""
    modules = [module for name, module in model.body.named_children()]
    parts = [LoopNeuron(part, surrogate, forgets) if isinstance(part, SpikingNeuron) else part for part in modules]
    currents = []
    for values in frames:
        for part in parts:
            values = part(values)
        currents.append(values)
    return currents


def differentiate(loss: Tensor, model: SpikingModel) -> Gradients:
    learned = {name: parameter for name, parameter in model.body.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(learned.values()), retain_graph=True)
    return dict(zip(learned, gradients, strict=True))


def through_time(model: SpikingModel, frames: Tensor, labels: Tensor, surrogate: str) -> tuple[Tensor, Tensor, Any]:
    """Loss, logits and gradients by autograd, of the mean over steps of the cross-entropy."""
    currents = currents_over_time(model, frames, surrogate)
    loss = torch.stack([functional.cross_entropy(current, labels) for current in currents]).mean()
    return loss.detach(), torch.stack(currents).sum(0).detach(), differentiate(loss, model)


def one_layer(kind: str) -> tuple[nn.Module, tuple[int, ...], int]:
    """A network with one layer of neurons, the shape of a sample, and how many classes it has."""
    conv = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    linear = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU())
    if kind == "conv without readout":
        return conv, (2, 4, 4), 12
    if kind == "conv":
        return nn.Sequential(*conv, nn.Linear(12, 4)), (2, 4, 4), 4
    if kind == "linear":
        return nn.Sequential(*linear, nn.Linear(6, 3)), (2, 2, 2), 3
    return nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Flatten(), nn.Linear(21, 3)), (3, 4), 3


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("kind", ["conv without readout", "conv", "linear", "linear of rows"])
def test_one_layer_learns_as_through_time(kind: str, granularity: str) -> None:
    """STOP-WTL, for weights, biases, thresholds and the leak; the membranes may start anywhere."""
    network, shape, classes = one_layer(kind)
    for timesteps, start, surrogate, constant in (
        (1, 0.5, "exponential", False),
        (2, 0.0, "triangle", True),
        *((7, 0.5, name, place % 2 == 0) for place, name in enumerate(SLOPES)),
        (12, 0.0, "exponential", False),
    ):
        model = model_of(network, shape, granularity=granularity, initial_potential=start)
        frames, labels = frames_of(timesteps, shape, constant=constant), labels_of(classes)
        loss, logits, gradients = learn(rule_of("stop-wtl", surrogate), model, frames, labels)
        expected_loss, expected_logits, expected = through_time(model, frames, labels, surrogate)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(logits, expected_logits, rtol=1e-12, atol=1e-12)
        assert_same(gradients, expected)
        _, _, by_stbp = learn(rule_of("stbp", surrogate), model, frames, labels)
        assert_same(by_stbp, expected)


def three_layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("surrogate", SLOPES)
def test_without_leak_every_depth_learns_as_through_time(surrogate: str, constant: bool) -> None:
    """At leak 0 nothing but the present reaches the present."""
    for timesteps in (1, 2, 7):
        model = model_of(three_layers(), (2, 8, 8), granularity="channel")
        for neuron in model.neurons.values():
            neuron.leak.data.zero_()
        frames, labels = frames_of(timesteps, (2, 8, 8), constant=constant), labels_of(4)
        _, _, expected = through_time(model, frames, labels, surrogate)
        assert_same(learn(rule_of("stop-wtl", surrogate), model, frames, labels)[2], expected)


@pytest.mark.parametrize("readout_leak", [1.0, 0.5])
def test_the_loss_of_the_readout(readout_leak: float) -> None:
    """The readout's own weights learn as through time; for the others, what earlier steps brought it is given."""
    model = model_of(three_layers(), (2, 8, 8), readout_leak=readout_leak)
    for neuron in model.neurons.values():
        neuron.leak.data.zero_()
    frames, labels = frames_of(7, (2, 8, 8), constant=False), labels_of(4)
    loss, _, got = learn(rule_of("stop-wtl", readout_loss=True), model, frames, labels)
    loss_through_time, _, _ = learn(rule_of("stbp", readout_loss=True), model, frames, labels)
    currents = currents_over_time(model, frames, "exponential")
    for given in (True, False):
        readout = torch.zeros_like(currents[0])
        losses = []
        for current in currents:
            readout = readout_leak * (readout.detach() if given else readout) + current
            losses.append(functional.cross_entropy(readout, labels))
        expected = differentiate(torch.stack(losses).mean(), model)
        for value in (loss, loss_through_time):
            assert value.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-12)
        chosen = [name for name in expected if name.startswith("8.") != given]  # 8: the last linear layer
        assert_same({name: got[name] for name in chosen}, {name: expected[name] for name in chosen})


def test_with_leak_depth_makes_a_difference() -> None:
    """Or the identities above would say little."""
    model = model_of(three_layers(), (2, 8, 8))
    frames, labels = frames_of(7, (2, 8, 8), constant=False), labels_of(4)
    _, _, expected = through_time(model, frames, labels, "exponential")
    _, _, gradients = learn(rule_of("stop-wtl"), model, frames, labels)
    assert_same({"8.weight": gradients["8.weight"]}, {"8.weight": expected["8.weight"]})
    for name in ("0.weight", "3.weight", "1.threshold", "4.leak"):
        assert (gradients[name] - expected[name]).abs().max() > 1e-2 * expected[name].abs().max()


# The recursions in numpy.


def cross_entropy_error(logits: np.ndarray, labels: np.ndarray, timesteps: int) -> np.ndarray:
    """Of the mean over the batch and over time."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    shares[np.arange(len(labels)), labels] -= 1
    return shares / len(labels) / timesteps


def stop_in_numpy(p: dict[str, Any], frames: np.ndarray, labels: np.ndarray, surrogate: str) -> dict[str, Any]:
    """Gradients of linear 0, neurons 1, linear 2, neurons 3, linear 4 (the readout)."""
    timesteps = len(frames)
    gradients = {name: np.zeros(np.shape(value)) for name, value in p.items()}
    inputs, units, potentials, spikes, by_threshold, by_leak = ({1: np.zeros(()), 3: np.zeros(())} for _ in range(6))
    for frame in frames:
        values = frame
        for n in (1, 3):
            leak, level = p[f"{n}.leak"], p[f"{n}.threshold"]
            inputs[n] = leak * inputs[n] + values
            units[n] = leak * units[n] + 1
            by_threshold[n] = leak * (by_threshold[n] - spikes[n])
            by_leak[n] = leak * by_leak[n] + (potentials[n] - level * spikes[n])
            current = values @ p[f"{n - 1}.weight"].T + p[f"{n - 1}.bias"]
            potentials[n] = leak * (potentials[n] - level * spikes[n]) + current
            spikes[n] = (potentials[n] >= level).astype(float)
            values = spikes[n]
        error = cross_entropy_error(values @ p["4.weight"].T + p["4.bias"], labels, timesteps)
        gradients["4.weight"] += error.T @ values
        gradients["4.bias"] += error.sum(0)
        for n in (3, 1):
            level = torch.as_tensor(p[f"{n}.threshold"])
            error = (error @ p[f"{n + 1}.weight"]) * SLOPES[surrogate](
                torch.from_numpy(potentials[n]) - level, level
            ).numpy()
            gradients[f"{n - 1}.weight"] += error.T @ inputs[n]
            gradients[f"{n - 1}.bias"] += (error * units[n]).sum(0)
            moved = error * (by_threshold[n] - 1)
            gradients[f"{n}.threshold"] += moved.sum(0) if p[f"{n}.threshold"].ndim else moved.sum()
            gradients[f"{n}.leak"] += (error * by_leak[n]).sum()
    return gradients


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("surrogate", SLOPES)
def test_two_layers_follow_the_recursions(surrogate: str, constant: bool) -> None:
    for timesteps, granularity in product((1, 2, 3, 6), ("layer", "neuron")):
        network = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
        model = model_of(network, (6,), granularity=granularity)
        frames, labels = frames_of(timesteps, (6,), constant=constant), labels_of(3)
        parameters = {name: value.detach().numpy() for name, value in model.body.named_parameters()}
        expected = stop_in_numpy(parameters, frames.numpy(), labels.numpy(), surrogate)
        _, _, gradients = learn(rule_of("stop-wtl", surrogate), model, frames, labels)
        assert_same(gradients, {name: torch.from_numpy(np.asarray(value)) for name, value in expected.items()})
        assert timesteps < 3 or all(value.abs().max() > 1e-6 for value in gradients.values())


def test_what_does_not_learn_changes_nothing_for_the_rest() -> None:
    """Each of the variants gives the same gradients to what it teaches; other parameters get none."""
    for constant in (False, True):
        frames, labels = frames_of(5, (2, 8, 8), constant=constant), labels_of(4)
        model = model_of(three_layers(), (2, 8, 8), granularity="channel")
        _, _, everything = learn(rule_of("stop-wtl"), model, frames, labels)
        for frozen in (["threshold"], ["leak"], ["threshold", "leak"], ["weight", "bias"], ["0.weight", "0.bias"],
                       ["0.weight"], ["bias"], ["3.weight", "6.weight", "8.weight"]):  # fmt: skip
            for name, parameter in model.body.named_parameters():
                parameter.requires_grad_(not name.endswith(tuple(frozen)))
            _, _, gradients = learn(rule_of("stop-wtl"), model, frames, labels)
            expected = {name: value for name, value in everything.items() if not name.endswith(tuple(frozen))}
            assert_same(gradients, expected)


def test_gradients_add_to_those_that_are_there() -> None:
    model = model_of(three_layers(), (2, 8, 8))
    frames, labels = frames_of(3, (2, 8, 8), constant=True), labels_of(4)
    _, _, once = learn(rule_of("stop-wtl"), model, frames, labels)
    rule_of("stop-wtl").step(model, frames, labels, lambda loss: loss.backward())
    twice = {name: parameter.grad for name, parameter in model.body.named_parameters()}
    assert_same(twice, {name: 2 * value for name, value in once.items()})


# Online training through time, from its definition.


@pytest.mark.parametrize("surrogate", SLOPES)
def test_stop_w_is_online_training_through_time(surrogate: str) -> None:
    """a[t] = leak * a[t-1] + s[t] forward; the error of the loss of the step times a[t]."""
    network = nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(), nn.Linear(9, 7, bias=False), nn.ReLU(),
                            nn.Linear(7, 3, bias=False))  # fmt: skip
    model = model_of(network, (6,))
    for neuron in model.neurons.values():
        neuron.leak.data.fill_(0.6)
        neuron.requires_grad_(False)
    frames, labels = frames_of(8, (6,), constant=False), labels_of(3)
    first, second, readout = (model.body.get_submodule(name).weight.detach() for name in "024")
    level = [neuron.threshold.detach() for neuron in model.neurons.values()]
    potentials: list[Any] = [0.0, 0.0]
    spikes: list[Any] = [0.0, 0.0]
    traces: list[Any] = [0.0, 0.0]
    expected = {f"{n}.weight": torch.zeros_like(weight) for n, weight in ((0, first), (2, second), (4, readout))}
    for frame in frames:
        values = frame
        for layer, weight in enumerate((first, second)):
            traces[layer] = 0.6 * traces[layer] + values
            potentials[layer] = 0.6 * (potentials[layer] - level[layer] * spikes[layer]) + values @ weight.T
            spikes[layer] = values = (potentials[layer] >= level[layer]).double()
        error = (torch.softmax(values @ readout.T, 1) - functional.one_hot(labels, 3)) / len(labels) / len(frames)
        upper = error @ readout * SLOPES[surrogate](potentials[1] - level[1], level[1])
        lower = upper @ second * SLOPES[surrogate](potentials[0] - level[0], level[0])
        expected["4.weight"] += error.T @ values
        expected["2.weight"] += upper.T @ traces[1]
        expected["0.weight"] += lower.T @ traces[0]
    for name in ("ottt", "stop-w"):
        assert_same(learn(rule_of(name, surrogate), model, frames, labels)[2], expected)


# The recursions for networks of any shape: autograd gives the error of one step, and only that.


class Recursions:
    """The traces of every part of a network whose forward pass is written down in a test.

    Args:
        model: its parameters are read; none of its own way to run is used.
        surrogate: in `SLOPES`.
    """

    def __init__(self, model: SpikingModel, surrogate: str = "exponential"):
        self.model, self.slope = model, SLOPES[surrogate]
        self.leaks = {name: neuron.leak.item() for name, neuron in model.neurons.items()}
        self.state: dict[Any, Any] = {}
        self.listening: list[tuple[Tensor, Callable[[Tensor], Gradients]]] = []

    def synapse(self, name: str, values: Tensor, feeds: str | None) -> Tensor:
        """Convolution, linear layer or weighting that feeds the named neurons (None: the readout)."""
        module = self.model.body.get_submodule(name)
        leak = self.leaks[feeds] if feeds else 0.0
        trace, unit = self.state.get((name, feeds), (0.0, 0.0))
        trace, unit = leak * trace + values.detach(), leak * unit + 1
        self.state[name, feeds] = trace, unit
        current = module(values)

        def learn(error: Tensor) -> Gradients:
            weighted = (module(trace) * error).sum()
            found = {f"{name}.weight": torch.autograd.grad(weighted, module.weight, retain_graph=True)[0]}
            if getattr(module, "bias", None) is not None:
                found[f"{name}.bias"] = unit * torch.autograd.grad(weighted, module.bias)[0]
            return found

        self.listening.append((current, learn))
        return current

    def norm(self, name: str, values: Tensor, feeds: str) -> Tensor:
        """Batch norm over `[B, C, H, W]` with the statistics of the batch."""
        module = self.model.body.get_submodule(name)
        unit = self.leaks[feeds] * self.state.get((name, feeds), 0.0) + 1
        self.state[name, feeds] = unit
        axes = (0, 2, 3)
        deviations = values - values.mean(axes, keepdim=True)
        normal = deviations / (deviations.square().mean(axes, keepdim=True) + module.eps).sqrt()
        result = normal * module.weight.view(-1, 1, 1) + module.bias.view(-1, 1, 1)

        def learn(error: Tensor) -> Gradients:
            scale, shift = (error * normal.detach()).sum(axes), error.sum(axes)
            return {f"{name}.weight": unit * scale, f"{name}.bias": unit * shift}

        self.listening.append((result, learn))
        return result

    def fire(self, name: str, current: Tensor) -> Tensor:
        neuron, leak = self.model.neurons[name], self.leaks[name]
        level = spread(neuron.threshold.detach(), current)
        start = (neuron.initial_potential * level, torch.zeros_like(level), 0 * level, 0 * level)
        potential, spikes, by_threshold, by_leak = self.state.get(name, start)
        by_threshold = leak * (by_threshold - spikes)
        by_leak = leak * by_leak + (potential - level * spikes)
        potential = leak * (potential - level * spikes) + current.detach()
        spikes = (potential >= level).double()
        self.state[name] = potential, spikes, by_threshold, by_leak
        slope = self.slope(potential - level, level)

        def learn(error: Tensor) -> Gradients:
            moved = error * (by_threshold - 1)
            if neuron.threshold.dim() == 1:
                total = moved.movedim(1, 0).flatten(1).sum(1)
            else:
                total = moved.sum(0) if neuron.threshold.dim() else moved.sum()
            return {f"{name}.threshold": total, f"{name}.leak": (error * by_leak).sum()}

        self.listening.append((current, learn))
        return spikes + slope * (current - current.detach())

    def learned(self, loss: Tensor) -> Gradients:
        """The share of one step, of whose forward pass this is the loss."""
        values = [value for value, _ in self.listening]
        errors = torch.autograd.grad(loss, values)
        found: Gradients = {}
        for error, (_, learn) in zip(errors, self.listening, strict=True):
            for name, gradient in learn(error).items():
                found[name] = found.get(name, 0) + gradient
        learns = {name for name, parameter in self.model.body.named_parameters() if parameter.requires_grad}
        return {name: gradient for name, gradient in found.items() if name in learns}


Forward = Callable[[Recursions, Tensor], Tensor]


def shares(
    model: SpikingModel, forward: Forward, frames: Tensor, labels: Tensor, surrogate: str = "exponential"
) -> Iterator[tuple[Tensor, Gradients]]:
    """Loss and gradients of each step by itself."""
    recursions = Recursions(model, surrogate)
    for frame in frames:
        recursions.listening.clear()
        loss = functional.cross_entropy(forward(recursions, frame), labels)
        yield loss.detach(), recursions.learned(loss)


def mean(gradients: list[Gradients]) -> Gradients:
    return {name: torch.stack([part[name] for part in gradients]).mean(0) for name in gradients[0]}


def whole(model: SpikingModel, forward: Forward, frames: Tensor, labels: Tensor) -> Gradients:
    return mean([gradients for _, gradients in shares(model, forward, frames, labels)])


def residual(batch_norm: bool, masks: list[Tensor]) -> Forward:
    """`toy_networks.Residual`, with a dropout's mask for each of its places."""

    def forward(run: Recursions, frame: Tensor) -> Tensor:
        def convolve(name: str, place: int, values: Tensor, feeds: str) -> Tensor:
            current = run.synapse(f"{name}.{place}", values, feeds)
            return run.norm(f"{name}.{place + 1}", current, feeds) if batch_norm else current

        inner = 2 if batch_norm else 1  # the neurons' place within the residual branch
        outer = inner + 2
        x = run.fire("stem.1", run.synapse("stem.0", frame, "stem.1"))
        x = functional.avg_pool2d(x * masks[0], 2)
        for block, place in (("same", 1), ("other", 2)):
            hidden = run.fire(
                f"{block}.residual.{inner}", convolve(f"{block}.residual", 0, x, f"{block}.residual.{inner}")
            )
            y = convolve(f"{block}.residual", outer, hidden * masks[place], f"{block}.relu")
            shortcut = x if block == "same" else convolve("other.shortcut", 0, x, "other.relu")
            x = run.fire(f"{block}.relu", y + shortcut)
        return run.synapse("head.2", x.flatten(1) * masks[3], None)

    return forward


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_sums_and_batch_norms_follow_the_recursions(batch_norm: bool, granularity: str, constant: bool) -> None:
    """Shortcuts with and without a synapse of their own, and one mask of a dropout for the whole run."""
    model = model_of(Residual(dropout=0.3, batch_norm=batch_norm), (2, 8, 8), granularity=granularity)
    frames, labels = frames_of(6, (2, 8, 8), constant=constant), labels_of(CLASSES)
    torch.manual_seed(7)
    _, _, gradients = learn(rule_of("stop-wtl"), model, frames, labels)
    torch.manual_seed(7)
    masks = [
        functional.dropout(torch.ones(5, *shape, dtype=torch.float64), 0.3)
        for shape in [(4, 8, 8), (4, 4, 4), (6, 2, 2), (24,)]
    ]
    assert_same(gradients, whole(model, residual(batch_norm, masks), frames, labels))
    assert all(value.abs().max() > 1e-6 for value in gradients.values())


class Normed(nn.Module):
    """A batch norm on the first synapse, which constant frames drive only once, and one on a later synapse."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.fire = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.second, self.norm2, self.fire2 = nn.Conv2d(4, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU()
        self.head = nn.Linear(3 * 2 * 2, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.fire(self.norm(self.first(images)))
        return self.head(self.fire2(self.norm2(self.second(x))).flatten(1))


def normed(run: Recursions, frame: Tensor) -> Tensor:
    x = run.fire("fire", run.norm("norm", run.synapse("first", frame, "fire"), "fire"))
    x = run.fire("fire2", run.norm("norm2", run.synapse("second", x, "fire2"), "fire2"))
    return run.synapse("head", x.flatten(1), None)


@pytest.mark.parametrize("constant", [False, True])
def test_a_batch_norm_on_the_first_synapse_follows_the_recursions(constant: bool) -> None:
    for timesteps in (1, 2, 7):
        model = model_of(Normed(), (2, 4, 4))
        frames, labels = frames_of(timesteps, (2, 4, 4), constant=constant), labels_of(4)
        _, _, gradients = learn(rule_of("stop-wtl"), model, frames, labels)
        expected = whole(model, normed, frames, labels)
        # Batch norm takes a constant away, so the bias before it learns nothing but rounding.
        assert max(gradients.pop("first.bias").abs().max(), expected.pop("first.bias").abs().max()) < 1e-14
        assert_same(gradients, expected)


def assert_noted_once(norm: nn.Module, before: dict[str, Tensor], seen: list[Tensor]) -> None:
    """Running statistics moved once for the whole run, towards the mean over the steps of what came in at each."""
    rate = norm.momentum
    for name, of_batch in (
        ("running_mean", lambda values: values.mean((0, 2, 3))),
        ("running_var", lambda values: values.movedim(1, 0).flatten(1).var(1)),
    ):
        expected = (1 - rate) * before[name] + rate * torch.stack([of_batch(values) for values in seen]).mean(0)
        torch.testing.assert_close(getattr(norm, name), expected.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("constant", [False, True])
def test_a_batch_norm_notes_a_run_as_one_batch(constant: bool) -> None:
    """However many steps it has."""
    for timesteps in (1, 4):
        model = model_of(Normed(), (2, 4, 4))
        body: Any = model.body
        before = {name: value.clone() for name, value in body.norm.state_dict().items()}
        frames = frames_of(timesteps, (2, 4, 4), constant=constant)
        learn(rule_of("stop-w"), model, frames, labels_of(4))
        assert_noted_once(body.norm, before, [body.first(frame) for frame in frames])
        assert body.norm.momentum == body.norm2.momentum == 0.1


# One synapse that feeds neurons with different leaks.


class Parallel(nn.Module):
    """One layer deep, so back-propagation through time knows its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.ReLU()
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images)
        return self.head(self.pool(self.one(x) + self.other(x)).flatten(1))


@pytest.mark.parametrize("constant", [False, True])
def test_a_synapse_learns_from_all_the_neurons_it_feeds(constant: bool) -> None:
    model = model_of(Parallel(), (2, 4, 4))
    body: Any = model.body
    (weighting,) = (module for name, module in body.named_children() if name.endswith("weighting"))
    weighting.weight.fill_(0.5)
    assert body.one.leak != body.other.leak
    frames, labels = frames_of(9, (2, 4, 4), constant=constant), labels_of(3)
    _, _, gradients = learn(rule_of("stop-wtl"), model, frames, labels)
    one, other = (LoopNeuron(neuron, "exponential", forgets=False) for neuron in (body.one, body.other))
    loss: Any = 0.0
    for frame in frames:
        x = body.conv(frame)
        logits = body.head(body.pool(one(x) + 0.5 * other(x)).flatten(1))
        loss = loss + functional.cross_entropy(logits, labels) / len(frames)
    assert_same(gradients, differentiate(loss, model))


class Twins(nn.Module):
    """Two synapses from the same input to the same neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fire = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU()
        self.narrow, self.wide, self.fire2 = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(3 * 4 * 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.fire(self.stem(images))
        return self.head(self.fire2(self.narrow(x) + self.wide(x)).flatten(1))


def twins(run: Recursions, frame: Tensor) -> Tensor:
    x = run.fire("fire", run.synapse("stem", frame, "fire"))
    x = run.fire("fire2", run.synapse("narrow", x, "fire2") + run.synapse("wide", x, "fire2"))
    return run.synapse("head", x.flatten(1), None)


def test_synapses_may_share_an_input_and_its_trace() -> None:
    model = model_of(Twins(), (2, 4, 4))
    frames, labels = frames_of(6, (2, 4, 4), constant=False), labels_of(3)
    assert_same(learn(rule_of("stop-wtl"), model, frames, labels)[2], whole(model, twins, frames, labels))


class PreActivation(nn.Module):
    """Neurons before convolutions: what the stem makes goes to one layer of neurons, and past it to the next."""

    def __init__(self, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        self.stem, self.dropout = nn.Conv2d(2, 4, 3, padding=1), nn.Dropout(dropout)
        self.norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
        self.first, self.conv, self.second = nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()
        self.head = nn.Linear(4 * 4 * 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.dropout(self.norm(self.stem(images)))
        return self.head(self.second(x + self.conv(self.first(x))).flatten(1))


def pre_activation(mask: Any, batch_norm: bool) -> Forward:
    def forward(run: Recursions, frame: Tensor) -> Tensor:
        def stem(feeds: str) -> Tensor:
            current = run.synapse("stem", frame, feeds)
            return (run.norm("norm", current, feeds) if batch_norm else current) * mask

        spikes = run.fire("first", stem("first"))
        current = run.synapse("conv", spikes, "second") + stem("second")
        return run.synapse("head", run.fire("second", current).flatten(1), None)

    return forward


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_sum_passes_on_what_other_neurons_saw(batch_norm: bool, constant: bool) -> None:
    model = model_of(PreActivation(0.3, batch_norm), (2, 4, 4))
    body: Any = model.body
    before = {name: value.clone() for name, value in body.state_dict().items()}
    frames, labels = frames_of(6, (2, 4, 4), constant=constant), labels_of(3)
    torch.manual_seed(3)
    _, _, gradients = learn(rule_of("stop-wtl"), model, frames, labels)
    torch.manual_seed(3)
    mask = functional.dropout(torch.ones(5, 4, 4, 4, dtype=torch.float64), 0.3)
    expected = whole(model, pre_activation(mask, batch_norm), frames, labels)
    if batch_norm:
        assert max(gradients.pop("stem.bias").abs().max(), expected.pop("stem.bias").abs().max()) < 1e-14
    assert_same(gradients, expected)
    if batch_norm:  # however many paths lead on from it
        statistics = {name: before[f"norm.{name}"] for name in ("running_mean", "running_var")}
        assert_noted_once(body.norm, statistics, [body.stem(frame) for frame in frames])


# Some of the steps, or only the last.


@pytest.mark.parametrize("constant", [False, True])
def test_sltt_learns_from_single_steps(constant: bool) -> None:
    """Autograd through space, with a past that is a constant."""
    surrogate = "triangle"
    model = model_of(three_layers(), (2, 8, 8))
    for neuron in model.neurons.values():
        neuron.requires_grad_(False)
    frames, labels = frames_of(5, (2, 8, 8), constant=constant), labels_of(4)
    currents = currents_over_time(model, frames, surrogate, forgets=True)
    losses = [functional.cross_entropy(current, labels) for current in currents]
    steps = [differentiate(loss, model) for loss in losses]
    loss, logits, everything = learn(rule_of("sltt", surrogate), model, frames, labels)
    assert_same(everything, mean(steps))
    torch.testing.assert_close(loss, torch.stack(losses).mean().detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(logits, torch.stack(currents).sum(0).detach(), rtol=1e-12, atol=1e-12)
    for enough in (5, 6):
        assert_same(learn(rule_of("sltt", surrogate, enough), model, frames, labels)[2], everything)

    drawn = set()
    for seed in range(12):
        results = []
        for _ in range(2):
            torch.manual_seed(seed)
            results.append(learn(rule_of("sltt", surrogate, 2), model, frames, labels))
        (loss, logits, gradients), (_, _, again) = results
        assert all(torch.equal(gradients[name], again[name]) for name in again)
        pairs = [
            pair
            for pair in combinations(range(5), 2)
            if torch.allclose(gradients["8.weight"], mean([steps[t] for t in pair])["8.weight"], rtol=1e-9, atol=1e-13)
        ]
        assert len(pairs) == 1
        assert_same(gradients, mean([steps[t] for t in pairs[0]]))
        torch.testing.assert_close(loss, torch.stack([losses[t] for t in pairs[0]]).mean().detach())
        torch.testing.assert_close(logits, torch.stack(currents).sum(0).detach())  # of all steps
        drawn.add(pairs[0])
    assert len(drawn) > 3 and {t for pair in drawn for t in pair} == set(range(5))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("readout_leak", [1.0, 0.5, 0.0])
def test_osstop_learns_from_the_last_readout(readout_leak: float, constant: bool) -> None:
    for timesteps in (1, 2, 6):
        model = model_of(Normed(), (2, 4, 4), readout_leak=readout_leak)
        frames, labels = frames_of(timesteps, (2, 4, 4), constant=constant), labels_of(4)
        loss, logits, gradients = learn(rule_of("osstop"), model, frames, labels)
        recursions, readout = Recursions(model), torch.zeros(5, 4, dtype=torch.float64)
        for frame in frames:
            recursions.listening.clear()
            readout = readout_leak * readout.detach() + normed(recursions, frame)
        expected_loss = functional.cross_entropy(readout, labels)
        expected = recursions.learned(expected_loss)
        torch.testing.assert_close(logits, readout.detach(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-12, atol=0)
        assert max(gradients.pop("first.bias").abs().max(), expected.pop("first.bias").abs().max()) < 1e-14
        assert_same(gradients, expected)


@pytest.mark.parametrize("name", ["stop-wtl", "sltt", "stbp", "linear"])
def test_logits_are_the_readout_at_the_end(name: str) -> None:
    model = model_of(three_layers(), (2, 8, 8), readout_leak=0.5)
    frames, labels = frames_of(5, (2, 8, 8), constant=False), labels_of(4)
    _, logits, _ = learn(rule_of(name, "linear"), model, frames, labels)
    with torch.no_grad():
        expected: Any = 0.0
        for current in currents_over_time(model, frames, "linear"):
            expected = 0.5 * expected + current
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(frames)[0][-1].detach(), expected, rtol=1e-12, atol=1e-12)


# Synapses of every make.


SYNAPSES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 6)),
    "depthwise, no bias": (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (4, 5, 6)),
    "strided": (nn.Conv2d(4, 3, (3, 2), stride=(2, 3), padding=(1, 0)), (4, 7, 6)),
    "dilated": (nn.Conv2d(4, 3, 3, dilation=2, padding=2), (4, 5, 6)),
    "circular": (nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), (4, 5, 6)),
    "reflected": (nn.Conv2d(4, 3, 3, padding=(1, 2), padding_mode="reflect", stride=2), (4, 5, 6)),
    "same": (nn.Conv2d(4, 3, (2, 3), padding="same"), (4, 5, 6)),
    "valid, grouped": (nn.Conv2d(4, 2, (2, 3), padding="valid", groups=2), (4, 5, 6)),
    "one-dimensional": (nn.Conv1d(4, 3, 3, padding=1, stride=2), (4, 9)),
    "one-dimensional, same": (nn.Conv1d(4, 3, 4, padding="same", dilation=2), (4, 9)),
    "three-dimensional": (nn.Conv3d(4, 2, 2, padding=1), (4, 3, 2, 3)),
    "linear of rows": (nn.Linear(6, 5), (4, 3, 6)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", SYNAPSES)
def test_every_synapse_follows_the_recursions(name: str, constant: bool) -> None:
    """As the first and as a later one."""
    made, shape = SYNAPSES[name]
    first: nn.Module = nn.Linear(shape[-1], shape[-1])
    network = nn.Sequential(first, nn.ReLU(), made, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    network(torch.zeros(1, *shape))
    model = model_of(network, shape)
    frames, labels = frames_of(4, shape, constant=constant), labels_of(3)

    def forward(run: Recursions, frame: Tensor) -> Tensor:
        x = run.fire("1", run.synapse("0", frame, "1"))
        x = run.fire("3", run.synapse("2", x, "3"))
        return run.synapse("5", x.flatten(1), None)

    assert_same(learn(rule_of("stop-wtl"), model, frames, labels)[2], whole(model, forward, frames, labels))
    alone = nn.Sequential(made, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    alone(torch.zeros(1, *shape))
    model = model_of(alone, shape)
    _, _, expected = through_time(model, frames, labels, "exponential")
    assert_same(learn(rule_of("stop-wtl"), model, frames, labels)[2], expected)


@pytest.mark.parametrize("constant", [False, True])
def test_layouts_in_memory_make_no_difference(constant: bool) -> None:
    frames, labels = frames_of(4, (2, 8, 8), constant=constant), labels_of(CLASSES)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = model_of(Residual(batch_norm=True), (2, 8, 8), granularity="neuron").to(memory_format=layout)
        still = frames[0].contiguous(memory_format=layout).expand_as(frames)
        values = still if constant else frames.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, (4, 5))
        results.append(learn(rule_of("stop-wtl"), model, values, labels)[2])
    assert_same(*results)


def under_autocast(rule: str, model: SpikingModel, frames: Tensor, labels: Tensor) -> Gradients:
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = rule_of(rule).step(model, frames, labels, lambda loss: loss.backward())
    assert loss.isfinite() and logits.isfinite().all()
    found = {name: p.grad for name, p in model.body.named_parameters() if p.requires_grad}
    assert all(value is not None and value.dtype == torch.float32 for value in found.values())
    return found


def coarse(model: SpikingModel, unit: float) -> SpikingModel:
    """With weights of -unit, 0 and unit, so that currents are exact in few bits and no spike flips by rounding."""
    for name, parameter in model.body.named_parameters():
        if name.endswith(("weight", "bias")):
            large = parameter.data.abs() > 0.7 * parameter.data.square().mean().sqrt()
            parameter.data = unit * large * parameter.data.sign()
        elif name.endswith("leak"):
            parameter.data.fill_(0.5)
    return model


@pytest.mark.parametrize("constant", [False, True])
def test_single_precision_is_as_good_as_double(constant: bool) -> None:
    """With convolutions wide enough for kernels that exist in single precision only."""
    network = nn.Sequential(
        nn.Conv2d(2, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 66, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(66, 64, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4),
    )  # fmt: skip
    model = coarse(model_of(network, (2, 4, 5), granularity="neuron"), 0.125)
    second = model.body.get_submodule("2")
    assert isinstance(learning_synapse(second.float(), torch.rand(5, 64, 4, 5)), FastConvolution)
    for neuron in model.neurons.values():
        neuron.threshold.data = neuron.threshold.data.float().double()
    frames, labels = (4 * frames_of(3, (2, 4, 5), constant=False)).round() / 4, labels_of(4)
    # The last two: with nothing that learns behind the second synapse.
    for frozen in ((), ("5.weight",), ("2.weight",), ("0.", "1."), ("0.", "1.", "2.")):
        for name, parameter in model.body.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        for rule in ("stop-wtl",) if frozen else ("stop-wtl", "sltt", "osstop"):
            results = []
            for dtype in (torch.float64, torch.float32):
                values = frames.to(dtype)
                values = values[:1].expand_as(values) if constant else values
                results.append(learn(rule_of(rule), model.to(dtype), values, labels)[2])
            exact, gradients = results
            assert all(value.dtype == torch.float32 for value in gradients.values())
            assert_same({name: value.double() for name, value in gradients.items()}, exact, tolerance=1e-5)
            assert frozen or min(value.abs().max() for name, value in exact.items() if name.endswith("weight")) > 1e-4


@pytest.mark.parametrize("constant", [False, True])
def test_half_precision_comes_near(constant: bool) -> None:
    """Gradients differ by their own rounding only."""
    model = coarse(model_of(Residual(), (2, 8, 8), granularity="channel").float(), 0.5)
    frames = (4 * frames_of(6, (2, 8, 8), constant=False, batch=16)).round().float() / 4
    frames, labels = frames[:1].expand_as(frames) if constant else frames, labels_of(CLASSES, 16)
    _, _, exact = learn(rule_of("stop-wtl"), model, frames, labels)
    assert_same(under_autocast("stop-wtl", model, frames, labels), exact, tolerance=0.03)


@pytest.mark.parametrize("constant", [False, True])
def test_half_precision_knows_batch_norm(constant: bool) -> None:
    model = model_of(Residual(batch_norm=True), (2, 8, 8)).float()
    frames, labels = frames_of(3, (2, 8, 8), constant=constant).float(), labels_of(CLASSES)
    assert all(value.isfinite().all() for value in under_autocast("stop-wtl", model, frames, labels).values())


def ticking(network: nn.Module, leak: float) -> SpikingModel:
    """In single precision; an input of 1 makes the first neuron fire at every step, and the next at every other."""
    model = model_of(network, (1,)).float()
    *hidden, readout = (module for module in model.body.children() if isinstance(module, nn.Linear))
    with torch.no_grad():
        for neuron in model.neurons.values():
            neuron.requires_grad_(False)
            neuron.leak.fill_(leak)
            neuron.threshold.fill_(1.0)
        for place, synapse in enumerate(hidden):
            synapse.weight.fill_(0.5**place)
            synapse.bias.zero_()
        readout.weight.copy_(torch.tensor([[0.25], [-0.25]]))
    return model


def test_a_trace_does_not_stop_growing_in_half_precision() -> None:
    """A sum of ones in bfloat16 ends at 256."""
    network = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    model = ticking(network, leak=1.0)
    frames, labels = torch.ones(1, 1, 1).expand(350, 1, 1), torch.tensor([1])
    _, _, exact = learn(rule_of("osstop"), model, frames, labels)
    assert_same(under_autocast("osstop", model, frames, labels), exact, tolerance=0.03)


def test_errors_of_a_constant_current_do_not_stop_growing_in_half_precision() -> None:
    model = ticking(nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2)), leak=0.5)
    frames, labels = torch.ones(1, 1, 1).expand(350, 1, 1), torch.tensor([1])
    _, _, exact = learn(rule_of("stbp"), model, frames, labels)  # the same for one layer, but faster
    assert_same(under_autocast("stop-w", model, frames, labels), exact, tolerance=0.03)


# Memory.


@pytest.mark.parametrize("name", ["stop-w", "stop-wtl", "osstop", "sltt"])
def test_memory_does_not_grow_with_time(name: str) -> None:
    assert peak(name, 64) <= 1.05 * peak(name, 2)


def test_memory_through_time_does_grow() -> None:
    assert peak("stbp", 64) >= 8 * peak("stbp", 2)
    assert peak("stbp", 64) >= 8 * peak("stop-wtl", 64)


def peak(name: str, timesteps: int) -> int:
    """Bytes alive at once in one step of learning from direct frames."""
    network = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, CLASSES),
    )  # fmt: skip
    model = model_of(network, (2, 8, 8)).float()
    for neuron in model.neurons.values():
        neuron.requires_grad_(name in ("stop-wtl", "stbp"))
    images, labels = pictures(16), labels_of(CLASSES, 16)
    frames = model.encoder(images, torch.arange(16), timesteps)
    assert frames.stride(0) == 0
    with LiveMemory() as memory:
        rule_of(name).step(model, frames, labels, lambda loss: loss.backward())
    return memory.peak


def test_live_memory_counts_what_is_alive() -> None:
    outside = torch.zeros(100)
    with LiveMemory() as memory:
        assert memory.live == memory.peak == 0
        first = torch.zeros(1000)
        assert memory.live == memory.peak == 4000
        second = torch.ones(10, dtype=torch.float64)
        assert memory.live == memory.peak == 4080
        del first
        assert memory.live == 80 and memory.peak == 4080
        third = torch.zeros(20, dtype=torch.int8)
        assert memory.live == 100 and memory.peak == 4080
        view = second[2:5].view(3, 1).expand(3, 7)  # no memory of its own
        outside_view = outside[3:].view(-1)
        outside.add_(1)
        third.zero_()
        torch.add(second, second, out=second)
        assert memory.live == 100
        del second
        assert memory.live == 100  # a view keeps it
        del view, outside_view
        assert memory.live == 20
        sums = outside.view(10, 10).sum(1)  # counts from what was there before
        assert memory.live == 20 + 40
        parts = torch.ones(6).split(2)  # three views of one
        assert memory.live == 20 + 40 + 24
        del parts, sums, third
        assert memory.live == 0 and memory.peak == 4080
    assert memory.live == 0
    unseen = torch.zeros(10_000)
    assert memory.peak == 4080 and len(unseen) == 10_000


def test_live_memory_counts_what_is_kept_for_the_backward_pass() -> None:
    values = torch.rand(500, requires_grad=True)
    with LiveMemory() as memory:
        total = values.exp().sum()  # keeps the exponential, and a scalar
        assert memory.live == 2000 + 4
        total.backward()
        assert memory.live == 2000 + 4  # of the exponential's only the gradient is left, and it is as large
        del total
        assert memory.live == 2000
    assert values.grad is not None
    values.grad = None
    assert memory.live == 0 and memory.peak >= 4000


def test_two_counts_do_not_mix() -> None:
    with LiveMemory() as first:
        kept = torch.zeros(10)
    with LiveMemory() as second:
        torch.zeros(5)
    assert (first.live, first.peak, second.live, second.peak) == (40, 40, 0, 20)
    del kept
    assert first.live == 0


# One step of a layer of neurons.

SHAPES = [(1, 1), (2, 1025), (5, 205), (3, 4, 1, 1), (2, 3, 5, 7), (1, 1, 4, 3), (2, 5, 31), (2, 3, 2, 3, 5)]


def online_run(
    currents: Tensor, threshold: Tensor, leak: Tensor, start: Tensor, into: Tensor, surrogate: Any, learn: str,
    kernel: str,
) -> dict[str, Tensor]:  # fmt: skip
    """Steps with their backward passes: spikes, final membrane and gradients by name."""
    threshold = threshold.clone().requires_grad_("threshold" in learn)
    leak = leak.clone().requires_grad_("leak" in learn)
    state = online.start(start, threshold_learns=threshold.requires_grad, leak_learns=leak.requires_grad)
    kept = (state.membrane, state.by_threshold, state.by_leak)
    assert [value is None for value in kept] == [False, "threshold" not in learn, "leak" not in learn]
    assert state.membrane.data_ptr() != start.data_ptr()
    spikes, errors = [], []
    for current, gradient in zip(currents, into, strict=True):
        current = current.detach().requires_grad_()
        fired = online.step(current, threshold, leak, state, surrogate, kernel=kernel)
        fired.backward(gradient)
        assert (state.membrane, state.by_threshold, state.by_leak) == kept or all(
            now is before for now, before in zip((state.membrane, state.by_threshold, state.by_leak), kept, strict=True)
        )
        spikes.append(fired.detach())
        errors.append(current.grad)
    results = {"spikes": torch.stack(spikes), "membrane": state.membrane, "current": torch.stack(errors)}
    for name, parameter in (("threshold", threshold), ("leak", leak)):
        if name in learn:
            results[name] = parameter.grad
        else:
            assert parameter.grad is None
    return results


def scan_run(
    currents: Tensor, threshold: Tensor, leak: Tensor, start: Tensor, into: Tensor, surrogate: Any, learn: str
) -> dict[str, Tensor]:
    """The same from the reference scan: a scan of each step for errors, one of all for thresholds and leaks."""
    since = torch.full_like(start, NEVER, dtype=torch.int32)
    parameters = [threshold.clone().requires_grad_(), leak.clone().requires_grad_()]
    spikes, errors, membrane = [], [], start
    for current, gradient in zip(currents, into, strict=True):
        current = current.detach().unsqueeze(0).requires_grad_()
        fired, membrane, _ = reference.scan(current, *parameters, membrane.detach(), since, False, surrogate)
        errors += torch.autograd.grad(fired, current, gradient.unsqueeze(0))[0]
        spikes.append(fired[0].detach())
    fired, _, _ = reference.scan(currents, *parameters, start, since, False, surrogate)
    gradients = dict(zip(("threshold", "leak"), torch.autograd.grad(fired, parameters, into), strict=True))
    return {
        "spikes": torch.stack(spikes), "membrane": membrane.detach(), "current": torch.stack(errors),
        **{name: gradients[name] for name in ("threshold", "leak") if name in learn},
    }  # fmt: skip


def case(
    shape: tuple[int, ...], granularity: str, layout: str, dtype: torch.dtype, timesteps: int = 6
) -> tuple[Tensor, ...]:
    """Currents, threshold, leak, membranes at the start and gradients of spikes; all sums are exact in float32."""
    random = torch.Generator().manual_seed(len(shape) + shape[-1])

    def exact(*size: int) -> Tensor:
        return torch.randint(-256, 257, size, generator=random).to(dtype) / 256

    size = {"layer": (), "channel": shape[1:2], "neuron": shape[1:]}[granularity]
    currents, into = exact(timesteps, *shape) + 0.25, exact(timesteps, *shape)
    start = exact(*shape)
    if layout == "channels-last" and len(shape) == 4:
        last = torch.channels_last
        currents = currents.flatten(0, 1).contiguous(memory_format=last).unflatten(0, (timesteps, shape[0]))
        start = start.contiguous(memory_format=last)
    return currents, exact(*size).abs() / 2 + 0.5, torch.tensor(0.5, dtype=dtype), start, into


def assert_same_run(got: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype, what: Any) -> None:
    assert got.keys() == expected.keys()
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for name, value in expected.items():
        exact = name in ("spikes", "membrane")
        assert got[name].dtype == dtype and got[name].shape == value.shape
        scale = 0.0 if exact else tolerance * max(1.0, value.abs().max().item())
        torch.testing.assert_close(
            got[name], value, rtol=0, atol=scale, msg=lambda text, name=name: f"{name} of {what}: {text}"
        )


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    """So that a value nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("uninitialised_memory_is_nan")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("surrogate", SLOPES)
def test_a_step_is_one_of_the_reference_scan(surrogate: str, dtype: torch.dtype) -> None:
    """Images in each order of memory, other shapes in the one they have; with thresholds of each granularity."""
    cases = product(enumerate(SHAPES), ["layer", "channel", "neuron"], ["contiguous", "channels-last"])
    for (number, shape), granularity, layout in cases:
        if layout == "channels-last" and len(shape) != 4:
            continue
        inputs = case(shape, granularity, layout, dtype)
        learned = ("threshold leak", "threshold", "leak", "")[number % 4] if number > 4 else "threshold leak"
        expected = scan_run(*inputs, SURROGATES[surrogate], learned)
        assert shape == (1, 1) or 0.05 < expected["spikes"].mean() < 0.95
        for kernel in HERE:
            got = online_run(*inputs, SURROGATES[surrogate], learned, kernel)
            assert_same_run(got, expected, dtype, (shape, granularity, layout, kernel))


@pytest.mark.parametrize("shape", [(1, 40_003), (3, 5, 61, 67)])
def test_a_step_on_several_threads(shape: tuple[int, ...]) -> None:
    inputs = case(shape, "channel", "channels-last", torch.float64, timesteps=2)
    expected = scan_run(*inputs, SURROGATES["exponential"], "threshold leak")
    before = torch.get_num_threads()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        try:
            got = online_run(*inputs, SURROGATES["exponential"], "threshold leak", "numba")
        finally:
            torch.set_num_threads(before)
        assert_same_run(got, expected, torch.float64, (shape, threads))


def test_neurons_run_the_kernel_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot run, it says so instead of another taking its place."""
    model = model_of(three_layers(), (2, 8, 8))
    first = next(iter(model.neurons.values()))
    frames, labels = frames_of(3, (2, 8, 8), constant=False), labels_of(4)
    expected = learn(rule_of("stop-wtl"), model, frames, labels)[2]
    first.kernel = "reference"
    assert_same(learn(rule_of("stop-wtl"), model, frames, labels)[2], expected)
    first.kernel = "nmba"
    with pytest.raises(ConfigError, match="kernel: unknown 'nmba'"):
        learn(rule_of("stop-wtl"), model, frames, labels)
    first.kernel = "numba"
    monkeypatch.setattr(
        "hybridsnn.kernels.neuron.KERNELS", {"numba": replace(KERNELS["numba"], supports=lambda _: False)}
    )
    with pytest.raises(ConfigError, match="'numba' cannot run"):
        learn(rule_of("stop-wtl"), model, frames, labels)


@pytest.mark.parametrize("kernel", HERE)
def test_the_state_is_changed_in_place_and_nothing_else_is(kernel: str) -> None:
    currents, threshold, leak, start, _ = case((2, 3, 5, 7), "channel", "channels-last", torch.float32)
    before = [value.clone() for value in (currents, threshold, leak, start)]
    state = online.start(start, threshold_learns=True, leak_learns=True)
    tensors = (state.membrane, state.by_threshold, state.by_leak)
    places = [value.data_ptr() for value in tensors if value is not None]
    for current in currents:
        online.step(current, threshold, leak, state, SURROGATES["triangle"], kernel=kernel)
    after = (state.membrane, state.by_threshold, state.by_leak)
    assert [value.data_ptr() for value in after if value is not None] == places
    assert all(torch.equal(*pair) for pair in zip(before, (currents, threshold, leak, start), strict=True))
    # What a membrane depends on: one more threshold lost for each spike, one more leak.
    assert state.by_threshold is not None and state.by_threshold.min() < -1


@pytest.mark.parametrize("kernel", HERE)
def test_halves_meet_membranes_in_single_precision(kernel: str) -> None:
    currents, threshold, leak, start, into = case((2, 3, 5, 7), "channel", "contiguous", torch.float32)
    coarse = currents.to(torch.bfloat16)
    state = online.start(start, threshold_learns=True, leak_learns=True)
    expected = online.start(start, threshold_learns=True, leak_learns=True)
    threshold.requires_grad_()
    for current, gradient in zip(coarse, into.to(torch.bfloat16), strict=True):
        current = current.detach().requires_grad_()
        spikes = online.step(current, threshold, leak, state, SURROGATES["exponential"], kernel=kernel)
        spikes.backward(gradient)
        assert spikes.dtype == current.grad.dtype == torch.bfloat16
        twin = online.step(
            current.detach().float(), threshold, leak, expected, SURROGATES["exponential"], kernel=kernel
        )
        assert torch.equal(spikes.float(), twin) and torch.equal(state.membrane, expected.membrane)
    assert state.membrane.dtype == torch.float32 and threshold.grad is not None


def test_the_exponential_of_compiled_loops() -> None:
    @numba.njit
    def evaluate(values: Any, results: Any) -> None:
        for i in range(values.size):
            results[i] = exponential(values[i])

    for dtype, tolerance in ((np.float32, 3e-7), (np.float64, 1e-15)):
        values = np.concatenate([-np.linspace(0, 86.9, 40_001), -np.logspace(-12, 1, 2_001)]).astype(dtype)
        results = np.empty_like(values)
        evaluate(values, results)
        exact = np.array([math.exp(value) for value in values.astype(float)])
        assert (np.abs(results / exact - 1) <= tolerance).all()
        assert results[0] == 1
    far = np.array([-87.5, -100, -1e9, -np.inf], np.float32)
    results = np.empty_like(far)
    evaluate(far, results)
    assert (results > 0).all() and (results <= 1.1 * math.exp(-87)).all()


# What cannot be.


def test_networks_that_one_trace_cannot_serve_are_refused() -> None:
    frames, labels = frames_of(3, (2, 8, 8), constant=False), labels_of(4)
    hard = model_of(three_layers(), (2, 8, 8), reset="hard")
    with pytest.raises(ConfigError, match=r"^finetune\.method: '1' has a hard reset, must be soft: .*--reset soft"):
        learn(rule_of("stop-wtl"), hard, frames, labels)
    many = model_of(three_layers(), (2, 8, 8))
    many.neurons["4"].leak = nn.Parameter(torch.full((4,), 0.5, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"'4' has 4 leaks, must have one: the trace of a synapse serves all neurons"):
        learn(rule_of("ottt"), many, frames, labels)
    for name in RULES:
        if name.startswith(("stop-", "osstop", "ottt", "sltt")):
            with pytest.raises(
                ConfigError, match=r"surrogate: got 'spike-time', must be exponential or linear or sigmoid or triangle$"
            ) as error:
                RULES[name](surrogate="spike-time")
            assert "\n" not in str(error.value)
            assert isinstance(rule_of(name), ForwardTraces)


def test_every_rule_can_be_built_with_each_of_its_surrogates() -> None:
    model = model_of(three_layers(), (2, 8, 8)).float()
    frames, labels = frames_of(2, (2, 8, 8), constant=False).float(), labels_of(4)
    for name, entry in RULES.items():
        assert entry.summary and surrogates_of(entry)
        for surrogate in surrogates_of(entry):
            loss, _, gradients = learn(rule_of(name, surrogate), model, frames, labels)
            assert loss > 0 and gradients["8.weight"].abs().max() > 0
