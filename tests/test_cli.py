"""The command line: exit codes, one-line errors, and every command on toy stages."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from test_pipeline import ABOVE, DEMO, NAMES, SHARED
from toy_stages import TOYS, snapshot

import hybridsnn.stages
from hybridsnn import __version__
from hybridsnn.cli import STAGE_HELP, command_line
from hybridsnn.cli.console import Bars, Lines
from hybridsnn.cli.showing import REGISTRIES


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, stage in TOYS.items():
        monkeypatch.setitem(hybridsnn.stages.STAGES, name, stage)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYBRIDSNN_CHECKPOINTS", raising=False)
    monkeypatch.delenv("HYBRIDSNN_DATA", raising=False)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command_line, arguments, prog_name="hybridsnn")


def succeed(*arguments: str) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*arguments: str, code: int = 2) -> str:
    result = call(*arguments)
    assert result.exit_code == code, result.output
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in result.output
    return lines[-1]


def test_help_and_version() -> None:
    assert succeed("--version") == f"hybridsnn {__version__}\n"
    text = succeed("--help")
    assert text == succeed()
    assert "hybridsnn finetune --method stdb" in text
    for name in [*STAGE_HELP, "run", "table", "results", "show", "list"]:
        assert f"\n  {name} " in text


def test_help_needs_nothing_that_computes() -> None:
    program = "import sys, hybridsnn.cli; print([m for m in ('torch', 'pandas', 'numba', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_help_lists_the_stages_there_are() -> None:
    real = {name: stage.summary for name, stage in hybridsnn.stages.STAGES.items() if name not in TOYS}
    assert real == STAGE_HELP


@pytest.mark.parametrize("stage", [*STAGE_HELP, *TOYS])
def test_every_setting_is_an_option_with_help(stage: str) -> None:
    command = command_line.get_command(click.Context(command_line), stage)
    assert command is not None
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert len({name for option in options for name in option.opts}) == sum(len(option.opts) for option in options)
    assert len({option.name for option in options}) == len(options)
    assert all(option.help for option in options)
    text = succeed(stage, "--help")
    config = hybridsnn.stages.STAGES[stage].config
    for field in (*config.model_fields, *config.options()):
        assert f"--{field.replace('_', '-')}" in text


def test_help_of_a_stage() -> None:
    text = succeed("toy-train", "--help")
    assert "\n  A second paragraph.\n" in text
    text = " ".join(text.split())
    assert "Count epochs. Counts epochs, and keeps count in the scratch folder." in text
    assert "hybridsnn toy-train --epochs 5" in text
    assert "--method [linear|plain|stdb] How to count. [default: plain]" in text
    assert "--bias / --no-bias" in text
    assert "--from" not in text
    assert "--from ARTIFACT" in succeed("toy-convert", "--help")


def test_options_become_settings() -> None:
    succeed(
        "toy-train", "--epochs", "2", "--rate", "1e-3", "--method", "stdb", "--no-bias",
        "--mode", "down", "--weights", "w.pt", "--other-method", "linear", "--run", "r",
    )  # fmt: skip
    config = json.loads(succeed("show", "r/ann", "--json"))["config"]
    assert config == {
        "epochs": 2, "rate": 1e-3, "method": "stdb", "bias": False, "mode": "down",
        "weights": "w.pt", "other_method": "linear", "seed": 0,
    }  # fmt: skip


def test_three_commands_then_again(tmp_path: Path) -> None:
    assert succeed("toy-train").splitlines()[0].startswith("checkpoints/default/ann  made in ")
    assert "validation accuracy: 50.00 % (T = 1)" in succeed("toy-train")
    succeed("toy-convert")
    succeed("toy-tune")
    before = snapshot(tmp_path)
    for command in ("toy-train", "toy-convert", "toy-tune"):
        assert "is current, nothing to do" in succeed(command)
    assert snapshot(tmp_path) == before
    assert len(succeed("toy-evaluate").split("test accuracy: 87.50 % (T = 4)")) == 4
    report = succeed("toy-report")
    assert "open checkpoints/default/report-evaluate-ann/index.html" in report


def test_artifacts_can_be_named(tmp_path: Path) -> None:
    succeed("toy-train", "--run", "a")
    succeed("toy-train", "--run", "a", "--epochs", "2", "--name", "short")
    for source in ("short", "a/short", "checkpoints/a/short", str(tmp_path / "checkpoints/a/short")):
        succeed("toy-convert", "--run", "a", "--from", source)
    parents = json.loads(succeed("show", "a/converted", "--json"))["manifest"]["parents"]
    assert [parent["path"] for parent in parents] == ["../short"]
    succeed("toy-evaluate", "--run", "a", "--from", "short", "--from", "ann")
    made = json.loads(succeed("show", "a", "--json"))["artifacts"]
    assert [entry["manifest"]["name"] for entry in made] == [
        "ann",
        "short",
        "converted",
        "evaluate-short",
        "evaluate-ann",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy-trian"], "command: unknown 'toy-trian'. Did you mean 'toy-train'?"),
        (["toy-train", "--epoch", "3"], "--epoch"),
        (["toy-train", "--epochs", "x"], "'x' is not a valid integer"),
        (["toy-train", "--method", "stbd", "--epochs", "0"], "toy-train.method: unknown 'stbd'. Did you mean 'stdb'?"),
        (["toy-train", "--method", "stbd", "--epochs", "0"], "toy-train.epochs: got 0, must be greater than 0"),
        (["toy-train", "--run", "../x"], "--run: got '../x'"),
        (["toy-train", "--name", "a b"], "name: got 'a b'"),
        (["toy-train", "extra"], "extra"),
        (["toy-convert"], "make one with `hybridsnn "),
        (["toy-convert", "--from", "nothing"], "no such artifact"),
        (["show"], "no such artifact"),
        (["show", "a/b"], "no such artifact"),
        (["list", "method"], "list: unknown 'method'. Did you mean 'methods'?"),
        (["run", "none.yaml"], "none.yaml: no such recipe"),
        (["run"], "RECIPE"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in fail(*arguments)
    assert len(call(*arguments).stderr.splitlines()) == 1
    assert snapshot(tmp_path) == {}


def test_wrong_kinds_and_damage() -> None:
    succeed("toy-train")
    assert "is of kind ann, wanted snn" in fail("toy-tune", "--from", "ann")
    assert "--name: got 'x' for 2 artifacts" in fail("toy-evaluate", "--name", "x", "--from", "ann", "--from", "ann")
    assert "show: unknown 'defalt'. Did you mean 'default'?" in fail("show", "defalt")
    Path("checkpoints/default/ann/weights.txt").write_text("x")
    assert "damaged" in fail("toy-convert")
    assert "damaged" in fail("show", "default/ann")


def test_debug_shows_where_an_error_came_from() -> None:
    for arguments in (["--debug", "toy-convert"], ["toy-convert", "--debug"]):
        result = call(*arguments)
        assert result.exit_code == 2
        assert "Traceback" in result.stderr


def test_a_fault_of_ours_is_not_disguised() -> None:
    result = call("toy-fail")
    assert isinstance(result.exception, ValueError)


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_INTERRUPT_AT", "1")
    assert "the same command resumes" in fail("toy-train", code=130)
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    assert "resumed at 1" in call("toy-train").stderr
    monkeypatch.setenv("TOY_INTERRUPT_AT", "1")
    fail("toy-train", "--run", "b", code=130)
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    assert "resumed at 0" in call("toy-train", "--run", "b", "--fresh").stderr


def test_a_recipe_from_plan_to_table(tmp_path: Path) -> None:
    Path("demo.yaml").write_text(DEMO)
    planned = succeed("run", "demo.yaml", "--plan")
    assert planned.count("to do") == len(NAMES)
    assert not Path("checkpoints").exists()
    first = succeed("run", "demo.yaml")
    for name in NAMES:
        assert f"checkpoints/demo/{name}  made in " in first
    assert "accuracy (%)" in first
    before = snapshot(tmp_path)
    again = succeed("run", "demo.yaml")
    assert again.count("is current, nothing to do") == len(NAMES)
    assert "accuracy (%)" in again
    assert snapshot(tmp_path) == before
    assert "changed: epochs" in succeed("run", "demo.yaml", "--plan", "--set", "ann.epochs=9")
    assert "checkpoints/other/ann" in succeed("run", "demo.yaml", "--run", "other")


MISSING = """
name: missing
parameters: {seed: 0}
row: {paper: toys, network: other, columns: {test: a toy}, published: {test: 99.0}}
stages:
  ann:  {stage: train-ann, dataset: mnist, network: lenet5, epochs: 0, seed: $seed}
  test: {stage: evaluate, from: ann}
"""


def test_a_table_with_a_row_that_lacks_its_data(tmp_path: Path) -> None:
    Path("shared.yaml").write_text(SHARED)
    Path("above.yaml").write_text(ABOVE)
    Path("missing.yaml").write_text(MISSING.replace("parameters", "presets: {small: {}}\nparameters"))
    command = (
        "table", "above.yaml", "missing.yaml", "--preset", "small", "--seeds", "2", "--output", "results/toys",
        "--data", str(tmp_path / "nowhere"),
    )  # fmt: skip
    printed = succeed(*command)
    assert {path.name for path in Path("checkpoints").iterdir()} >= {"above-small", "above-small-seed1"}
    assert "87.50" in printed and "+37.50" in printed and "the data set was not there" in printed
    assert {path.name for path in Path("results/toys").iterdir()} == {"index.html", "results.csv", "evidence.json"}
    written = snapshot(Path("results"))
    assert succeed(*command).count("is current, nothing to do") == 4
    assert snapshot(Path("results")) == written
    assert "2 numbers verified; results/README.md" in succeed("results", "results")
    page = Path("results/README.md").read_text()
    assert page.count("87.50") == 1 and "mnist" in page
    Path("results/toys/results.csv").write_text(Path("results/toys/results.csv").read_text().replace("87.5", "97.5"))
    assert "got 97.5 %" in fail("results", "results")
    assert Path("results/README.md").read_text() == page


def test_what_is_no_table(tmp_path: Path) -> None:
    Path("demo.yaml").write_text(DEMO)
    assert "demo.yaml: is no row of a table" in fail("table", "demo.yaml")
    assert "holds no tables" in fail("results", str(tmp_path))


def test_the_demo_and_nothing_the_second_time(tmp_path: Path) -> None:
    recipe = Path(__file__).parent.parent / "pipelines" / "demo.yaml"
    quick = ("ann.epochs=2", "ann.width=0.25", "ann.batch_norm=true", "timesteps=3", "tuned.epochs=1")
    command = ("run", str(recipe), *(word for override in quick for word in ("--set", override)))
    first = succeed(*command)
    names = ["ann", "max", "fitted", "tuned", "ann-test", "max-test", "fitted-test", "tuned-test", "report"]
    assert [line.split()[0] for line in first.splitlines() if "  made in " in line] == [
        f"checkpoints/demo/{name}" for name in names
    ]
    assert first.count("test accuracy: ") == 4
    before = snapshot(tmp_path)
    again = succeed(*command)
    assert again.count("is current, nothing to do") == len(names)
    assert again.splitlines()[-9:] == first.splitlines()[-9:]  # the table
    assert snapshot(tmp_path) == before
    assert "changed: epochs" in succeed(*command, "--set", "tuned.epochs=2", "--plan")


def test_the_three_commands_of_the_readme() -> None:
    succeed("train-ann", "--width", "0.25", "--epochs", "1")
    succeed("convert", "--balance", "max")
    succeed("finetune", "--method", "stdb", "--epochs", "1", "--timesteps", "2")
    succeed("finetune", "--method", "linear", "--epochs", "1", "--timesteps", "2")
    succeed("evaluate")
    assert "open checkpoints/default/report/index.html" in succeed("report")
    listing = json.loads(succeed("show", "--json"))["artifacts"]
    parents = {a["manifest"]["name"]: [p["name"] for p in a["manifest"]["parents"]] for a in listing}
    assert parents == {
        "train-ann": [],
        "convert-max": ["train-ann"],
        "finetune-stdb": ["convert-max"],
        "finetune-linear": ["convert-max"],
        "evaluate-train-ann": ["train-ann"],
        "evaluate-convert-max": ["convert-max"],
        "evaluate-finetune-stdb": ["finetune-stdb"],
        "evaluate-finetune-linear": ["finetune-linear"],
        "report": [
            "evaluate-train-ann", "evaluate-convert-max", "evaluate-finetune-stdb", "evaluate-finetune-linear",
        ],
    }  # fmt: skip
    assert "finetune-stdb" in succeed("show")


def test_show_for_people_and_programs() -> None:
    succeed("toy-train")
    succeed("toy-convert")
    run = succeed("show")
    assert "converted" in run and "toy-train" in run and "validation accuracy 50.00 %" in run
    artifact = succeed("show", "default/converted")
    assert "made from" in artifact and "verified" in artifact
    assert artifact == succeed("show", "checkpoints/default/converted")
    data = json.loads(succeed("show", "default/converted", "--json"))
    assert data["manifest"]["kind"] == "snn"
    assert [ancestor["kind"] for ancestor in data["lineage"]] == ["ann"]
    listing = json.loads(succeed("show", "--json"))
    assert [entry["manifest"]["name"] for entry in listing["artifacts"]] == ["ann", "converted"]


def test_an_artifact_outlives_its_parents() -> None:
    succeed("toy-train")
    succeed("toy-convert")
    shutil.rmtree("checkpoints/default/ann")
    result = call("show", "default/converted")
    assert result.exit_code == 0
    assert "warning: " in result.stderr and "no such artifact" in result.stderr
    assert "made from    ann" in result.stdout


def test_an_unreadable_artifact_is_shown_as_such() -> None:
    succeed("toy-train")
    Path("checkpoints/default/ann/manifest.json").write_text("{")
    assert "unreadable" in call("show").stderr
    assert len(json.loads(succeed("show", "--json"))["unreadable"]) == 1


def test_folders_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRIDSNN_CHECKPOINTS", "elsewhere")
    monkeypatch.setenv("HYBRIDSNN_DATA", "images")
    assert "elsewhere/default/outside  made" in succeed("toy-outside")
    assert "is current" in succeed("toy-outside", "--data", "images")
    assert "elsewhere/default/outside-2  made" in succeed("toy-outside", "--data", "other")


@pytest.mark.parametrize("registry", REGISTRIES)
def test_registries_are_listed(registry: str) -> None:
    module, attribute = REGISTRIES[registry]
    entries = getattr(importlib.import_module(module), attribute)
    lines = succeed("list", registry).splitlines()
    assert [line.split()[0] for line in lines] == list(entries)
    assert all(len(line.split()) > 1 for line in lines)
    assert f"hybridsnn list {registry}" in succeed("list")


def test_progress_hands_on_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    bars = Bars()
    for _ in range(2):  # it can start again after it has stopped
        nested = [(a, b) for a in bars.track("ab", "outer", 2) for b in bars.track([1, 2], "inner", 2)]
        assert nested == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
        assert bars.progress.task_ids == []
    lines = Lines()
    lines.interval = 0.0
    capsys.readouterr()
    assert list(lines.track("ab", "letters", 2)) == ["a", "b"]
    assert capsys.readouterr().err == "letters: 1 of 2\nletters: 2 of 2\n"
