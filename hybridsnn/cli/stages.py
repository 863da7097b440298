"""The command of each stage, made from its settings."""

import inspect
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hybridsnn.artifacts import MANIFEST, Artifact, check_name
from hybridsnn.cli.console import tell
from hybridsnn.cli.options import Where, where_and_how
from hybridsnn.config import Choice, resolve
from hybridsnn.errors import ConfigError

if TYPE_CHECKING:
    from hybridsnn.stages.base import Stage


class Setting(click.Option):
    """An option that is a setting of the stage and part of the result's identity."""


class StageCommand(click.Command):
    """Its help lists the settings of the stage apart from the options that all stages share."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = [(param, param.get_help_record(ctx)) for param in self.get_params(ctx)]
        for title, wanted in (("Settings", True), ("Run options", False)):
            rows = [record for param, record in records if record and isinstance(param, Setting) is wanted]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class OneOf(click.Choice):
    """Shows the choices; the settings refuse others, all problems in one message."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


def _parameter_type(annotation: Any, metadata: Iterable[Any] = ()) -> click.ParamType:
    """The type of the option for a setting of this type."""
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


def stage_command(stage: "Stage", stages: Mapping[str, "Stage"]) -> click.Command:
    """The command of a stage; `stages` are those that can make what it lacks."""
    from hybridsnn.stages.base import default_parents, execute

    several = stage.many or stage.each

    @click.option("--run", "run_name", metavar="NAME", default="default", show_default=True, help="Name of the run.")
    @click.option("--name", help="Name of the artifact, in place of its default name.")
    @where_and_how
    @click.pass_context
    def command(
        ctx: click.Context,
        run_name: str,
        name: str | None,
        where: Where,
        sources: str | tuple[str, ...] | None = None,
        **settings: Any,
    ) -> None:
        given = {key: value for key, value in settings.items() if _is_given(ctx, key)}
        config = resolve(stage.config, given, stage.name)
        check_name(run_name, "--run")
        run_folder = where.checkpoints / run_name
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
                reads = ", ".join(str(parent.path) for parent in parents)
                where.environment.progress.say(f"{stage.name}: reads {reads}")
            artifact, made = execute(
                stage, config, parents, run_folder, where.environment, name=name, fresh=where.fresh
            )
            tell(artifact, made)

    if stage.consumes:
        kinds = " or ".join(stage.consumes)
        otherwise = "all of the run" if several else "the newest of the run made by another command"
        command = click.option(
            "--from",
            "sources",
            metavar="ARTIFACT",
            multiple=several,
            help=f"Input ({kinds}): name of an artifact in the run, or its folder; unset: {otherwise}."
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


def _named(source: str, run_folder: Path, kinds: Sequence[str] | None = None) -> Artifact:
    """The artifact that a user means: by its name in the run, by run and name, or by its folder."""
    candidates = (run_folder / source, run_folder.parent / source, Path(source))
    folder = next((candidate for candidate in candidates if (candidate / MANIFEST).is_file()), None)
    if folder is None:
        folder = Path(source) if "/" in source else run_folder / source
    return Artifact.open(folder, kinds)
