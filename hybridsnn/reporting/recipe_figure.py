"""The figure of one recipe in a table: accuracy over time steps beside that of the ANN."""

from collections.abc import Mapping

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from hybridsnn.reporting.style import (
    COLOURS,
    INK,
    MARKER_DISTANCE,
    MARKERS,
    STYLE,
    mark_steps,
    shortened,
    zoom,
)

SIZE = (4.2, 2.4)  # inches, without the legend


@rc_context(STYLE)
def recipe_figure(curves: Mapping[str, pd.Series], ann: float | None) -> Figure | None:
    """Accuracy in percent over time steps, a curve a column, the ANN's accuracy as a level line; None without curves.

    Args:
        curves: by column of the table; accuracy in percent, indexed by step.
        ann: accuracy in percent; None if it was not measured.
    """
    curves = {column: curve for column, curve in curves.items() if len(curve)}
    if not curves:
        return None
    figure = Figure(figsize=(SIZE[0], SIZE[1] + 0.2 * (len(curves) + (ann is not None))), layout="constrained")
    axes = figure.subplots()
    for place, (column, curve) in enumerate(curves.items()):
        axes.plot(
            curve.index,
            curve.to_numpy(),
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place % len(MARKERS)],
            markevery=MARKER_DISTANCE,
            label=f"{curve.iloc[-1]:.2f} %\u2002{shortened(column, 30)}",
        )
    finals = [float(curve.iloc[-1]) for curve in curves.values()]
    if ann is not None:
        axes.axhline(ann, color=INK, linestyle=(0, (6, 2)), linewidth=1.2, zorder=1, label=f"{ann:.2f} %\u2002ANN")
        finals.append(ann)
    zoom(axes, min(float(curve.min()) for curve in curves.values()), finals)
    mark_steps(axes, max(int(curve.index.max()) for curve in curves.values()))
    axes.set_ylabel("accuracy (%)")
    axes.set_xlabel("time steps T")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0))
    return figure
