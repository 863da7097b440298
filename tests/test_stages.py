"""The stages on real digits: the whole chain, the same numbers again, resuming, damage, and everyone's mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_cli import fail, succeed
from torch import Tensor, nn
from toy_stages import snapshot

from hybridsnn.artifacts import MANIFEST, Artifact, artifacts_in, sha256_of
from hybridsnn.config import resolve
from hybridsnn.conversion import BALANCERS, GRANULARITIES, MeasuringBalancer
from hybridsnn.data import DATASETS, ImageData, MemoryImages, image_data, load
from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import ArtifactError, ConfigError, OutOfTimeError
from hybridsnn.learning import RULES
from hybridsnn.learning.rules.base import LearnsIfAsked
from hybridsnn.model import SpikingModel
from hybridsnn.stages import STAGES, automatic, convert, finetune, train_ann
from hybridsnn.stages.base import Environment, Work, execute
from hybridsnn.stages.images import open_again, open_new
from hybridsnn.stages.networks import COLUMNS, METRICS, MODEL, WEIGHTS, ModelDescription, load_network
from hybridsnn.stages.train_ann import TrainConfig

ANN = {"width": 0.25, "batch_norm": True, "augmentation": "none", "epochs": 4}  # half a second, 94 %
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process, for the same sums


class Notes:
    """Progress that keeps what it is told, and is interrupted on a word."""

    def __init__(self, interrupt_on: str = "never"):
        self.said: list[str] = []
        self.interrupt_on = interrupt_on

    def track(self, iterable: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        yield from iterable

    def say(self, text: str) -> None:
        self.said.append(text)
        if text.startswith(self.interrupt_on):
            raise KeyboardInterrupt


def make(run: Path, stage: str, *parents: Artifact, notes: Notes | None = None, **settings: Any) -> Artifact:
    """The artifact of a stage, made unless the run holds it already."""
    how = {key: settings.pop(key) for key in ("name", "fresh") if key in settings}
    environment = Environment(device="cpu", progress=notes or Notes())
    config = resolve(STAGES[stage].config, settings, stage)
    return execute(STAGES[stage], config, parents, run, environment, **how)[0]


def metrics(artifact: Artifact) -> pd.DataFrame:
    return pd.read_csv(artifact.file(METRICS))


def accuracies(evaluation: Artifact, metric: str = "accuracy") -> list[float]:
    """At each step; one number for an ANN."""
    rows = metrics(evaluation)
    return rows.loc[rows["metric"] == metric, "value"].tolist()


def losses(evaluation: Artifact) -> list[float]:
    return accuracies(evaluation, "loss")


def begin(folder: Path) -> Path:
    """A run with a network of each kind, to read from and to add to."""
    ann = make(folder, "train-ann", name="ann", **ANN)
    converted = make(folder, "convert", ann, name="converted", timesteps=8, initial_potential=0.5)
    make(folder, "finetune", converted, name="tuned", epochs=1, timesteps=3, learning_rate=2e-3, dropout=0.0)
    make(folder, "evaluate", ann, name="ann-test")
    return folder


def of(run: Path, name: str) -> Artifact:
    return Artifact.open(run / name)


def copied(run: Path, folder: Path) -> Path:
    """The folder, with a copy of what `run` began with as its default run."""
    for name in ("ann", "converted", "tuned", "ann-test"):
        shutil.copytree(run / name, folder / "checkpoints" / "default" / name)
    return folder


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Call commands in this folder from now on; returns its default run."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("HYBRIDSNN_CHECKPOINTS", raising=False)
    monkeypatch.delenv("HYBRIDSNN_DATA", raising=False)
    return folder / "checkpoints" / "default"


# The chain.


def test_a_network_learns_the_digits(run: Path) -> None:
    assert accuracies(of(run, "ann-test"))[-1] > 0.8
    history = metrics(of(run, "ann"))
    assert tuple(history.columns) == COLUMNS
    assert set(history["stage"]) == {"train-ann"}
    for split in ("train", "validation"):
        rows = history[(history["split"] == split) & (history["metric"] == "loss")]
        assert rows["epoch"].tolist() == [0, 1, 2, 3, 4][split == "train" :]  # 0: before training
        assert rows["value"].iloc[-1] < rows["value"].iloc[0]


def test_the_history_says_whose_weights_were_kept(run: Path) -> None:
    history = metrics(of(run, "ann"))
    validation = history[(history["split"] == "validation") & (history["metric"] == "accuracy")].set_index("epoch")
    (kept,) = history.loc[history["metric"] == "kept-epoch", "value"]
    assert validation["value"][kept] == validation["value"].max()
    shown = succeed("show", str(of(run, "ann").path))
    assert f"{100 * validation['value'].max():.2f} %" in shown.split("validation accuracy")[1].splitlines()[0]


@pytest.mark.parametrize("encoder", [name for name, coding in ENCODERS.items() if not coding.events])
@pytest.mark.parametrize("balance", [name for name, entry in BALANCERS.items() if issubclass(entry, MeasuringBalancer)])
def test_every_conversion_comes_near_its_network(balance: str, encoder: str, run: Path) -> None:
    timesteps = 64 if ENCODERS[encoder].random else 16
    converted = make(
        run, "convert", of(run, "ann"), balance=balance, encoder=encoder, timesteps=timesteps, initial_potential=0.5,
        calibration_images=128,
    )  # fmt: skip
    evaluation = make(run, "evaluate", converted)
    by_step = accuracies(evaluation)
    assert by_step[-1] > accuracies(of(run, "ann-test"))[-1] - 0.1
    assert by_step[0] < by_step[-1]

    model, description = load_network(converted)
    assert isinstance(model, SpikingModel)
    assert description.spiking is not None and description.spiking.timesteps == timesteps
    rows = metrics(evaluation)
    assert tuple(rows.columns) == COLUMNS
    assert set(rows["stage"]) == {"evaluate"} and set(rows["split"]) == {"test"}
    assert rows.loc[rows["metric"] == "accuracy", "step"].tolist() == list(range(1, timesteps + 1))
    assert rows.loc[rows["metric"] == "images", "value"].tolist() == [359]
    rates = rows[rows["metric"] == "firing-rate"]
    assert rates["layer"].tolist() == list(model.neurons)
    assert rates["value"].between(0, 1).all() and (rates["value"] > 0).any()
    spikes = rows[rows["metric"] == "spikes-per-image"]
    whole = spikes["layer"].isna()
    assert spikes.loc[whole, "value"].item() == pytest.approx(spikes.loc[~whole, "value"].sum())
    thresholds = metrics(converted)
    assert thresholds["layer"].tolist() == list(model.neurons)
    assert (thresholds["value"] > 0).all()


def test_a_shorter_evaluation_is_the_beginning_of_a_longer_one(run: Path) -> None:
    converted = make(run, "convert", of(run, "ann"), encoder="poisson", timesteps=20)
    long, short = (make(run, "evaluate", converted, timesteps=timesteps, batch_size=64) for timesteps in (20, 7))
    assert accuracies(short) == accuracies(long)[:7]
    other = make(run, "evaluate", converted, timesteps=20, batch_size=64, seed=1)
    assert accuracies(other) != accuracies(long)


def test_images_may_leave_early(run: Path) -> None:
    converted = of(run, "converted")
    early = make(run, "evaluate", converted, exit_confidence=0.95)
    rows = metrics(early)
    leaving = rows["metric"].str.startswith("exit-")
    assert set(rows.loc[leaving, "metric"]) == {
        "exit-accuracy", "exit-mean-steps", "exit-spikes-per-image", "exit-margin", "exit-share"
    }  # fmt: skip
    # What is measured of all steps stays as it is.
    whole = metrics(make(run, "evaluate", converted))
    pd.testing.assert_frame_equal(rows[~leaving].reset_index(drop=True), whole)
    shares = accuracies(early, "exit-share")
    assert shares == sorted(shares) and len(shares) == 8 and shares[-1] == 1
    (mean,) = accuracies(early, "exit-mean-steps")
    assert mean == pytest.approx(8 - sum(shares[:-1])) and 1 < mean < 7
    spikes = rows.loc[(rows["metric"] == "spikes-per-image") & rows["layer"].isna(), "value"].item()
    assert accuracies(early, "exit-spikes-per-image")[0] == pytest.approx(spikes * mean / 8, rel=0.2)
    # At most one answer in twenty is another, and that on average; 359 images are few.
    assert accuracies(early, "exit-accuracy")[0] > accuracies(early)[-1] - 0.08
    # In batches of any size, and the bound comes from the validation images whichever are measured.
    assert accuracies(make(run, "evaluate", converted, exit_confidence=0.95, batch_size=17), "exit-share") == shares
    known = make(run, "evaluate", converted, exit_confidence=0.95, split="validation")
    assert accuracies(known, "exit-margin") == accuracies(early, "exit-margin")
    assert accuracies(known, "exit-share") != shares
    surer = make(run, "evaluate", converted, exit_confidence=0.99)
    assert accuracies(surer, "exit-mean-steps")[0] > mean

    shown = succeed("show", str(early.path))
    accuracy = f"{100 * accuracies(early, 'exit-accuracy')[0]:.2f} %"
    assert accuracy in shown.split("test exit accuracy")[1].splitlines()[0]
    assert f"{mean:.2f}" in shown.split("test exit mean steps")[1].splitlines()[0]
    report = make(run, "report", make(run, "evaluate", of(run, "ann")), early)
    table = pd.read_csv(report.file("accuracy.csv"))
    assert table["mean steps"].tolist()[1] == pytest.approx(mean, abs=0.005)
    assert f"{table['early exit (%)'][1]:.2f} %" == accuracy


@pytest.mark.parametrize("method", RULES)
def test_every_rule_improves_a_network_of_few_steps(method: str, run: Path) -> None:
    converted = of(run, "converted")
    tuned = make(run, "finetune", converted, method=method, epochs=1, timesteps=4, learning_rate=2e-3, dropout=0.0)
    before, after = make(run, "evaluate", converted, timesteps=4), make(run, "evaluate", tuned)
    assert len(accuracies(after)) == 4  # the steps it was tuned for are its own now
    assert losses(after)[-1] < 0.8 * losses(before)[-1]
    assert accuracies(after)[-1] > accuracies(before)[-1] - 0.02


def test_a_tuned_network_can_be_tuned_again(run: Path) -> None:
    again = make(run, "finetune", of(run, "tuned"), method="stop-wtl", epochs=1, batch_size=10_000)
    assert [parent.name for parent in again.manifest.parents] == ["tuned"]


@pytest.fixture(scope="module")
def blank(run: Path) -> Artifact:
    """A network that has everything to learn, with a threshold for each channel, and leaks that can go either way."""
    ann = make(run, "train-ann", name="blank-ann", width=0.25, epochs=0, dropout=0.0, augmentation="none")
    settings = {"balance": "constant", "threshold": 0.3, "leak": 0.7, "granularity": "channel", "timesteps": 4}
    return make(run, "convert", ann, name="blank", **settings)


def learned(before: Artifact, after: Artifact) -> dict[str, bool]:
    """What of weights, thresholds and leaks differs: all of each kind, or none."""
    one, other = (load_file(network.file(WEIGHTS)) for network in (before, after))
    assert one.keys() == other.keys()
    found = {}
    for kind in ("weight", "threshold", "leak"):
        names = [name for name in one if name.endswith(f".{kind}")]
        changed = {torch.equal(one[name], other[name]) for name in names}
        assert len(names) >= 3 and len(changed) == 1, kind
        found[kind] = changed == {False}
    for name, value in other.items():
        assert not name.endswith(".threshold") or (value > 0).all()
        assert not name.endswith(".leak") or ((value >= 0) & (value <= 1)).all()
    return found


@pytest.mark.parametrize("method", RULES)
def test_every_rule_learns_what_it_says(method: str, run: Path, blank: Artifact) -> None:
    """Thresholds and leaks too, if the method does or may and is asked to; within their bounds at high rates."""
    rule = RULES[method]()
    settings = {"method": method, "epochs": 1, "batch_size": 256, "learning_rate": 5e-3}
    settings |= {"threshold_learning_rate": 0.1, "leak_learning_rate": 0.1}
    own = make(run, "finetune", blank, **settings)
    assert learned(blank, own) == {"weight": True, "threshold": rule.learns_thresholds, "leak": rule.learns_leaks}
    history = metrics(own)
    (start, end) = history.loc[(history["split"] == "validation") & (history["metric"] == "loss"), "value"]
    assert end < start
    if isinstance(rule, LearnsIfAsked):
        asked = make(run, "finetune", blank, learn_thresholds=True, learn_leaks=True, **settings)
        assert learned(blank, asked) == {"weight": True, "threshold": True, "leak": True}
        one = make(run, "finetune", blank, learn_thresholds=False, learn_leaks=True, **settings)
        assert learned(blank, one) == {"weight": True, "threshold": False, "leak": True}


def test_thresholds_and_leaks_learn_at_rates_of_their_own(run: Path, blank: Artifact) -> None:
    settings = {"method": "stop-wtl", "epochs": 1, "batch_size": 256, "learning_rate": 5e-3}

    def distances(**rates: float) -> list[float]:
        """How far the thresholds went, and the leaks."""
        network = make(run, "finetune", blank, **settings, **rates)
        before, after = load_file(blank.file(WEIGHTS)), load_file(network.file(WEIGHTS))
        return [
            max((after[name] - value).abs().max().item() for name, value in before.items() if name.endswith(kind))
            for kind in ("threshold", "leak")
        ]

    shared, thresholds_slow = distances(), distances(threshold_learning_rate=1e-6)
    leaks_slow = distances(leak_learning_rate=1e-6)
    assert min(*shared, thresholds_slow[1], leaks_slow[0]) > 1e-3
    assert 0 < max(thresholds_slow[0], leaks_slow[1]) < 1e-4


def test_a_rule_can_have_another_surrogate_or_fewer_steps(run: Path, blank: Artifact) -> None:
    settings = {"method": "sltt", "epochs": 1, "batch_size": 256, "learning_rate": 5e-3}
    choices: list[dict[str, Any]] = [{}, {"surrogate": "exponential"}, {"backward_steps": 1}, {"backward_steps": 2}]
    made = [make(run, "finetune", blank, **settings, **choice) for choice in choices]
    assert len({network.manifest.files[WEIGHTS] for network in made}) == len(choices)
    enough = make(run, "finetune", blank, **settings, backward_steps=4)
    assert enough.manifest.files[WEIGHTS] == made[0].manifest.files[WEIGHTS]


def test_stop_in_half_precision(run: Path, blank: Artifact) -> None:
    settings = {"method": "stop-wtl", "epochs": 3, "batch_size": 256, "learning_rate": 5e-3}
    half, single = (make(run, "finetune", blank, precision=how, **settings) for how in ("bf16-mixed", "32-true"))
    before, after, exact = (losses(make(run, "evaluate", network))[-1] for network in (blank, half, single))
    assert after == pytest.approx(exact, rel=0.2) and after < 0.8 * before


def test_the_report_gathers_evaluations(run: Path) -> None:
    evaluations = [make(run, "evaluate", of(run, name), name=f"{name}-test") for name in ("ann", "converted", "tuned")]
    report = make(run, "report", *evaluations, title="All three")
    assert {"index.html", "accuracy.csv", "accuracy.md", "accuracy_by_step.csv", "firing_rates.csv"} <= set(
        report.manifest.files
    )
    page = report.file("index.html").read_text()
    assert "All three" in page
    for name in ("ann", "converted", "tuned"):
        assert name in page
        assert name in report.file("accuracy.csv").read_text()
    assert "<dt>width</dt><dd>0.25</dd>" in page and "<dt>momentum</dt>" not in page  # chosen, and a default
    assert "<dt>surrogate</dt>" not in page and "<dt>memory_budget</dt>" not in page  # defaults of the method


def test_the_report_tells_networks_of_several_runs_apart(run: Path, tmp_path: Path) -> None:
    theirs = make(run, "evaluate", of(run, "ann"), name="ann-test")
    ours = make(tmp_path, "evaluate", make(tmp_path, "train-ann", name="ann", width=0.25, epochs=0), name="ours-test")
    report = make(tmp_path, "report", theirs, ours)
    assert pd.read_csv(report.file("accuracy.csv"))["network"].tolist() == [f"{run.name}/ann", f"{tmp_path.name}/ann"]
    assert ">ours-test</text>" in report.file("index.html").read_text()


@pytest.mark.parametrize("method", ["stdb", "stop-wtl"])  # others in `test_every_rule_learns_what_it_says`
def test_learning_from_scratch(method: str, tmp_path: Path) -> None:
    untrained = make(tmp_path, "train-ann", width=0.25, epochs=0, dropout=0.0, augmentation="none")
    assert metrics(untrained).empty
    converted = make(tmp_path, "convert", untrained, timesteps=8, initial_potential=0.5)
    scratch = make(tmp_path, "finetune", converted, method=method, epochs=2, learning_rate=5e-3)
    assert accuracies(make(tmp_path, "evaluate", scratch))[-1] > 0.5  # chance is 0.1


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_constants_are_as_given(granularity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and batch norms are copies, and nobody asks for images."""
    ann = make(tmp_path, "train-ann", width=0.25, epochs=0, batch_norm=True)

    def read(*request: Any) -> ImageData:
        raise PermissionError("opened the data set")

    monkeypatch.setitem(DATASETS, "digits", replace(DATASETS["digits"], read=read))
    settings = {"balance": "constant", "batch_norm": "keep", "granularity": granularity}
    converted = make(tmp_path, "convert", ann, threshold=0.5, leak=0.25, readout_leak=0.75, timesteps=6, **settings)
    assert converted.name == "convert-constant"
    before, after = (load_file(artifact.file(WEIGHTS)) for artifact in (ann, converted))
    given = {"threshold": 0.5, "leak": 0.25}
    kinds = {name: name.rpartition(".")[2] for name in after}
    assert sum(kind in given for kind in kinds.values()) == 6
    for name, kind in kinds.items():
        if kind in given:
            assert (after[name] == given[kind]).all()
        else:
            assert torch.equal(after[name], before[name.removeprefix("body.")])
    assert len(after) == len(before) + 6
    model, description = load_network(converted)
    assert isinstance(model, SpikingModel) and model.readout_leak == 0.75
    shapes = {"layer": [(), ()], "channel": [(6,), (32,)], "neuron": [(6, 8, 8), (32,)]}[granularity]
    neurons = list(model.neurons.values())
    assert [neuron.threshold.shape for neuron in (neurons[0], neurons[-1])] == shapes
    assert all(neuron.leak.shape == () for neuron in neurons)
    spiking = description.spiking
    assert spiking is not None
    assert (spiking.encoder.name, spiking.timesteps, spiking.initial_potential) == ("direct", 6, 0.0)
    assert metrics(converted)["value"].tolist() == [0.5] * 3
    scaled = make(tmp_path, "convert", ann, threshold_scale=0.5, **settings)
    assert metrics(scaled)["value"].tolist() == [0.5] * 3  # half of 1, the default


def test_kept_batch_norm_learns_from_scratch(tmp_path: Path) -> None:
    ann = make(tmp_path, "train-ann", width=0.25, epochs=0, batch_norm=True, dropout=0.0, augmentation="none")
    settings = {"balance": "constant", "batch_norm": "keep", "leak": 0.5, "granularity": "neuron", "timesteps": 4}
    converted = make(tmp_path, "convert", ann, **settings)
    scratch = make(tmp_path, "finetune", converted, method="linear", epochs=3, learning_rate=2e-3)
    evaluation = make(tmp_path, "evaluate", scratch)
    assert accuracies(evaluation)[-1] > 0.7  # chance is 0.1
    # Statistics of batches in training, running ones in evaluation: an image's result does not depend on its batch.
    assert losses(make(tmp_path, "evaluate", scratch, batch_size=7)) == pytest.approx(losses(evaluation), rel=1e-5)
    before, after = (load_file(artifact.file(WEIGHTS)) for artifact in (converted, scratch))
    norms = [name.removesuffix("running_mean") for name in after if name.endswith("running_mean")]
    assert len(norms) == 2
    for norm in norms:
        for name in ("weight", "bias", "running_mean", "running_var"):
            assert not torch.equal(after[norm + name], before[norm + name]), norm + name


def test_half_a_threshold_is_for_balanced_direct_coding(run: Path) -> None:
    def potential(**settings: Any) -> float:
        converted = make(run, "convert", of(run, "ann"), timesteps=2, **settings)
        spiking = load_network(converted)[1].spiking
        assert spiking is not None
        return spiking.initial_potential

    assert potential(balance="activation-max") == 0.5
    assert potential(balance="activation-max", encoder="poisson") == 0
    assert potential(balance="constant") == 0
    assert potential(balance="constant", initial_potential=0.5) == 0.5


def test_networks_of_the_first_version_can_be_read(workplace: Path) -> None:
    """Their descriptions do not know of batch norm that is kept, leaks of the readout, or events."""
    expected = logits(*load_network(Artifact.open(workplace / "converted")))

    def forget(path: Path) -> None:
        description = json.loads(path.read_text())
        del (
            description["spiking"]["batch_norm"],
            description["spiking"]["readout_leak"],
            description["data"]["event_frames"],
        )
        path.write_text(json.dumps(description))

    tamper(workplace / "converted", MODEL, forget)
    assert torch.equal(logits(*load_network(Artifact.open(workplace / "converted"))), expected)


def test_a_batch_may_hold_all_images(tmp_path: Path) -> None:
    ann = make(tmp_path, "train-ann", width=0.25, epochs=1, batch_size=10_000)
    assert len(accuracies(make(tmp_path, "evaluate", ann, batch_size=10_000))) == 1


def test_part_of_the_images_serves_for_training_and_part_for_measuring(tmp_path: Path) -> None:
    """Of each class its share; every stage takes the same part."""
    config = resolve(TrainConfig, {"images": 200, "validation": 0.25, "seed": 3}, "train-ann")
    images = open_new(config, Work(config, (), tmp_path, tmp_path, Environment()))
    training, validation = images.training(10, 0).positions, images.measuring("validation", 10).positions
    assert (len(training), len(validation)) == (150, 50)
    assert not set(training.tolist()) & set(validation.tolist())
    counts = images.data.train.labels[torch.cat([training, validation])].bincount()
    whole = images.data.train.labels.bincount()
    assert ((counts - 200 * whole / whole.sum()).abs() < 1).all()
    ann = make(tmp_path, "train-ann", width=0.25, epochs=1, images=200, batch_size=150, validation=0.25, seed=3)
    again = open_again(load_network(ann)[1], Work(config, (ann,), tmp_path, tmp_path, Environment()))
    assert torch.equal(again.training(10, 0).positions, training)
    few = metrics(make(tmp_path, "evaluate", ann, images=50))
    assert few.loc[few["metric"] == "images", "value"].tolist() == [50]


def test_a_folder_of_images_lies_inside_data(tmp_path: Path) -> None:
    """Its name identifies the result, whatever lies around it."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "data" / "mine" / place).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(pixels + 10 * number).save(tmp_path / "data" / "mine" / place / f"{number}.png")
    settings = {"dataset": "imagefolder", "validation": 0.25, "folder": "mine"}
    config = resolve(TrainConfig, settings, "train-ann")
    environment = Environment(data=tmp_path / "data")
    work = Work(config, (), tmp_path, tmp_path, environment)
    images = open_new(config, work)
    assert work.data is not None and work.data[0] == "imagefolder:mine"
    description = images.description(images.network("lenet5", batch_norm=False, width=1.0))
    assert open_again(description, work).data is images.data  # opened once in a command
    stage = STAGES["train-ann"]
    moved = Environment(data=tmp_path / "elsewhere")
    assert stage.key(config, (), environment) == stage.key(config, (), moved)


# The same again.


def logits(network: nn.Module, description: ModelDescription) -> Tensor:
    """What a network answers to eight images, with its own preprocessing, encoder and number of steps."""
    positions = torch.arange(8)
    raw = load(description.data.dataset, size=description.data.image_size).test.batch(positions)
    images = description.preprocessing(raw)
    network.eval()
    with torch.no_grad():
        if description.spiking is None:
            return network(images)
        assert isinstance(network, SpikingModel)
        return network(network.encoder(images, positions, description.spiking.timesteps, seed=3))[0]


def write_logits(target: str, *folders: str) -> None:
    """For a process of its own: load networks by their paths and save what they answer."""
    save_file({folder: logits(*load_network(Artifact.open(Path(folder)))) for folder in folders}, target)


def test_a_saved_network_answers_the_same_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: dict[str, Tensor] = {}
    for stage in (train_ann, convert, finetune):
        save = stage.save_network

        def watched(folder: Path, description: ModelDescription, network: nn.Module, save: Any = save) -> None:
            save(folder, description, network)
            alive[sha256_of(folder / WEIGHTS)] = logits(network, description)

        monkeypatch.setattr(stage, "save_network", watched)
    ann = make(tmp_path, "train-ann", image_size=10, **ANN | {"epochs": 1})
    # Direct coding first, then the rest: per channel, hard reset, random spikes; what is for training from scratch.
    direct = make(tmp_path, "convert", ann, timesteps=5, initial_potential=0.5)
    poisson = make(tmp_path, "convert", ann, encoder="poisson", granularity="channel", reset="hard", timesteps=7)
    tuned = make(tmp_path, "finetune", poisson, epochs=1, timesteps=3, learn_leaks=True)
    scratch = {"balance": "constant", "batch_norm": "keep", "granularity": "neuron", "threshold": 0.3}
    constant = make(tmp_path, "convert", ann, leak=0.5, readout_leak=0.5, timesteps=4, **scratch)
    made = (ann, direct, poisson, tuned, constant)
    arguments = [str(tmp_path / "logits.safetensors"), *(str(artifact.path) for artifact in made)]
    home = write_logits.__module__
    program = f"import sys, torch, {home}; torch.set_num_threads(1); {home}.write_logits(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, env=ALONE, cwd=Path(__file__).parent)
    there = load_file(tmp_path / "logits.safetensors")
    for artifact, timesteps in zip(made, (None, 5, 7, 3, 4), strict=True):
        here = logits(*load_network(artifact))
        assert here.shape == ((8, 10) if timesteps is None else (timesteps, 8, 10))
        assert torch.equal(there[str(artifact.path)], here)
        # In training, weights may lie in another order in memory, and sums come out in another order with them.
        torch.testing.assert_close(alive[artifact.manifest.files[WEIGHTS]], here, rtol=1e-4, atol=1e-4)


def test_one_seed_gives_one_result_and_another_another(tmp_path: Path) -> None:
    def chain(folder: Path, seeds: tuple[int, int, int]) -> list[str]:
        ann = make(folder, "train-ann", width=0.25, epochs=1, dropout=0.2, augmentation="shift", seed=seeds[0])
        converted = make(folder, "convert", ann, encoder="poisson", timesteps=4, calibration_images=64, seed=seeds[1])
        tuned = make(folder, "finetune", converted, epochs=1, dropout=0.2, augmentation="shift", seed=seeds[2])
        return [sha256_of(artifact.file(WEIGHTS)) for artifact in (ann, converted, tuned)]

    first = chain(tmp_path / "first", (0, 0, 0))
    assert chain(tmp_path / "again", (0, 0, 0)) == first
    digests = [[artifact.digest for artifact in artifacts_in(tmp_path / name)] for name in ("first", "again")]
    assert digests[0] == digests[1]
    assert chain(tmp_path / "first", (0, 0, 1))[:2] == first[:2]
    other = chain(tmp_path / "first", (1, 1, 1))
    assert len({*first, *other, chain(tmp_path / "first", (0, 0, 1))[2]}) == 7


KILLED = """
import os, signal
from hybridsnn.cli import main
from hybridsnn.learning import Optimisation

set_rate = Optimisation.set_rate

def set_rate_until_killed(self, optimiser, progress):
    if progress > 0.6:
        os.kill(os.getpid(), signal.SIGKILL)
    return set_rate(self, optimiser, progress)

Optimisation.set_rate = set_rate_until_killed
main()
"""


def options(settings: dict[str, Any]) -> list[str]:
    """Settings as they are typed."""
    typed = []
    for setting, value in settings.items():
        kebab = setting.replace("_", "-")
        typed += [f"--{kebab}" if value else f"--no-{kebab}"] if isinstance(value, bool) else [f"--{kebab}", str(value)]
    return typed


def test_a_killed_training_ends_with_the_same_weights(run: Path, tmp_path: Path) -> None:
    settings = {"epochs": 4, "timesteps": 3, "dropout": 0.2, "learn_thresholds": True, "optimizer": "adam"}
    converted = make(tmp_path / "killed", "convert", of(run, "ann"), encoder="poisson", timesteps=4)
    command = ("finetune", "--checkpoints", str(tmp_path), "--run", "killed", "--device", "cpu", *options(settings))
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], env=ALONE, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "epoch 2/4" in killed.stderr and "epoch 3/4" not in killed.stderr
    assert [artifact.name for artifact in artifacts_in(tmp_path / "killed")] == ["convert-max"]
    notes = Notes()
    resumed = make(tmp_path / "killed", "finetune", converted, notes=notes, **settings)
    whole = make(tmp_path / "whole", "finetune", converted, **settings)
    assert notes.said[0] == "resuming after epoch 2 of 4"
    assert resumed.manifest.files == whole.manifest.files  # weights, metrics of all epochs, settings
    assert not list((tmp_path / "killed").glob(".*"))


@pytest.mark.parametrize("method", ["stop-wtl", "sltt"])
def test_rules_without_a_history_go_on_where_they_were(method: str, run: Path, tmp_path: Path) -> None:
    """With random spikes, dropout, parameters at rates of their own, and steps that are drawn."""
    settings: dict[str, Any] = {"method": method, "epochs": 2, "dropout": 0.2, "batch_size": 256, "timesteps": 3}
    settings |= {"backward_steps": 1} if method == "sltt" else {"leak_learning_rate": 0.01}
    converted = make(run, "convert", of(run, "ann"), encoder="poisson", timesteps=4)
    whole = make(tmp_path / "whole", "finetune", converted, **settings)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", "finetune", converted, notes=Notes(interrupt_on="epoch 1/"), **settings)
    notes = Notes()
    resumed = make(tmp_path / "cut", "finetune", converted, notes=notes, **settings)
    assert notes.said[0] == "resuming after epoch 1 of 2"
    assert resumed.manifest.files == whole.manifest.files
    assert resumed.digest == whole.digest


def test_what_was_interrupted_can_be_started_over(run: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, "train-ann", notes=Notes(interrupt_on="epoch 2/"), **ANN)
    [checkpoint] = tmp_path.glob(".resume-*/checkpoint.safetensors")
    kept = checkpoint.read_bytes()
    checkpoint.write_bytes(kept[:-100])
    with pytest.raises(ArtifactError, match=r"is damaged .*start over with --fresh"):
        make(tmp_path, "train-ann", **ANN)
    checkpoint.write_bytes(kept)
    notes = Notes()
    over = make(tmp_path, "train-ann", notes=notes, fresh=True, **ANN)
    assert notes.said[0].startswith("epoch 0/4")
    assert over.digest == of(run, "ann").digest


# What may not be seen.


def with_digits(monkeypatch: pytest.MonkeyPatch, change: Callable[[ImageData], ImageData]) -> None:
    entry = DATASETS["digits"]
    monkeypatch.setitem(DATASETS, "digits", replace(entry, read=lambda *request: change(entry.read(*request))))


@dataclass(frozen=True, eq=False)
class Sealed(MemoryImages):
    """Images that nobody may look at."""

    def batch(self, positions: Tensor) -> Tensor:
        raise PermissionError("looked at the test images")


def test_auto_takes_the_best_that_it_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of balancers from outside too; interrupted, it goes on; the accuracy is the one that `evaluate` measures."""

    class Half(BALANCERS["mmse"]):
        summary = "half the threshold"

        def fit(self, layer: Any) -> Tensor:
            return super().fit(layer) / 2

    monkeypatch.setitem(BALANCERS, "half", Half)
    monkeypatch.setattr(automatic, "CORRECTIONS_TRIED", ((), ("weights", "bias")))
    for name in ("activation-max", "percentile", "ltb"):
        monkeypatch.delitem(BALANCERS, name)
    ann = make(tmp_path, "train-ann", **ANN)
    settings = {"balance": "auto", "timesteps": 2, "auto_images": 100, "calibration_images": 64}
    asked: list[None] = []
    layers = sum(isinstance(module, nn.ReLU) for module in load_network(ann)[0].modules())

    def in_the_third() -> bool:
        asked.append(None)
        return len(asked) > 2 * layers + 2

    environment = Environment(device="cpu", time_is_up=in_the_third)
    with pytest.raises(OutOfTimeError):
        execute(STAGES["convert"], resolve(STAGES["convert"].config, settings, ""), [ann], tmp_path, environment)
    notes = Notes()
    chosen = make(tmp_path, "convert", ann, notes=notes, **settings)
    rows = metrics(chosen)
    tried = rows[rows["metric"] == "tried"].set_index("layer")["value"]
    balancers = [name for name, entry in BALANCERS.items() if issubclass(entry, MeasuringBalancer)]
    assert list(tried.index) == [*balancers, *(f"{name} + weights + bias" for name in balancers)] and "half" in tried
    spiking = load_network(chosen)[1].spiking
    assert spiking is not None and spiking.granularity == "channel"
    assert " + ".join((str(spiking.balance), *spiking.corrections)) == tried.idxmax()  # the first of several
    again = make(tmp_path, "convert", ann, balance=spiking.balance, correct=spiking.corrections, timesteps=2,
                 granularity="channel", calibration_images=64)  # fmt: skip
    assert again.manifest.files[WEIGHTS] == chosen.manifest.files[WEIGHTS]
    measured = make(tmp_path, "evaluate", chosen, split="validation", images=100)
    assert accuracies(measured)[-1] == pytest.approx(tried.max(), abs=1e-12)
    assert resolve(STAGES["convert"].config, {**settings, "granularity": "layer"}, "").granularity == "layer"
    assert resolve(STAGES["convert"].config, {}, "").granularity == "layer"


def test_auto_needs_validation_images(tmp_path: Path) -> None:
    ann = make(tmp_path, "train-ann", width=0.25, epochs=0, validation=0.0)
    with pytest.raises(ConfigError, match="none were held out; hold some out"):
        make(tmp_path, "convert", ann, balance="auto")


def test_only_evaluate_sees_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seal(data: ImageData) -> ImageData:
        assert isinstance(data.test, MemoryImages)
        return replace(data, test=Sealed(data.test.pixels, data.test.labels))

    with_digits(monkeypatch, seal)
    ann = make(tmp_path, "train-ann", **ANN | {"epochs": 1})
    loaded = make(tmp_path, "load-ann", width=0.25, batch_norm=True, weights=ann.file(WEIGHTS))
    stairs = make(tmp_path, "train-ann", name="stairs", **ANN | {"epochs": 1, "activation": "qcfs"})
    for balance in BALANCERS:
        images = {"calibration_images": 32} if "calibration_images" in BALANCERS[balance].model_fields else {}
        start = stairs if balance == "qcfs" else loaded
        converted = make(tmp_path, "convert", start, balance=balance, timesteps=2, **images)
    tuned = make(tmp_path, "finetune", converted, epochs=1)
    make(tmp_path, "evaluate", tuned, split="validation", exit_confidence=0.9)
    with pytest.raises(PermissionError, match="looked at the test images"):
        make(tmp_path, "evaluate", tuned)


def test_validation_images_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watch(data: ImageData) -> ImageData:
        assert isinstance(data.train, MemoryImages)
        return replace(data, train=Watched(data.train.pixels, data.train.labels))

    @dataclass(frozen=True, eq=False)
    class Watched(MemoryImages):
        def batch(self, positions: Tensor) -> Tensor:
            seen.extend(positions.tolist())
            return super().batch(positions)

    with_digits(monkeypatch, watch)
    ann = make(tmp_path, "train-ann", width=0.25, epochs=0)
    seen.clear()
    make(tmp_path, "evaluate", ann, split="validation")
    validation = set(seen)
    assert len(validation) == 144
    seen.clear()
    converted = make(tmp_path, "convert", ann, calibration_images=10_000, timesteps=2, balance="activation-max")
    assert len(set(seen)) == 1438 - 144 and validation.isdisjoint(seen)
    assert len(seen) - len(set(seen)) <= 8  # the conversion is proven on a few of them again
    seen.clear()
    make(tmp_path, "finetune", converted, epochs=1)
    # Training images once; validation images before training and after its one epoch.
    expected = dict.fromkeys(range(1438), 1) | dict.fromkeys(validation, 2)
    assert {position: seen.count(position) for position in seen} == expected


# Damage and mistakes: one line, exit code 2, and nothing changes.


def refuse(*arguments: str) -> str:
    """The one line with which a command refuses, having changed nothing."""
    before = snapshot(Path.cwd())
    message = fail(*arguments)
    assert snapshot(Path.cwd()) == before
    return message


def tamper(folder: Path, name: str, change: Callable[[Path], None]) -> None:
    """Change a file together with its hash in the manifest, as one who knows the format could."""
    change(folder / name)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][name] = sha256_of(folder / name)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("colour", "red", "model.json: colour: "),
        ("data.colour", "red", "model.json: data.colour: "),
        ("preprocessing.mean", "none", "model.json: preprocessing.mean: "),
        ("network.colour", "red", "model.json: network.colour: "),
        ("network.classes", "ten", "model.json: network.classes: "),
        ("network.name", "digit-cnn", "model.json: network: unknown 'digit-cnn'. Did you mean 'digits-cnn'?"),
        ("network.input_shape", [1, 2, 2], "needs at least 4x4"),
        ("spiking.encoder.name", "posson", "model.json: encoder: unknown 'posson'. Did you mean 'poisson'?"),
        ("spiking.encoder.colour", "red", "model.json: spiking.encoder.colour: "),
        ("spiking.granularity", "pixel", "model.json: spiking.granularity: "),
        ("spiking.batch_norm", "keep", "weights do not match the network; "),
        ("spiking.reset", "none", "model.json: spiking.reset: "),
        ("network.width", 0.5, "weights do not match the network; "),
    ],
)
def test_a_description_that_is_not_understood(place: str, value: Any, message: str, workplace: Path) -> None:
    def change(path: Path) -> None:
        description = json.loads(path.read_text())
        *outer, last = place.split(".")
        part = description
        for key in outer:
            part = part[key]
        part[last] = value
        path.write_text(json.dumps(description))

    tamper(workplace / "converted", MODEL, change)
    assert message in refuse("evaluate", "--from", "converted")
    assert message in refuse("finetune", "--from", "converted")


def test_weights_that_do_not_fit(workplace: Path) -> None:
    def change(path: Path) -> None:
        weights = load_file(path)
        weights["extra.weight"] = weights.pop("features.0.weight")
        weights["classifier.5.weight"] = torch.zeros(3, 2)
        save_file(weights, path)

    tamper(workplace / "ann", WEIGHTS, change)
    message = refuse("convert", "--from", "ann")
    assert "1 missing: features.0.weight; 1 not in the network: extra.weight; 1 of another shape: " in message
    assert "classifier.5.weight (got [3, 2], needs [10, 32])" in message
    tamper(workplace / "ann", WEIGHTS, lambda path: path.write_bytes(b"garbage" * 10) and None)
    assert "not a safetensors file" in refuse("convert", "--from", "ann")


@pytest.mark.parametrize("name", ["ann", "converted", "tuned"])
def test_one_bit_of_a_weight_is_noticed(name: str, workplace: Path) -> None:
    path = workplace / name / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert f"'{WEIGHTS}' is damaged" in refuse("evaluate", "--from", name)
    assert f"'{WEIGHTS}' is damaged" in refuse("evaluate")
    path.unlink()
    assert f"'{WEIGHTS}' is missing" in refuse("evaluate", "--from", name)


@pytest.mark.parametrize(
    ("stage", "source", "message"),
    [
        ("convert", "converted", "is of kind snn, wanted ann"),
        ("convert", "ann-test", "is of kind evaluation, wanted ann"),
        ("finetune", "ann", "is of kind ann, wanted snn"),
        ("evaluate", "ann-test", "is of kind evaluation, wanted ann or snn"),
        ("report", "tuned", "is of kind snn, wanted evaluation"),
        ("convert", "nothing", "no such artifact"),
    ],
)
def test_the_wrong_kind(stage: str, source: str, message: str, unchanged: Path) -> None:
    assert message in refuse(stage, "--from", source)


@pytest.mark.parametrize(("stage", "source"), [("convert", "ann"), ("finetune", "converted"), ("evaluate", "tuned")])
def test_other_images_are_refused(stage: str, source: str, unchanged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_digits(monkeypatch, lambda data: image_data(data.name, data.test, data.train, data.classes))
    message = refuse(stage, "--from", source)
    assert "was made with digits (" in message and "give the same folder with --data" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train-ann --epochs -1", "train-ann.epochs: got -1, must be greater than or equal to 0"),
        ("train-ann --network digit-cnn", "train-ann.network: unknown 'digit-cnn'. Did you mean 'digits-cnn'?"),
        ("train-ann --dataset digit", "train-ann.dataset: unknown 'digit'. Did you mean 'digits'?"),
        ("train-ann --dataset imagefolder", "no folder given"),
        ("train-ann --dataset imagefolder --data nowhere", "nowhere"),
        ("train-ann --dataset mnist --data nowhere", "nowhere"),
        ("train-ann --network lenet5", "needs at least 12x12"),
        ("train-ann --network vgg16 --image-size 4", "choose a smaller network or a larger --image-size"),
        ("train-ann --image-size 2", "needs at least 4x4"),
        ("train-ann --validation 1", "train-ann.validation: got 1.0, must be less than 1"),
        ("train-ann --validation 0.0001", "validation: got 0.0001, which holds out 0 of 1438 training images"),
        ("train-ann --validation 0.9999", "which holds out 1438 of 1438 training images"),
        ("train-ann --width 0.25 --learning-rate 1e30", "learning_rate: the loss is nan in epoch 1"),
        ("train-ann --batch-size 0", "train-ann.batch_size: got 0"),
        ("train-ann --images 0", "train-ann.images: got 0"),
        ("train-ann --images 2000", "images: got 2000, but 'digits' has 1438; give at most as many"),
        ("evaluate --images 2000", "images: got 2000, but the test split has 359; give at most as many"),
        ("train-ann --folder x", "train-ann.folder: got 'x', must be left unset for 'digits', which has its own place"),
        ("train-ann --dataset imagefolder --folder x --data nowhere", "nowhere/x"),
        ("train-ann --optimizer sdg", "Did you mean 'sgd'?"),
        ("train-ann --schedule cosin", "Did you mean 'cosine'?"),
        ("train-ann --augmentation shif", "Did you mean 'shift'?"),
        ("train-ann --device nonsense", "device: got 'nonsense'"),
        ("train-ann --device cpu:x", "device: got 'cpu:x'"),
        ("train-ann --device cpu --precision 16-mixed", "precision: got '16-mixed'"),
        ("convert --device nonsense", "device: got 'nonsense'"),
        ("convert --balance mix", "convert.balance: unknown 'mix'. Did you mean 'max'?"),
        ("convert --encoder posson", "Did you mean 'poisson'?"),
        ("convert --granularity chanel", "Did you mean 'channel'?"),
        (
            "convert --encoder event",
            "convert.encoder: got 'event', which does not encode images, must be direct or poisson for 'digits'",
        ),
        (
            "convert --threshold 0.5",
            "convert.threshold: 'max' has no such option; it belongs to constant. Leave it out",
        ),
        ("convert --threshold 1 --balance percentile", "convert.threshold: 'percentile' has no such option"),
        (
            "convert --threshold 0 --balance constant",
            "got 0.0, must be greater than 0 with balance 'constant'",
        ),
        ("convert --leak 0.5", "convert.leak: 'max' has no such option; it belongs to constant. Leave it out"),
        ("convert --leak 1.1 --balance constant", "convert.leak: got 1.1, must be less than or equal to 1"),
        (
            "convert --batch-norm keep --balance percentile",
            "convert.batch_norm: 'percentile' has no such option; it belongs to constant. Leave it out",
        ),
        ("convert --balance constant --batch-norm drop", "convert.batch_norm: got 'drop', must be 'fold' or 'keep'"),
        ("convert --balance constant --calibration-images 3", "calibration_images: 'constant' has no such option; it"),
        ("convert --calibration-timesteps 3 --balance percentile", "it belongs to max. Leave it out"),
        (
            "convert --calibration-timesteps 0",
            "convert.calibration_timesteps: got 0, must be greater than 0",
        ),
        ("convert --readout-leak -0.1", "convert.readout_leak: got -0.1, must be greater than or equal to 0"),
        ("convert --max-pool any", "convert.max_pool: unknown 'any'"),
        ("convert --timesteps 0", "convert.timesteps: got 0"),
        ("convert --threshold-scale 0", "convert.threshold_scale: got 0.0"),
        ("convert --initial-potential 1", "convert.initial_potential: got 1.0, must be less than 1"),
        ("convert --percentile 101 --reset none", "convert.reset: got 'none', must be 'soft' or 'hard'; "),
        ("finetune --method stbd", "finetune.method: unknown 'stbd'. Did you mean 'stdb'? Choices: "),
        ("finetune --epochs 0", "finetune.epochs: got 0"),
        ("finetune --method stop-w --learn-thresholds", "finetune.learn_thresholds: 'stop-w' has no such option"),
        ("finetune --method stop-wt --no-learn-thresholds", "finetune.learn_thresholds: 'stop-wt' has no such option"),
        ("finetune --method sltt --learn-leaks", "it belongs to stdb, linear, diet, osstop, stbp. Leave it out"),
        (
            "finetune --method stop-wtl --surrogate spike-time",
            "surrogate: got 'spike-time', must be exponential or linear or sigmoid or triangle with method 'stop-wtl'",
        ),
        ("finetune --surrogate linear", "surrogate: got 'linear', must be spike-time with method 'stdb'"),
        ("finetune --method stbp --surrogate liner", "surrogate: unknown 'liner'. Did you mean 'linear'?"),
        (
            "finetune --method osstop --loss readout",
            "finetune.loss: 'osstop' has no such option; it belongs to",
        ),
        ("finetune --method stbd --epochs 0 --backward-steps 0", "finetune.backward_steps: got 0, must be greater"),
        ("finetune --method stbd --epochs 0 --backward-steps 0", "finetune.epochs: got 0, must be greater than 0"),
        (
            "finetune --method ottt --backward-steps 2",
            "backward_steps: 'ottt' has no such option; it belongs to sltt",
        ),
        (
            "finetune --method stop-w --memory-budget 1",
            "finetune.memory_budget: 'stop-w' has no such option; it belongs to stdb, linear, diet, stbp. Leave it out",
        ),
        ("finetune --memory-budget 0", "finetune.memory_budget: got 0"),
        ("finetune --memory-budget 0.00001", "memory_budget: got 1e-05 GiB, must be at least"),
        ("finetune --method sltt --backward-steps 0", "finetune.backward_steps: got 0"),
        ("finetune --threshold-learning-rate 0", "finetune.threshold_learning_rate: got 0.0"),
        ("finetune --leak-learning-rate -1", "finetune.leak_learning_rate: got -1.0"),
        ("finetune --dropout 1", "finetune.dropout: got 1.0, must be less than 1"),
        ("finetune --learning-rate 1e30", "learning_rate: "),
        ("evaluate --split train", "evaluate.split: got 'train', must be 'test' or 'validation'"),
        ("evaluate --timesteps -3", "evaluate.timesteps: got -3"),
        ("evaluate --exit-confidence 0", "evaluate.exit_confidence: got 0.0, must be greater than 0"),
        ("evaluate --exit-confidence 1", "evaluate.exit_confidence: got 1.0, must be less than 1"),
        ("evaluate --exit-confidence nan", "evaluate.exit_confidence: "),
        (
            "evaluate --exit-confidence 0.9",
            "evaluate.exit_confidence: got 0.9 for checkpoints/default/ann, an ANN, which has no time steps; "
            "leave it out, or name spiking networks with --from",
        ),
        (
            "evaluate --exit-confidence 0.999 --from converted",
            "evaluate.exit_confidence: got 0.999, which takes 999 validation images to promise, but 144 were "
            "held out; lower it, or hold out more",
        ),
        ("evaluate --device nonsense", "device: got 'nonsense'"),
        ("report --from tuned --from ann-test", "is of kind snn, wanted evaluation"),
        ("load-ann", "load-ann.weights: is required"),
        ("load-ann --weights none.pt", "load-ann.weights: none.pt is not a file"),
        ("load-ann --weights none.pt --network lenet", "load-ann.network: unknown 'lenet'. Did you mean 'lenet5'?"),
        ("run pipelines/demo.yaml", "no such recipe"),
    ],
)
def test_bad_settings(arguments: str, message: str, unchanged: Path) -> None:
    assert message in refuse(*arguments.split())


def test_a_hard_reset_has_no_traces(workplace: Path) -> None:
    make(workplace, "convert", of(workplace, "ann"), name="hard", reset="hard", timesteps=3)
    message = refuse("finetune", "--from", "hard", "--method", "stop-w")
    assert "has a hard reset, must be soft" in message and "Convert with --reset soft, or use stbp" in message
    succeed("finetune", "--from", "hard", "--method", "stbp", "--epochs", "1", "--batch-size", "10000")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(unchanged: Path) -> None:
    for stage in ("train-ann", "convert", "finetune", "evaluate"):
        for device in ("cuda", "cuda:1"):
            assert f"device: got '{device}'" in refuse(stage, "--device", device)


def test_there_may_be_no_validation_images(workplace: Path) -> None:
    succeed("train-ann", "--validation", "0", "--width", "0.25", "--epochs", "1", "--name", "all")
    assert set(metrics(of(workplace, "all"))["split"]) == {"train"}
    assert "evaluate.split: 'validation' has no images" in refuse("evaluate", "--split", "validation", "--from", "all")
    succeed("convert", "--from", "all", "--timesteps", "2", "--calibration-images", "32", "--name", "blind")
    message = refuse("evaluate", "--exit-confidence", "0.5", "--from", "blind")
    assert "takes 1 validation images to promise, but 0 were held out" in message


# Networks from elsewhere.


def test_weights_come_in_from_any_usual_file(run: Path, tmp_path: Path) -> None:
    ann = of(run, "ann")
    weights = load_file(ann.file(WEIGHTS))
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "b.pt")
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "c.pth")
    torch.save({"model": weights}, tmp_path / "d.pt")
    files = sorted(tmp_path.iterdir())
    for number, file in enumerate(files):
        loaded = make(tmp_path / str(number), "load-ann", width=0.25, batch_norm=True, weights=file)
        assert loaded.manifest.files[WEIGHTS] == ann.manifest.files[WEIGHTS]
        assert torch.equal(logits(*load_network(loaded)), logits(*load_network(ann)))
    # The content counts, not the place.
    shutil.copy(files[0], tmp_path / "moved.safetensors")
    moved = make(tmp_path / "0", "load-ann", width=0.25, batch_norm=True, weights=tmp_path / "moved.safetensors")
    assert [artifact.path for artifact in artifacts_in(tmp_path / "0")] == [moved.path]


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_files_that_are_no_weights(workplace: Path) -> None:
    torch.save(Bomb(), "code.pt")
    torch.save({"state_dict": {"weight": torch.zeros(1), "bomb": Bomb()}}, "hidden.pt")
    torch.save([torch.zeros(1)], "list.pt")
    torch.save({"weight": 3}, "number.pt")
    Path("text.pt").write_text("weights")
    Path("text.safetensors").write_text("weights")
    Path("empty.pt").touch()
    for name in ("code.pt", "hidden.pt", "text.pt", "text.safetensors", "empty.pt"):
        assert f"load-ann.weights: {name} cannot be read as weights (" in refuse("load-ann", "--weights", name)
    for name in ("list.pt", "number.pt"):
        assert f"load-ann.weights: {name} holds no state_dict" in refuse("load-ann", "--weights", name)
    assert not Path("exploded").exists()


def test_loaded_weights_that_do_not_fit(workplace: Path) -> None:
    weights = load_file(workplace / "ann" / WEIGHTS)
    weights["extra.weight"] = weights.pop("features.0.weight")
    weights["classifier.5.weight"] = torch.zeros(3, 2)
    torch.save(weights, "w.pt")
    message = refuse("load-ann", "--weights", "w.pt", "--width", "0.25", "--batch-norm")
    assert "w.pt: weights do not match the network; 1 missing: features.0.weight; " in message
    assert "1 not in the network: extra.weight; 1 of another shape: classifier.5.weight (got [3, 2]," in message


def test_a_network_of_timm(workplace: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=10, in_chans=1).eval()
    torch.save(network.state_dict(), "timm.pt")
    command = ("load-ann", "--run", "timm", "--network", "timm:resnet10t", "--weights", "timm.pt")
    succeed(*command, "--image-size", "32")
    loaded, description = load_network(Artifact.open(Path("checkpoints/timm/load-ann")))
    torch.testing.assert_close(logits(loaded, description), logits(network, description))
    few = ("--run", "timm", "--timesteps", "3", "--calibration-images", "8", "--calibration-timesteps", "5")
    assert "'maxpool' (MaxPool2d) has no spiking counterpart" in refuse("convert", *few)
    succeed("convert", *few, "--max-pool", "any-spike")
    answer = logits(*load_network(Artifact.open(Path("checkpoints/timm/convert-max"))))
    assert answer.shape == (3, 8, 10) and answer.isfinite().all()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("torchvision:resnet18", "network: 'torchvision:resnet18' takes images of 3 channels, got 1"),
        ("torchvision:resnet81", "network: torchvision: unknown 'resnet81'. Did you mean 'resnet18'?"),
        ("timm:resnet81", "network: timm: unknown 'resnet81'. Did you mean 'resnet18'?"),
    ],
)
def test_networks_of_other_libraries_that_cannot_be(network: str, message: str, unchanged: Path) -> None:
    weights = str(unchanged / "ann" / WEIGHTS)
    assert message in refuse("load-ann", "--network", network, "--weights", weights)


def test_weights_are_required_by_the_stage_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"load-ann\.weights: is required"):
        make(tmp_path, "load-ann")
    assert artifacts_in(tmp_path) == []
