"""The tables of operations and energy."""

from collections.abc import Sequence

import pandas as pd

from hybridsnn.reporting.metrics import by_layer, by_step
from hybridsnn.reporting.records import NetworkReport, names_of

BASES = ("operations", "memory", "quantised")


def energy_table(networks: Sequence[NetworkReport]) -> pd.DataFrame:
    """Three rows for each spiking network: what is counted, and the energy of an image in nJ beside that of its ANN.

    `cheaper up to T` is the last step at which the spiking network has needed less; empty if it never has.
    """
    rows = []
    for name, network in zip(names_of(networks), networks, strict=True):
        for basis in BASES:
            spiking, ann = (by_step(network.evaluation, f"{of}energy-{basis}") / 1000 for of in ("", "ann-"))
            if not len(spiking):
                continue
            steps = int(spiking.index.max())
            spikes = by_step(network.evaluation, "accumulates-per-image")
            ratio, even = spiking / ann, by_step(network.evaluation, f"break-even-rate-{basis}")
            rate = firing_rate(network)
            rows.append(
                {
                    "network": name,
                    "T": steps,
                    "counted": basis,
                    "accumulates / image": round(spikes[steps], 1),
                    "SNN (nJ / image)": round(spiking[steps], 2),
                    "ANN (nJ / image)": round(ann[steps], 2),
                    "SNN / ANN": round(ratio[steps], 4),
                    "firing rate (%)": round(100 * rate, 2),
                    "breaks even at (%)": round(100 * even[steps], 2),
                    "cheaper up to T": _last_below(ratio),
                }
            )
    table = pd.DataFrame(rows)
    return table.astype({"T": "Int64", "cheaper up to T": "Int64"}) if len(table) else table


def operations_table(networks: Sequence[NetworkReport]) -> pd.DataFrame:
    """A row for each synapse of each spiking network: operations of an image over all steps, and of the ANN."""
    metrics = {
        "accumulates": "accumulates-per-image",
        "multiplications": "multiplications-per-image",
        "ANN multiplications": "ann-multiplications-per-image",
    }
    rows = []
    for name, network in zip(names_of(networks), networks, strict=True):
        columns = {title: by_layer(network.evaluation, metric) for title, metric in metrics.items()}
        for layer in columns["accumulates"].index:
            values = {title: round(series[layer], 1) for title, series in columns.items()}
            rows.append({"network": name, "layer": layer, **values})
    return pd.DataFrame(rows)


def firing_rate(network: NetworkReport) -> float:
    """Spikes per neuron and step of the whole network."""
    updates = by_step(network.evaluation, "membrane-updates-per-image")
    spikes = by_layer(network.evaluation, "spikes-per-image").sum()
    return float(spikes / updates.iloc[-1])


def _last_below(ratio: pd.Series) -> int | None:
    """The last step up to which the spiking network needs less than the ANN; None if it never does."""
    below = ratio[ratio < 1]
    return int(below.index.max()) if len(below) else None
