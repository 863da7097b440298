"""The command line: the only package that prints or exits."""

import sys
import traceback
from typing import Any

import click

from hybridsnn import __version__
from hybridsnn.cli.plugins import plugin_option
from hybridsnn.cli.recipes import results_command, run_command, table_command
from hybridsnn.cli.showing import list_command, show_command
from hybridsnn.errors import HybridSNNError, OutOfTimeError
from hybridsnn.registry import unknown

TIME_LIMIT_REACHED = 75  # exit code: the same command resumes (EX_TEMPFAIL of sysexits.h)

STAGE_HELP: dict[str, str] = {
    "train-ann": "Train an ANN to convert.",
    "load-ann": "Load an ANN that was trained elsewhere.",
    "convert": "Turn a trained network into a spiking one.",
    "finetune": "Train a spiking network further.",
    "evaluate": "Measure accuracy and spikes on the test images.",
    "report": "Write tables, figures and a page from evaluations.",
    "export": "Write a spiking network as files for other tools.",
}


def main() -> None:
    """The `hybridsnn` command."""
    command_line(prog_name="hybridsnn")


class CommandLine(click.Group):
    """The commands; those of stages are built when asked for. An error becomes one line and an exit code."""

    def main(self, *positional: Any, **extra: Any) -> Any:
        arguments = extra.pop("args", None)
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        debug = "--debug" in arguments
        extra["args"] = [argument for argument in arguments if argument != "--debug"]
        extra["standalone_mode"] = False
        try:
            code = super().main(*positional, **extra)
        except (KeyboardInterrupt, click.Abort):
            code = _fail("interrupted; the same command resumes where it was interrupted", debug, 130)
        except click.UsageError as error:
            help_hint = f" (see `{error.ctx.command_path} --help`)" if error.ctx else ""
            code = _fail(f"{error.format_message()}{help_hint}", debug)
        except click.ClickException as error:
            code = _fail(error.format_message(), debug)
        except OutOfTimeError as error:
            click.echo(str(error), err=True)
            code = TIME_LIMIT_REACHED
        except (HybridSNNError, OSError) as error:
            code = _fail(str(error), debug)
        sys.exit(code if isinstance(code, int) else 0)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*STAGE_HELP, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        from hybridsnn.cli.stages import stage_command  # what computes comes with it, so that help is immediate
        from hybridsnn.stages import STAGES

        return stage_command(STAGES[cmd_name], STAGES) if cmd_name in STAGES else None

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


@click.group(cls=CommandLine, invoke_without_command=True, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="hybridsnn", message="%(prog)s %(version)s")
@plugin_option
@click.option("--debug", is_flag=True, expose_value=False, help="Print the traceback of an error; can stand anywhere.")
@click.pass_context
def command_line(ctx: click.Context) -> None:
    """Turn a trained network (ANN) into a spiking network (SNN) that is accurate in few time steps, stage by stage.

    \b
    Three commands that need neither data nor a GPU:
        hybridsnn train-ann
        hybridsnn convert --balance max
        hybridsnn finetune --method stdb

    Every stage reads the newest fitting artifact of a run and writes a new one: a folder under checkpoints/RUN that is
    never changed and records how it was made. A repeated command makes nothing twice, and resumes if it was
    interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for _command in (run_command, table_command, results_command, show_command, list_command):
    command_line.add_command(_command)
