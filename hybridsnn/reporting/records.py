"""The content of a report: evaluated networks and the provenance of artifacts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd


@dataclass(frozen=True)
class NetworkReport:
    """A network with its measurements, both in long form: stage, split, epoch, step, layer, metric, value.

    `evaluation` holds the accuracy (fraction, per step for an snn), firing rates and spike counts; `history` holds
    the loss and accuracy of each training epoch, and is None where the network was not trained by its stage.
    """

    label: str  # artifact name, and how it was run if not as usual
    kind: str  # "ann" or "snn"
    stage: str  # stage that made the network
    dataset: str
    split: str
    evaluation: pd.DataFrame
    history: pd.DataFrame | None


@dataclass(frozen=True)
class Provenance:
    """The provenance of one artifact: inputs, settings, machine and cost."""

    name: str  # no two artifacts of a report have the same
    kind: str
    stage: str
    digest: str
    created: str
    wall_seconds: float
    device: str
    peak_memory_bytes: int
    versions: dict[str, str]
    parents: tuple[str, ...]
    config: str  # YAML text
    chosen: Mapping[str, str] = field(default_factory=dict)  # settings that are not the defaults of their stage


def evaluation_of(network: NetworkReport) -> str:
    """Data set and split the network was evaluated on; only numbers with the same may be compared."""
    return f"{network.dataset}, {network.split}"


def names_of(networks: Sequence[NetworkReport]) -> list[str]:
    """One name per network: its label, with the data where the same network was measured on several."""
    uses = Counter(network.label for network in networks)
    return [
        network.label if uses[network.label] == 1 else f"{network.label} ({evaluation_of(network)})"
        for network in networks
    ]
