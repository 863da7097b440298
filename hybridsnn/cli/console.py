"""Console output: progress, tables, and the main metrics of an artifact."""

import csv
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import click

from hybridsnn.artifacts import Artifact

Item = TypeVar("Item")


def tell(artifact: Artifact, made: bool) -> None:
    """Print the path of an artifact and its main metrics."""
    note = f"made in {duration(artifact.manifest.wall_seconds)}" if made else "is current, nothing to do"
    click.echo(f"{artifact.path}  {note}")
    for label, value in headline(artifact).items():
        click.echo(f"    {label}: {value}")
    if "index.html" in artifact.manifest.files:
        click.echo(f"    open {artifact.file('index.html')}")


def headline(artifact: Artifact) -> dict[str, str]:
    """The last value of each main metric, at the epoch whose weights were kept."""
    if "metrics.csv" not in artifact.manifest.files:
        return {}
    shown: dict[str, Callable[[float], str]] = {
        "accuracy": lambda fraction: f"{100 * fraction:.2f} %",
        "ceiling": lambda fraction: f"{100 * fraction:.2f} %",
        "layer-synchronous-accuracy": lambda fraction: f"{100 * fraction:.2f} %",
        "latency": lambda steps: f"{steps:,.0f} steps",
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


def print_json(value: Any) -> None:
    """Print JSON on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def duration(seconds: float) -> str:
    """A duration as text: 2.1 s, 3 min 5 s, 2 h 18 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as wide as the terminal; not wrapped where there is none."""
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
    """Progress bars on a terminal."""

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
    """Progress in a log file: no control codes, at most one line in ten seconds beside the messages of stages."""

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
