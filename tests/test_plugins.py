"""What a file outside the package adds: each thing is one entry in its registry, and the rest follows."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from hybridsnn.artifacts import CONFIG
from hybridsnn.cli import command_line
from hybridsnn.cli.showing import REGISTRIES
from hybridsnn.learning import RULES
from hybridsnn.recipes.recipe import load_recipe
from hybridsnn.stages import STAGES
from hybridsnn.surrogates import SURROGATES

DOCUMENT = Path(__file__).parent.parent / "docs" / "architecture.md"

MINE = '''
from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from hybridsnn.conversion import BALANCERS, Balancer
from hybridsnn.data import DATASETS
from hybridsnn.data.datasets import DataSet
from hybridsnn.data.images import MemoryImages, image_data
from hybridsnn.learning import RULES, LearningRule
from hybridsnn.learning.rules.stbp import STBP
from hybridsnn.networks import NETWORKS, Network
from hybridsnn.neurons import SpikingNeuron
from hybridsnn.surrogates import SURROGATES, Surrogate


class ReadoutOnly(LearningRule):
    """Least squares for the readout alone."""

    summary: ClassVar[str] = "least squares of the readout"
    target: float = Field(1.0, gt=0, description="What the readout of the right class should be.")
    power: Literal["square", "absolute"] = Field("square", description="Of the error.")
    steps: tuple[int, ...] = Field((), description="Time steps that count; none: the last.")
    loss: float = Field(1.0, description="Weight of the loss.")  # another thing than the loss of stbp

    def step(self, model, inputs, labels, backward):
        frames = inputs[:]
        outputs, _ = model(frames)
        places = list(self.steps) or [len(frames) - 1]
        wanted = self.target * functional.one_hot(labels, outputs.shape[-1])
        error = outputs[places].mean(0) - wanted
        loss = self.loss * (error.square() if self.power == "square" else error.abs()).mean()
        backward(loss)
        return loss.detach(), outputs[-1].detach()


class Random(Balancer):
    """Thresholds from a range; nothing is measured."""

    summary: ClassVar[str] = "random thresholds"
    low: float = Field(0.5, gt=0, description="Lowest threshold.")
    high: float = Field(1.0, gt=0, description="Highest threshold.")

    def set_thresholds(self, body, draw):
        for module in body.modules():
            if isinstance(module, SpikingNeuron):
                module.threshold.data.uniform_(self.low, self.high).mul_(self.threshold_scale)


def squares(access, size, binning):
    labels = torch.arange(120) % 2
    pixels = torch.zeros(120, 1, 6, 6, dtype=torch.uint8)
    pixels[labels == 1, :, 2:4, 2:4] = 255
    train, test = MemoryImages(pixels[:90], labels[:90]), MemoryImages(pixels[90:], labels[90:])
    return image_data("squares", train, test, ["no", "yes"])


def tiny(spec):
    channels, side, _ = spec.input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, 8), nn.ReLU(), nn.Linear(8, spec.classes))


RULES["readout"] = ReadoutOnly
BALANCERS["random"] = Random
SURROGATES["wide"] = Surrogate("wide", "0.2 max(0, 1 - |U - threshold|)", "triangle", height=0.2)
NETWORKS["tiny"] = Network("one hidden layer", tiny, 1)
DATASETS["squares"] = DataSet("squares", "with a square or without", 6, (0.5,), (0.5,), "none", squares)
'''

RECIPE = """
name: mine
parameters: {target: 2.0}
stages:
  ann: {stage: train-ann, dataset: squares, network: tiny, epochs: 3, batch_size: 16}
  converted: {stage: convert, from: ann, balance: random, low: 0.25, high: 0.75, timesteps: 3}
  tuned: {stage: finetune, from: converted, method: readout, target: $target, steps: [1, 2], epochs: 1}
  wide: {stage: finetune, from: converted, method: linear, surrogate: wide, epochs: 1}
  test: {stage: evaluate, from: tuned}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with the file, and registries that forget afterwards."""
    monkeypatch.chdir(tmp_path)
    for variable in ("HYBRIDSNN_CHECKPOINTS", "HYBRIDSNN_DATA", "HYBRIDSNN_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
    Path("mine.py").write_text(MINE)
    Path("mine.yaml").write_text(RECIPE)
    with ExitStack() as stack:
        for module, attribute in REGISTRIES.values():
            stack.enter_context(patch.dict(getattr(import_module(module), attribute)))
        yield


def hybridsnn(*arguments: str, code: int = 0, **variables: str) -> str:
    """What the command prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", "from hybridsnn.cli import main; main()", *arguments],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def here_too(*arguments: str, code: int = 0) -> str:
    """The same in this process, which is faster."""
    result = CliRunner().invoke(command_line, ["--plugin", "mine.py", *arguments], prog_name="hybridsnn")
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def settings_of(name: str) -> dict[str, object]:
    return yaml.safe_load(Path("checkpoints/mine", name, CONFIG).read_text())


def test_a_recipe_of_nothing_but_entries_from_outside() -> None:
    printed = hybridsnn("run", "mine.yaml", HYBRIDSNN_PLUGINS="mine.py")
    assert "test accuracy: " in printed
    converted, tuned, wide = settings_of("converted"), settings_of("tuned"), settings_of("wide")
    assert {"balance": "random", "low": 0.25, "high": 0.75, "threshold_scale": 1.0}.items() <= converted.items()
    assert {
        "method": "readout",
        "target": 2.0,
        "power": "square",
        "steps": [1, 2],
        "loss": 1.0,
    }.items() <= tuned.items()
    assert wide["surrogate"] == "wide"
    # Options of what was not chosen are no settings.
    assert not {"percentile", "calibration_images", "leak", "times"} & converted.keys()
    assert not {"surrogate", "memory_budget", "backward_steps"} & tuned.keys() and "target" not in wide
    before, after = (load_file(f"checkpoints/mine/{name}/model.safetensors") for name in ("converted", "tuned"))
    (threshold,) = (value for name, value in before.items() if name.endswith("threshold"))
    assert 0.25 <= threshold <= 0.75
    assert any(not after[name].equal(value) for name, value in before.items())


def test_the_same_by_commands(tmp_path: Path) -> None:
    """A module that Python finds, by its name; options of its entries on the command line, and in what is refused."""
    again = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    hybridsnn(
        "--plugin", "mine", "train-ann", "--run", "mine", "--dataset", "squares", "--network", "tiny", "--epochs", "1",
        **again,
    )  # fmt: skip
    here_too("convert", "--run", "mine", "--balance", "random", "--low", "0.125", "--threshold-scale", "2")
    here_too(
        "finetune", "--run", "mine", "--method", "readout", "--target", "3", "--power", "absolute", "--steps", "[0, 1]",
        "--loss", "0.5", "--epochs", "1",
    )  # fmt: skip
    assert settings_of("convert-random")["low"] == 0.125
    tuned = settings_of("finetune-readout")
    assert (tuned["target"], tuned["power"], tuned["steps"], tuned["loss"]) == (3.0, "absolute", [0, 1], 0.5)
    here_too(
        "finetune", "--run", "mine", "--method", "stbp", "--surrogate", "wide", "--loss", "readout", "--epochs", "1"
    )
    assert settings_of("finetune-stbp")["loss"] == "readout"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("convert --balance max --low 0.1", "low: 'max' has no such option; it belongs to random. "),
        ("convert --balance random --low 0", "convert.low: got 0.0, must be greater than 0 with balance 'random'"),
        ("convert --balance random --percentile 99", "'random' has no such option; it belongs to percentile"),
        ("finetune --target 1", "finetune.target: 'stdb' has no such option; it belongs to readout. Leave it out"),
        ("finetune --method readout --surrogate linear", "surrogate: 'readout' has no such option; it belongs"),
        ("finetune --method readout --loss current", "got 'current', must be a valid number with method 'readout'"),
        ("finetune --method readot", "finetune.method: unknown 'readot'. Did you mean 'readout'?"),
        ("run mine.yaml --set tuned.targt=1", "tuned: unknown 'targt'. Did you mean 'target'?"),
    ],
)  # fmt: skip
def test_their_options_are_checked_like_any_other(arguments: str, message: str) -> None:
    assert message in here_too(*arguments.split(), code=2)


def test_their_options_are_in_the_help() -> None:
    text = here_too("finetune", "--help")
    own = text.split("For --method readout:")[1].split("\n\n")[0]
    assert "--target FLOAT" in own and "What the readout of the right class should be." in own
    assert "--power [square|absolute]" in own and "--steps YAML" in own
    shared = " ".join(text.split())
    assert "--loss YAML" in shared and "Or: Weight of the loss. [default: (depends on --method)]" in shared
    assert "|".join(sorted({*SURROGATES, "wide"})) in text
    with_surrogates = ", ".join(name for name, rule in RULES.items() if "surrogate" in rule.model_fields)
    assert f"For --method {with_surrogates}:" in shared
    assert "--low FLOAT" in here_too("convert", "--help").split("For --balance random:")[1]
    for registry, name in (
        ("methods", "readout"), ("balancers", "random"), ("surrogates", "wide"), ("networks", "tiny"),
        ("datasets", "squares"),
    ):  # fmt: skip
        assert re.search(rf"^{name} ", here_too("list", registry), re.MULTILINE)


def test_without_the_file_nothing_is_known_of_it() -> None:
    with pytest.raises(Exception, match=r"ann\.dataset: unknown 'squares'"):
        load_recipe(Path("mine.yaml"))
    assert "readout" not in STAGES["finetune"].config.options().get("target", {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^error: --plugin broken\.py: cannot be imported \(FileNotFoundError: .*\); give a Python file, or "),
        ("import nothing_like_that", r"\(ModuleNotFoundError: No module named 'nothing_like_that'\)"),
        ("1 +", r"\(SyntaxError: "),
        ("raise SystemError('no')", r"\(SystemError: no\)"),
    ],
)
def test_a_file_that_cannot_be_imported_is_told_in_one_line(content: str | None, message: str) -> None:
    if content is not None:
        Path("broken.py").write_text(content)
    result = CliRunner().invoke(command_line, ["--plugin", "broken.py", "list", "methods"], prog_name="hybridsnn")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("name", "where"),
    [("timesteps", "convert"), ("data", "convert"), ("help", "convert"), ("chosen", "balance 'clash'")],
)
def test_an_option_cannot_take_the_name_of_another(name: str, where: str) -> None:
    clash = f"\nclass Clash(Random):\n    {name}: int = 3\n\nBALANCERS['clash'] = Clash\n"
    Path("mine.py").write_text(MINE + clash)
    message = here_too("convert", "--balance", "clash", code=2)
    assert message == f"error: {where}: the name of the option '{name}' is taken; give it another one\n"


def test_a_recipe_sees_such_a_name_too() -> None:
    Path("mine.py").write_text(MINE + "\nclass Clash(Random):\n    timesteps: int = 3\n\nBALANCERS['random'] = Clash\n")
    message = here_too("run", "mine.yaml", "--plan", code=2)
    assert "balance 'random': the name of the option 'timesteps' is taken; give it another one" in message


def test_the_example_of_the_document() -> None:
    (example,) = re.findall(r"```python\n(# mean\.py.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (command,) = re.findall(r"^    hybridsnn (--plugin .*)$", DOCUMENT.read_text(), re.MULTILINE)
    Path("mean.py").write_text(example)
    here_too("train-ann", "--run", "default", "--dataset", "squares", "--network", "tiny", "--epochs", "1")
    result = CliRunner().invoke(command_line, ["--plugin", "mine.py", *command.split()], prog_name="hybridsnn")
    assert result.exit_code == 0, result.output
    settings = yaml.safe_load(Path("checkpoints/default/convert-mean", CONFIG).read_text())
    assert (settings["balance"], settings["times"], settings["calibration_images"]) == ("mean", 4.0, 256)
