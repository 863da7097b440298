"""The tables of reports and results, as numbers and as text."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

from hybridsnn.reporting.metrics import best_windows, by_layer, by_step, total
from hybridsnn.reporting.quantities import signed
from hybridsnn.reporting.records import NetworkReport, evaluation_of, names_of
from hybridsnn.reporting.results import Result, gaps


def accuracy_table(networks: Sequence[NetworkReport]) -> pd.DataFrame:
    """One row per network: accuracy in % at its last step and at the powers of two before, and what it costs.

    `T` is the number of steps, empty for an ann. `vs ANN` is the accuracy at the last step less that of the ann
    measured on the same data, in points; it is empty where there is no such ann, or more than one. `ceiling` is what
    the network would have without unevenness. `layer-synchronous` is the accuracy if its layers wait for each other,
    and shares no column of results with other runs. `latency` is the number of steps to the answer, left out where it
    is T for all. `best window` is the one of the readout that ends at the last step. `early exit` is the accuracy with
    early exit, after `mean steps` on average. A column that would be empty throughout is left out, and so is the data
    where it is the same for all.
    """
    last_steps = [last_step(network) for network in networks]
    most = max((steps for steps in last_steps if steps is not None), default=0)
    powers = [2**exponent for exponent in range(most.bit_length()) if 2**exponent < most]
    rows = []
    for network, steps in zip(networks, last_steps, strict=True):
        accuracy = 100 * by_step(network.evaluation, "accuracy")
        final = 100 * total(network.evaluation, "accuracy") if steps is None else accuracy[steps]
        reference, synchronous = reference_accuracy(network, networks), layer_synchronous(network)
        windows, spikes = best_windows(network.evaluation), total(network.evaluation, "spikes-per-image")
        best = windows.loc[steps] if steps in windows.index else None
        rows.append(
            {
                "network": network.label,
                "stage": network.stage,
                "data": evaluation_of(network),
                "T": synchronous.index[-1] if len(synchronous) else steps,
                "accuracy (%)": round(final, 2),
                "vs ANN (points)": round(final - reference, 2),
                "ceiling (%)": round(100 * by_step(network.evaluation, "ceiling").get(steps, math.nan), 2),
                "layer-synchronous (%)": round(100 * synchronous.iloc[-1], 2) if len(synchronous) else math.nan,
                "latency (steps)": total(network.evaluation, "latency"),
                **{f"T={power} (%)": round(accuracy.get(power, math.nan), 2) for power in powers},
                "best window": None if best is None else f"{best['start']:.0f}–{steps}",
                "best window (%)": math.nan if best is None else round(100 * best["accuracy"], 2),
                "early exit (%)": round(100 * total(network.evaluation, "exit-accuracy"), 2),
                "mean steps": round(total(network.evaluation, "exit-mean-steps"), 2),
                "spikes / image": math.nan if len(synchronous) else round(spikes, 1),
            }
        )
    table = pd.DataFrame(rows).astype({"T": "Int64", "latency (steps)": "Int64"})
    if (table["latency (steps)"].isna() | (table["latency (steps)"] == table["T"]).fillna(False)).all():
        table["latency (steps)"] = pd.NA
    kept = ("network", "stage", "data", "accuracy (%)")
    unneeded = [name for name in table.columns if name not in kept and table[name].isna().all()]
    if table["data"].nunique() == 1:
        unneeded.append("data")
    return table.drop(columns=unneeded)


def accuracy_by_step_table(networks: Sequence[NetworkReport]) -> pd.DataFrame:
    """Accuracy in % of every spiking network at every step, one row each."""
    columns = ["network", "dataset", "split", "T", "accuracy (%)"]
    rows = [
        (network.label, network.dataset, network.split, step, round(100 * value, 6))
        for network in networks
        for step, value in by_step(network.evaluation, "accuracy").items()
    ]
    return pd.DataFrame(rows, columns=columns)


def windows_table(networks: Sequence[NetworkReport]) -> pd.DataFrame:
    """The best window of the readout that ends at each step, beside the longest: a row per network and step."""
    columns = ["network", "data", "T", "best window", "accuracy (%)", "of all steps (%)"]
    rows = [
        (network.label, evaluation_of(network), stop, f"{row.start:.0f}–{stop}", 100 * row.accuracy, 100 * row.whole)
        for network in networks
        for stop, row in best_windows(network.evaluation).iterrows()
    ]
    return pd.DataFrame(rows, columns=columns).round(6)


def firing_rate_table(networks: Sequence[NetworkReport]) -> pd.DataFrame:
    """Spikes per neuron and step: a row per layer, a column per spiking network, empty where it has no such layer."""
    return _layer_table(networks, "firing-rate")


def spikes_table(networks: Sequence[NetworkReport]) -> pd.DataFrame:
    """Spikes per image over all steps, set out like the firing rates."""
    return _layer_table(networks, "spikes-per-image")


def last_step(network: NetworkReport) -> int | None:
    """The last time step whose accuracy was measured; None for an ann."""
    steps = by_step(network.evaluation, "accuracy").index
    return int(steps.max()) if len(steps) else None


def layer_synchronous(network: NetworkReport) -> pd.Series:
    """The accuracy of a layer-synchronous run by its T; empty for a network that was run otherwise."""
    return by_step(network.evaluation, "layer-synchronous-accuracy")


def reference_accuracy(network: NetworkReport, networks: Sequence[NetworkReport]) -> float:
    """Accuracy in % of the one ann measured on the same data as this spiking network; NaN if none or several."""
    if network.kind == "ann":
        return math.nan
    anns = [other for other in networks if other.kind == "ann" and evaluation_of(other) == evaluation_of(network)]
    return 100 * total(anns[0].evaluation, "accuracy") if len(anns) == 1 else math.nan


def results_table(results: Sequence[Result]) -> pd.DataFrame:
    """One row per result: published and our accuracies in %, differences in points.

    The difference to its own ANN is what the spikes cost, at every preset.

    `evaluation` is the beginning of the digest of each seed's evaluation.
    """
    rows = [
        {
            "paper": result.paper,
            "recipe": result.recipe,
            "network": result.network,
            "column": result.column,
            "published (%)": result.published,
            "ours (%)": result.mean,
            "± (%)": result.spread,
            "difference (points)": result.difference,
            "to its ANN (points)": gap.ours,
            "published to its ANN (points)": gap.published,
            "T": result.timesteps,
            "T published": result.published_timesteps,
            "seeds": len(result.accuracies),
            "data set": result.dataset,
            "images": result.images,
            "test images": result.test_images,
            "preset": result.preset,
            "device": result.device,
            "wall time (s)": result.wall_seconds,
            "evaluation": ", ".join(digest[:12] for digest in result.digests) or None,
            "note": result.note or None,
        }
        for result, gap in zip(results, gaps(results), strict=True)
    ]
    whole = ("T", "T published", "seeds", "images", "test images")
    table = pd.DataFrame(rows)
    measured = [name for name in table.columns if name.endswith(("(%)", "(points)", "(s)"))]
    return table.astype({**dict.fromkeys(whole, "Int64"), **dict.fromkeys(measured, "float64")})


def as_text(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: numbers rounded by their size and unit, a dash for an empty cell."""
    return pd.DataFrame({name: [_text(value, str(name)) for value in table[name]] for name in table.columns}, dtype=str)


def numeric_columns(table: pd.DataFrame) -> list[bool]:
    """Which columns hold numbers, and are right-aligned."""
    return [is_numeric_dtype(table[name]) for name in table.columns]


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, with special characters in names escaped."""
    text = as_text(table)
    rows = [
        list(text.columns),
        ["---:" if numeric else ":---" for numeric in numeric_columns(table)],
        *text.itertuples(index=False, name=None),
    ]
    return "".join("| " + " | ".join(_escaped(cell) for cell in row) + " |\n" for row in rows)


def _layer_table(networks: Sequence[NetworkReport], metric: str) -> pd.DataFrame:
    measured = {
        name: by_layer(network.evaluation, metric) for name, network in zip(names_of(networks), networks, strict=True)
    }
    measured = {name: series for name, series in measured.items() if len(series)}
    layers = list(dict.fromkeys(layer for series in measured.values() for layer in series.index))
    columns = {name: [series.get(layer, math.nan) for layer in layers] for name, series in measured.items()}
    return pd.DataFrame({"layer": layers, **columns}).round(6)


def _text(value: Any, column: str) -> str:
    if pd.isna(value):
        return "–"
    if isinstance(value, str):
        return value
    if column.endswith("(points)"):
        return signed(value)
    if column.endswith("(%)"):
        return f"{value:.2f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.4f}"
    return f"{value:,}"


def _escaped(cell: object) -> str:
    return str(cell).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
