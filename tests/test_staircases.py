"""Training that starts from an ANN: its staircases, what it learns, and how it is asked for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from hybridsnn.activations import QCFS
from hybridsnn.artifacts import Artifact
from hybridsnn.cli import command_line
from hybridsnn.config import resolve
from hybridsnn.errors import ConfigError, ConversionError, OutOfTimeError
from hybridsnn.networks import NETWORKS, NetworkSpec
from hybridsnn.recipes.recipe import load_recipe
from hybridsnn.stages import STAGES
from hybridsnn.stages.base import Environment, default_parents, execute
from hybridsnn.stages.networks import WEIGHTS, describe, load_network, read_metrics
from hybridsnn.stages.staircases import fitted_ceilings, with_staircases

SHAPES = {"digits-cnn": (1, 8, 8)}
STAGE = STAGES["train-ann"]


def ann_and_images(name: str) -> tuple[nn.Module, NetworkSpec, torch.Tensor]:
    shape = SHAPES.get(name, (3, 16, 16))
    spec = NetworkSpec(name, shape, 5, batch_norm=True, width=0.125)
    torch.manual_seed(0)
    ann = spec.build().eval()
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that differ from channel to channel
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return ann, spec, torch.rand(16, *shape) * 2 - 1


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("name", ["digits-cnn", "cifar-resnet20", "resnet8"])
@torch.no_grad()
def test_many_levels_answer_like_the_ann(name: str, per: str) -> None:
    """And the distance falls with the levels."""
    ann, spec, images = ann_and_images(name)
    expected, distances = ann(images), []
    for levels in (4, 64, 1024):
        network, made = with_staircases(ann, spec, levels, per, lambda: images)
        assert made == replace(spec, levels=levels, ceilings_per=per)
        distances.append(float((network.eval()(images) - expected).norm() / expected.norm()))
    assert distances[0] > distances[1] > distances[2] and distances[2] < 0.02, distances


@torch.no_grad()
def test_all_but_the_ceilings_is_copied() -> None:
    ann, spec, images = ann_and_images("cifar-resnet20")
    network, made = with_staircases(ann, spec, 4, "channel", lambda: images)
    weights, own = ann.state_dict(), network.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights.items())
    assert {name.rpartition(".")[2] for name in own.keys() - weights.keys()} == {"ceiling"}
    assert any(name.endswith("running_mean") for name in weights)
    back, plain = with_staircases(network, made, None, "layer", list)
    assert plain == spec and all(torch.equal(tensor, weights[name]) for name, tensor in back.state_dict().items())


@torch.no_grad()
def test_ceilings_that_are_there_stay_with_other_levels() -> None:
    ann, spec, images = ann_and_images("digits-cnn")
    network, made = with_staircases(ann, spec, 8, "layer", lambda: images)
    again, finer = with_staircases(network.eval(), made, 4, "layer", list)
    assert finer.levels == 4
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    assert {module.levels for module in again.modules() if isinstance(module, QCFS)} == {4}


@pytest.mark.parametrize("per_channel", [False, True])
@torch.no_grad()
def test_a_ceiling_is_the_best_of_a_fine_grid(per_channel: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()).eval()
    images = torch.randn(32, 2, 8, 8)
    found = fitted_ceilings(network, ["1"], images, 4, per_channel=per_channel)["1"]
    activations = network(images)
    groups = [activations[:, c] for c in range(3)] if per_channel else [activations]

    def error(values: torch.Tensor, ceiling: float) -> float:
        steps = (values * 4 / ceiling + 0.5).floor().clamp(0, 4) / 4
        return float((ceiling * steps - values).square().mean())

    for group, ceiling in zip(groups, found.reshape(-1).tolist(), strict=True):
        peak = float(group.max())
        assert error(group, ceiling) < 1.01 * min(error(group, peak * share / 300) for share in range(20, 301))


@torch.no_grad()
def test_a_silent_channel_gets_a_ceiling_above_0() -> None:
    spec = NetworkSpec("digits-cnn", (1, 8, 8), 10, width=0.25)
    ann = spec.build().eval()
    first = next(module for module in ann.modules() if isinstance(module, nn.Conv2d))
    first.weight[0] = 0.0
    assert first.bias is None
    network, _ = with_staircases(ann, spec, 4, "channel", lambda: torch.rand(8, 1, 8, 8))
    ceilings = next(module for module in network.modules() if isinstance(module, QCFS)).ceiling
    assert ceilings[0] == ceilings.max() > 0
    ceilings[1] = -2.0
    next(module for module in network.modules() if isinstance(module, QCFS)).project()
    assert ceilings.min() > 0


def test_every_network_can_have_a_ceiling_in_each_channel() -> None:
    """Building it leaves torch's random state as it is without them."""
    for name, entry in NETWORKS.items():
        size = max(entry.smallest, 8)
        spec = NetworkSpec(name, (3, size, size), 3, batch_norm=True, width=0.05, levels=4)
        torch.manual_seed(1)
        layers, state = spec.build(), torch.get_rng_state()
        torch.manual_seed(1)
        channels = replace(spec, ceilings_per="channel").build()
        assert torch.equal(state, torch.get_rng_state()) and channels.training
        shapes = [module.ceiling.shape for module in channels.modules() if isinstance(module, QCFS)]
        assert all(len(shape) == 1 for shape in shapes)
        assert len(shapes) == len([module for module in layers.modules() if isinstance(module, QCFS)]) > 0, name


# The stage.


def make(
    run: Path, stage: str, *parents: Artifact, environment: Environment | None = None, **settings: Any
) -> Artifact:
    name = settings.pop("name", None)
    config = resolve(STAGES[stage].settings(bool(parents)), settings, stage)
    return execute(STAGES[stage], config, parents, run, environment or Environment(device="cpu"), name=name)[0]


ANN = {"width": 0.25, "batch_norm": True, "augmentation": "none", "epochs": 3, "dropout": 0.0}
CONTINUED = {"activation": "qcfs", "levels": 1, "distil": 1.0, "epochs": 2, "batch_size": 32, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def ann(run: Path) -> Artifact:
    return make(run, "train-ann", name="ann", **ANN)


@pytest.fixture(scope="module")
def tuned(run: Path, ann: Artifact) -> Artifact:
    return make(run, "train-ann", ann, name="tuned", **CONTINUED)


def measured(artifact: Artifact, metric: str, split: str) -> list[float]:
    rows = read_metrics(artifact)
    return rows.loc[(rows["metric"] == metric) & (rows["split"] == split), "value"].tolist()


def test_distillation_lowers_its_loss_and_improves_the_staircases(ann: Artifact, tuned: Artifact) -> None:
    losses, validation = (measured(tuned, "loss", split) for split in ("train", "validation"))
    assert len(losses) == 2 and losses[1] < losses[0]
    assert validation[2] < validation[0]  # before training, that of the fitted staircases
    accuracy = measured(tuned, "accuracy", "validation")
    assert max(accuracy[1:]) > accuracy[0]
    before, after = describe(ann), describe(tuned)
    assert after == before.model_copy(update={"network": replace(before.network, levels=1)})
    assert [parent.name for parent in tuned.manifest.parents] == ["ann"]


def test_it_converts(run: Path, ann: Artifact) -> None:
    tuned = make(run, "train-ann", ann, name="channels", ceiling_per="channel", **CONTINUED)
    assert {module.ceiling.dim() for module in load_network(tuned)[0].modules() if isinstance(module, QCFS)} == {1}
    converted = make(run, "convert", tuned, name="spiking", balance="qcfs", granularity="channel", timesteps=1)
    evaluated = make(run, "evaluate", converted, split="validation")
    assert measured(evaluated, "accuracy", "validation")[-1] > 0.6
    with pytest.raises(
        ConversionError, match=r"^convert\.granularity: got 'layer', but the ANN has a ceiling for each"
    ):
        make(run, "convert", tuned, balance="qcfs", timesteps=2)


def test_another_start_is_another_result(run: Path, ann: Artifact, tuned: Artifact) -> None:
    config = resolve(STAGE.settings(True), CONTINUED, "train-ann")
    keys = {STAGE.key(config, parents, Environment()) for parents in ((ann,), (tuned,))}
    assert len(keys) == 2


@pytest.mark.parametrize("stop_after", [1, 30, 60])
def test_an_interrupted_training_ends_with_the_same_weights(
    run: Path, ann: Artifact, tuned: Artifact, tmp_path: Path, stop_after: int
) -> None:
    asked = 0

    def time_is_up() -> bool:
        nonlocal asked
        asked += 1
        return asked == stop_after

    with pytest.raises(OutOfTimeError):
        make(tmp_path, "train-ann", ann, environment=Environment(device="cpu", time_is_up=time_is_up), **CONTINUED)
    resumed = make(tmp_path, "train-ann", ann, **CONTINUED)
    for name, tensor in load_file(tuned.file(WEIGHTS)).items():
        assert torch.equal(tensor, load_file(resumed.file(WEIGHTS))[name]), name


def test_no_epoch_keeps_the_fitted_staircases(run: Path, ann: Artifact) -> None:
    start = make(run, "train-ann", ann, name="start", activation="qcfs", levels=2, epochs=0)
    own, before = load_file(start.file(WEIGHTS)), load_file(ann.file(WEIGHTS))
    assert all(torch.equal(own[name], tensor) for name, tensor in before.items()) and len(own) > len(before)


def test_the_start_has_to_be_named(run: Path, ann: Artifact) -> None:
    """No ANN of the run is picked up, and a training from nothing is what it was."""
    assert default_parents(STAGE, run, STAGES) == [()]
    again = make(run, "train-ann", name="again", **ANN)
    assert again.path == ann.path and not again.manifest.parents


@pytest.mark.parametrize("name", ["network", "dataset", "width", "validation", "batch_norm", "image_size"])
def test_what_the_ann_decides_is_not_contradicted(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^train-ann\.{name}: is that of the ANN .* leave it out$"):
        resolve(STAGE.settings(True), {name: "x"}, "train-ann")


def test_what_needs_a_start_says_so() -> None:
    with pytest.raises(
        ConfigError, match=r"^train-ann\.distil: is for a training that starts from an ANN; name one wi"
    ):
        resolve(STAGE.settings(False), {"distil": 1.0}, "train-ann")
    with pytest.raises(ConfigError, match=r"^train-ann: unknown 'distill'"):
        resolve(STAGE.settings(True), {"distill": 1.0}, "train-ann")


def test_ceilings_can_have_their_own_rate_and_decay(run: Path, ann: Artifact) -> None:
    """At a rate next to 0 and without decay they stay where they began; with decay only, they shrink."""

    def ceilings(artifact: Artifact) -> torch.Tensor:
        modules = load_network(artifact)[0].modules()
        return torch.stack([module.ceiling.detach() for module in modules if isinstance(module, QCFS)])

    still = CONTINUED | {"ceiling_learning_rate": 1e-12, "schedule": "constant"}
    start = ceilings(make(run, "train-ann", ann, name="unmoved", **still | {"epochs": 0}))
    assert torch.equal(start, ceilings(make(run, "train-ann", ann, name="still", **still)))
    moved = ceilings(make(run, "train-ann", ann, name="moved", **CONTINUED | {"ceiling_learning_rate": 0.1}))
    assert (start - moved).abs().min() > 1e-4
    shrunk = ceilings(make(run, "train-ann", ann, name="shrunk", **still | {"ceiling_weight_decay": 1e9}))
    assert (shrunk > 0).all() and (shrunk < start).all()


def test_recipes_and_commands_start_from_an_ann(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.yaml").write_text(
        "name: r\nstages:\n"
        "  ann: {stage: train-ann, width: 0.25, epochs: 1}\n"
        "  stairs: {stage: train-ann, from: ann, activation: qcfs, epochs: 1}\n"
        "  snn: {stage: convert, from: stairs, balance: qcfs, timesteps: 4}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    assert [type(step.config).__name__ for step in recipe.steps[:2]] == ["TrainConfig", "ContinueConfig"]
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(command_line, ["run", "r.yaml"])
    assert ended.exit_code == 0, ended.output
    told = CliRunner().invoke(command_line, ["train-ann", "--run", "r", "--from", "ann", "--width", "0.5"])
    assert told.exit_code == 2 and "train-ann.width: is that of the ANN" in told.output
    made = CliRunner().invoke(
        command_line, ["train-ann", "--run", "r", "--from", "ann", "--activation", "qcfs", "--epochs", "1"]
    )
    assert made.exit_code == 0 and "is current, nothing to do" in made.output, made.output
