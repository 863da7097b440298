"""The style of all figures: sizes, colours, and ranges of axes."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

WIDTH = 5.2  # inches; narrow enough that the text stays legible on a phone
INK = "#24292e"  # text, axes and the ann; the page replaces it with its own text colour
COLOURS = ("#1a80bb", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c", "#9a6a3a")  # after Okabe, Ito
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p")
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "legend.frameon": False,
    "legend.borderaxespad": 0.4,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "hybridsnn",  # same figure, same file
}
MARKER_DISTANCE = 0.04  # at least, along a curve, as a share of the panel's diagonal


def zoom(axes: Axes, lowest: float, finals: list[float], others: Sequence[float] = ()) -> None:
    """Limit the axis to the final accuracies and a range below in which their differences stay visible.

    It reaches up to the `others` too.
    """
    best, worst = max(finals), min(finals)
    bottom = best - max(20.0, 4 * (best - worst))
    if lowest > best - 1.25 * (best - bottom):  # then little would be cut off, or nothing
        bottom = min(lowest, best - 5)  # a narrower range would make much of nothing
    margin = 0.05 * (best - bottom)
    axes.set_ylim(bottom - margin, max([best, *others]) + margin)
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))


def mark_steps(axes: Axes, longest: int) -> None:
    """Ticks at whole time steps; at powers of two where there are many."""
    if longest > 32:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0.5, longest + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def shortened(name: str, length: int = 34) -> str:
    """The name, with its middle left out if it is long: names differ mostly at their ends."""
    half = length // 2
    return name if len(name) <= length else f"{name[: half - 1]}…{name[-half:]}"
