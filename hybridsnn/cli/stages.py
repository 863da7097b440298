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
from hybridsnn.config import Choice, StageConfig, resolve, yaml_value
from hybridsnn.errors import ConfigError
from hybridsnn.options import taken

if TYPE_CHECKING:
    from hybridsnn.stages.base import Stage


class Setting(click.Option):
    """An option that is a setting of the stage and part of the result's identity.

    Attributes:
        section: of the help.
    """

    section: str = "Settings"


class StageCommand(click.Command):
    """Its help lists settings of the stage, those of each rule or balancer, and options of all stages apart."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {Setting.section: []}
        shared: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                rows = sections.setdefault(param.section, []) if isinstance(param, Setting) else shared
                rows.append(record)
        for title, rows in (*sections.items(), ("Run options", shared)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class OneOf(click.Choice):
    """Shows the choices; the settings refuse others, all problems in one message."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value


class InYAML(click.ParamType):
    """A value of any other type, written as in a recipe."""

    name = "yaml"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return yaml_value(value, param.opts[0] if param else self.name) if isinstance(value, str) else value


def _parameter_type(annotation: Any, metadata: Iterable[Any] = ()) -> click.ParamType:
    """The type of the option for a setting of this type."""
    for mark in metadata:
        if isinstance(mark, Choice):
            return OneOf(sorted(mark.names))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _parameter_type(arguments[0], arguments[1:])
    if origin is Literal:
        return OneOf([str(choice) for choice in arguments])
    if origin in (Union, types.UnionType):
        present = [argument for argument in arguments if argument is not type(None)]
        return _parameter_type(present[0]) if len(present) == 1 else InYAML()
    simple: dict[Any, click.ParamType] = {
        int: click.INT,
        float: click.FLOAT,
        bool: click.BOOL,
        str: click.STRING,
        Path: click.Path(path_type=Path),
    }
    return simple.get(annotation, InYAML())


def _common_type(fields: Iterable[FieldInfo]) -> click.ParamType:
    """How to write what is a setting of several, each with its own type or choices."""
    first, *others = (_parameter_type(field.annotation, field.metadata) for field in fields)
    for other in others:
        if isinstance(first, OneOf) and isinstance(other, OneOf):
            first = OneOf(sorted({*first.choices, *other.choices}))
        elif type(first) is not type(other):
            return InYAML()
    return first


def _setting(
    name: str, fields: Sequence[FieldInfo], section: str = Setting.section, chooser: str = "", follows: str = ""
) -> Setting:
    """The option for one setting, or for the option of this name that several choices have.

    Args:
        fields: the setting as each of them has it.
        chooser: the setting that says whose option it is; empty for a setting that is always there.
        follows: the setting from which its default follows, if it does.
    """
    kebab, typed = name.replace("_", "-"), _common_type(fields)
    defaults = [field.get_default(call_default_factory=True) for field in fields]
    default, required = defaults[0], PydanticUndefined in defaults
    shown: bool | str = default not in (PydanticUndefined, None, "", (), {})
    if chooser and any(other != default for other in defaults):
        follows = chooser
    if follows:
        default, shown = None, f"depends on --{follows}"
    flag = isinstance(typed, click.types.BoolParamType)
    setting = Setting(
        [f"--{kebab}/--no-{kebab}" if flag else f"--{kebab}", name],
        type=None if flag else typed,
        required=required and not chooser,
        default=None if required else default,
        show_default=shown,
        help=" Or: ".join(dict.fromkeys(field.description for field in fields if field.description)),
    )
    setting.section = section
    return setting


def _settings(config: type[StageConfig], continues: type[StageConfig] | None) -> list[Setting]:
    """All settings of a stage, and then the options of what can be chosen, together where they belong to the same.

    Args:
        continues: the settings where it starts from a parent, if they are others.
    """
    from_start, from_parent = config.model_fields, {} if continues is None else continues.model_fields
    settings = []
    for name in (*from_start, *(name for name in from_parent if name not in from_start)):
        own = [fields[name] for fields in (from_start, from_parent) if name in fields]
        section = Setting.section
        if continues is not None and len(own) == 1:
            section = "Only without --from" if name in from_start else "Only with --from"
        settings.append(_setting(name, own, section, follows=config.follows.get(name, "")))
        first, last = (field.get_default(call_default_factory=True) for field in (own[0], own[-1]))
        if len(own) == 2 and last is not None and (name in config.follows or last != first):
            told = f"depends on --{config.follows[name]}" if name in config.follows else first
            settings[-1].show_default = f"{told}; with --from: {last}"
    everything: dict[str, set[str]] = {}
    for name, fields in config.options().items():
        everything.setdefault(config.chooser_of(name), set()).update(fields)
    options = []
    for name, fields in config.options().items():
        chooser = config.chooser_of(name)
        section = f"For --{chooser} {', '.join(fields)}" if len(fields) < len(everything[chooser]) else Setting.section
        options.append(_setting(name, [*fields.values()], section, chooser))
    return settings + options


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
        config = resolve(stage.settings(bool(sources)), given, stage.name)
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
        if not stage.needs_parent:
            otherwise = "none, it starts from nothing"
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
    settings = _settings(stage.config, stage.continues)
    names = {word for param in made.params for word in (param.name, *param.opts)} | {"--help", "where", "ctx"}
    for setting in settings:
        if not names.isdisjoint(own := {setting.name, *setting.opts}):
            raise taken(stage.name, str(setting.name))
        names |= own
    made.params[:0] = settings
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
