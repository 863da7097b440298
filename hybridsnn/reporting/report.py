"""Writes a report: tables, figures and the page that holds them all."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from hybridsnn.errors import ArtifactError
from hybridsnn.reporting.energy import energy_table, operations_table
from hybridsnn.reporting.figures import FIGURES
from hybridsnn.reporting.headline import headlines
from hybridsnn.reporting.lineage import lineage_svg
from hybridsnn.reporting.metrics import total
from hybridsnn.reporting.page import grid, render
from hybridsnn.reporting.records import NetworkReport, Provenance, evaluation_of
from hybridsnn.reporting.svg import inline_svg
from hybridsnn.reporting.tables import (
    accuracy_by_step_table,
    accuracy_table,
    firing_rate_table,
    markdown,
    spikes_table,
    windows_table,
)


def write_report(title: str, networks: Sequence[NetworkReport], provenance: Sequence[Provenance], folder: Path) -> None:
    """Write the tables (CSV, Markdown), the figures (PNG) and `index.html`, which needs no other file, into the folder.

    `networks` are the rows of the tables, in this order; `provenance` tells how they were made, parents before
    children. A table or figure for which nothing was measured is not written.

    Raises ArtifactError if there is no network.
    """
    if not networks:
        raise ArtifactError("report: got no evaluated network. Run `hybridsnn evaluate` first")
    folder.mkdir(parents=True, exist_ok=True)
    accuracy, steps = accuracy_table(networks), accuracy_by_step_table(networks)
    windows = windows_table(networks)
    by_layer = {"firing_rates": firing_rate_table(networks), "spikes": spikes_table(networks)}
    energies = {"energy": energy_table(networks), "operations": operations_table(networks)}
    written = {"accuracy": accuracy, "windows": windows, **by_layer, **energies}
    for name, table in {"accuracy_by_step": steps, **written}.items():
        if len(table):
            table.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
    for name, table in written.items():
        if len(table):
            (folder / f"{name}.md").write_text(markdown(table), encoding="utf-8")

    figures = []
    for name, kind in FIGURES.items():
        figure = kind.draw(networks)
        if figure is not None:
            svg = Markup(inline_svg(figure, name, kind.title))
            numbers = grid(by_layer[name], f"{kind.title} by layer") if name in by_layer else None
            figures.append({"name": name, "kind": kind, "svg": svg, "numbers": numbers})
            figure.savefig(folder / f"{name}.png", dpi=200)

    anchors = [f"artifact-{place}" for place, _ in enumerate(provenance, 1)]
    versions = [artifact.versions for artifact in provenance]
    page = render(
        "report.html.jinja",
        title=title,
        data=_data(networks),
        headlines=headlines(networks),
        accuracy=grid(accuracy, "Accuracy and cost of each network"),
        shown=set(accuracy.columns),
        windows=grid(windows, "The best window of the readout at each T") if len(windows) else None,
        energy=grid(energies["energy"], "Energy of each network") if len(energies["energy"]) else None,
        operations=grid(energies["operations"], "Operations of each layer") if len(energies["operations"]) else None,
        figures=figures,
        artifacts=list(zip(anchors, provenance, strict=True)),
        anchor_of={artifact.name: anchor for anchor, artifact in zip(anchors, provenance, strict=True)},
        lineage=Markup(lineage_svg(provenance, anchors)) if provenance else None,
        versions=versions[0] if versions and all(other == versions[0] for other in versions) else None,
    )
    (folder / "index.html").write_text(page, encoding="utf-8")


def _data(networks: Sequence[NetworkReport]) -> list[str]:
    """Each data set and split with its number of images, or the range where networks differ."""
    counts: dict[str, set[int]] = {}
    for network in networks:
        images = total(network.evaluation, "images")
        counts.setdefault(evaluation_of(network), set()).update({int(images)} if images == images else set())
    return [
        f"{data} ({'–'.join(f'{count:,}' for count in sorted({min(seen), max(seen)}))} images)" if seen else data
        for data, seen in counts.items()
    ]
