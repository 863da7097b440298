"""The command line: the only file that prints or exits."""

import csv
import importlib
import inspect
import json
import math
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hybridsnn import __version__
from hybridsnn.artifacts import MANIFEST, Artifact, check_name, lineage, survey
from hybridsnn.config import Choice, resolve
from hybridsnn.errors import ArtifactError, ConfigError, DataError, HybridSNNError, OutOfTimeError
from hybridsnn.registry import unknown

if TYPE_CHECKING:  # what computes is imported by the command that needs it, so that help is immediate
    from hybridsnn.pipeline import Planned
    from hybridsnn.recipes import Step
    from hybridsnn.stages.base import Environment, Stage

Item = TypeVar("Item")

TIME_IS_UP = 75  # the exit code of a command that stopped and goes on when repeated (EX_TEMPFAIL of sysexits.h)

STAGE_HELP: dict[str, str] = {
    "train-ann": "Train a network to convert later.",
    "load-ann": "Bring in a trained network from elsewhere.",
    "convert": "Turn a trained network into a spiking one.",
    "finetune": "Train a spiking network further.",
    "evaluate": "Measure networks on the test images.",
    "report": "Gather evaluations into tables, figures and a page.",
}
REGISTRIES: dict[str, tuple[str, str]] = {
    "stages": ("hybridsnn.stages", "STAGES"),
    "networks": ("hybridsnn.networks", "NETWORKS"),
    "datasets": ("hybridsnn.data", "DATASETS"),
    "augmentations": ("hybridsnn.data", "AUGMENTATIONS"),
    "balancers": ("hybridsnn.conversion", "BALANCERS"),
    "encoders": ("hybridsnn.encoders", "ENCODERS"),
    "methods": ("hybridsnn.learning", "RULES"),
    "surrogates": ("hybridsnn.surrogates", "SURROGATES"),
    "optimizers": ("hybridsnn.learning", "OPTIMISERS"),
    "schedules": ("hybridsnn.learning", "SCHEDULES"),
    "kernels": ("hybridsnn.kernels", "KERNELS"),
}


# Of a table of results, in a terminal.
SHOWN = (
    "recipe", "column", "published (%)", "ours (%)", "± (%)", "difference (points)", "T", "T published", "seeds",
    "data set", "wall time (s)", "note",
)  # fmt: skip


def main() -> None:
    """The `hybridsnn` command."""
    command_line(prog_name="hybridsnn")


class CommandLine(click.Group):
    """Commands of which those for stages are made when asked for; errors become one line and an exit code."""

    def main(self, *positional: Any, **extra: Any) -> Any:
        arguments = extra.pop("args", None)
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        debug = "--debug" in arguments
        extra["args"] = [argument for argument in arguments if argument != "--debug"]
        extra["standalone_mode"] = False
        try:
            code = super().main(*positional, **extra)
        except (KeyboardInterrupt, click.Abort):
            code = _fail("interrupted; the same command resumes where it stopped", debug, 130)
        except click.UsageError as error:
            help_hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
            code = _fail(f"{error.format_message()}{help_hint}", debug)
        except click.ClickException as error:
            code = _fail(error.format_message(), debug)
        except OutOfTimeError as error:
            click.echo(str(error), err=True)
            code = TIME_IS_UP
        except (HybridSNNError, OSError) as error:
            code = _fail(str(error), debug)
        sys.exit(code if isinstance(code, int) else 0)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*STAGE_HELP, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        from hybridsnn.stages import STAGES

        return _stage_command(STAGES[cmd_name], STAGES) if cmd_name in STAGES else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from hybridsnn.stages import STAGES

            raise unknown("command", args[0], [*STAGES, *self.commands])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Stages"):
            formatter.write_dl(list(STAGE_HELP.items()))
        with formatter.section("Recipes and results"):
            formatter.write_dl([(name, command.get_short_help_str(80)) for name, command in self.commands.items()])


def _fail(message: str, debug: bool, code: int = 2) -> int:
    if debug:
        traceback.print_exc()
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code


checkpoints_option = click.option(
    "--checkpoints",
    type=click.Path(path_type=Path, file_okay=False),
    default="checkpoints",
    envvar="HYBRIDSNN_CHECKPOINTS",
    show_default=True,
    show_envvar=True,
    help="Folder that holds the runs.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="Where to compute: auto, cpu, cuda, cuda:1, ..."
)
data_option = click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="HYBRIDSNN_DATA",
    show_envvar=True,
    help="Folder that holds the data sets, or the folder of images.",
)
download_option = click.option("--download", is_flag=True, help="Fetch the data set if it is not there.")
fresh_option = click.option(
    "--resume/--fresh", default=True, help="Go on where a stopped run of the same command was, or start it over."
)
scale_option = click.option(
    "--scale", default="full", show_default=True, help="One of the recipe's scales: how much of everything."
)
overrides_option = click.option(
    "--set", "overrides", metavar="NAME=VALUE", multiple=True, help="Replace a setting (step.setting) or turn a knob. "
    "Can be repeated.",
)  # fmt: skip
stop_after_option = click.option(
    "--stop-after",
    metavar="MINUTES",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after so long, exit with 75, and go on when the same command is given again.",
)


@click.group(cls=CommandLine, invoke_without_command=True, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="hybridsnn", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error came from; goes anywhere.")
@click.pass_context
def command_line(ctx: click.Context) -> None:
    """Turn a trained network into a spiking one that is accurate in few time steps, stage by stage.

    \b
    Three commands, which need no data and no GPU:
        hybridsnn train-ann
        hybridsnn convert --balance max
        hybridsnn finetune --method stdb

    Every stage reads the newest fitting artifact of a run and writes one more: a folder under checkpoints/RUN that is
    never changed and says what made it. Repeat a command and nothing is made twice; stop it and it resumes.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


# Stages: one command each, made from the stage's settings.


class Setting(click.Option):
    """An option that is a setting of the stage, not of where and how it runs."""


class StageCommand(click.Command):
    """Its help tells the stage's settings from the options that all stages share."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = [(param, param.get_help_record(ctx)) for param in self.get_params(ctx)]
        for title, wanted in (("Settings", True), ("Where and how", False)):
            rows = [record for param, record in records if record and isinstance(param, Setting) is wanted]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class OneOf(click.Choice):
    """Shows the choices but leaves refusing to the settings, which name all problems at once."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


def _parameter_type(annotation: Any, metadata: Iterable[Any] = ()) -> click.ParamType:
    """How a setting of this type is written on the command line."""
    for mark in metadata:
        if isinstance(mark, Choice):
            return OneOf(sorted(mark.registry))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _parameter_type(arguments[0], arguments[1:])
    if origin is Literal:
        return OneOf([str(choice) for choice in arguments])
    if origin in (Union, types.UnionType):
        (present,) = (argument for argument in arguments if argument is not type(None))
        return _parameter_type(present)
    simple: dict[Any, click.ParamType] = {
        int: click.INT,
        float: click.FLOAT,
        str: click.STRING,
        Path: click.Path(path_type=Path),
    }
    return simple[annotation]


def _setting(name: str, field: FieldInfo) -> Setting:
    """The option for one field of a stage's settings."""
    kebab = name.replace("_", "-")
    default = field.get_default(call_default_factory=True)
    required = default is PydanticUndefined
    flag = field.annotation in (bool, bool | None)
    return Setting(
        [f"--{kebab}/--no-{kebab}" if flag else f"--{kebab}", name],
        type=None if flag else _parameter_type(field.annotation, field.metadata),
        required=required,
        default=None if required else default,
        show_default=default not in (PydanticUndefined, None, "", (), {}),
        help=field.description,
    )


def _stage_command(stage: "Stage", stages: Mapping[str, "Stage"]) -> click.Command:
    from hybridsnn.stages.base import default_parents, execute

    several = stage.many or stage.each

    @click.option("--run", "run_name", metavar="NAME", default="default", show_default=True, help="The run to work in.")
    @checkpoints_option
    @click.option("--name", help="What to call the artifact instead of its default name.")
    @device_option
    @data_option
    @download_option
    @fresh_option
    @stop_after_option
    @click.pass_context
    def command(
        ctx: click.Context,
        run_name: str,
        checkpoints: Path,
        name: str | None,
        device: str,
        data: Path | None,
        download: bool,
        resume: bool,
        stop_after: float | None,
        sources: str | tuple[str, ...] | None = None,
        **settings: Any,
    ) -> None:
        given = {key: value for key, value in settings.items() if _is_given(ctx, key)}
        config = resolve(stage.config, given, stage.name)
        check_name(run_name, "--run")
        run_folder = checkpoints / run_name
        environment = _environment(device, data, download, stop_after)
        if sources:
            opened = tuple(
                _named(source, run_folder, stage.consumes)
                for source in ([sources] if isinstance(sources, str) else sources)
            )
            executions = [opened] if stage.many or len(opened) == 1 else [(artifact,) for artifact in opened]
        else:
            executions = default_parents(stage, run_folder, stages)
        if name and len(executions) > 1:
            raise ConfigError(f"--name: got '{name}' for {len(executions)} artifacts; choose one with --from")
        for parents in executions:
            if parents:
                environment.progress.say(f"{stage.name}: reads {', '.join(str(parent.path) for parent in parents)}")
            artifact, made = execute(stage, config, parents, run_folder, environment, name=name, fresh=not resume)
            _tell(artifact, made)

    if stage.consumes:
        kinds = " or ".join(stage.consumes)
        otherwise = "all of the run" if several else "the newest of the run that this command did not make"
        command = click.option(
            "--from",
            "sources",
            metavar="ARTIFACT",
            multiple=several,
            help=f"The {kinds} to read: its name in the run, or its folder. Without it: {otherwise}."
            + (" Can be repeated." if several else ""),
        )(command)
    paragraphs = [
        stage.summary,
        inspect.cleandoc(stage.config.__doc__ or ""),
        f"\b\nExample:\n    {stage.example}" if stage.example else "",
    ]
    made = click.command(stage.name, cls=StageCommand, help="\n\n".join(filter(None, paragraphs)))(command)
    made.params[:0] = [_setting(field_name, field) for field_name, field in stage.config.model_fields.items()]
    return made


def _is_given(ctx: click.Context, parameter: str) -> bool:
    return ctx.get_parameter_source(parameter) is not ParameterSource.DEFAULT


def _environment(device: str, data: Path | None, download: bool, stop_after: float | None) -> "Environment":
    from hybridsnn.stages.base import Environment

    progress = Bars() if sys.stderr.isatty() else Lines()
    end = math.inf if stop_after is None else time.monotonic() + 60 * stop_after
    return Environment(device, data, download, progress, time_is_up=lambda: time.monotonic() >= end)


def _named(source: str, run_folder: Path, kinds: Sequence[str] | None = None) -> Artifact:
    """The artifact that a user means: by its name in the run, by run and name, or by its folder."""
    candidates = (run_folder / source, run_folder.parent / source, Path(source))
    folder = next((candidate for candidate in candidates if (candidate / MANIFEST).is_file()), None)
    if folder is None:
        folder = Path(source) if "/" in source else run_folder / source
    return Artifact.open(folder, kinds)


@command_line.command("run")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--run", "run_name", metavar="NAME", help="The run to work in.  [default: the recipe's name, and the scale]"
)
@overrides_option
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be done, and do nothing.")
@scale_option
@checkpoints_option
@device_option
@data_option
@download_option
@fresh_option
@stop_after_option
def run_command(
    recipe: Path,
    run_name: str | None,
    overrides: tuple[str, ...],
    only_plan: bool,
    scale: str,
    checkpoints: Path,
    device: str,
    data: Path | None,
    download: bool,
    resume: bool,
    stop_after: float | None,
) -> None:
    """Run a recipe: make what is not current, resume what was interrupted.

    \b
    Example:
        hybridsnn run pipelines/demo.yaml --set ann.epochs=5
    """
    from hybridsnn import pipeline
    from hybridsnn.recipes import load_recipe

    loaded = load_recipe(recipe, overrides, scale=scale)
    check_name(run_name or loaded.run_name, "--run")
    run_folder = checkpoints / (run_name or loaded.run_name)
    environment = _environment(device, data, download, stop_after)
    click.echo(f"{loaded.name}: {loaded.description}" if loaded.description else loaded.name)
    planned = pipeline.plan(loaded, run_folder, environment)
    columns = ("step", "stage", "reads", "status", "why")
    _table(columns, [(p.step.name, p.step.stage.name, ", ".join(p.step.sources), p.status, p.reason) for p in planned])
    if only_plan:
        return

    for artifact in pipeline.run(loaded, run_folder, environment, **_telling(environment), fresh=not resume):
        if "accuracy.csv" in artifact.manifest.files:
            with artifact.file("accuracy.csv").open(encoding="utf-8", newline="") as stream:
                header, *rows = csv.reader(stream)
            _table(header, rows)


def _telling(environment: "Environment") -> dict[str, Any]:
    """What a run calls before and after each step."""

    def starting(planned: "Planned") -> None:
        if planned.status != "current":
            resuming = f", {planned.reason}" if planned.status == "interrupted" else ""
            environment.progress.say(f"{planned.step.name}: {planned.step.stage.name}{resuming}")

    def done(step: "Step", artifact: Artifact, made: bool) -> None:
        _tell(artifact, made)

    return {"on_step": starting, "on_done": done}


@command_line.command("table")
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
@scale_option
@overrides_option
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each recipe.")
@click.option("--title", default="Results", show_default=True, help="Title of the page.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the numbers and a page.",
)
@checkpoints_option
@device_option
@data_option
@download_option
@fresh_option
@stop_after_option
def table_command(
    recipes: tuple[Path, ...],
    scale: str,
    overrides: tuple[str, ...],
    seeds: int,
    title: str,
    output: Path | None,
    checkpoints: Path,
    device: str,
    data: Path | None,
    download: bool,
    resume: bool,
    stop_after: float | None,
) -> None:
    """Run recipes and set what they gave beside what their papers say.

    A recipe whose data set is missing becomes a row that says so. The numbers are written after every recipe, so
    what is done is there whatever happens to the rest; the page comes last.

    \b
    Example:
        hybridsnn table pipelines/cifar10-vgg5.yaml --scale laptop --data FOLDER
    """
    from hybridsnn import pipeline
    from hybridsnn.recipes import load_recipe
    from hybridsnn.reporting import as_text, results_table, write_table_page
    from hybridsnn.results import Table

    environment = _environment(device, data, download, stop_after)
    rows = []
    for path in recipes:
        turned = [[*overrides, f"seed={seed}"] if seeds > 1 else overrides for seed in range(seeds)]
        rows.append((load_recipe(path), [load_recipe(path, values, scale=scale) for values in turned]))
        if rows[-1][0].row is None:
            raise ConfigError(f"{path}: is no row of a table; leave it out, or write its row")

    table, stopped = Table(), None
    for paper, runs in rows:
        missing, made = False, []
        for seed, recipe in enumerate(runs):
            run_folder = checkpoints / (recipe.run_name if seed == 0 else f"{recipe.run_name}-seed{seed}")
            try:
                if stopped is None:
                    environment.progress.say(f"{run_folder.name}: {recipe.description}")
                    pipeline.run(recipe, run_folder, environment, fresh=not resume, **_telling(environment))
            except DataError as error:
                environment.progress.say(f"{run_folder.name}: {error}")
                missing = True
            except OutOfTimeError as error:  # what was made is a table too
                stopped = error
            planned = pipeline.plan(recipe, run_folder, environment)
            made.append({step.step.name: step.artifact for step in planned if step.artifact})
        table.add_row(runs[0], paper, made, missing=missing)
        if output:
            table.write(output)
    if output:
        write_table_page(title, table.results, table.curves, output / "index.html")
    numbers = results_table(table.results)[[*SHOWN]]
    _table(list(numbers.columns), as_text(numbers).to_numpy().tolist())
    if output:
        click.echo(f"{output / 'index.html'}")
    if stopped is not None:
        raise stopped


@command_line.command("results")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def results_command(folder: Path) -> None:
    """Trace every number of the tables in FOLDER to its run, and write FOLDER/README.md.

    A number is what the metrics of an evaluation say, whose hash is in its manifest, which names the hashes of what it
    was made from, and so on down to the first training. One that is not stops the command.

    \b
    Example:
        hybridsnn results docs/results
    """
    from hybridsnn.results import page

    text, numbers = page(folder)
    (folder / "README.md").write_text(text, encoding="utf-8")
    click.echo(f"{numbers} numbers traced; {folder / 'README.md'}")


# What artifacts say, for people and for programs.


def _tell(artifact: Artifact, made: bool) -> None:
    """Where an artifact is, and its headline numbers."""
    note = f"made in {_duration(artifact.manifest.wall_seconds)}" if made else "is current, nothing to do"
    click.echo(f"{artifact.path}  {note}")
    for label, value in _headline(artifact).items():
        click.echo(f"    {label}: {value}")
    if "index.html" in artifact.manifest.files:
        click.echo(f"    open {artifact.file('index.html')}")


def _headline(artifact: Artifact) -> dict[str, str]:
    """The last value of each metric that sums a network up, of the epoch whose weights were kept."""
    if "metrics.csv" not in artifact.manifest.files:
        return {}
    shown: dict[str, Callable[[float], str]] = {
        "accuracy": lambda fraction: f"{100 * fraction:.2f} %",
        "spikes-per-image": lambda count: f"{count:,.0f}",
        "exit-accuracy": lambda fraction: f"{100 * fraction:.2f} %",
        "exit-mean-steps": lambda steps: f"{steps:.2f}",
    }
    with artifact.file("metrics.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    kept = next((row["epoch"] for row in rows if row["metric"] == "kept-epoch"), None)
    numbers = {}
    for row in rows:
        of_the_kept = kept is None or row["epoch"] == kept
        if row["metric"] in shown and not row["layer"] and row["value"] and of_the_kept:
            steps = f" (T = {float(row['step']):.0f})" if row["step"] else ""
            label = f"{row['split']} {row['metric'].replace('-', ' ')}".strip()
            numbers[label] = shown[row["metric"]](float(row["value"])) + steps
    return numbers


@command_line.command("show")
@click.argument("what", default="default")
@checkpoints_option
@click.option("--json", "as_json", is_flag=True, help="For programs: JSON on standard output.")
def show_command(what: str, checkpoints: Path, as_json: bool) -> None:
    """Show a run, or an artifact and what it was made from.

    WHAT is a run (default), a run and an artifact (default/convert-max), or a folder.

    \b
    Example:
        hybridsnn show default/convert-max
    """
    folder = next((path for path in (checkpoints / what, Path(what)) if path.is_dir()), None)
    if folder is None:
        runs = sorted(path.name for path in checkpoints.iterdir() if path.is_dir()) if checkpoints.is_dir() else []
        if not runs or "/" in what:
            Artifact.open(checkpoints / what)
        raise unknown("show", what, runs)
    if (folder / MANIFEST).is_file():
        _show_artifact(Artifact.open(folder), as_json)
    else:
        _show_run(folder, as_json)


def _show_run(folder: Path, as_json: bool) -> None:
    artifacts, problems = survey(folder)
    if as_json:
        listed = [
            {"path": str(a.path), "digest": a.digest, "manifest": a.manifest.model_dump(mode="json")} for a in artifacts
        ]
        _json({"path": str(folder), "artifacts": listed, "unreadable": [str(problem) for problem in problems]})
        return
    if not artifacts and not problems:
        raise ArtifactError(f"{folder}: holds no artifacts; make one with `hybridsnn train-ann --run {folder.name}`")
    rows = []
    for artifact in artifacts:
        manifest = artifact.manifest
        numbers = ", ".join(f"{label} {value}" for label, value in _headline(artifact).items())
        parents = ", ".join(parent.name for parent in manifest.parents)
        made = f"{manifest.created:%Y-%m-%d %H:%M}"
        rows.append(
            (artifact.name, manifest.kind, manifest.stage, parents, made, _duration(manifest.wall_seconds), numbers)
        )
    _table(("artifact", "kind", "stage", "made from", "made (UTC)", "took", "numbers"), rows)
    for problem in problems:
        click.echo(f"unreadable: {problem}", err=True)


def _show_artifact(artifact: Artifact, as_json: bool) -> None:
    manifest = artifact.manifest
    try:
        ancestors = lineage(artifact)[:-1]
    except ArtifactError as error:
        click.echo(f"warning: {error}", err=True)
        ancestors = []
    if as_json:
        _json(
            {
                "path": str(artifact.path),
                "digest": artifact.digest,
                "manifest": manifest.model_dump(mode="json"),
                "config": artifact.config(),
                "headline": _headline(artifact),
                "lineage": [{"path": str(a.path), "kind": a.kind, "digest": a.digest} for a in ancestors],
            }
        )
        return
    facts = {
        "artifact": f"{artifact.path} ({manifest.kind}, verified)",
        "stage": manifest.stage,
        "made": f"{manifest.created:%Y-%m-%d %H:%M:%S} UTC in {_duration(manifest.wall_seconds)} on {manifest.device}",
        "peak memory": f"{manifest.peak_memory_bytes / 2**20:,.0f} MiB",
        "seed": manifest.seed,
        "data": f"{manifest.data.name} ({manifest.data.fingerprint[:12]})" if manifest.data else None,
        "versions": ", ".join(f"{library} {version}" for library, version in manifest.versions.items()),
        "digest": artifact.digest[:12],
        "made from": " -> ".join(parent.name for parent in ancestors or manifest.parents) or None,
        "files": ", ".join(manifest.files),
        **_headline(artifact),
        **{f"  {setting}": value for setting, value in artifact.config().items()},
    }
    known = {label: value for label, value in facts.items() if value is not None}
    width = max(map(len, known))
    for label, value in known.items():
        click.echo(f"{label:<{width}}  {value}")


@command_line.command("list")
@click.argument("registry", required=False)
def list_command(registry: str | None) -> None:
    """List what can be chosen: networks, data sets, methods and so on.

    \b
    Example:
        hybridsnn list methods
    """
    if registry is None:
        for name in REGISTRIES:
            click.echo(f"hybridsnn list {name}")
        return
    if registry not in REGISTRIES:
        raise unknown("list", registry, list(REGISTRIES))
    module, attribute = REGISTRIES[registry]
    entries = getattr(importlib.import_module(module), attribute)
    width = max(map(len, entries))
    for name, entry in entries.items():
        click.echo(f"{name:<{width}}  {entry.summary}")


# Printing.


def _json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # as Text: brackets in a name are not markup
    # Into a file or a pipe nothing is wrapped.
    Console(width=None if sys.stdout.isatty() else 240).print(table)


class Bars:
    """Progress for a person at a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)

    def track(self, iterable: Iterable[Item], description: str, total: int) -> Iterator[Item]:
        task = self.progress.add_task(description, total=total)
        self.progress.start()
        try:
            for item in iterable:
                yield item
                self.progress.advance(task)
        finally:
            self.progress.remove_task(task)
            if not self.progress.task_ids:
                self.progress.stop()

    def say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Lines:
    """Progress for a log file: no control codes, and one line in ten seconds at most beside what stages say."""

    interval = 10.0  # seconds

    def __init__(self) -> None:
        self.last = time.monotonic()

    def track(self, iterable: Iterable[Item], description: str, total: int) -> Iterator[Item]:
        for done, item in enumerate(iterable, start=1):
            yield item
            if time.monotonic() - self.last > self.interval:
                self.say(f"{description}: {done} of {total}")

    def say(self, text: str) -> None:
        self.last = time.monotonic()
        click.echo(text, err=True)
