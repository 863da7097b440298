"""Trainings that stop anywhere and go on as if they had not: within an epoch, in another process, at another place."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import nn
from toy_networks import CLASSES, Residual, seeded, spiking

from hybridsnn.batch import Batch
from hybridsnn.cli import command_line
from hybridsnn.config import resolve
from hybridsnn.data import Batches, MemoryImages, Preprocessing
from hybridsnn.encoders import Frames
from hybridsnn.errors import ArtifactError, OutOfTimeError
from hybridsnn.evaluation.accuracy import ann_accuracy, snn_accuracy
from hybridsnn.evaluation.measurement import evaluate
from hybridsnn.learning import RULES, BackPropagation, Optimisation, OwnRate, fit, loop, seed_of
from hybridsnn.learning.training_state import FILE, TrainingState
from hybridsnn.recipes import running
from hybridsnn.recipes.recipe import load_recipe
from hybridsnn.stages import STAGES
from hybridsnn.stages.base import Environment, Silent, execute

EPOCHS, BATCHES, TIMESTEPS = 2, 5, 3
CPU = torch.device("cpu")


class Clock:
    """The time is up when it is asked for so many times."""

    def __init__(self, questions: int):
        self.left = questions

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


class PowerCutError(Exception):
    """What ends a training before its time, without a word."""


@dataclass(frozen=True)
class FailingBatches:
    """Batches that end in the dark."""

    batches: Batches
    last: tuple[int, int]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        for place, batch in enumerate(self.batches.epoch(number, start), start):
            if (number, place) == self.last:
                raise PowerCutError
            yield batch


def training_batches() -> Batches:
    """The last batch of an epoch is a short one."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8 * BATCHES - 4, 2, 8, 8), dtype=torch.uint8, generator=random)
    images = MemoryImages(pixels, torch.arange(len(pixels)) % CLASSES)
    preprocessing = Preprocessing(8, (0.5, 0.5), (0.5, 0.5))
    return Batches(images, torch.arange(len(pixels)), preprocessing, 8, augmentation="crop-flip", seed=1)


def train(method: str | None, optimiser: str, folder: Path, **options: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Weights and metrics of a training with dropout and augmentation: of an ANN, or of a spiking network by a method.

    It goes on from the checkpoint in `folder`, if there is one.
    """
    batches = training_batches()
    measuring = Batches(batches.images, torch.arange(16), batches.preprocessing, 8)
    if method is None:
        model: Any = seeded(Residual(dropout=0.3, batch_norm=True))
        settings: dict[str, Any] = {
            "rule": BackPropagation(),
            "encode": lambda batch, epoch: batch.images,
            "validate": lambda model: {
                r["metric"]: r["value"] for r in evaluate(ann_accuracy(model, CPU), measuring.epoch(0))
            },
        }
    else:
        model = spiking(seeded(Residual(dropout=0.3)), "poisson").requires_grad_()
        rule = RULES[method](**({"backward_steps": 1} if "backward_steps" in RULES[method].model_fields else {}))
        neurons = list(model.neurons.values())

        def validate(_: nn.Module) -> dict[str, float]:
            rows = evaluate(snn_accuracy(model, CPU, timesteps=TIMESTEPS, seed=4), measuring.epoch(0))
            return {row["metric"]: row["value"] for row in rows if row.get("step") == TIMESTEPS}

        settings = {
            "rule": rule,
            "encode": lambda batch, epoch: Frames(
                model.encoder, batch.images, batch.indices, TIMESTEPS, seed=seed_of(3, epoch)
            ),
            "validate": validate,
            "own_rates": [OwnRate([neuron.threshold for neuron in neurons], 0.01)] if rule.learns_thresholds else [],
            "project": lambda: [neuron.project() for neuron in neurons],
        }
        for neuron in neurons:
            neuron.threshold.requires_grad_(rule.learns_thresholds)
            neuron.leak.requires_grad_(rule.learns_leaks)
    settings = (
        {
            "optimisation": Optimisation(optimiser, "cosine", 0.01, 0.9, 1e-3, EPOCHS),
            "batches": batches,
            "seed": 3,
        }
        | settings
        | options
    )
    folder.mkdir(exist_ok=True)
    history = fit(Fabric(accelerator="cpu", devices=1), model, folder=folder, **settings)
    return model, history


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == twin and torch.equal(mine, theirs) for (name, mine), (twin, theirs) in pairs)


SHORT = Optimisation("nesterov", "one-cycle", 0.1, 0.9, 1e-3, EPOCHS, decay_biases=False, average_decay=0.9)


@pytest.mark.parametrize(
    ("method", "optimiser", "options"),
    [
        (None, "adam", {}),
        (None, "nesterov", {"optimisation": SHORT, "rule": BackPropagation(label_smoothing=0.1)}),
        ("stdb", "adam", {}),
        ("stop-wtl", "sgd", {}),
        ("sltt", "adamw", {}),
    ],
)
def test_a_training_that_stops_after_any_batch_ends_the_same(
    method: str | None, optimiser: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """After one of them, or after every one; metrics too, of which some are of the first batch, some sums over all."""
    whole, history = train(method, optimiser, tmp_path / "whole", **options)
    assert {row["metric"] for row in history} >= {"loss", "accuracy", "learning-rate", "peak-live-bytes"}
    for questions in (3, BATCHES, 2 * BATCHES):
        folder = tmp_path / str(questions)
        with pytest.raises(OutOfTimeError):
            train(method, optimiser, folder, time_is_up=Clock(questions), **options)
        torch.rand(7)  # what others draw in between plays no part
        resumed, resumed_history = train(method, optimiser, folder, **options)
        assert same_weights(resumed, whole)
        assert resumed_history == history
    stops = []
    while True:
        try:
            resumed, resumed_history = train(method, optimiser, tmp_path / "every", time_is_up=Clock(1), **options)
            break
        except OutOfTimeError as stop:
            stops.append(str(stop))
    assert len(stops) == EPOCHS * BATCHES + EPOCHS - 1
    assert same_weights(resumed, whole) and resumed_history == history
    assert stops[0] == (
        f"interrupted in epoch 1 of 2, after batch 1 of {BATCHES}: time limit reached; the same command resumes there"
    )
    assert f"in epoch 1 of 2, after batch {BATCHES} of {BATCHES}" in stops[BATCHES - 1]
    assert "after epoch 1 of 2" in stops[BATCHES]


def test_a_training_that_is_killed_loses_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of the last checkpoint within an epoch, here after each batch, is where it goes on."""
    whole, history = train("stdb", "adam", tmp_path / "whole")
    monkeypatch.setattr(loop, "SAVE_EVERY", -1.0)
    with pytest.raises(PowerCutError):
        train("stdb", "adam", tmp_path / "cut", batches=FailingBatches(training_batches(), (1, 3)))
    said: list[str] = []
    resumed, resumed_history = train("stdb", "adam", tmp_path / "cut", say=said.append)
    assert said[0] == f"resuming in epoch 2 of 2, after batch 3 of {BATCHES}"
    assert same_weights(resumed, whole) and resumed_history == history


def test_the_one_that_stops_shows_no_progress_any_more(tmp_path: Path) -> None:
    ended: list[str] = []

    def track(items: Iterator[Any], description: str, total: int) -> Iterator[Any]:
        try:
            yield from items
        finally:
            ended.append(f"{description}: {total}")

    told: list[int] = []
    for _ in range(2):
        try:
            train(None, "sgd", tmp_path, track=track, time_is_up=Clock(2))
        except OutOfTimeError:
            told.append(len(ended))
    assert told == [1, 2]  # it had ended when the error was told
    assert ended == [f"epoch 1: {BATCHES}", f"epoch 1: {BATCHES - 2}"]


# Checkpoints.


def test_a_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    """In each byte, one of its bits."""
    random = torch.Generator().manual_seed(0)
    state = TrainingState(
        epoch=1,
        batch=2,
        model={"weight": torch.randn(3, generator=random), "count": torch.tensor(5)},
        random={"cpu": torch.arange(9, dtype=torch.uint8)},
        history=[{"epoch": 1, "split": "train", "metric": "loss", "value": 0.1}],
    )
    state.save(tmp_path)
    path = tmp_path / FILE
    content = path.read_bytes()
    for place, bit in enumerate(torch.randint(8, (len(content),), generator=random).tolist()):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
        with pytest.raises(ArtifactError, match=r"^checkpoint: .*--fresh") as error:
            TrainingState.load(tmp_path)
        assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_layout_is_refused_by_name(tmp_path: Path) -> None:
    words = {"epoch": 1, "best_accuracy": 0.5, "best_epoch": 1, "history": []}
    save_file({"model/x": torch.zeros(1)}, tmp_path / FILE, metadata={"training": json.dumps(words)})
    with pytest.raises(ArtifactError, match=r"has layout 1, this hybridsnn resumes from layout 3; start over with"):
        TrainingState.load(tmp_path)


# Stages, recipes and the command line.

ANN = {"width": 0.25, "augmentation": "crop-flip", "dropout": 0.2, "epochs": 2}


def make(run: Path, stage: str, *parents: Any, time_is_up: Callable[[], bool] = lambda: False, **settings: Any) -> Any:
    environment = Environment("cpu", time_is_up=time_is_up)
    config = resolve(STAGES[stage].config, settings, stage)
    return execute(STAGES[stage], config, parents, run, environment)[0]


def test_a_conversion_keeps_nothing_and_starts_over(tmp_path: Path) -> None:
    ann = make(tmp_path, "train-ann", **ANN)
    with pytest.raises(OutOfTimeError, match=r"^convert-max: interrupted at 2 of \d+ layers: .* starts it over$"):
        make(tmp_path, "convert", ann, timesteps=2, time_is_up=Clock(2))
    assert [path.name for path in tmp_path.iterdir()] == ["train-ann"]


def test_an_evaluation_that_stops_after_any_batch_ends_the_same(tmp_path: Path) -> None:
    """In each of its passes: one over an ANN, three over a spiking network whose images may leave early."""
    ann = make(tmp_path, "train-ann", **ANN)
    snn = make(tmp_path, "convert", ann, timesteps=5, encoder="poisson")
    early = {"exit_confidence": 0.9, "batch_size": 72}
    for parent, passes, settings in (  # passes with the number of their batches
        (ann, {"evaluate": 4}, {}),
        (snn, {"calibrate": 2, "early exit": 5, "evaluate": 5}, early),
    ):
        whole = make(tmp_path, "evaluate", parent, **settings)
        expected = (whole.path / "metrics.csv").read_bytes()
        shutil.rmtree(whole.path)
        stops = []
        while True:
            try:
                again = make(tmp_path, "evaluate", parent, time_is_up=Clock(1), **settings)
                break
            except OutOfTimeError as stop:
                stops.append(str(stop))
        end = "time limit reached; the same command resumes there"
        assert stops == [
            f"evaluate-{parent.name}: interrupted in '{doing}' after batch {done} of {batches}: {end}"
            for doing, batches in passes.items()
            for done in range(1, batches)
        ]
        assert (again.path / "metrics.csv").read_bytes() == expected


RECIPE = """
name: short
stages:
  ann: {stage: train-ann, width: 0.25, augmentation: crop-flip, dropout: 0.2, epochs: 2}
  converted: {stage: convert, from: ann, encoder: poisson, timesteps: 2}
  tuned: {stage: finetune, from: converted, epochs: 1, batch_size: 256}
  test: {stage: evaluate, from: tuned}
"""


def weights(run: Path) -> dict[str, str]:
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.glob("*/model.safetensors")}


def test_a_recipe_stops_between_steps(tmp_path: Path) -> None:
    """A step that is made is kept, whatever the time."""
    (tmp_path / "short.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "short.yaml", ["ann.epochs=1"])
    done: list[str] = []

    class Listener(Silent):
        def say(self, text: str) -> None:
            if text.startswith("keeps the weights"):
                done.append(text)

    environment = Environment("cpu", progress=Listener(), time_is_up=lambda: bool(done))
    for step, made in (("converted", ["ann"]), ("test", ["ann", "converted", "tuned"])):
        done.clear()
        with pytest.raises(OutOfTimeError, match=rf"^{step}: not begun: time limit reached; the same command resumes"):
            running.run(recipe, tmp_path / "run", environment)
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == made


def test_another_process_elsewhere_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hybridsnn run --time-limit`, then the same command where its folder went; beside a run without a stop."""
    (tmp_path / "short.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    command = ["run", "short.yaml", "--device", "cpu", "--checkpoints"]
    stopped = CliRunner().invoke(command_line, [*command, "here", "--time-limit", "0.00001"])
    assert stopped.exit_code == 75, stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith("ann: interrupted in epoch 1 of 2, after batch ") and last.endswith(
        "the same command resumes there"
    )
    shutil.move(tmp_path / "here", tmp_path / "there")
    program = [sys.executable, "-c", "from hybridsnn.cli import main; main()", *command, "there"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    resumed = subprocess.run(program, env=one_thread, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming in epoch 1 of 2, after batch " in resumed.stderr
    recipe = load_recipe(tmp_path / "short.yaml")
    running.run(recipe, tmp_path / "whole", Environment("cpu"))
    expected = weights(tmp_path / "whole")
    assert expected.keys() == {"ann", "converted", "tuned"}
    assert weights(tmp_path / "there" / "short") == expected


def test_a_stage_command_stops_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["train-ann", "--width", "0.25", "--epochs", "2"]
    stopped = CliRunner().invoke(command_line, [*command, "--time-limit", "0.00001"])
    assert stopped.exit_code == 75 and "Traceback" not in stopped.output
    assert stopped.stderr.splitlines()[-1].startswith("train-ann: interrupted in epoch 1 of 2, after batch 1 of ")
    assert CliRunner().invoke(command_line, command).exit_code == 0
    for wrong in ("0", "-1", "soon"):
        refused = CliRunner().invoke(command_line, [*command, "--time-limit", wrong])
        assert refused.exit_code == 2 and "--time-limit" in refused.stderr
