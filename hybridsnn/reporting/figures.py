"""The figures of a report, drawn without any global state of matplotlib."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hybridsnn.reporting.metrics import by_epoch, by_layer, by_step, kept_epoch, total
from hybridsnn.reporting.records import NetworkReport, evaluation_of, names_of
from hybridsnn.reporting.style import (
    COLOURS,
    INK,
    MARKER_DISTANCE,
    MARKERS,
    STYLE,
    WIDTH,
    mark_steps,
    shortened,
    zoom,
)

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
    spiking = {evaluation_of(network) for network in networks if len(by_step(network.evaluation, "accuracy"))}
    panels = [(data, members) for data, members in _grouped(networks, evaluation_of) if data in spiking]
    if not panels:
        return None
    rows = [3.2 + 0.2 * len(members) for _, members in panels]
    figure, all_axes = _panels(rows)
    looks = _looks(networks)
    for axes, (data, members) in zip(all_axes, panels, strict=True):
        lines = []  # (final accuracy, line, name)
        ceilings: list[float] = []
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
                ceilings += _draw_ceiling(axes, network, looks[index]["color"])
                lowest, longest = min(lowest, curve.min()), max(longest, int(curve.index.max()))
            else:
                continue
            lines.append((final, line, name))
        lines.sort(key=lambda entry: -entry[0])
        axes.legend(
            [line for _, line, _ in lines],
            [f"{final:.2f} %\u2002{shortened(name)}" for final, _, name in lines],
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            alignment="left",
            title=data if len(panels) > 1 else None,
        )
        zoom(axes, lowest, [final for final, _, _ in lines], ceilings)
        mark_steps(axes, longest)
        axes.set_ylabel("accuracy (%)")
        axes.set_xlabel("time steps T")
    return figure


def _draw_ceiling(axes: Axes, network: NetworkReport, colour: str) -> list[float]:
    """A dashed line where it is known at several steps, else a bar; returns the last of it, in percent."""
    ceiling = 100 * by_step(network.evaluation, "ceiling")
    if not len(ceiling):
        return []
    bar = {"marker": "_", "markersize": 14, "markeredgewidth": 1.6}
    shape: dict[str, Any] = {"linestyle": (0, (2, 1.5)), "linewidth": 1.3} if len(ceiling) > 1 else bar
    axes.plot(ceiling.index, ceiling.to_numpy(), color=colour, zorder=1.5, **shape)
    return ceiling.tolist()[-1:]


def firing_rate_figure(networks: Sequence[NetworkReport]) -> Figure | None:
    """Firing rate of each layer: a bar or dot per spiking network, a panel per set of layers."""
    return _layer_figure(networks, "firing-rate", "firing rate (spikes per neuron and step)")


def spikes_figure(networks: Sequence[NetworkReport]) -> Figure | None:
    """Spikes per image of each layer, drawn like the firing rates."""
    return _layer_figure(networks, "spikes-per-image", "spikes per image, over all time steps")


@rc_context(STYLE)
def _layer_figure(networks: Sequence[NetworkReport], metric: str, axis_label: str) -> Figure | None:
    measured = [by_layer(network.evaluation, metric) for network in networks]
    spiking = [index for index, series in enumerate(measured) if len(series)]
    names, looks = names_of(networks), _looks(networks)
    panels: dict[tuple[str, ...], list[int]] = {}
    for index in spiking:
        panels.setdefault(tuple(measured[index].index), []).append(index)
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
            values, label = measured[index].to_numpy(), shortened(names[index])
            if len(members) <= BARS_PER_LAYER:
                offset = (order - (len(members) - 1) / 2) * thickness
                axes.barh(positions + offset, values, height=0.9 * thickness, color=looks[index]["color"], label=label)
            else:
                axes.plot(values, positions, linestyle="", label=label, **looks[index])
        axes.set_yticks(positions, [shortened(layer, 22) for layer in layers])
        axes.set_ylim(len(layers) - 0.5, -0.5)  # the first layer on top
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.grid(visible=len(members) > BARS_PER_LAYER, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0))
        axes.set_xlabel(axis_label)
    return figure


@rc_context(STYLE)
def training_figure(networks: Sequence[NetworkReport]) -> Figure | None:
    """Loss and accuracy over epochs, of training and validation, the kept epoch marked: two panels per network."""
    histories = {
        network.label: network.history  # a network measured on several data was trained once
        for network in networks
        if network.history is not None and network.history["metric"].isin(["loss", "accuracy"]).any()
    }
    if not histories:
        return None
    figure = Figure(figsize=(WIDTH, 0.7 + 2.1 * len(histories)), layout="constrained")
    all_axes = figure.subplots(len(histories), 2, squeeze=False)
    shown: dict[str, Artist] = {}  # entries of the legend, which all panels share
    for row, (label, history) in zip(all_axes, histories.items(), strict=True):
        kept = kept_epoch(history)
        for axes, metric, unit, factor in zip(row, ("loss", "accuracy"), ("", " (%)"), (1, 100), strict=True):
            for split, colour, dashes in (("train", COLOURS[1], (0, (3, 1))), ("validation", COLOURS[0], "-")):
                curve = factor * by_epoch(history, metric, split)
                curve = curve[np.isfinite(curve)]
                (shown[split],) = axes.plot(
                    curve.index,
                    curve.to_numpy(),
                    color=colour,
                    linestyle=dashes,
                    linewidth=1.5,
                    marker="o",
                    markersize=3,
                    markevery=MARKER_DISTANCE,
                )
            if kept is not None:
                shown["kept"] = axes.axvline(kept, color=INK, linestyle=":", linewidth=1.4, zorder=1)
            axes.set_ylabel(metric + unit)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
            if metric == "loss":
                axes.set_ylim(bottom=0)
        row[0].set_title(shortened(label))
        if kept is not None:
            row[1].set_title(f"keeps epoch {kept}", loc="right")
    for axes in all_axes[-1]:
        axes.set_xlabel("epoch")
    figure.legend(list(shown.values()), list(shown), loc="outside upper right", ncols=len(shown))
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


FIGURES = {
    "accuracy": FigureKind(
        accuracy_figure,
        "Accuracy over time",
        "Accuracy of a spiking network after T time steps; beside its name, the value at its last step. "
        "A dashed line is an ANN. A star is a network with early exit, at its mean number of steps. "
        "A short dashed line in the colour of a network, or a bar where it was measured at the last step only, is its "
        "ceiling: its accuracy if every layer spiked as often as its mean current says. "
        "The axis shows the range of the final values: "
        "much lower values at few steps lie below it, and are in the table.",
    ),
    "firing_rates": FigureKind(
        firing_rate_figure,
        "Firing rates",
        "Mean number of spikes per neuron and time step, by layer from input to output. "
        "Fewer spikes mean less work on hardware that computes only when there is one.",
    ),
    "spikes": FigureKind(
        spikes_figure,
        "Spikes",
        "Mean number of spikes that the neurons of a layer emit for one image, all time steps together, by layer from "
        "input to output: where the work is. Firing rates tell how busy a neuron is, this tells how many there are.",
    ),
    "training": FigureKind(
        training_figure,
        "Training",
        "Loss and accuracy after each epoch, on the training and the validation images. "
        "A dotted line marks the epoch whose weights were kept; epoch 0 is before training.",
    ),
}
