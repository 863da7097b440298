"""Staircase activations and their conversion, and learning from the answers of the ANN."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_networks import CLASSES, SHAPE, Residual, pictures, seeded

from hybridsnn.activations import QCFS, with_qcfs
from hybridsnn.artifacts import Artifact
from hybridsnn.batch import Batch
from hybridsnn.config import resolve
from hybridsnn.conversion import BALANCERS, Calibration, spiking_body
from hybridsnn.encoders import Encoder
from hybridsnn.errors import ConfigError, ConversionError
from hybridsnn.model import SpikingModel
from hybridsnn.neurons import SpikingNeuron
from hybridsnn.stages import STAGES
from hybridsnn.stages.base import Environment, execute
from hybridsnn.stages.distillation import distillation
from hybridsnn.stages.finetune import FinetuneConfig
from hybridsnn.stages.networks import describe, load_network


@pytest.mark.parametrize("levels", [1, 2, 4, 7, 16])
def test_a_staircase_is_what_a_neuron_counts(levels: int) -> None:
    """clip(floor(z T / ceiling + 1/2), 0, T) spikes of T steps, on the edges of the steps too."""
    staircase = QCFS(levels).double()
    staircase.ceiling.data.fill_(2.0)
    # On multiples of 1/16 of half a step, whose edges floating point meets exactly.
    currents = torch.arange(-40, 32 * levels + 60).double() * 2 / levels / 32
    counts = (currents * levels / 2 + 0.5).floor().clamp(0, levels)
    torch.testing.assert_close(staircase(currents).detach(), counts * 2 / levels)
    neuron = SpikingNeuron(initial_potential=0.5).double()
    neuron.threshold.data.fill_(2.0)
    if levels & (levels - 1) == 0:
        spikes, _ = neuron(currents.expand(levels, 1, -1))
        assert torch.equal(spikes.sum(0)[0], counts)
    else:  # sums of what is not dyadic round: keep off the edges
        between = (torch.arange(-1, levels + 3).double() + 0.3) * 2 / levels
        spikes, _ = neuron(between.expand(levels, 1, -1))
        assert torch.equal(spikes.sum(0)[0], (between * levels / 2 + 0.5).floor().clamp(0, levels))


def test_gradients_pass_the_floor_and_end_at_the_ceiling() -> None:
    staircase = QCFS(4).double()
    assert staircase.ceiling.item() == 8
    values = torch.tensor([-1.0, 0.4, 3.0, 7.9, 9.0]).double().requires_grad_()
    result = staircase(values)
    assert result.tolist() == [0, 0, 4, 8, 8]
    by_value, by_ceiling = torch.autograd.grad(result.sum(), (values, staircase.ceiling))
    assert by_value.tolist() == [0, 1, 1, 1, 0]
    # y = c f(z / c) with f'(u) = 1 inside: y / c - z / c; above the ceiling, 1.
    expected = sum(y / 8 - z / 8 for z, y in ((0.4, 0), (3.0, 4), (7.9, 8))) + 1
    assert by_ceiling.item() == pytest.approx(expected)


def spiking(network: nn.Module, granularity: str, encoder: Encoder) -> SpikingModel:
    body = spiking_body(network, SHAPE, granularity=granularity, initial_potential=0.5)
    BALANCERS["qcfs"]().set_thresholds(body, lambda n: Calibration(pictures(n), torch.arange(n), encoder))
    return SpikingModel(body, encoder).eval()


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
def test_a_converted_staircase_is_exact_in_one_layer(granularity: str) -> None:
    network = with_qcfs(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES)), 8)
    network = seeded(network).double()
    network[1].ceiling.data.fill_(1.7)
    images = pictures(20).double()
    model = spiking(network, granularity, Encoder("direct"))
    outputs, _ = model(images.expand(8, *images.shape))
    # The bias of the readout counts at every step, and a spike stands for a level times 8.
    torch.testing.assert_close(outputs[-1] * 1.7 / 8, network(images).detach(), rtol=1e-6, atol=1e-6)


def test_a_deep_staircase_is_approached_with_time() -> None:
    """Whatever its branches: with many steps and levels the logits are those of the ANN, up to a scale."""
    network = with_qcfs(seeded(Residual()), 64).double()
    for place, module in enumerate(m for m in network.modules() if isinstance(m, QCFS)):
        module.ceiling.data.fill_(1.5 + 0.3 * place)
    images = pictures(8).double()
    expected = network(images).detach()
    outputs, _ = spiking(network, "channel", Encoder("direct"))(images.expand(2000, *images.shape))
    cosine = nn.functional.cosine_similarity(outputs[-1], expected, dim=1)
    assert cosine.min() > 0.98


def test_without_ceilings_there_are_no_thresholds() -> None:
    with pytest.raises(ConversionError, match=r"got 'qcfs', but the ANN has no ceilings.*--activation qcfs"):
        spiking(seeded(Residual()), "layer", Encoder("direct"))


# Stages.


def make(run: Path, stage: str, *parents: Artifact, **settings: Any) -> Artifact:
    config = resolve(STAGES[stage].config, settings, stage)
    return execute(STAGES[stage], config, parents, run, Environment(device="cpu"))[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def chain(run: Path) -> tuple[Artifact, Artifact]:
    """A staircase network of digits, and the spiking one."""
    settings = {"activation": "qcfs", "levels": 4, "width": 0.25, "epochs": 1, "dropout": 0.0}
    ann = make(run, "train-ann", **settings)
    return ann, make(run, "convert", ann, balance="qcfs", timesteps=4)


def test_staircases_go_through_the_stages(chain: tuple[Artifact, Artifact]) -> None:
    ann, converted = chain
    assert describe(ann).network.levels == 4
    staircases = [module for module in load_network(ann)[0].modules() if isinstance(module, QCFS)]
    assert len(staircases) == 3 and all(abs(s.ceiling.item() - 8) > 1e-4 for s in staircases)
    model, _ = load_network(converted)
    assert isinstance(model, SpikingModel) and len(model.neurons) == 3
    assert all(neuron.threshold.item() > 0 for neuron in model.neurons.values())


def targets_of(start: Artifact, **settings: Any) -> tuple[Any, Batch]:
    config = resolve(FinetuneConfig, settings, "finetune")
    assert isinstance(config, FinetuneConfig)
    batch = Batch(pictures(6, (1, 8, 8)), torch.arange(6), torch.arange(6))
    return distillation("finetune", start, torch.device("cpu"), config), batch


def test_targets_mix_labels_and_the_answers_of_the_ann(chain: tuple[Artifact, Artifact]) -> None:
    targets, batch = targets_of(chain[1], distil=0.25, temperature=2.0)
    network, _ = load_network(chain[0])
    found = targets(batch, batch.labels)
    answers = torch.softmax(network(batch.images) / 2, 1).detach()
    expected = 0.25 * answers + 0.75 * nn.functional.one_hot(batch.labels, 10)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(1), torch.ones(6))


def test_distillation_reaches_the_training(run: Path, chain: tuple[Artifact, Artifact]) -> None:
    settings = {"method": "stop-w", "loss": "readout", "epochs": 1, "learning_rate": 1e-3}
    tuned = [make(run, "finetune", chain[1], distil=share, **settings) for share in (0.0, 1.0)]
    assert tuned[0].manifest.files["model.safetensors"] != tuned[1].manifest.files["model.safetensors"]


def test_a_teacher_that_is_gone_is_named(chain: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    shutil.copytree(chain[1].path, tmp_path / "alone")
    with pytest.raises(
        ConfigError, match=r"^finetune\.distil: got 0\.5, which needs the ANN that 'convert-qcfs' was conv"
    ) as e:
        targets_of(Artifact.open(tmp_path / "alone"), distil=0.5)
    assert "\n" not in str(e.value)
