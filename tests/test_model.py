"""A spiking network as a whole: cuts in time, cuts of the batch, and what its metrics count."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from toy_networks import CLASSES, Residual, encodable, exact, pictures, seeded, spiking

from hybridsnn.batch import Batch
from hybridsnn.conversion import spiking_body
from hybridsnn.encoders import ENCODERS
from hybridsnn.evaluation.accuracy import CHUNK, ann_accuracy, snn_accuracy
from hybridsnn.evaluation.measurement import evaluate
from hybridsnn.model import ModelState, SpikingModel
from hybridsnn.neurons import RESETS, NeuronState, SharedDropout
from hybridsnn.surrogates import SURROGATES

CUTS = [[12], [1] * 12, [5, 7], [1, 11], [3, 1, 8]]
CPU = torch.device("cpu")


def frames_of(model: SpikingModel, images: Tensor, timesteps: int, start: int = 0) -> Tensor:
    return model.encoder(images, torch.arange(len(images)), timesteps, start=start, seed=3)


def in_chunks(model: SpikingModel, images: Tensor, cuts: list[int], **options: Any) -> tuple[Tensor, ModelState]:
    """Outputs of all steps, and the final state, of a run that comes in pieces."""
    outputs, state, start = [], None, 0
    for steps in cuts:
        piece, state = model(frames_of(model, images, steps, start), state, **options)
        outputs.append(piece)
        start += steps
    assert state is not None
    return torch.cat(outputs), state


def same_state(one: ModelState, other: ModelState) -> bool:
    assert one.modules.keys() == other.modules.keys()
    for name, value in one.modules.items():
        pairs = zip(value, other.modules[name], strict=True) if isinstance(value, NeuronState) else []
        if not all(torch.equal(mine, theirs) for mine, theirs in pairs):
            return False
    return torch.equal(one.readout, other.readout)


@pytest.mark.parametrize("cuts", CUTS[1:], ids=str)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_chunks_of_time_are_the_whole(encoder: str, cuts: list[int]) -> None:
    model = spiking(exact(seeded(Residual())), encoder)
    images = encodable(encoder, 3, 12)
    outputs, state = in_chunks(model, images, [12])
    pieces, last = in_chunks(model, images, cuts)
    assert outputs.shape == (12, 3, CLASSES) and outputs[-1].abs().min() > 0
    assert torch.equal(pieces, outputs)
    assert same_state(last, state)
    assert torch.equal(last.readout.float(), outputs[-1])


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradients_do_not_depend_on_how_time_is_cut(surrogate: str, reset: str) -> None:
    """Of weights, thresholds and leaks, with dropout masks handed on from chunk to chunk."""
    model = spiking(seeded(Residual(dropout=0.3)), "poisson", reset=reset).double().train()
    for neuron in model.neurons.values():
        neuron.leak.fill_(0.9)
    model.requires_grad_()
    images, labels = pictures(3).double(), torch.tensor([0, 3, 4])
    gradients = []
    for cuts in CUTS:
        torch.manual_seed(5)
        outputs, _ = in_chunks(model, images, cuts, surrogate=SURROGATES[surrogate])
        model.zero_grad()
        nn.functional.cross_entropy(outputs[-1], labels).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_sample_is_independent_of_its_batch(encoder: str) -> None:
    model = spiking(exact(seeded(Residual())), encoder)
    images, indices = encodable(encoder, 6, 10), torch.tensor([4, 7, 1, 900, 2**40, 0])

    def run(places: list[int]) -> Tensor:
        frames = model.encoder(images[places], indices[places], 10, seed=3)
        return model(frames)[0]

    whole = run(list(range(6)))
    order = list(range(6))
    random.Random(0).shuffle(order)
    assert torch.equal(run(order), whole[:, order])
    assert torch.equal(torch.cat([run([place]) for place in range(6)], 1), whole)
    assert torch.equal(torch.cat([run([0, 1, 2, 3]), run([4, 5])], 1), whole)
    assert len(whole[-1].unique(dim=0)) == 6


@pytest.mark.parametrize("encoder", ENCODERS)
def test_no_state_survives_a_call(encoder: str) -> None:
    model = spiking(exact(seeded(Residual())), encoder)
    images = encodable(encoder, 2, 6)
    first, _ = in_chunks(model, images, [6])
    assert torch.equal(in_chunks(model, images, [6])[0], first)
    assert sorted(model.state_dict()) == sorted(spiking(Residual(), encoder).state_dict())


def test_a_frame_that_stays_is_the_same_repeated() -> None:
    """Stride 0 along time only says that a synapse can be computed once, in shortcuts from the input too."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)
            self.head = nn.Linear(2 * 8 * 8, CLASSES)

        def forward(self, images: Tensor) -> Tensor:
            batch = images.size(0)
            hidden = self.second(torch.relu(self.first(images))) + images
            return self.head(torch.relu(hidden).view(batch, -1))

    for network in (Residual(), Skip()):
        model = spiking(exact(seeded(network)))
        frames = frames_of(model, pictures(3), 7)
        assert frames.stride(0) == 0
        outputs, state = model(frames)
        repeated, last = model(frames.contiguous())
        assert torch.equal(outputs, repeated)
        assert same_state(last, state)


def test_synapses_of_a_constant_input_run_once() -> None:
    model = spiking(seeded(Residual()))
    sizes = []
    model.body.stem.get_submodule("0").register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    model(frames_of(model, pictures(3), 7))
    assert sizes == [3]


def test_layers_are_named_in_the_order_they_run() -> None:
    model = spiking(seeded(Residual()))
    seen: list[str] = []

    def observe(name: str, spikes: Tensor) -> None:
        seen.append(name)
        assert spikes.shape[:2] == (4, 2)
        assert set(spikes.unique().tolist()) <= {0.0, 1.0}

    model(frames_of(model, pictures(2), 4), observe=observe)
    assert seen == list(model.neurons) == ["stem.1", "same.residual.1", "same.relu", "other.residual.1", "other.relu"]


def test_dropout_draws_one_mask_for_all_time() -> None:
    dropout = SharedDropout(0.25)
    torch.manual_seed(0)
    values, mask = dropout(torch.ones(5, 64, 100))
    assert torch.equal(values, values[:1].expand_as(values))
    assert set(values.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert len(values[0].unique(dim=0)) == 64  # one for each sample
    assert 0.7 < (values[0] > 0).double().mean() < 0.8
    assert torch.equal(dropout(torch.ones(3, 64, 100), mask)[0][1], values[0])
    assert torch.equal(dropout.eval()(torch.ones(3, 64, 100), None)[0], torch.ones(3, 64, 100))


def test_dropout_of_channels_stays_one() -> None:
    """What `Dropout2d` drops in the ANN is dropped as a whole in the spiking network."""
    body = spiking_body(nn.Sequential(nn.Conv2d(2, 64, 3), nn.ReLU(), nn.Dropout2d(0.5)), (2, 6, 6))
    dropouts = [module for module in body.modules() if isinstance(module, SharedDropout)]
    values, _ = dropouts[0].train()(torch.ones(3, 2, 64, 4, 4))
    assert torch.equal(values, values[:1, :, :, :1, :1].expand_as(values))
    assert set(values.unique().tolist()) == {0.0, 2.0}


def test_a_readout_only_accumulates() -> None:
    """Without a neuron on the way, the output at step t is t times the output of one step."""
    body = fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(128, CLASSES)))
    model = spiking(seeded(Residual()))
    model.body = body
    outputs, _ = model(frames_of(model, pictures(2), 9))
    torch.testing.assert_close(outputs, outputs[:1] * torch.arange(1, 10).view(-1, 1, 1))


def batches_of(images: Tensor, labels: Tensor, size: int) -> list[Batch]:
    indices = torch.arange(len(images))
    return [Batch(*parts) for parts in zip(images.split(size), labels.split(size), indices.split(size), strict=True)]


def values_of(rows: list[dict[str, Any]]) -> dict[tuple[str, Any], float]:
    return {(row["metric"], row.get("step", row.get("layer"))): row["value"] for row in rows}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_metrics_of_a_spiking_network(encoder: str) -> None:
    timesteps = CHUNK + 5
    model = spiking(exact(seeded(Residual())), encoder)
    images = encodable(encoder, 7, timesteps)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    trains: dict[str, Tensor] = {}
    with torch.no_grad():
        outputs, _ = model(frames_of(model, images, timesteps), observe=trains.__setitem__)
    expected: dict[tuple[str, Any], float] = {("images", None): 7.0, ("latency", None): float(timesteps)}
    for step in range(timesteps):
        expected["accuracy", step + 1] = float((outputs[step].argmax(1) == labels).double().mean())
        expected["loss", step + 1] = float(nn.functional.cross_entropy(outputs[step], labels))
    for name, spikes in trains.items():
        expected["firing-rate", name] = float(spikes.double().mean())
        expected["spikes-per-image", name] = float(spikes.double().sum() / 7)
    expected["spikes-per-image", None] = sum(float(spikes.double().sum() / 7) for spikes in trains.values())
    for size in (7, 3, 1):
        rows = evaluate(snn_accuracy(model, CPU, timesteps=timesteps, seed=3), batches_of(images, labels, size))
        found = {
            name: value for name, value in values_of(rows).items() if name[0] in {metric for metric, _ in expected}
        }
        assert found == pytest.approx(expected, rel=1e-5)  # operations and energy: test_energy.py


@pytest.mark.parametrize("size", [7, 3])
def test_metrics_of_a_trained_network(size: int) -> None:
    network = seeded(Residual(dropout=0.5)).train()
    images, labels = pictures(7), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    rows = evaluate(ann_accuracy(network, CPU), batches_of(images, labels, size))
    logits = network.eval()(images).detach()
    assert values_of(rows) == pytest.approx(
        {
            ("accuracy", None): float((logits.argmax(1) == labels).double().mean()),
            ("loss", None): float(nn.functional.cross_entropy(logits, labels)),
            ("images", None): 7.0,
        },
        rel=1e-5,
    )
