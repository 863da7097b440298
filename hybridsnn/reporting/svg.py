"""Figures as inline SVG for HTML pages."""

import io
import re
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from hybridsnn.reporting.style import INK, STYLE


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as one `svg` element that takes the width, font and text colour of the page around it.

    `name` keeps its ids apart from those of other figures; `description` is what a screen reader says.
    """
    buffer = io.StringIO()
    unsigned = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata=unsigned)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    opening, body = svg.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', opening)
    assert view is not None  # matplotlib always writes one
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="\w+">', "<g>", body)  # only what is referred to keeps its id
    body = body.replace('id="', f'id="{name}-').replace("url(#", f"url(#{name}-")
    body = body.replace('xlink:href="#', f'href="#{name}-').replace(INK, "currentColor")
    return f'<svg {view[0]} role="img" aria-label="{escape(description)}">{body}'
