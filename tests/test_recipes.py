"""The recipes that come with the project: each can be read and planned, and says what it is."""

import re
from pathlib import Path

import pytest
import yaml

from hybridsnn.artifacts import check_name
from hybridsnn.recipes.recipe import load_recipe
from hybridsnn.recipes.running import plan


def presets_of(path: Path) -> list[str]:
    """Its own and those of the file it is based on."""
    values = yaml.safe_load(path.read_text())
    base = presets_of(path.parent / values["based_on"]) if "based_on" in values else []
    return list(dict.fromkeys([*base, *values.get("presets", {})]))


ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "pipelines").glob("*.yaml"))
PRESETS = [(path, preset) for path in RECIPES for preset in ("full", *presets_of(path))]
MAKEFILE = (ROOT / "Makefile").read_text()


HYBRID = [path for path in RECIPES if "based_on: shared/hybrid.yaml" in path.read_text()]


def test_there_are_recipes() -> None:
    assert len(HYBRID) == 8
    assert {"demo.yaml", "digits-from-scratch.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize(("path", "preset"), PRESETS, ids=[f"{path.stem}, {preset}" for path, preset in PRESETS])
def test_a_recipe_can_be_planned(path: Path, preset: str, tmp_path: Path) -> None:
    recipe = load_recipe(path, preset=preset)  # every name in it is known and every setting fits, or this raises
    assert path.name == f"{recipe.name}.yaml"
    check_name(recipe.name, "run")
    assert recipe.description.endswith(".")
    planned = plan(recipe, tmp_path / recipe.name)
    assert [step.step.name for step in planned] == [step.name for step in recipe.steps]
    assert {step.status for step in planned} == {"to do"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_ends_in_a_report_of_all_it_made(path: Path) -> None:
    recipe = load_recipe(path)
    *earlier, report = recipe.steps
    assert report.stage.name == "report"
    assert set(report.sources) == {step.name for step in earlier if step.stage.produces == "evaluation"}
    read = {source for step in recipe.steps for source in step.sources}
    assert {step.name for step in earlier} <= read


def test_the_control_differs_from_the_demo_in_its_start_alone() -> None:
    demo, control = (load_recipe(ROOT / "pipelines" / f"{name}.yaml") for name in ("demo", "digits-from-scratch"))

    def settings(recipe, stage):  # type: ignore[no-untyped-def]
        return next(step.config for step in recipe.steps if step.stage.name == stage)

    # There is no ANN to learn from.
    assert settings(control, "finetune") == settings(demo, "finetune").model_copy(update={"distil": 0.0})
    start, fitted = (next(step.config for step in each.steps if step.name == name)
                     for each, name in ((control, "start"), (demo, "fitted")))  # fmt: skip
    assert start == fitted
    assert settings(control, "train-ann") == settings(demo, "train-ann").model_copy(update={"epochs": 0})


@pytest.mark.parametrize("path", sorted(HYBRID), ids=lambda path: path.name)
def test_a_control_differs_from_the_hybrid_network_in_its_start_alone(path: Path) -> None:
    steps = {step.name: step for step in load_recipe(path).steps}
    for control, hybrid in (("start", "converted"), ("scratch", "tuned")):
        assert steps[control].config == steps[hybrid].config
    assert steps["untrained"].config == steps["ann"].config.model_copy(update={"epochs": 0})
    assert steps["scratch"].sources == ("start",) and steps["start"].sources == ("untrained",)


def test_the_makefile_names_recipes_that_exist() -> None:
    text = MAKEFILE.replace("\\\n", " ")
    lists = dict(re.findall(r"^(HYBRID_\w+|STOP|BESIDE|FEW_STEPS) := (.*)$", text, re.MULTILINE))
    rows = {name for names in lists.values() for name in names.split()}
    named = {Path(path).stem for path in re.findall(r"pipelines/[\w.-]+yaml", text)}
    assert "demo" in named and len(lists) == 6
    assert named | rows <= {path.stem for path in RECIPES}
    assert rows == {path.stem for path in RECIPES if load_recipe(path).row is not None}


def test_every_target_of_the_makefile_is_phony_or_made() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.MULTILINE))
    phony = set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE.replace("\\\n", " "), re.MULTILINE)[0].split())
    assert targets == phony
