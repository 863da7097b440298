"""The ceiling against plain torch, layer-synchronous operation spike by spike, windows, delayed readouts, pre-steps."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_model import batches_of, frames_of, values_of
from torch import Tensor, fx, nn
from torch.nn import functional
from toy_networks import CLASSES, Residual, pictures, seeded, spiking

from hybridsnn.conversion import BALANCERS, Calibration, spiking_body
from hybridsnn.encoders import ENCODERS, Encoder
from hybridsnn.errors import ConfigError
from hybridsnn.evaluation.accuracy import snn_accuracy
from hybridsnn.evaluation.ceiling import ceiling, layer_synchronous_accuracy, obstacle
from hybridsnn.evaluation.measurement import evaluate, together
from hybridsnn.model import SpikingModel
from hybridsnn.networks import NetworkSpec
from hybridsnn.neurons import RESIDUAL, SharedDropout, SpikingNeuron
from hybridsnn.program.gradients import Bits
from hybridsnn.program.staircase import depth, layer_synchronous
from hybridsnn.surrogates import SURROGATES

CPU = torch.device("cpu")
SHAPE = (3, 16, 16)
NETWORKS = {"lenet5": 1.0, "vgg5": 0.05, "vgg8": 0.1, "resnet12": 0.05, "cifar-resnet20": 0.25}  # name -> width
IMAGES, LABELS = pictures(12, SHAPE), torch.arange(12) % CLASSES


def converted(name: str, balance: str = "percentile", granularity: str = "channel") -> tuple[nn.Module, SpikingModel]:
    """A network of the registry with random weights and biases, and the spiking network it becomes."""
    spec = NetworkSpec(name, input_shape=SHAPE, classes=CLASSES, width=NETWORKS[name], batch_norm=True, dropout=0.0)
    network = seeded(spec.build())
    body = spiking_body(network, SHAPE, granularity=granularity, initial_potential=0.5)
    encoder = Encoder("direct")
    BALANCERS[balance]().balance(body, Calibration(IMAGES, torch.arange(12), encoder, timesteps=4))
    return network, SpikingModel(body, encoder).eval()


class PlainStaircase(nn.Module):
    """What stands for a layer of neurons in an ANN: the count at T steps of a current, in spikes."""

    def __init__(self, neuron: SpikingNeuron, timesteps: int):
        super().__init__()
        self.neuron, self.timesteps, self.counts = neuron, timesteps, torch.zeros(())

    def forward(self, current: Tensor) -> Tensor:
        threshold, start = self.neuron.threshold, torch.as_tensor(self.neuron.initial_potential)
        if threshold.dim() == 1:
            threshold = threshold.reshape(1, -1, *[1] * (current.dim() - 2))
        if start.dim() == 1:
            start = start.reshape(1, -1, *[1] * (current.dim() - 2))
        levels = torch.floor(start + self.timesteps * current / threshold)
        self.counts = levels.clamp(0, self.timesteps)
        return self.counts / self.timesteps


def without_time(model: SpikingModel, in_place_of: Callable[[str, SpikingNeuron], nn.Module]) -> fx.GraphModule:
    """The body as an ordinary network, which torch alone runs, with something in the place of its neurons."""
    body = copy.deepcopy(model.body)
    for name, module in model.body.named_modules():
        if isinstance(module, SpikingNeuron):
            body.set_submodule(name, in_place_of(name, module))
        elif isinstance(module, SharedDropout):
            body.set_submodule(name, nn.Identity())
    return body


def layer_by_layer(model: SpikingModel, images: Tensor, timesteps: int) -> tuple[dict[str, Tensor], Tensor]:
    """Counts of each layer and the summed output, from spikes: a layer sums its currents over T steps, each of them
    computed from the spikes of that step, and then fires step by step."""
    trains: dict[str, Tensor] = {}

    class Waiting(nn.Module):
        """Silent while it takes in; then fires into the trains that the next layer reads."""

        def __init__(self, name: str, neuron: SpikingNeuron):
            super().__init__()
            self.name, self.neuron, self.currents = name, neuron, [torch.zeros(())]
            self.step = 0

        def forward(self, current: Tensor) -> Tensor:
            self.currents.append(current)
            return trains[self.name][self.step] if self.name in trains else torch.zeros_like(current)

        def fire(self) -> None:
            total = torch.stack(self.currents).sum(0)
            start, _ = self.neuron.initial_state(total.unsqueeze(0))
            threshold = self.neuron.threshold
            if threshold.dim() == 1:
                threshold = threshold.reshape(-1, *[1] * (total.dim() - 2))
            membrane, spikes = start + total, []
            for _ in range(timesteps):
                spikes.append((membrane >= threshold).to(membrane))
                membrane = membrane - threshold * spikes[-1]
            trains[self.name] = torch.stack(spikes)

    waiting = {name: Waiting(name, neuron) for name, neuron in model.neurons.items()}
    body, layers = without_time(model, lambda name, neuron: waiting[name]), list(waiting.values())
    output = torch.zeros(())
    for phase in range(len(layers) + 1):
        output = torch.zeros(())
        for layer in layers:
            layer.currents = []
        for step in range(timesteps):
            for layer in layers:
                layer.step = step
            output = output + body(images)
        if phase < len(layers):
            layers[phase].fire()
    return {name: train.sum(0) for name, train in trains.items()}, output


@pytest.mark.parametrize("timesteps", [1, 3, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_ceiling_is_a_staircase_network(name: str, timesteps: int) -> None:
    model, images = converted(name)[1].double(), IMAGES.double()  # in which no current is at the edge of a level
    body, seen = without_time(model, lambda name, neuron: PlainStaircase(neuron, timesteps)), {}
    with torch.no_grad():
        expected = body(images) * timesteps
        got = layer_synchronous(model.program, images, [timesteps], seen.__setitem__)[0]
    torch.testing.assert_close(got, expected)
    for layer, shares in seen.items():
        assert torch.equal((timesteps * shares[0]).round(), body.get_submodule(layer).counts)
    rows = values_of(evaluate(ceiling(model, CPU, timesteps=[timesteps]), batches_of(images, LABELS, 5)))
    assert rows == {("ceiling", timesteps): float((expected.argmax(1) == LABELS).double().mean())}


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
@pytest.mark.parametrize("timesteps", [1, 2, 5, 8])
def test_layers_that_wait_send_the_counts_of_the_ceiling(timesteps: int, granularity: str) -> None:
    """Spike by spike, in double precision, where rounding takes no membrane over a threshold."""
    model = spiking(seeded(Residual()), granularity=granularity).double()
    for neuron in model.neurons.values():
        neuron.initial_potential = 0.5
    images = pictures(6).double()
    with torch.no_grad():
        counts, output = layer_by_layer(model, images, timesteps)
        seen: dict[str, Tensor] = {}
        got = layer_synchronous(model.program, images, [timesteps], seen.__setitem__)[0]
    assert list(counts) == list(seen)
    for name, count in counts.items():
        assert torch.equal((timesteps * seen[name][0]).round(), count)
    assert any(0 < float(count.mean()) < timesteps for count in counts.values())
    torch.testing.assert_close(got, output)

    labels = torch.arange(6) % CLASSES
    rows = evaluate(layer_synchronous_accuracy(model, CPU, timesteps=timesteps), batches_of(images, labels, 4))
    measured = values_of(rows)
    accuracy = float((output.argmax(1) == labels).double().mean())
    assert measured["layer-synchronous-accuracy", timesteps] == accuracy
    assert measured["layer-synchronous-loss", timesteps] == pytest.approx(
        float(functional.cross_entropy(output, labels)), rel=1e-5
    )
    for name, count in counts.items():
        assert measured["spikes-per-image", name] == pytest.approx(float(count.sum()) / 6)
        assert measured["firing-rate", name] == pytest.approx(float(count.mean()) / timesteps)
    assert measured["latency", None] == 5 * timesteps  # stem, two in each block
    limit = evaluate(ceiling(model, CPU, timesteps=[timesteps]), batches_of(images, labels, 4))
    assert values_of(limit) == {("ceiling", timesteps): accuracy}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_has_no_order(name: str) -> None:
    """At T = 1 streaming is the ceiling, and so is every T for the first layer, whose current does not change."""
    _, model = converted(name, granularity="layer")
    first, seen = next(iter(model.neurons)), {}
    trains: dict[str, Tensor] = {}
    with torch.no_grad():
        outputs, _ = model(frames_of(model, IMAGES, 6), observe=trains.__setitem__)
        shares = layer_synchronous(model.program, IMAGES, range(1, 7), seen.__setitem__)
    assert torch.equal(shares[0].float(), outputs[0])
    steps = torch.arange(1, 7).view(-1, *[1] * (trains[first].dim() - 1))
    differing = (trains[first].cumsum(0) != (seen[first] * steps).round()).double().mean()
    assert differing < 1e-3  # but for rounding at the edge of a step


@pytest.mark.parametrize("name", NETWORKS)
def test_the_ceiling_ends_at_the_ann(name: str) -> None:
    """Its outputs come nearer to those of the ANN as T grows, in proportion to 1 / T, where nothing is clipped."""
    network, model = converted(name, balance="activation-max")
    with torch.no_grad():
        goal = network(IMAGES)
        sums = layer_synchronous(model.program, IMAGES, [16, 256, 4096])
    # The scale of the output is that of the whole network: found by least squares, as the answer does not depend on it.
    means = sums / torch.tensor([16, 256, 4096]).view(-1, 1, 1)
    scale = (means[-1] * goal).sum() / means[-1].square().sum()
    errors = [float((scale * mean - goal).norm() / goal.norm()) for mean in means]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] and errors[2] < 0.02
    answers = goal.argmax(1)
    rows = evaluate(ceiling(model, CPU, timesteps=[4096]), batches_of(IMAGES, answers, 6))
    assert values_of(rows) == {("ceiling", 4096): 1.0}


def test_the_ceiling_of_every_step_is_that_of_each() -> None:
    _, model = converted("vgg8")
    batches = batches_of(IMAGES, LABELS, 4)
    every = values_of(evaluate(ceiling(model, CPU, timesteps=range(1, 19)), batches))
    assert set(every) == {("ceiling", steps) for steps in range(1, 19)}
    for steps in (1, 7, 16, 18):
        assert values_of(evaluate(ceiling(model, CPU, timesteps=[steps]), batches)).items() <= every.items()


def test_what_has_no_ceiling_says_why() -> None:
    def model_with(encoder: str = "direct", leak: float = 1.0, **options: Any) -> SpikingModel:
        readout = {key: options.pop(key) for key in ("readout_leak", "readout_from") if key in options}
        body = spiking_body(Residual(), (2, 8, 8), **options)
        model = SpikingModel(body, Encoder(encoder), **readout)
        for neuron in model.neurons.values():
            neuron.leak.data.fill_(leak)
        return model

    assert obstacle(model_with()) is None
    for encoder, coding in ENCODERS.items():
        assert (obstacle(model_with(encoder)) is None) == (not coding.random and not coding.events)
    assert "reset" in str(obstacle(model_with(reset="hard")))
    assert "neurons leak" in str(obstacle(model_with(leak=0.5)))
    assert "readout leaks" in str(obstacle(model_with(readout_leak=0.5)))
    assert "from step 3" in str(obstacle(model_with(readout_from=3)))


@pytest.mark.parametrize("name", NETWORKS)
def test_latency_counts_the_longest_way(name: str) -> None:
    _, model = converted(name)
    assert depth(model.program) == len(model.neurons)  # these have no layers side by side


def test_layers_side_by_side_count_once() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))
            self.relus = nn.ModuleList(nn.ReLU() for _ in range(3))
            self.head = nn.Linear(4, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            deep = self.relus[1](self.two(self.relus[0](self.one(x))))
            return self.head(deep + self.relus[2](self.three(x)))

    assert depth(SpikingModel(spiking_body(Branches(), (4,)), Encoder("direct")).program) == 2


# Windows of the readout.


@pytest.mark.parametrize("encoder", ["direct", "poisson"])
@pytest.mark.parametrize("name", ["vgg8", "resnet12"])
def test_a_window_is_the_difference_of_two_runs(name: str, encoder: str) -> None:
    timesteps = 18  # more than a chunk
    model = SpikingModel(converted(name)[1].body, Encoder(encoder)).eval()
    batches = batches_of(IMAGES, LABELS, 5)
    rows = evaluate(snn_accuracy(model, CPU, timesteps=timesteps, seed=3, windows=True), batches)
    windows = {(row["start"], row["step"]): row["value"] for row in rows if row["metric"] == "window-accuracy"}
    assert set(windows) == {(start, stop) for stop in range(1, timesteps + 1) for start in range(1, stop + 1)}
    sums = {0: torch.zeros(12, CLASSES, dtype=torch.float64)}
    for stop in (1, 2, 9, 17, 18):
        frames = model.encoder(IMAGES, torch.arange(12), stop, seed=3)
        with torch.no_grad():
            sums[stop] = model.run(frames).state.readout
    for first, stop in ((0, 1), (0, 18), (1, 2), (2, 9), (9, 17), (17, 18), (2, 18)):
        answers = (sums[stop] - sums[first]).float().argmax(1)
        assert windows[first + 1, stop] == float((answers == LABELS).double().mean())
    whole = {row["step"]: row["value"] for row in rows if row["metric"] == "accuracy"}
    assert whole == {stop: windows[1, stop] for stop in range(1, timesteps + 1)}


@pytest.mark.parametrize("first", [1, 4, 17])
def test_a_delayed_readout_is_a_window(first: int) -> None:
    timesteps = 18
    model = converted("vgg8")[1]
    batches = batches_of(IMAGES, LABELS, 5)
    rows = evaluate(snn_accuracy(model, CPU, timesteps=timesteps, seed=0, windows=True), batches)
    windows = {row["step"]: row["value"] for row in rows if row.get("start") == first}
    late = SpikingModel(model.body, model.encoder, readout_from=first).eval()
    rows = evaluate(snn_accuracy(late, CPU, timesteps=timesteps, seed=0), batches)
    assert {row["step"]: row["value"] for row in rows if row["metric"] == "accuracy"} == windows
    assert values_of(rows)["latency", None] == timesteps

    frames = frames_of(late, IMAGES, timesteps)
    whole, _ = late(frames)
    assert not whole[: first - 1].any() and whole[first - 1].any()
    for cut in (1, 3, 4, 17):
        before, state = late(frames[:cut])
        after, _ = late(frames[cut:], state)
        assert torch.equal(torch.cat([before, after]), whole)


# Pre-steps (SRP).


def with_pre_steps(model: SpikingModel, pre_steps: int) -> SpikingModel:
    return SpikingModel(model.body, model.encoder, pre_steps=pre_steps).eval()


@pytest.mark.parametrize("pre_steps", [1, 3, 4])
@pytest.mark.parametrize("name", ["vgg8", "resnet12"])
@torch.no_grad()
def test_pre_steps_are_a_run_that_silences(name: str, pre_steps: int) -> None:
    """By hand: run τ steps, note the membranes, run T more from the start with the silent neurons held."""
    model = converted(name)[1]
    pre = with_pre_steps(model, pre_steps)
    frames = frames_of(model, IMAGES, pre_steps + 5)
    _, state = model(frames[:pre_steps])
    silent = {}
    for layer, neuron in model.neurons.items():
        threshold = neuron.threshold.reshape(1, -1, *[1] * (state.modules[layer].membrane.dim() - 2))
        silent[layer] = state.modules[layer].membrane <= RESIDUAL * threshold
    assert any(0 < float(where.double().mean()) < 1 for where in silent.values())

    handles = [
        neuron.register_forward_hook(
            lambda module, args, result, layer=layer: (result[0].masked_fill(silent[layer], 0), result[1])
        )
        for layer, neuron in model.neurons.items()
    ]
    expected, _ = model(frames[pre_steps:])
    for handle in handles:
        handle.remove()
    outputs, state = pre(frames)
    assert not outputs[:pre_steps].any()
    assert torch.equal(outputs[pre_steps:], expected)
    assert state.steps == pre_steps + 5

    for cut in (1, pre_steps, pre_steps + 1):
        before, state = pre(frames[:cut])
        after, _ = pre(frames[cut:], state)
        assert torch.equal(torch.cat([before, after]), outputs)
        some = torch.tensor([5, 0, 7])
        rest, _ = pre(frames[cut:, some], state.of(some))
        assert torch.equal(rest, outputs[cut:, some])


def test_pre_steps_count_as_time_and_spikes() -> None:
    model = with_pre_steps(converted("vgg8")[1], 3)
    batches = batches_of(IMAGES, LABELS, 5)
    measurement = together([
        snn_accuracy(model, CPU, timesteps=7, seed=0, windows=True), ceiling(model, CPU, timesteps=[7]),
    ])  # fmt: skip
    rows = evaluate(measurement, batches)
    steps = {metric: [row["step"] for row in rows if row["metric"] == metric] for metric in ("accuracy", "ceiling")}
    assert steps == {"accuracy": [4, 5, 6, 7], "ceiling": [7]}
    assert min(row["start"] for row in rows if "start" in row) == 4
    values = values_of(rows)
    assert values["latency", None] == 7
    without = SpikingModel(model.body, model.encoder).eval()
    assert values["ceiling", 7] == values_of(evaluate(ceiling(without, CPU, timesteps=[4]), batches))["ceiling", 4]
    spikes: list[float] = []
    model(frames_of(model, IMAGES, 7), observe=lambda name, train: spikes.append(float(train.sum())))
    assert values["spikes-per-image", None] == pytest.approx(sum(spikes) / 12)
    assert len(spikes) == 2 * len(model.neurons)


def test_pre_steps_are_not_trained_through() -> None:
    model = with_pre_steps(converted("vgg8")[1], 2)
    with pytest.raises(ConfigError, match="pre_steps: got 2, which Bits cannot pass"):
        model.run(frames_of(model, IMAGES, 4), gradient=Bits(SURROGATES["linear"], (4,)))
