"""The recipes that come with the project: each can be read and planned, and says what it is."""

import re
from pathlib import Path

import pytest

from hybridsnn.artifacts import check_name
from hybridsnn.pipeline import load_recipe, plan

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "pipelines").iterdir())
MAKEFILE = (ROOT / "Makefile").read_text()


def test_there_are_recipes() -> None:
    assert {"demo.yaml", "digits-from-scratch.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_can_be_planned(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)  # every name in it is known and every setting fits, or this raises
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

    for stage in ("convert", "finetune"):
        assert settings(control, stage) == settings(demo, stage)
    assert settings(control, "train-ann") == settings(demo, "train-ann").model_copy(update={"epochs": 0})


def test_the_makefile_names_recipes_that_exist() -> None:
    named = re.findall(r"pipelines/[\w.-]+", MAKEFILE)
    assert "pipelines/demo.yaml" in named
    assert all((ROOT / path).is_file() for path in named)


def test_every_target_of_the_makefile_is_phony_or_made() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.MULTILINE))
    phony = set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split())
    assert targets == phony
