"""Commands that run recipes, compare results with published ones, and verify them."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hybridsnn.artifacts import Artifact, check_name
from hybridsnn.cli.console import print_table, tell
from hybridsnn.cli.options import Where, where_and_how
from hybridsnn.errors import ConfigError, DataError, OutOfTimeError

if TYPE_CHECKING:
    from hybridsnn.recipes.recipe import Step
    from hybridsnn.recipes.running import Planned
    from hybridsnn.stages.base import Environment

# Of a table of results, in a terminal.
SHOWN = (
    "recipe", "column", "published (%)", "ours (%)", "± (%)", "difference (points)", "to its ANN (points)",
    "published to its ANN (points)", "T", "T published", "seeds", "data set", "wall time (s)", "note",
)  # fmt: skip

preset_option = click.option(
    "--preset", default="full", show_default=True, help="One of the recipe's presets of parameters, such as laptop."
)
overrides_option = click.option(
    "--set",
    "overrides",
    metavar="NAME=VALUE",
    multiple=True,
    help="Change a setting (step.setting=VALUE) or a parameter (parameter=VALUE) of the recipe. Can be repeated.",
)


@click.command("run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--run", "run_name", metavar="NAME", help="Name of the run.  [default: the recipe's name, and the preset]"
)
@overrides_option
@click.option("--plan", "only_plan", is_flag=True, help="Show what would be done, and do nothing.")
@preset_option
@where_and_how
def run_command(
    recipe: Path,
    run_name: str | None,
    overrides: tuple[str, ...],
    only_plan: bool,
    preset: str,
    where: Where,
) -> None:
    """Run a recipe: the stages whose artifacts are not current.

    \b
    Example:
        hybridsnn run pipelines/demo.yaml --set ann.epochs=5
    """
    from hybridsnn.recipes import running
    from hybridsnn.recipes.recipe import load_recipe

    loaded = load_recipe(recipe, overrides, preset=preset)
    check_name(run_name or loaded.run_name, "--run")
    run_folder = where.checkpoints / (run_name or loaded.run_name)
    environment = where.environment
    click.echo(f"{loaded.name}: {loaded.description}" if loaded.description else loaded.name)
    planned = running.plan(loaded, run_folder, environment)
    columns = ("step", "stage", "reads", "status", "why")
    print_table(
        columns, [(p.step.name, p.step.stage.name, ", ".join(p.step.sources), p.status, p.reason) for p in planned]
    )
    if only_plan:
        return

    for artifact in running.run(loaded, run_folder, environment, **_telling(environment), fresh=where.fresh):
        if "accuracy.csv" in artifact.manifest.files:
            with artifact.file("accuracy.csv").open(encoding="utf-8", newline="") as stream:
                header, *rows = csv.reader(stream)
            print_table(header, rows)


def _telling(environment: "Environment") -> dict[str, Any]:
    """The callbacks of a run before and after each step."""

    def starting(planned: "Planned") -> None:
        if planned.status != "current":
            resuming = f", {planned.reason}" if planned.status == "interrupted" else ""
            environment.progress.say(f"{planned.step.name}: {planned.step.stage.name}{resuming}")

    def done(step: "Step", artifact: Artifact, made: bool) -> None:
        tell(artifact, made)

    return {"on_step": starting, "on_done": done}


@click.command("table")
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@preset_option
@overrides_option
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of seeds (0, 1, ...) that each recipe is run with.",
)
@click.option("--title", default="Results", show_default=True, help="Title of the page.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the numbers (CSV), their evidence and a page.",
)
@where_and_how
def table_command(
    recipes: tuple[Path, ...],
    preset: str,
    overrides: tuple[str, ...],
    seeds: int,
    title: str,
    output: Path | None,
    where: Where,
) -> None:
    """Run recipes and compare their results with the published ones.

    A recipe whose data set is missing becomes a row that says so. The numbers are written after every recipe, the page
    at the end.

    \b
    Example:
        hybridsnn table pipelines/cifar10-vgg5.yaml --preset laptop --data FOLDER
    """
    from hybridsnn.recipes import running
    from hybridsnn.recipes.recipe import load_recipe
    from hybridsnn.recipes.table import Table
    from hybridsnn.reporting import as_text, results_table, write_table_page

    environment = where.environment
    rows = []
    for path in recipes:
        changes = [[*overrides, f"seed={seed}"] if seeds > 1 else overrides for seed in range(seeds)]
        rows.append((load_recipe(path), [load_recipe(path, values, preset=preset) for values in changes]))
        if rows[-1][0].row is None:
            raise ConfigError(f"{path}: is no row of a table; leave it out, or write its row")

    table, interruption = Table(), None
    for paper, runs in rows:
        missing, made = False, []
        for seed, recipe in enumerate(runs):
            run_folder = where.checkpoints / (recipe.run_name if seed == 0 else f"{recipe.run_name}-seed{seed}")
            try:
                if interruption is None:
                    environment.progress.say(f"{run_folder.name}: {recipe.description}")
                    running.run(recipe, run_folder, environment, fresh=where.fresh, **_telling(environment))
            except DataError as error:
                environment.progress.say(f"{run_folder.name}: {error}")
                missing = True
            except OutOfTimeError as error:  # what was made is a table too
                interruption = error
            planned = running.plan(recipe, run_folder, environment)
            made.append({step.step.name: step.artifact for step in planned if step.artifact})
        table.add_row(runs[0], paper, made, missing=missing)
        if output:
            table.write(output)
    if output:
        write_table_page(title, table.results, table.curves, output / "index.html")
    numbers = results_table(table.results)[[*SHOWN]]
    print_table(list(numbers.columns), as_text(numbers).to_numpy().tolist())
    if output:
        click.echo(f"{output / 'index.html'}")
    if interruption is not None:
        raise interruption


@click.command("results")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def results_command(folder: Path) -> None:
    """Verify every number of the tables in FOLDER.

    Writes the tables to FOLDER/README.md. A number must be in the metrics of an evaluation, whose hash is in its
    manifest, as are the hashes of what it was made from, and so on back to the first training. The command fails at a
    number for which this does not hold.

    \b
    Example:
        hybridsnn results docs/results
    """
    from hybridsnn.recipes.table import page

    text, numbers = page(folder)
    (folder / "README.md").write_text(text, encoding="utf-8")
    click.echo(f"{numbers} numbers verified; {folder / 'README.md'}")
