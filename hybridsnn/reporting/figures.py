"""The figures of a report, drawn without any global state of matplotlib."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, StrMethodFormatter

from hybridsnn.reporting.measurements import by_epoch, by_layer, by_step, total
from hybridsnn.reporting.records import NetworkReport, evaluation_of, names_of

WIDTH = 6.0  # inches; narrow enough that the text stays legible on a phone
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
BARS_PER_LAYER = 4  # beyond, dots on a line read better than bars


@dataclass(frozen=True)
class FigureKind:
    """A figure of the report; `draw` returns None where the networks have nothing to show in it."""

    draw: Callable[[Sequence[NetworkReport]], Figure | None]
    title: str
    caption: str


@rc_context(STYLE)
def accuracy_figure(networks: Sequence[NetworkReport]) -> Figure | None:
    """Accuracy over time steps: a curve per spiking network, a line per ann, a panel per data they were measured on."""
    spiking = {evaluation_of(network) for network in networks if network.kind == "snn"}
    panels = [(data, members) for data, members in _grouped(networks, evaluation_of) if data in spiking]
    if not panels:
        return None
    rows = [3.2 + 0.2 * len(members) for _, members in panels]
    figure, all_axes = _panels(rows)
    looks = _looks(networks)
    for axes, (data, members) in zip(all_axes, panels, strict=True):
        lines = []  # (final accuracy, line, name)
        lowest, longest = 100.0, 1
        for index, name in members:
            network = networks[index]
            curve = 100 * by_step(network.evaluation, "accuracy")
            if network.kind == "ann":
                final = 100 * total(network.evaluation, "accuracy")
                line = axes.axhline(final, linewidth=1.2, zorder=1, **looks[index])
            elif len(curve):
                final = float(curve.iloc[-1])
                (line,) = axes.plot(curve.index, curve.to_numpy(), markevery=MARKER_DISTANCE, **looks[index])
                mean, early = (total(network.evaluation, f"exit-{metric}") for metric in ("mean-steps", "accuracy"))
                if early == early:
                    axes.plot(mean, 100 * early, color=looks[index]["color"], marker="*", markersize=12)
                lowest, longest = min(lowest, curve.min()), max(longest, int(curve.index.max()))
            else:
                continue
            lines.append((final, line, name))
        lines.sort(key=lambda entry: -entry[0])
        axes.legend(
            [line for _, line, _ in lines],
            [f"{final:.2f} %\u2002{_shortened(name)}" for final, _, name in lines],
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            alignment="left",
            title=data if len(panels) > 1 else None,
        )
        _zoom(axes, lowest, [final for final, _, _ in lines])
        _mark_steps(axes, longest)
        axes.set_ylabel("accuracy (%)")
        axes.set_xlabel("time steps T")
    return figure


@rc_context(STYLE)
def firing_rate_figure(networks: Sequence[NetworkReport]) -> Figure | None:
    """Firing rate of each layer: a bar or dot per spiking network, a panel per set of layers."""
    rates = [by_layer(network.evaluation, "firing-rate") for network in networks]
    spiking = [index for index, series in enumerate(rates) if len(series)]
    names, looks = names_of(networks), _looks(networks)
    panels: dict[tuple[str, ...], list[int]] = {}
    for index in spiking:
        panels.setdefault(tuple(rates[index].index), []).append(index)
    if not panels:
        return None
    rows = [
        0.7 + 0.2 * len(members) + len(layers) * (0.12 + 0.1 * min(len(members), BARS_PER_LAYER))
        for layers, members in panels.items()
    ]
    figure, all_axes = _panels(rows)
    for axes, (layers, members) in zip(all_axes, panels.items(), strict=True):
        positions = np.arange(len(layers))
        thickness = 0.8 / len(members)
        for order, index in enumerate(members):
            values, label = rates[index].to_numpy(), _shortened(names[index])
            if len(members) <= BARS_PER_LAYER:
                offset = (order - (len(members) - 1) / 2) * thickness
                axes.barh(positions + offset, values, height=0.9 * thickness, color=looks[index]["color"], label=label)
            else:
                axes.plot(values, positions, linestyle="", label=label, **looks[index])
        axes.set_yticks(positions, [_shortened(layer, 22) for layer in layers])
        axes.set_ylim(len(layers) - 0.5, -0.5)  # the first layer on top
        axes.set_xlim(left=0)
        axes.grid(visible=len(members) > BARS_PER_LAYER, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0))
        axes.set_xlabel("firing rate (spikes per neuron and step)")
    return figure


@rc_context(STYLE)
def training_figure(networks: Sequence[NetworkReport]) -> Figure | None:
    """Loss and accuracy over epochs, of training and validation: a row of two panels per trained network."""
    histories = {
        network.label: network.history  # a network measured on several data was trained once
        for network in networks
        if network.history is not None and network.history["metric"].isin(["loss", "accuracy"]).any()
    }
    if not histories:
        return None
    figure = Figure(figsize=(WIDTH, 0.4 + 2.1 * len(histories)), layout="constrained")
    all_axes = figure.subplots(len(histories), 2, squeeze=False)
    for row, (label, history) in zip(all_axes, histories.items(), strict=True):
        for axes, metric, unit, scale in zip(row, ("loss", "accuracy"), ("", " (%)"), (1, 100), strict=True):
            for split, colour, dashes in (("train", COLOURS[1], (0, (3, 1))), ("validation", COLOURS[0], "-")):
                curve = scale * by_epoch(history, metric, split)
                curve = curve[np.isfinite(curve)]
                axes.plot(
                    curve.index,
                    curve.to_numpy(),
                    color=colour,
                    linestyle=dashes,
                    linewidth=1.5,
                    marker="o",
                    markersize=3,
                    markevery=MARKER_DISTANCE,
                    label=split,
                )
            axes.set_ylabel(metric + unit)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
            if metric == "loss":
                axes.set_ylim(bottom=0)
        row[0].set_title(_shortened(label))
    for axes in all_axes[-1]:
        axes.set_xlabel("epoch")
    all_axes[0, 1].legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
    return figure


def _grouped(
    networks: Sequence[NetworkReport], key: Callable[[NetworkReport], str]
) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """The networks of each key, in order, as (place among all, which fixes the colour; label)."""
    for value in dict.fromkeys(map(key, networks)):
        yield value, [(index, network.label) for index, network in enumerate(networks) if key(network) == value]


def _panels(heights: list[float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    return figure, list(axes[:, 0])


def _zoom(axes: Axes, lowest: float, finals: list[float]) -> None:
    """Show where the networks end, and as much below as leaves their differences visible."""
    best, worst = max(finals), min(finals)
    bottom = best - max(20.0, 4 * (best - worst))
    if lowest > best - 1.25 * (best - bottom):  # then little would be cut off, or nothing
        bottom = min(lowest, best - 5)  # a narrower range would make much of nothing
    margin = 0.05 * (best - bottom)
    axes.set_ylim(bottom - margin, best + margin)
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))


def _mark_steps(axes: Axes, longest: int) -> None:
    if longest > 32:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0.5, longest + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _looks(networks: Sequence[NetworkReport]) -> list[dict[str, Any]]:
    """Colour and line or marker of every network, the same in all figures: told apart without seeing colour too."""
    looks: list[dict[str, Any]] = []
    anns = snns = 0
    for network in networks:
        if network.kind == "ann":
            looks.append({"color": INK, "linestyle": (0, (6, 2 + 3 * anns))})
            anns += 1
        else:
            marker = MARKERS[(snns + snns // len(COLOURS)) % len(MARKERS)]
            looks.append({"color": COLOURS[snns % len(COLOURS)], "marker": marker})
            snns += 1
    return looks


def _shortened(name: str, length: int = 38) -> str:
    """The name with its middle left out if it is long: what sets it apart is mostly at its ends."""
    half = length // 2
    return name if len(name) <= length else f"{name[: half - 1]}…{name[-half:]}"


FIGURES = {
    "accuracy": FigureKind(
        accuracy_figure,
        "Accuracy over time",
        "Accuracy if a spiking network is stopped after T time steps; beside its name, the value at its last step. "
        "A dashed line is a network without spikes. A star is a network whose images leave as soon as their answer is "
        "clear, at the mean number of steps they take. The axis shows where the networks end: "
        "much lower values at few steps lie below it, and are in the table.",
    ),
    "firing_rates": FigureKind(
        firing_rate_figure,
        "Firing rates",
        "Mean number of spikes per neuron and time step, by layer from input to output. "
        "Fewer spikes mean less work on hardware that computes only when there is one.",
    ),
    "training": FigureKind(
        training_figure,
        "Training",
        "Loss and accuracy after each epoch, on the images trained on and on those held back for validation.",
    ),
}
