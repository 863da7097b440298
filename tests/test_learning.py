"""Learning: gradients against plain loops, optimisers and schedules, and trainings that survive their death."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from toy_networks import CLASSES, Residual, encodable, pictures, seeded, spiking, surrogates_of

from hybridsnn.checkpoint import LAYOUT
from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import ArtifactError, ConfigError
from hybridsnn.learning import (
    OPTIMISERS,
    RULES,
    SCHEDULES,
    BackPropagation,
    Optimisation,
    OwnRate,
    fit,
    seed_of,
)
from hybridsnn.learning.averaging import MovingAverage
from hybridsnn.learning.rules.through_time import BackPropagationThroughTime
from hybridsnn.learning.training_state import FILE, TrainingState
from hybridsnn.model import SpikingModel
from hybridsnn.neurons import NEVER, RESETS

SLOPES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "spike-time": lambda potential, threshold, since: 0.3 / threshold * torch.exp(-0.01 * since),
    "linear": lambda potential, threshold, since: (
        0.3 / threshold * (1 - (potential / threshold - 1).abs()).clamp(min=0)
    ),
    "exponential": lambda potential, threshold, since: torch.exp(-(potential - threshold).abs()),
    "triangle": lambda potential, threshold, since: (1 - (potential - threshold).abs()).clamp(min=0),
    "sigmoid": lambda potential, threshold, since: 1 / threshold / torch.cosh(2 * (potential / threshold - 1)) ** 2,
}


def build(name: str, surrogate: str | None = None) -> Any:
    """A rule of `RULES`, with its own surrogate unless another is named."""
    return RULES[name](**({"surrogate": surrogate} if surrogate else {}))


# What a plain loop can follow; test_stop.py has the others.
THROUGH_TIME = [
    (name, surrogate)
    for name, rule in RULES.items()
    if issubclass(rule, BackPropagationThroughTime)
    for surrogate in surrogates_of(rule)
]


class PlainNeuron:
    """The equations of STDB, one step at a time; autograd does the rest."""

    def __init__(self, threshold: Tensor, leak: Tensor, surrogate: str, reset: str):
        self.threshold, self.leak, self.slope, self.reset = threshold, leak, SLOPES[surrogate], reset
        self.rest: Any = 0.0
        self.last: Any = -NEVER
        self.t = 0

    def __call__(self, current: Tensor) -> Tensor:
        potential = self.leak * self.rest + current
        since = (self.t - self.last) * torch.ones_like(potential)
        slope = self.slope(potential.detach(), self.threshold.detach(), since)
        fired = (potential >= self.threshold).to(potential).detach()
        distance = slope * (potential - self.threshold)
        spikes = fired + distance - distance.detach()  # the value of a spike, the slope of its surrogate
        # The reset's spike is not differentiated; its threshold is.
        self.rest = potential - self.threshold * fired if self.reset == "soft" else potential * (1 - fired)
        self.last = torch.where(fired > 0, self.t, self.last)
        self.t += 1
        return spikes


def plain_loop(weights: dict[str, Tensor], frames: Tensor, surrogate: str, reset: str, dropout: float) -> Tensor:
    """What flows out of `toy_networks.Residual` at each step, with one mask per sample for all steps."""
    batch = frames.shape[1]
    masks = [
        functional.dropout(torch.ones(batch, *shape).to(frames), dropout)
        for shape in [(4, 8, 8), (4, 4, 4), (6, 2, 2), (24,)]
    ]
    names = ["stem.1", "same.residual.1", "same.relu", "other.residual.1", "other.relu"]
    neurons = [PlainNeuron(weights[f"{name}.threshold"], weights[f"{name}.leak"], surrogate, reset) for name in names]

    def conv(values: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        return functional.conv2d(values, weight, stride=stride, padding=weight.shape[-1] // 2)

    currents = []
    for frame in frames:
        x = functional.avg_pool2d(neurons[0](conv(frame, "stem.0")) * masks[0], 2)
        hidden = neurons[1](conv(x, "same.residual.0")) * masks[1]
        x = neurons[2](conv(hidden, "same.residual.3") + x)
        hidden = neurons[3](conv(x, "other.residual.0", 2)) * masks[2]
        x = neurons[4](conv(hidden, "other.residual.3") + conv(x, "other.shortcut.0", 2))
        currents.append((x.flatten(1) * masks[3]) @ weights["head.2.weight"].T)
    return torch.stack(currents)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("rule", "surrogate"), THROUGH_TIME)
def test_gradients_are_those_of_a_plain_loop(rule: str, surrogate: str, encoder: str, reset: str) -> None:
    """Of weights, thresholds and leaks, through pools, dropout and sums."""
    model = spiking(seeded(Residual(dropout=0.3)), encoder, reset=reset).double().train()
    model.requires_grad_()
    with torch.no_grad():
        for place, neuron in enumerate(model.neurons.values()):
            neuron.leak.fill_(1.0 - 0.05 * place)
    images, labels = encodable(encoder, 4, 14).double(), torch.tensor([0, 3, 1, 4])
    frames = model.encoder(images, torch.arange(4), 14, seed=2)

    torch.manual_seed(7)
    loss, logits = build(rule, surrogate).step(model, frames, labels, lambda loss: loss.backward())
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.body.named_parameters()}
    torch.manual_seed(7)
    currents = plain_loop(weights, frames, surrogate, reset, 0.3)
    expected = currents.sum(0)
    if rule == "stbp":
        expected_loss = torch.stack([functional.cross_entropy(current, labels) for current in currents]).mean()
    else:
        expected_loss = functional.cross_entropy(expected, labels)
    expected_loss.backward()

    torch.testing.assert_close(logits, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-10, atol=1e-10)
    assert not loss.requires_grad and not logits.requires_grad
    for name, parameter in model.body.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-10, atol=1e-10)


def test_a_neuron_that_never_fired_learns_slowly() -> None:
    """STDB: exp(-0.01 * (1000 + t)) before the first spike, exp(-0.01 * steps) after it."""
    neuron = spiking(seeded(Residual())).neurons["stem.1"].double()
    neuron.threshold.fill_(1.0)
    current = torch.tensor([0.25, 0.75, 0.0, 0.25]).double().view(4, 1, 1).requires_grad_()
    spikes, _ = neuron(current, surrogate=build("stdb").spike_derivative)
    assert spikes.flatten().tolist() == [0, 1, 0, 0]
    slopes = [0.3 * math.exp(-0.01 * since) for since in (1000, 1001, 1, 2)]
    for t in range(4):
        (gradient,) = torch.autograd.grad(spikes[t, 0, 0], current, retain_graph=True)
        expected = [slopes[t] if earlier <= t else 0.0 for earlier in range(4)]
        assert gradient.flatten().tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_back_propagation_is_autograd_s(smoothing: float) -> None:
    """With smoothed labels too: each class has an equal part of the share, the right one the rest beside it."""
    network = seeded(Residual())
    images, labels = pictures(4), torch.tensor([0, 3, 1, 4])
    rule = BackPropagation(label_smoothing=smoothing)
    loss, logits = rule.step(network, images, labels, lambda loss: loss.backward())
    targets = (1 - smoothing) * functional.one_hot(labels, CLASSES) + smoothing / CLASSES
    expected = -(targets * network(images).log_softmax(1)).sum(1).mean()
    gradients = torch.autograd.grad(expected, list(network.parameters()))
    torch.testing.assert_close(loss, expected.detach())
    assert torch.equal(logits, network(images).detach())
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", {0.0: 1, 0.5: 1, 0.999: 1}),
        ("step", {0.0: 1, 0.599: 1, 0.6: 0.1, 0.799: 0.1, 0.8: 0.01, 0.899: 0.01, 0.9: 0.001, 0.999: 0.001}),
        ("cosine", {0.0: 1, 1 / 3: 0.75, 0.5: 0.5, 2 / 3: 0.25, 1.0: 0}),
        ("one-cycle", {0.0: 0.04, 0.15: 0.52, 0.3: 1, 0.65: 0.500002, 1.0: 0.000004}),
    ],
)
def test_schedules_have_known_values(schedule: str, values: dict[float, float]) -> None:
    for progress, value in values.items():
        assert SCHEDULES[schedule].factor(progress) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_have_one_peak_of_one(schedule: str) -> None:
    """At the start, or after a warm-up."""
    factors = [SCHEDULES[schedule].factor(step / 200) for step in range(200)]
    peak = factors.index(1)
    assert peak == (60 if schedule == "one-cycle" else 0)
    assert factors == sorted(factors[:peak]) + sorted(factors[peak:], reverse=True) and min(factors) > 0


def test_the_one_cycle_is_torch_s() -> None:
    """Whose steps after the peak end at the end; those before it start at the start."""
    steps, rate = 1000, 0.3
    optimiser = replace(SETTINGS, schedule="one-cycle", learning_rate=rate)
    built, twin = (optimiser.build(nn.Linear(1, 1)) for _ in range(2))
    theirs = OneCycleLR(twin, rate, total_steps=steps, anneal_strategy="linear", cycle_momentum=False)
    for step in range(steps):
        (expected,) = theirs.get_last_lr()
        assert optimiser.set_rate(built, (step + (step >= 300)) / steps) == pytest.approx(expected, rel=0.004)
        if step >= 300:
            assert built.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-6)
        twin.step()
        if step + 1 < steps:
            theirs.step()


SETTINGS = Optimisation("sgd", "constant", learning_rate=0.05, momentum=0.9, weight_decay=0.0, epochs=4)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_optimisers_descend(optimiser: str) -> None:
    model = nn.Linear(3, 1, bias=False)
    target = torch.tensor([[0.5, -1.0, 2.0]])
    optimisation = replace(SETTINGS, optimiser=optimiser)
    built = optimisation.build(model)
    losses = []
    for _ in range(400):
        optimisation.set_rate(built, 0.0)
        loss = ((model.weight - target) * torch.tensor([1.0, 2.0, 0.5])).square().sum()
        built.zero_grad()
        loss.backward()
        built.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-4 * losses[0]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_some_parameters_have_a_rate_of_their_own_and_no_decay(optimiser: str) -> None:
    """Thresholds and leaks, at two rates."""
    model = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(4)))
    weight, threshold, leak, frozen = (layer.weight for layer in model)
    frozen.requires_grad_(False)
    optimisation = replace(SETTINGS, optimiser=optimiser, schedule="cosine", weight_decay=0.5)
    built = optimisation.build(model, [OwnRate([threshold], 0.001), OwnRate([leak], 0.2)])
    assert optimisation.set_rate(built, 0.5) == pytest.approx(0.025)
    groups = built.param_groups
    assert [len(group["params"]) for group in groups] == [1, 1, 1]
    assert all(group["params"][0] is one for group, one in zip(groups, (weight, threshold, leak), strict=True))
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.0]
    assert [group["lr"] for group in groups] == pytest.approx([0.025, 0.0005, 0.1])
    alone = replace(SETTINGS, optimiser=optimiser).build(model.requires_grad_(False), [OwnRate([threshold], 0.1)])
    assert [len(group["params"]) for group in alone.param_groups] == [1]


@pytest.mark.parametrize("decay_biases", [True, False])
def test_weight_decay_can_spare_biases_and_norms(decay_biases: bool) -> None:
    """Of each kind of layer, and every parameter learns at the same rate."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    built = replace(SETTINGS, weight_decay=0.5, decay_biases=decay_biases).build(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in built.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == (set(names.values()) if decay_biases else {"0.weight", "3.weight"})
    assert sum(len(group["params"]) for group in built.param_groups) == len(names)
    assert {group["start"] for group in built.param_groups} == {SETTINGS.learning_rate}


def test_nesterov_s_momentum_looks_ahead() -> None:
    """On a parabola, where each gradient is the weight itself: v <- m v + w, w <- w - r (w + m v)."""
    model = nn.Linear(1, 1, bias=False)
    optimisation = replace(SETTINGS, optimiser="nesterov")
    built = optimisation.build(model)
    weight, velocity = model.weight.item(), 0.0
    for _ in range(5):
        built.zero_grad()
        (0.5 * model.weight.square().sum()).backward()
        built.step()
        velocity = optimisation.momentum * velocity + weight
        weight -= optimisation.learning_rate * (weight + optimisation.momentum * velocity)
        assert model.weight.item() == pytest.approx(weight, rel=1e-5)
    with pytest.raises(ConfigError, match=r"momentum: got 0, 'nesterov' needs one above 0"):
        replace(optimisation, momentum=0.0).build(model)


@torch.no_grad()
def test_a_moving_average_has_known_values() -> None:
    """Of weights and running statistics; not of counts. What stays the same is the same to the last bit."""
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    weights, decay = [3.0, -1.0, 4.0, 1.0, -5.0] * 30, 0.9
    average = MovingAverage(model, decay, {})
    constant = model[1].bias.clone()
    expected = {"0.running_mean": 0.0, "1.weight": float(model[1].weight)}
    for number, weight in enumerate(weights, 1):
        model[1].weight.fill_(weight)
        model[0].running_mean.fill_(-weight)
        model[0].num_batches_tracked.fill_(number)
        average.update(number)
        kept = min(decay, number / (number + 9))
        for name, value in (("0.running_mean", -weight), ("1.weight", weight)):
            expected[name] = kept * expected[name] + (1 - kept) * value
            assert float(average.tensors[name]) == pytest.approx(expected[name], rel=1e-4)
    with average.in_place():
        assert float(model[1].weight) == pytest.approx(expected["1.weight"], rel=1e-4)
        assert float(model[0].running_mean) == pytest.approx(expected["0.running_mean"], rel=1e-4)
        assert torch.equal(model[1].bias, constant) and int(model[0].num_batches_tracked) == len(weights)
    assert float(model[1].weight) == weights[-1] and float(model[0].running_mean) == -weights[-1]


def test_a_moving_average_is_what_is_measured_and_kept(tmp_path: Path) -> None:
    """Those of a training whose average is made by hand, epoch by epoch."""
    optimisation = replace(SETTINGS, schedule="one-cycle", average_decay=0.8)
    measured: list[dict[str, Tensor]] = []

    def validate(model: nn.Module) -> dict[str, float]:
        measured.append({name: tensor.clone() for name, tensor in model.module.state_dict().items()})  # type: ignore[union-attr]
        return {"loss": 0.0, "accuracy": 0.0}  # the last of equals is kept

    updated: list[dict[str, Tensor]] = []
    model = ann()

    def watch() -> None:
        updated.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    settings = {"optimisation": optimisation, "validate": validate, "project": watch}
    kept, _, _ = train(lambda: model, tmp_path, **settings)
    average = measured[0]
    for number, weights in enumerate(updated, 1):
        share = min(0.8, number / (number + 9))
        average = {
            name: share * average[name] + (1 - share) * tensor if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
        }
        if number % 2 == 0:
            torch.testing.assert_close(measured[number // 2], average)
    torch.testing.assert_close(dict(kept.state_dict()), average)
    assert any((tensor - updated[-1][name]).abs().max() > 1e-4 for name, tensor in average.items())


def test_the_paper_s_adam_is_amsgrad() -> None:
    adam = replace(SETTINGS, optimiser="adam").build(nn.Linear(1, 1))
    assert isinstance(adam, torch.optim.Adam) and adam.defaults["amsgrad"]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer: unknown 'adan'. Did you mean 'adam'\?"):
        replace(SETTINGS, optimiser="adan").build(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match=r"schedule: unknown 'cosin'. Did you mean 'cosine'\?"):
        replace(SETTINGS, schedule="cosin").set_rate(SETTINGS.build(nn.Linear(1, 1)), 0.0)


def test_seeds_of_different_parts_differ() -> None:
    parts = [(a, b) for a in range(20) for b in range(20)] + [(a,) for a in range(20)]
    seeds = {seed_of(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**64 for seed in seeds) and max(seeds) > 2**60
    assert seed_of(1, 2) == seed_of(1, 2) != seed_of(2, 1)


class PowerCutError(Exception):
    """What ends a training before its time."""


@dataclass(frozen=True)
class Batch:
    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass
class Source:
    """Two batches an epoch, shuffled by its number; the power fails in the middle of one."""

    power_cut: int | None = None
    size: int = 8

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        order = torch.randperm(2 * self.size, generator=torch.Generator().manual_seed(number))
        images, labels = pictures(2 * self.size), torch.arange(2 * self.size) % CLASSES
        for place, indices in enumerate(order.split(self.size)[start:], start):
            if (number, place) == (self.power_cut, 1):
                raise PowerCutError
            yield Batch(images[indices], labels[indices], indices)

    def __len__(self) -> int:
        return 2


def ann() -> nn.Module:
    return seeded(Residual(dropout=0.3, batch_norm=True))


def snn() -> nn.Module:
    return spiking(seeded(Residual(dropout=0.3)), "poisson").requires_grad_()


def train(make: Callable[[], nn.Module], folder: Path, optimiser: str = "sgd", **options: Any) -> tuple[Any, Any, Any]:
    """A model trained from the checkpoint in `folder` or the start, its history, and what was said."""
    model = make()
    said: list[str] = []
    spikes = make is snn
    settings: dict[str, Any] = {
        "validate": None,
        "batches": Source(),
        "encode": lambda batch, epoch: (
            model.encoder(batch.images, batch.indices, 5, seed=seed_of(3, epoch))  # type: ignore[operator, union-attr]
            if spikes
            else batch.images
        ),
        "optimisation": replace(
            SETTINGS, optimiser=optimiser, schedule="cosine", learning_rate=0.01, weight_decay=1e-3
        ),
        "rule": build("stdb") if spikes else BackPropagation(),
        "seed": 3,
    } | options
    fabric = Fabric(accelerator="cpu", devices=1, precision=settings.pop("precision", "32-true"))
    history = fit(fabric, model, folder=folder, say=said.append, **settings)
    return model, history, said


@pytest.mark.parametrize("name", ["stdb", "stop-w"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_rules_run_at_the_precision_asked_for(
    precision: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synapses do; weights, gradients and the loss stay in single precision."""
    rule, halves, kinds = build(name), set(), set()
    run = SpikingModel.run

    def watched(model: SpikingModel, *arguments: Any, **options: Any) -> Any:
        halves.add(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16)
        return run(model, *arguments, **options)

    class Watching:
        def step(self, model: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
            results: tuple[Tensor, Tensor] = rule.step(model, *arguments)
            learned = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            kinds.update(value.dtype for value in (*learned, *model.parameters()))
            assert learned and all(value.dtype.itemsize >= 4 for value in results)
            return results

    monkeypatch.setattr(SpikingModel, "run", watched)
    train(snn, tmp_path, rule=Watching(), precision=precision)
    assert halves == {precision == "bf16-mixed"} and kinds == {torch.float32}


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == twin and torch.equal(mine, theirs) for (name, mine), (twin, theirs) in pairs)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("make", [ann, snn])
def test_a_training_that_was_killed_ends_with_the_same_weights(
    make: Callable[[], nn.Module], optimiser: str, tmp_path: Path
) -> None:
    """Whichever epoch it was killed in, with dropout, and twice in a row."""
    (tmp_path / "whole").mkdir()
    whole, history, _ = train(make, tmp_path / "whole", optimiser)
    assert not same_weights(whole, make())
    for cuts in ([0], [2], [1, 3]):
        folder = tmp_path / str(cuts)
        folder.mkdir()
        for cut in cuts:
            with pytest.raises(PowerCutError):
                train(make, folder, optimiser, batches=Source(power_cut=cut))
        resumed, resumed_history, said = train(make, folder, optimiser)
        assert said[0].startswith(f"resuming after epoch {cuts[-1]} of 4" if cuts[-1] else "epoch 1/4")
        assert same_weights(resumed, whole)
        assert resumed_history == history
        assert [path.name for path in folder.iterdir()] == [FILE]


@pytest.mark.parametrize("make", [ann, snn])
def test_a_finished_training_is_not_repeated(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, history, _ = train(make, tmp_path)
    again, same, said = train(make, tmp_path, batches=Source(power_cut=0))
    assert same_weights(again, model) and same == history
    assert said[0] == "resuming after epoch 4 of 4"
    assert said[1:] == ["keeps the weights of epoch 4"]


def test_the_weights_that_validated_best_are_kept(tmp_path: Path) -> None:
    """The later of two that are equal; over a death, too; and what is returned is in evaluation mode."""
    accuracies = [0.1, 0.3, 0.9, 0.9, 0.2]  # the first, of the weights before training
    seen: list[dict[str, Tensor]] = []

    def validate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"accuracy": accuracies[len(seen) - 1], "loss": 1.0}

    with pytest.raises(PowerCutError):
        train(ann, tmp_path, validate=validate, batches=Source(power_cut=3))
    model, history, _ = train(ann, tmp_path, validate=validate)
    assert len(seen) == 5 and not model.training
    assert all(torch.equal(value, seen[3][name]) for name, value in model.state_dict().items())
    assert not torch.equal(seen[3]["head.2.weight"], seen[4]["head.2.weight"])
    rows = [row["value"] for row in history if (row["split"], row["metric"]) == ("validation", "accuracy")]
    assert rows == accuracies
    assert history[-1] == {"epoch": 3, "split": "validation", "metric": "kept-epoch", "value": 3}
    assert [row["epoch"] for row in history if row["metric"] == "learning-rate"] == [1, 2, 3, 4]


def test_training_is_never_for_the_worse(tmp_path: Path) -> None:
    """If no epoch validates as well as the weights it began with, it ends with those."""
    accuracies = iter([0.9, 0.3, 0.8, 0.2, 0.1])
    start = {name: value.clone() for name, value in ann().state_dict().items()}
    model, _, _ = train(ann, tmp_path, validate=lambda model: {"accuracy": next(accuracies), "loss": 1.0})
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", [ann, snn])
def test_training_learns(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    optimisation = replace(SETTINGS, optimiser="adam", learning_rate=0.01, epochs=25)
    _, history, _ = train(make, tmp_path, optimisation=optimisation)
    losses = [row["value"] for row in history if (row["split"], row["metric"]) == ("train", "loss")]
    assert len(losses) == 25 and losses[-1] < 0.7 * losses[0]


def test_the_learning_rate_moves_with_each_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress: list[float] = []
    set_rate = Optimisation.set_rate

    def watched(self: Optimisation, optimiser: torch.optim.Optimizer, at: float) -> float:
        progress.append(at)
        return set_rate(self, optimiser, at)

    monkeypatch.setattr(Optimisation, "set_rate", watched)
    _, history, _ = train(ann, tmp_path)  # four epochs of two batches
    assert list(dict.fromkeys(progress)) == [batch / 8 for batch in range(8)]
    rates = [row["value"] for row in history if row["metric"] == "learning-rate"]  # of the last batch of each
    assert rates == pytest.approx([0.01 * SCHEDULES["cosine"].factor(batch / 8) for batch in (1, 3, 5, 7)])


def test_bounds_are_restored_after_each_update(tmp_path: Path) -> None:
    """Thresholds and leaks that learn at a rate of their own are brought back by `project`, which sees every update."""
    network: Any = snn()
    neurons = list(network.neurons.values())
    weight = network.body.get_submodule("stem.0").weight.clone()
    outside: list[bool] = []

    def project() -> None:
        for neuron in neurons:
            outside.append(not (neuron.threshold > 0 and 0 <= neuron.leak <= 1))
            neuron.project()

    def encode(batch: Batch, epoch: int) -> Tensor:
        return network.encoder(batch.images, batch.indices, 5)

    train(
        lambda: network,
        tmp_path,
        project=project,
        encode=encode,
        rule=build("linear"),
        optimisation=replace(SETTINGS, learning_rate=1e-7),
        own_rates=[OwnRate([getattr(neuron, which) for neuron in neurons], 3.0) for which in ("threshold", "leak")],
    )
    assert len(outside) == 4 * len(Source()) * len(neurons) and any(outside)
    assert all(neuron.threshold > 0 and 0 <= neuron.leak <= 1 for neuron in neurons)
    assert 0 < (network.body.get_submodule("stem.0").weight - weight).abs().max() < 1e-4


@pytest.mark.parametrize("damage", ["cut off", "empty", "noise", "no words", "wrong words"])
def test_a_damaged_checkpoint_is_named(damage: str, tmp_path: Path) -> None:
    train(ann, tmp_path)
    path = tmp_path / FILE
    if damage in ("no words", "wrong words"):
        metadata = {"layout": LAYOUT, "words": "[1]"} if damage == "wrong words" else {"layout": LAYOUT}
        save_file({"model/x": torch.zeros(1)}, path, metadata=metadata)
    else:
        content = path.read_bytes()
        path.write_bytes({"cut off": content[: len(content) // 2], "empty": b"", "noise": b"\xff" * 999}[damage])
    with pytest.raises(ArtifactError) as error:
        train(ann, tmp_path)
    assert str(error.value).startswith(f"checkpoint: {path} is damaged")
    assert "\n" not in str(error.value) and "--fresh" in str(error.value)


def test_a_checkpoint_holds_everything(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    state = TrainingState(
        epoch=7,
        model={"a.weight": torch.randn(3, 2, generator=random), "a.count": torch.tensor(5)},
        optimiser={"0/exp_avg": torch.randn(3, 2, generator=random).T, "0/step": torch.tensor(9.0)},
        best={"a.weight": torch.randn(3, 2, generator=random, dtype=torch.float64)},
        best_accuracy=0.875,
        history=[{"epoch": 1, "split": "train", "metric": "loss", "value": 0.1}],
    )
    assert TrainingState.load(tmp_path) is None
    state.save(tmp_path)
    loaded = TrainingState.load(tmp_path)
    assert loaded is not None
    assert (loaded.epoch, loaded.best_accuracy, loaded.history) == (7, 0.875, state.history)
    for part in ("model", "optimiser", "best"):
        assert getattr(loaded, part).keys() == getattr(state, part).keys()
        for name, value in getattr(state, part).items():
            torch.testing.assert_close(getattr(loaded, part)[name], value, rtol=0, atol=0)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    class Empty(Source):
        def __len__(self) -> int:
            return 0

    with pytest.raises(ConfigError, match="batch_size: larger than the training split"):
        train(ann, tmp_path, batches=Empty())
    with pytest.raises(ConfigError, match=r"learning_rate: the loss is nan in epoch \d; got 1e\+30, give a smaller"):
        train(ann, tmp_path, optimisation=replace(SETTINGS, learning_rate=1e30))
    model, history, _ = train(ann, tmp_path, optimisation=replace(SETTINGS, epochs=0))
    assert history == [] and same_weights(model, ann())
