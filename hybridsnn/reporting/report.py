"""Write a report: tables, figures and the page that holds them all."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from hybridsnn.errors import ArtifactError
from hybridsnn.reporting.figures import FIGURES
from hybridsnn.reporting.measurements import total
from hybridsnn.reporting.records import NetworkReport, Provenance, evaluation_of
from hybridsnn.reporting.svg import inline_svg
from hybridsnn.reporting.tables import (
    accuracy_by_step_table,
    accuracy_table,
    as_text,
    firing_rate_table,
    markdown,
    numeric_columns,
)


def write_report(title: str, networks: Sequence[NetworkReport], provenance: Sequence[Provenance], folder: Path) -> None:
    """Write the tables (CSV, Markdown), the figures (PNG) and `index.html`, which needs no other file, into the folder.

    `networks` are the rows of the tables, in this order; `provenance` tells how they were made, oldest first.
    A table or figure for which nothing was measured is not written.

    Raises ArtifactError if there is no network.
    """
    if not networks:
        raise ArtifactError("report: got no evaluated network. Run `hybridsnn evaluate` first")
    folder.mkdir(parents=True, exist_ok=True)
    accuracy, steps, rates = accuracy_table(networks), accuracy_by_step_table(networks), firing_rate_table(networks)
    for name, table in (("accuracy", accuracy), ("accuracy_by_step", steps), ("firing_rates", rates)):
        if len(table):
            table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
    for name, table in (("accuracy", accuracy), ("firing_rates", rates)):
        if len(table):
            (folder / f"{name}.md").write_text(markdown(table), encoding="utf-8")

    figures = []
    for name, kind in FIGURES.items():
        figure = kind.draw(networks)
        if figure is not None:
            svg = Markup(inline_svg(figure, name, kind.title))
            numbers = _for_page(rates) if name == "firing_rates" else None
            figures.append({"kind": kind, "svg": svg, "numbers": numbers})
            figure.savefig(folder / f"{name}.png", dpi=200)

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": _duration, "size": _size}
    template = environment.from_string(files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8"))
    page = template.render(
        title=title,
        data=_data(networks),
        accuracy=_for_page(accuracy),
        anytime="mean steps" in accuracy,
        figures=figures,
        provenance=provenance,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _for_page(table: pd.DataFrame) -> dict[str, list]:
    text = as_text(table)
    return {"columns": list(zip(text.columns, numeric_columns(table), strict=True)), "rows": text.to_numpy().tolist()}


def _data(networks: Sequence[NetworkReport]) -> list[str]:
    """What was measured on, each with its number of images, or the range of them if the networks saw unequal ones."""
    counts: dict[str, set[int]] = {}
    for network in networks:
        images = total(network.evaluation, "images")
        counts.setdefault(evaluation_of(network), set()).update({int(images)} if images == images else set())
    return [
        f"{data} ({'–'.join(f'{count:,}' for count in sorted({min(seen), max(seen)}))} images)" if seen else data
        for data, seen in counts.items()
    ]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def _size(count: int) -> str:
    if not count:
        return "–"  # not measured
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
