"""Recipes: refused whole with every problem named, planned without writing, run without making anything twice."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from toy_stages import TOYS, snapshot

from hybridsnn.artifacts import Artifact
from hybridsnn.errors import ConfigError
from hybridsnn.recipes.recipe import Recipe, load_recipe
from hybridsnn.recipes.running import plan, run
from hybridsnn.stages import base
from hybridsnn.stages.base import Environment

DEMO = """
name: demo
description: a small one
shared:
  value: &value {value: 5}
stages:
  ann:       {stage: toy-train, epochs: 3, rate: 1e-4}
  converted: {stage: toy-convert, from: ann, <<: *value}
  tuned:     {stage: toy-tune, from: converted}
  test-ann:  {stage: toy-evaluate, from: ann}
  test-snn:  {stage: toy-evaluate, from: tuned}
  report:    {stage: toy-report, from: [test-ann, test-snn]}
"""
NAMES = ["ann", "converted", "tuned", "test-ann", "test-snn", "report"]


def recipe(folder: Path, text: str = DEMO, overrides: Sequence[str] = ()) -> Recipe:
    (folder / "demo.yaml").write_text(text)
    return load_recipe(folder / "demo.yaml", overrides, TOYS)


def statuses(recipe: Recipe, folder: Path) -> dict[str, str]:
    return {planned.step.name: planned.status for planned in plan(recipe, folder)}


def test_a_recipe_is_read(tmp_path: Path) -> None:
    demo = recipe(tmp_path)
    assert (demo.name, demo.description) == ("demo", "a small one")
    assert [step.name for step in demo.steps] == NAMES
    assert demo.steps[0].config.model_dump()["rate"] == 1e-4
    assert demo.steps[1].config.model_dump() == {"value": 5}
    assert demo.steps[5].sources == ("test-ann", "test-snn")


def test_settings_can_be_replaced(tmp_path: Path) -> None:
    demo = recipe(tmp_path, overrides=["ann.epochs=7", "tuned.from=converted"])
    assert demo.steps[0].config.model_dump()["epochs"] == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ann.epochs", "--set: got 'ann.epochs', must be step.setting=value"),
        ("epochs=3", "--set: got 'epochs=3', must be step.setting=value"),
        ("anm.epochs=3", "--set: unknown 'anm'. Did you mean 'ann'?"),
        ("ann.epoch=3", "ann: unknown 'epoch'. Did you mean 'epochs'?"),
        ("ann.epochs=many", "ann.epochs: got 'many', must be a valid integer"),
        ("ann.epochs=[", "--set ann.epochs: line 1"),
    ],
)
def test_wrong_replacements(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(tmp_path, overrides=[override])
    assert message in str(caught.value)


WRONG = {
    "unknown stage": ("{a: {stage: toy-trian}}", "a.stage: unknown 'toy-trian'. Did you mean 'toy-train'?"),
    "no stage": ("{a: {epochs: 1}}", "a.stage: is required"),
    "unknown key": ("{a: {stage: toy-train, epoch: 1}}", "a: unknown 'epoch'. Did you mean 'epochs'?"),
    "value": ("{a: {stage: toy-train, epochs: 0}}", "a.epochs: got 0, must be greater than 0"),
    "unknown source": (
        "{first: {stage: toy-train}, b: {stage: toy-convert, from: frist}}",
        "b.from: unknown 'frist'. Did you mean 'first'?",
    ),
    "forward": (
        "{b: {stage: toy-convert, from: a}, a: {stage: toy-train}}",
        "b.from: 'a' must come before 'b'; move it up",
    ),
    "itself": ("{b: {stage: toy-convert, from: b}}", "b.from: 'b' must come before 'b'"),
    "wrong kind": (
        "{a: {stage: toy-train}, b: {stage: toy-tune, from: a}}",
        "b.from: 'a' makes ann, toy-tune reads snn",
    ),
    "no source": ("{b: {stage: toy-tune}}", "b.from: is required: toy-tune reads snn"),
    "needless source": ("{a: {stage: toy-train}, b: {stage: toy-train, from: a}}", "b.from: toy-train reads nothing"),
    "two sources": (
        "{a: {stage: toy-train}, b: {stage: toy-train, epochs: 1}, c: {stage: toy-convert, from: [a, b]}}",
        "c.from: got a, b, toy-convert reads one",
    ),
    "repeated step": ("{a: {stage: toy-train}, a: {stage: toy-train}}", "the key 'a' is repeated"),
    "a name that cannot be": ("{a/b: {stage: toy-train}}", "stages: got 'a/b'"),
    "nothing": ("{}", "recipe.stages: must have at least 1 item, not 0"),
    "no mapping": ("{a: 3}", "recipe.stages.a: got 3"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_told_in_one_line(wrong: str, tmp_path: Path) -> None:
    stages, message = WRONG[wrong]
    with pytest.raises(ConfigError) as caught:
        recipe(tmp_path, f"name: wrong\nstages: {stages}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(
            tmp_path,
            DEMO.replace("epochs: 3", "epochs: x, rat: 1").replace("from: converted", "from: convrted, value: y"),
        )
    for problem in (
        "ann.epochs: got 'x'",
        "ann: unknown 'rat'",
        "tuned.from: unknown 'convrted'",
        "tuned.value: got 'y'",
    ):
        assert problem in str(caught.value)


def test_unknown_keys_of_the_outline_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown 'stage'. Did you mean 'stages'\?"):
        recipe(tmp_path, "name: x\nstage: {}\nstages: {a: {stage: toy-train}}")
    with pytest.raises(ConfigError, match=r"dmo.yaml: no such recipe; .* holds demo.yaml"):
        load_recipe(tmp_path / "dmo.yaml", (), TOYS)


def test_plan_and_run(tmp_path: Path) -> None:
    demo, folder = recipe(tmp_path), tmp_path / "demo"
    assert set(statuses(demo, folder).values()) == {"to do"}
    assert not folder.exists()

    made: list[tuple[str, bool]] = []

    def done(step: object, artifact: Artifact, new: bool) -> None:
        made.append((artifact.name, new))

    artifacts = run(demo, folder, Environment(), on_done=done)
    assert made == [(name, True) for name in NAMES]
    assert [parent.name for parent in artifacts[5].manifest.parents] == ["test-ann", "test-snn"]
    assert set(statuses(demo, folder).values()) == {"current"}

    before = snapshot(folder)
    made.clear()
    assert run(demo, folder, Environment(), on_done=done) == artifacts
    assert made == [(name, False) for name in NAMES]
    assert snapshot(folder) == before


def test_a_change_reaches_only_what_depends_on_it(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    run(recipe(tmp_path), folder, Environment())
    changed = recipe(tmp_path, overrides=["tuned.value=9"])
    planned = {p.step.name: (p.status, p.reason) for p in plan(changed, folder)}
    assert [planned[name][0] for name in NAMES] == ["current", "current", "to do", "current", "to do", "to do"]
    assert planned["tuned"][1] == "changed: value"
    assert planned["test-snn"][1] == "after tuned"
    artifacts = run(changed, folder, Environment())
    names = [artifact.name for artifact in artifacts]
    assert names == ["ann", "converted", "tuned-2", "test-ann", "test-snn-2", "report"]
    assert set(statuses(changed, folder).values()) == {"current"}


def test_a_run_that_was_interrupted_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo, folder = recipe(tmp_path), tmp_path / "demo"
    monkeypatch.setenv("TOY_INTERRUPT_AT", "1")
    with pytest.raises(KeyboardInterrupt):
        run(demo, folder, Environment())
    assert list(statuses(demo, folder).values()) == ["interrupted", *["to do"] * 5]
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    seen: list[str] = []
    run(demo, folder, Environment(), on_step=lambda planned: seen.append(planned.status))
    assert seen == ["interrupted", *["to do"] * 5]
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)


def test_the_time_of_a_resumed_step_is_that_of_all_its_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 100.0, 1000.0, 1007.0])
    monkeypatch.setattr(base.time, "perf_counter", lambda: next(ticks))
    step = recipe(tmp_path).steps[0]

    def train() -> Artifact:
        return base.execute(step.stage, step.config, (), tmp_path / "run", Environment())[0]

    monkeypatch.setenv("TOY_INTERRUPT_AT", "1")
    with pytest.raises(KeyboardInterrupt):
        train()
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    assert train().manifest.wall_seconds == 107


# Parameters, presets and files below files.

SHARED = """
parameters: {epochs: 3, rate: 0.5, seed: 0}
presets: {small: {epochs: 1}}
row: {paper: toys, network: toy, columns: {test: a toy}}
stages:
  ann:  {stage: toy-train, epochs: $epochs, rate: $rate, seed: $seed}
  test: {stage: toy-evaluate, from: ann}
"""
ABOVE = """
name: above
based_on: shared.yaml
parameters: {rate: null}
presets: {small: {rate: 2.0}, large: {epochs: 9}}
row: {network: mine, published: {test: 50.0}}
"""


def above(folder: Path, overrides: Sequence[str] = (), preset: str = "full", text: str = ABOVE) -> Recipe:
    (folder / "shared.yaml").write_text(SHARED)
    (folder / "above.yaml").write_text(text)
    return load_recipe(folder / "above.yaml", overrides, TOYS, preset)


@pytest.mark.parametrize(
    ("preset", "overrides", "epochs", "rate"),
    [
        ("full", (), 3, 0.1),  # a parameter that is null leaves the stage's own value
        ("small", (), 1, 2.0),
        ("large", (), 9, 0.1),
        ("small", ("epochs=4",), 4, 2.0),
        ("small", ("epochs=4", "ann.epochs=5"), 5, 2.0),
    ],
)
def test_parameters_are_set_by_files_then_presets_then_users(
    preset: str, overrides: tuple[str, ...], epochs: int, rate: float, tmp_path: Path
) -> None:
    recipe = above(tmp_path, overrides, preset)
    config = recipe.steps[0].config.model_dump()
    assert (config["epochs"], config["rate"]) == (epochs, rate)
    assert recipe.run_name == ("above" if preset == "full" else f"above-{preset}")
    assert recipe.row is not None
    assert (recipe.row.paper, recipe.row.network, recipe.row.published) == ("toys", "mine", {"test": 50.0})


@pytest.mark.parametrize(
    ("text", "preset", "overrides", "message"),
    [
        (ABOVE, "smal", (), "preset: unknown 'smal'. Did you mean 'small'?"),
        (ABOVE, "full", ("epoch=3",), "--set: unknown 'epoch'. Did you mean 'epochs'?"),
        (ABOVE, "full", ("=3",), "--set: got '=3', must be step.setting=value"),
        (ABOVE.replace("large: {epochs", "large: {epoch"), "large", (), "presets.large: unknown 'epoch'"),
        (
            ABOVE.replace("rate: null", "rat: 1"),
            "full",
            (),
            "parameters: no setting uses rat; remove them, or write $rat in",
        ),
        (ABOVE + "stages: {ann: {bias: $bia}}", "full", (), "ann.bias: parameter: unknown 'bia'"),
        (ABOVE.replace("shared.yaml", "other.yaml"), "full", (), "based_on: other.yaml: no such recipe"),
        (ABOVE.replace("shared.yaml", "above.yaml"), "full", (), "above.yaml is based on itself"),
        (ABOVE.replace("{test: 50.0}", "{tst: 50.0}"), "full", (), "row.published: unknown 'tst'"),
        (ABOVE.replace("network: mine", "columns: {tst: x}"), "full", (), "row.columns: unknown 'tst'"),
    ],
)
def test_what_is_wrong_with_parameters(
    text: str, preset: str, overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        above(tmp_path, overrides, preset, text)
    assert message in str(caught.value) and "\n" not in str(caught.value)
