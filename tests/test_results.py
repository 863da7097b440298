"""Tables of results: every number is what an artifact measured, and what was tampered with is noticed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_pipeline import above

from hybridsnn.artifacts import Artifact
from hybridsnn.errors import ArtifactError
from hybridsnn.recipes.recipe import Recipe
from hybridsnn.recipes.running import run
from hybridsnn.recipes.table import EVIDENCE, RESULTS, Table, page
from hybridsnn.stages.base import Environment


def artifacts_of(recipe: Recipe, folder: Path) -> dict[str, Artifact]:
    return {artifact.name: artifact for artifact in run(recipe, folder, Environment())}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """One recipe run with two seeds, the same without its data set, and half of it."""
    recipes = [above(tmp_path, [f"seed={seed}"], "small") for seed in (0, 1)]
    runs = [artifacts_of(recipe, tmp_path / f"run{seed}") for seed, recipe in enumerate(recipes)]
    table = Table()
    table.add_row(recipes[0], above(tmp_path), runs)
    table.add_row(above(tmp_path, preset="large"), above(tmp_path), [{}], missing=True)
    table.add_row(above(tmp_path), above(tmp_path), [{"ann": runs[0]["ann"]}])
    return table


def test_results_say_what_was_measured(table: Table) -> None:
    made, missing, unfinished = table.results
    assert (made.recipe, made.preset, made.network, made.column) == ("above", "small", "mine", "a toy")
    assert made.accuracies == (87.5, 87.5) and made.mean == 87.5 and made.spread == 0
    assert made.difference == 37.5
    assert made.wall_seconds is not None and len(made.digests) == 2 and "hybridsnn" in made.versions
    assert missing.accuracies == unfinished.accuracies == ()
    assert missing.note == "the data set was not there" and unfinished.note == "not run yet"
    assert set(table.evidence) > set(made.digests)


def test_a_table_is_read_as_it_was_written(table: Table, tmp_path: Path) -> None:
    table.write(tmp_path / "toys")
    again = Table.read(tmp_path / "toys")
    assert again.results == table.results and again.evidence == table.evidence
    text, numbers = page(tmp_path)
    assert numbers == 2 and "## toys" in text and "87.50" in text


def evidence_without(folder: Path, name: str) -> None:
    evidence = json.loads((folder / EVIDENCE).read_text())
    kept = {digest: texts for digest, texts in evidence.items() if json.loads(texts["manifest.json"])["name"] != name}
    (folder / EVIDENCE).write_text(json.dumps(kept))


def replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced(RESULTS, ",87.5,", ",97.5,"), "got 97.5 %, but"),
        (replaced(EVIDENCE, "accuracy,0.875", "accuracy,0.975"), "metrics.csv of"),
        (replaced(EVIDENCE, "epochs: 1", "epochs: 9"), "config.yaml of"),
        (replaced(EVIDENCE, '\\"wall_seconds\\": 0', '\\"wall_seconds\\": 1'), "was changed"),
        (lambda folder: evidence_without(folder, "test"), "is not in evidence.json"),
        (lambda folder: evidence_without(folder, "ann"), "is not in evidence.json"),
        (lambda folder: (folder / EVIDENCE).unlink(), "no readable results"),
        (replaced(RESULTS, "recipe,", "recipes,"), "no readable results"),
    ],
)
def test_what_cannot_be_traced_is_refused(
    table: Table, change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    table.write(tmp_path / "toys")
    change(tmp_path / "toys")
    with pytest.raises(ArtifactError, match=message):
        page(tmp_path)


def test_there_has_to_be_a_table(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no tables; make one with `hybridsnn table"):
        page(tmp_path)


def test_the_results_that_come_with_the_project_are_traced() -> None:
    folder = Path(__file__).parent.parent / "docs" / "results"
    text, numbers = page(folder)
    assert numbers > 0
    assert (folder / "README.md").read_text() == text, "make it again: hybridsnn results docs/results"
