"""Exports: every spike of every layer, in the tools that the files are for; integers without overflow."""

import json
import math
from pathlib import Path

import pytest
import torch
from test_cli import fail
from test_stages import make, metrics, of
from torch import Tensor, nn
from toy_networks import SHAPE, Residual, encodable, pictures, seeded, spiking

from hybridsnn.conversion.integers import GRIDS, IntegerNeuron, integer_model
from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import ConversionError
from hybridsnn.exporters import EXPORTERS, Exporter, OnnxRun, Source
from hybridsnn.exporters.comparison import Comparison
from hybridsnn.model import IntegerModel, SpikingModel
from hybridsnn.program.operations import Role
from hybridsnn.program.ranges import EXACT, ranges

IMAGES, TIMESTEPS = 4, 6


class Grouped(nn.Sequential):
    """Groups, dilation, a global pool, a linear layer with neurons."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, groups=2, stride=2, dilation=2, padding=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 7),
            nn.ReLU(),
            nn.Linear(7, 3),
        )


NETWORKS = {"residual": Residual, "grouped": Grouped}


def model_of(network: str, encoder: str = "direct", granularity: str = "channel") -> SpikingModel:
    model = spiking(seeded(NETWORKS[network]()), encoder, granularity=granularity, initial_potential=0.5)
    with torch.no_grad():
        for neuron in model.neurons.values():
            neuron.threshold.mul_(torch.linspace(0.7, 1.3, neuron.threshold.numel()).view(neuron.threshold.shape))
    return model


def frames_of(model: SpikingModel, timesteps: int = TIMESTEPS) -> Tensor:
    return model.encoder(encodable(model.encoder.name, IMAGES, timesteps), torch.arange(IMAGES), timesteps)


def source_of(model: SpikingModel) -> Source:
    return Source(model, SHAPE, TIMESTEPS, 127.0 if isinstance(model, IntegerModel) else 1.0)


def spikes_of(model: SpikingModel, frames: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    spikes: dict[str, Tensor] = {}
    with torch.no_grad():
        readout, _ = model(frames, observe=lambda name, fired: spikes.update({name: fired.clone()}))
    return spikes, readout


# Integers.


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [4, 8])
def test_an_integer_network_holds_integers_within_its_bits_and_its_proof(network: str, grid: str, bits: int) -> None:
    model = integer_model(model_of(network), SHAPE, bits=bits, grid=grid)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensor.round()), name
        if name.endswith("weight"):
            assert tensor.abs().max() <= 2 ** (bits - 1) - 1
    for neuron in model.neurons.values():
        assert isinstance(neuron, IntegerNeuron)
        assert grid == "channel" or neuron.threshold.numel() == 1
        assert torch.equal(neuron.start, (neuron.threshold / 2).floor())
    frames = frames_of(model)
    assert torch.equal(frames, frames.round()) and frames.abs().max() == 127
    found = ranges(model.program, SHAPE, TIMESTEPS, 127.0)
    assert max(each.extent for each in found.values()) < EXACT
    state, steps = None, TIMESTEPS
    for step in range(steps):
        before = state
        with torch.no_grad():
            readout, state = model.run(frames[step : step + 1], before)[1:]
        for node in model.program.neurons:
            membrane = state.modules[node.name].membrane
            assert found[node].low <= membrane.min() and membrane.max() <= found[node].high
            assert torch.equal(membrane, membrane.round())
    output = found[model.program.output]
    assert output.low <= readout.min() and readout.max() <= output.high
    assert any(float(neuron.threshold.max()) > 1 for neuron in model.neurons.values())


def test_ranges_are_reached() -> None:
    """One neuron that takes in the largest current at every step: the bound is what it comes to."""
    network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0, -4.0]]))
    model = spiking(network, shape=(2,))
    next(iter(model.neurons.values())).threshold.data.fill_(2.0)
    (node,) = model.program.neurons
    found = ranges(model.program, (2,), 5, 1.0)[node]
    lowest = model.run(torch.tensor([-1.0, 1.0]).expand(5, 1, 2)).state.modules[node.name].membrane
    assert float(lowest) == found.low == -35
    # Before the reset of the last step: 5 times 7, less 2 at each step before.
    highest = model.run(torch.tensor([1.0, -1.0]).expand(5, 1, 2)).state.modules[node.name].membrane + 2
    assert float(highest) == 27 <= found.high


@pytest.mark.parametrize("network", NETWORKS)
def test_many_bits_give_nearly_the_network_itself(network: str) -> None:
    """The readout of integers, scaled back, comes nearer with each bit."""
    model = model_of(network)
    errors = []
    for bits in (3, 6, 12):
        made = integer_model(model, SHAPE, bits=bits)
        _, expected = spikes_of(model, frames_of(model))
        _, found = spikes_of(made, frames_of(made))
        errors.append(float((found - expected).abs().mean() / expected.abs().mean()))
    assert errors[2] < errors[0] and errors[2] < 0.2


def test_the_half_of_the_margin_changes_no_spike() -> None:
    model = integer_model(model_of("residual"), SHAPE)
    frames = frames_of(model)
    spikes, _ = spikes_of(model, frames)
    for neuron in model.neurons.values():
        neuron.start.add_(0.5)
    shifted, _ = spikes_of(model, frames)
    assert all(torch.equal(shifted[name], spikes[name]) for name in spikes)
    assert sum(int(fired.sum()) for fired in spikes.values()) > 0


def test_what_has_no_integers_is_named_at_once() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 5)), nn.Flatten(), nn.Linear(60, 4), nn.ReLU(),
        nn.Linear(4, 4), nn.Linear(4, 3),
    )  # fmt: skip
    model = spiking(seeded(network))
    next(iter(model.neurons.values())).leak.data.fill_(0.5)
    with pytest.raises(ConversionError, match=r"windows of different sizes.*stands before a synapse") as error:
        integer_model(model, SHAPE)
    assert "leak" in str(error.value)


# Files.


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("name", ["onnx-step", "onnx"])
@pytest.mark.parametrize("integers", [False, True], ids=["float32", "int8"])
def test_onnx_gives_every_spike(name: str, encoder: str, integers: bool) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (hybridsnn[onnx])")
    for network in NETWORKS:
        model = model_of(network, encoder)
        if integers:
            model = integer_model(model, SHAPE)
        forms: list[Exporter] = [EXPORTERS[name](), OnnxRun(unroll=0)] if name == "onnx" else [EXPORTERS[name]()]
        for exporter in forms:
            source = source_of(model)
            (verdict,) = exporter.check(source, exporter.export(source), [frames_of(model)], 0.0)
            assert (verdict.verdict, verdict.differing, verdict.answers) == ("exact", 0, 0), str(verdict)
            assert verdict.images == IMAGES and verdict.spikes > 0


def test_integers_of_onnx_are_those_of_the_simulation_bit_for_bit() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (hybridsnn[onnx])")
    import onnxruntime

    model = integer_model(model_of("residual"), SHAPE)
    frames = frames_of(model)
    step = EXPORTERS["onnx-step"]().export(source_of(model))
    session = onnxruntime.InferenceSession(step.files["step.onnx"], providers=["CPUExecutionProvider"])
    from safetensors.numpy import load

    states = {name: each.repeat(IMAGES, 0) for name, each in load(step.files["initial-states.safetensors"]).items()}
    names, state = [output.name for output in session.get_outputs()], None
    for frame in frames:
        made = dict(zip(names, session.run(None, {"input": frame.numpy().astype("int8"), **states}), strict=True))
        states = {name: made[f"next/{name}"] for name in states}
        with torch.no_grad():
            _, readout, state = model.run(frame.unsqueeze(0), state)
        assert made["output"].dtype == "int32"
        assert (made["output"] == readout[-1].numpy()).all()
        for name in model.neurons:
            module = state.modules[name]
            assert states[f"membrane/{name}"].dtype in ("int16", "int32")
            assert (states[f"membrane/{name}"] == module.membrane.numpy()).all()


def test_leak_and_hard_reset_leave_as_float32() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (hybridsnn[onnx])")
    model = spiking(seeded(Grouped()), reset="hard")
    for neuron in model.neurons.values():
        neuron.leak.data.fill_(0.75)
    exporter = EXPORTERS["onnx"]()
    (verdict,) = exporter.check(source_of(model), exporter.export(source_of(model)), [frames_of(model)], 0.0)
    assert verdict.verdict == "exact"


@pytest.mark.parametrize("network", NETWORKS)
def test_nir_is_exact_in_simulators_with_what_it_cannot_say_set_by_hand(network: str) -> None:
    pytest.importorskip("nir", reason="nir is not installed (hybridsnn[nir])")
    model = integer_model(model_of(network), SHAPE, grid="layer")
    exporter = EXPORTERS["nir"]()
    export = exporter.export(source_of(model))
    for verdict in exporter.check(source_of(model), export, [frames_of(model)], 0.0):
        if verdict.verdict != "not run":
            assert verdict.verdict == ("exact" if verdict.target == "onnxruntime" else "exact with patches"), verdict
            assert verdict.spikes > 0


def test_nir_refuses_thresholds_that_differ_within_a_layer() -> None:
    pytest.importorskip("nir", reason="nir is not installed (hybridsnn[nir])")
    with pytest.raises(ConversionError, match=r"NIR has no counterpart of '.*IntegerNeuron"):
        EXPORTERS["nir"]().export(source_of(integer_model(model_of("residual"), SHAPE, grid="channel")))


def test_the_first_difference_is_found_with_its_distance() -> None:
    model = model_of("grouped")
    frames = frames_of(model)
    spikes, _ = spikes_of(model, frames)
    layers = list(spikes)
    changed = {name: fired.clone() for name, fired in spikes.items()}
    for layer, step, image, neuron in ((layers[1], 3, 2, 5), (layers[2], 2, 1, 4)):
        flat = changed[layer].flatten(2)  # a copy where channels lie last
        flat[step, image, neuron] = 1 - flat[step, image, neuron]
        changed[layer] = flat.view(changed[layer].shape)
    comparison = Comparison(model)
    comparison.add(frames, changed)
    verdict = comparison.verdict("a tool", tolerance=math.inf)
    assert (verdict.differing, verdict.verdict) == (2, "close")
    assert comparison.verdict("a tool").verdict == "different"
    assert verdict.first is not None
    found = verdict.first
    assert (found.layer, found.step, found.image, found.neuron) == (layers[2], 3, 1, 4)
    node = next(node for node in model.program.nodes if node.name == layers[2])
    assert node.role is Role.NEURON
    # The membrane before the reset, one step at a time.
    neuron, current = model.neurons[layers[2]], []
    with torch.no_grad():
        _, state = model(frames[:2, 1:2])
        neuron.register_forward_pre_hook(lambda module, inputs: current.append(inputs[0].clone()))
        model(frames[2:3, 1:2], state)
        potential = state.modules[layers[2]].membrane.flatten()[4] + current[0].flatten()[4]
        threshold = neuron.threshold.flatten()[4]
        assert found.distance == pytest.approx(float((potential - threshold) / threshold), abs=1e-5)


# The stage.


def test_an_export_says_how_to_feed_it_and_how_it_was_checked(run: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (hybridsnn[onnx])")
    export = make(run, "export", of(run, "converted"), format="onnx", weights="int8", images=10)
    assert export.kind == "export" and "run.onnx" in export.manifest.files
    interface = json.loads(export.file("export.json").read_text())
    assert interface["timesteps"] == 8 and interface["integers"] and interface["input"]["type"] == "int8"
    (verdict,) = json.loads(export.file("verdicts.json").read_text())
    assert (verdict["target"], verdict["verdict"], verdict["images"]) == ("onnxruntime", "exact", 10)
    largest = metrics(export).query("metric == 'largest-value'")
    assert len(largest) == 4 and (largest["value"] < EXACT).all()


def test_integers_are_evaluated_as_they_are_exported(run: Path) -> None:
    plain = metrics(make(run, "evaluate", of(run, "converted"), images=100)).query("metric == 'accuracy'")["value"]
    found = make(run, "evaluate", of(run, "converted"), images=100, integer=True)
    assert found.name == "evaluate-converted-int8"
    whole = metrics(found).query("metric == 'accuracy'")["value"]
    assert abs(float(whole.iloc[-1]) - float(plain.iloc[-1])) <= 0.05
    coarse = metrics(make(run, "evaluate", of(run, "converted"), images=100, integer=True, weight_bits=2))
    assert float(coarse.query("metric == 'loss'")["value"].iloc[-1]) != float(whole.iloc[-1])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--format", "onxx"], "Did you mean"),
        (["--format", "onnx", "--weights", "int8", "--weight-bits", "12"], "at most 8 for ONNX"),
        (["--format", "nir", "--unroll", "3"], "belongs to onnx"),
        (["--from", "ann"], "wanted snn"),
    ],
)
def test_mistakes_take_one_line(arguments: list[str], told: str, unchanged: Path) -> None:
    assert told in fail("export", *arguments)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EXPORTERS["onnx"], "needs", ("no_such_module",))
    with pytest.raises(Exception, match=r"no_such_module, which is not installed; pip install 'hybridsnn\[onnx\]'"):
        EXPORTERS["onnx"]().require()


def test_pictures_are_whole_numbers_only_for_integers() -> None:
    model = model_of("residual")
    assert not torch.equal(frames_of(model), frames_of(model).round())
    assert pictures(1).abs().max() <= 1
