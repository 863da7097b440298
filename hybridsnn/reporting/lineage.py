"""The lineage of artifacts, as an inline SVG drawing."""

from collections.abc import Sequence
from html import escape

from hybridsnn.reporting.quantities import duration
from hybridsnn.reporting.records import Provenance
from hybridsnn.reporting.style import shortened

# Pixels. Boxes below one another, a child one step to the right of its parent, fit on a phone at the size of its text.
WIDTH, HEIGHT, GAP, INDENT = 290, 48, 12, 24
MARGIN = 1  # for the outline of a box at the edge
NAME_LENGTH = 24  # characters that fit beside the wall time


def lineage_svg(artifacts: Sequence[Provenance], anchors: Sequence[str]) -> str:
    """The artifacts as boxes, each under what it was made from and joined to it, as one `svg` element.

    `anchors` are the ids, one for each artifact, of what a click on its box leads to.
    """
    order = _depth_first(artifacts)
    places = {position: row for row, position in enumerate(order)}
    by_name = {artifact.name: position for position, artifact in enumerate(artifacts)}
    depths = _depths(artifacts, by_name)
    lefts = [MARGIN + INDENT * depths[position] for position in range(len(artifacts))]
    tops = [MARGIN + (HEIGHT + GAP) * places[position] for position in range(len(artifacts))]
    width = max(lefts) + WIDTH + MARGIN
    height = max(tops) + HEIGHT + MARGIN
    edges = [
        _edge(lefts[parent], tops[parent], lefts[child], tops[child])
        for child, artifact in enumerate(artifacts)
        for name in artifact.parents
        if (parent := by_name.get(name)) is not None
    ]
    boxes = [_box(artifacts[position], anchors[position], lefts[position], tops[position]) for position in order]
    # Boxes come after lines, so that a line from afar passes behind what lies between.
    return (
        f'<svg class="lineage" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="group" '
        f'aria-label="What was made from what"><g class="edges">{"".join(edges)}</g>{"".join(boxes)}</svg>'
    )


def _edge(left: int, top: int, to_left: int, to_top: int) -> str:
    """From the lower edge of a parent down and right to the middle of a child."""
    return f'<path d="M{left + INDENT // 2} {top + HEIGHT}V{to_top + HEIGHT // 2}H{to_left}"/>'


def _box(artifact: Provenance, anchor: str, left: int, top: int) -> str:
    right = WIDTH - 10
    made_from = f", made from {', '.join(artifact.parents)}" if artifact.parents else ""
    title = f"{artifact.name}: {artifact.kind} by {artifact.stage}{made_from}, {artifact.digest}"
    return (
        f'<a href="#{escape(anchor)}"><g class="kind-{escape(artifact.kind)}" transform="translate({left} {top})">'
        f"<title>{escape(title)}</title>"
        f'<rect class="box" width="{WIDTH}" height="{HEIGHT}" rx="6"/><rect class="mark" width="5" height="{HEIGHT}"/>'
        f'<text class="name" x="14" y="20">{escape(shortened(artifact.name, NAME_LENGTH))}</text>'
        f'<text x="{right}" y="20" text-anchor="end">{duration(artifact.wall_seconds)}</text>'
        f'<text x="14" y="38">{escape(artifact.stage)} → {escape(artifact.kind)}</text>'
        f'<text class="digest" x="{right}" y="38" text-anchor="end">{escape(artifact.digest[:12])}</text></g></a>'
    )


def _depths(artifacts: Sequence[Provenance], by_name: dict[str, int]) -> list[int]:
    """How many artifacts lie between each and one that was made from nothing; parents come before children."""
    depths: list[int] = []
    for artifact in artifacts:
        known = [depths[by_name[name]] for name in artifact.parents if name in by_name]
        depths.append(1 + max(known) if known else 0)
    return depths


def _depth_first(artifacts: Sequence[Provenance]) -> list[int]:
    """Positions in the order of drawing: an artifact, then all that its last parent leads to, before the next."""
    children: dict[str | None, list[int]] = {}
    names = {artifact.name for artifact in artifacts}
    for position, artifact in enumerate(artifacts):
        parents = [name for name in artifact.parents if name in names]
        children.setdefault(parents[-1] if parents else None, []).append(position)
    for siblings in children.values():
        siblings.sort(key=lambda position: artifacts[position].kind != "evaluation")  # beside what they measure
    order: list[int] = []
    waiting = children.get(None, [])[::-1]
    while waiting:
        position = waiting.pop()
        order.append(position)
        waiting += children.get(artifacts[position].name, [])[::-1]
    return order
