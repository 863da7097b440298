"""The options that all commands share that run stages: folders, device, resuming."""

import functools
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hybridsnn.cli.console import Bars, Lines

if TYPE_CHECKING:
    from hybridsnn.stages.base import Environment


@dataclass(frozen=True)
class Where:
    """The values of those options.

    Attributes:
        checkpoints: the folder that holds the runs.
        fresh: start over instead of resuming.
    """

    checkpoints: Path
    environment: "Environment"
    fresh: bool


checkpoints_option = click.option(
    "--checkpoints",
    type=click.Path(path_type=Path, file_okay=False),
    default="checkpoints",
    envvar="HYBRIDSNN_CHECKPOINTS",
    show_default=True,
    show_envvar=True,
    help="Folder of the runs.",
)
_OPTIONS = (
    checkpoints_option,
    click.option("--device", default="auto", show_default=True, help="Device: auto, cpu, cuda, cuda:1, ..."),
    click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="HYBRIDSNN_DATA",
        show_envvar=True,
        help="Folder of the data sets, or the image folder itself.",
    ),
    click.option("--download", is_flag=True, help="Download the data set if it is missing."),
    click.option("--resume/--fresh", default=True, help="Resume what the same command left unfinished, or start over."),
    click.option(
        "--time-limit",
        metavar="MINUTES",
        type=click.FloatRange(min=0, min_open=True),
        help="Interrupt after this time with exit code 75; the same command resumes.",
    ),
)


def where_and_how(command: Callable[..., None]) -> Callable[..., None]:
    """Add these options to a command; it receives them as one argument, `where`."""

    @functools.wraps(command)
    def with_where(
        *positional: Any,
        checkpoints: Path,
        device: str,
        data: Path | None,
        download: bool,
        resume: bool,
        time_limit: float | None,
        **others: Any,
    ) -> None:
        from hybridsnn.stages.base import Environment

        progress = Bars() if sys.stderr.isatty() else Lines()
        end = math.inf if time_limit is None else time.monotonic() + 60 * time_limit
        environment = Environment(device, data, download, progress, time_is_up=lambda: time.monotonic() >= end)
        command(*positional, where=Where(checkpoints, environment, fresh=not resume), **others)

    for option in reversed(_OPTIONS):
        with_where = option(with_where)
    return with_where
