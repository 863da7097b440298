"""Writes the page of a table: published results beside those of our runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from hybridsnn.errors import ArtifactError
from hybridsnn.reporting.page import render
from hybridsnn.reporting.recipe_figure import recipe_figure
from hybridsnn.reporting.results import ANN, Gap, Result, gaps
from hybridsnn.reporting.svg import inline_svg

FULL = "full"  # the preset whose numbers can be compared with the paper's


@dataclass(frozen=True)
class Number:
    """A result, and its difference to its own ANN."""

    result: Result
    to_ann: Gap

    @property
    def comparable(self) -> bool:
        """Whether it can be compared with the published number."""
        return self.result.preset == FULL


@dataclass(frozen=True)
class Entry:
    """The results of one recipe, with its heading and its figure, if there are curves."""

    name: str
    anchor: str
    network: str
    rows: tuple[Number, ...]
    figure: Markup | None

    def cell(self, column: str) -> list[Number]:
        """Its results in one column of the table."""
        return [row for row in self.rows if row.result.column == column]

    @property
    def data(self) -> list[str]:
        """The training and test images of each data set that it used or lacks, one line each."""
        return _distinct(_data(row.result) for row in self.rows)

    @property
    def run(self) -> list[Result]:
        """Its results that were run."""
        return [row.result for row in self.rows if row.result.accuracies]

    @property
    def presets(self) -> list[str]:
        """The presets it was run with."""
        return _distinct(result.preset for result in self.run)

    @property
    def conditions(self) -> list[str]:
        """Preset, device and date of its runs, each combination once."""
        return _distinct(f"preset {result.preset} on {result.device}, {result.created}" for result in self.run)

    @property
    def spread(self) -> bool:
        """Whether one of its numbers comes from several seeds."""
        return any(result.spread is not None for result in self.run)

    @property
    def notes(self) -> list[str]:
        """Why numbers are missing, and remarks on others."""
        noted = [row.result for row in self.rows if row.result.note]
        return _distinct(f"{result.column}: {result.note}" if result.accuracies else result.note for result in noted)


@dataclass(frozen=True)
class Paper:
    """The part of the table that reproduces one paper."""

    name: str
    anchor: str
    columns: tuple[str, ...]
    recipes: tuple[Entry, ...]


def write_table_page(
    title: str, results: Sequence[Result], curves: Mapping[tuple[str, str], pd.Series], path: Path
) -> None:
    """Write one HTML page, a single file without scripts that opens offline.

    Args:
        results: in the order in which they are shown; those of one paper and one recipe are grouped.
        curves: accuracy in percent indexed by time step, by (recipe, column); may be empty.
        path: the file to write; its folder is made if missing.

    Raises:
        ArtifactError: if there is no result.
    """
    if not results:
        raise ArtifactError("table: got no result. Run a recipe with `hybridsnn run` first")
    recipes = 0
    papers = []
    for place, name in enumerate(_distinct(result.paper for result in results), 1):
        members = [result for result in results if result.paper == name]
        entries = []
        for recipe in _distinct(result.recipe for result in members):
            recipes += 1
            entries.append(_recipe([r for r in members if r.recipe == recipe], curves, f"recipe-{recipes}"))
        fullest = sorted(entries, key=lambda entry: -len(entry.rows))  # it has the columns in their order
        columns = tuple(_distinct(row.result.column for entry in fullest for row in entry.rows))
        papers.append(Paper(name, f"paper-{place}", columns, tuple(entries)))
    run = [result for result in results if result.accuracies]
    page = render(
        "table.html.jinja",
        title=title,
        papers=papers,
        counts=(len(run), len(results)),
        presets=_distinct(result.preset for result in run),
        devices=_distinct(result.device for result in run),
        dates=sorted({result.created for result in run}),
        seeds=sorted({len(result.accuracies) for result in run}),
        versions=_versions(run),
        smaller=sorted({result.preset for result in run} - {FULL}),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _recipe(results: Sequence[Result], curves: Mapping[tuple[str, str], pd.Series], anchor: str) -> Entry:
    name = results[0].recipe
    anns = [result.mean for result in results if result.column == ANN]
    own = {result.column: curves[name, result.column] for result in results if (name, result.column) in curves}
    figure = recipe_figure(own, next((mean for mean in anns if mean is not None), None))
    return Entry(
        name=name,
        anchor=anchor,
        network=", ".join(_distinct(result.network for result in results)),
        rows=tuple(Number(result, gap) for result, gap in zip(results, gaps(results), strict=True)),
        figure=None if figure is None else Markup(inline_svg(figure, anchor, f"{name}: accuracy over time steps")),
    )


def _data(result: Result) -> str:
    counts = [
        f"{count:,} {what}"
        for count, what in ((result.images, "training images"), (result.test_images, "test images"))
        if count is not None
    ]
    return f"{result.dataset} ({', '.join(counts)})" if counts else result.dataset


def _versions(results: Iterable[Result]) -> dict[str, list[str]]:
    """The versions of each library that the results were made with."""
    versions: dict[str, list[str]] = {}
    for result in results:
        for library, version in result.versions.items():
            if version not in versions.setdefault(library, []):
                versions[library].append(version)
    return versions


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
