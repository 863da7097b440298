"""The headline of a report: the best result in a sentence, and a card for each network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hybridsnn.reporting.metrics import by_step, total
from hybridsnn.reporting.quantities import signed, whole
from hybridsnn.reporting.records import NetworkReport, evaluation_of
from hybridsnn.reporting.tables import last_step, layer_synchronous, reference_accuracy

NEAR = 1.0  # points below the ann that count as near it


@dataclass(frozen=True)
class Glance:
    """The card of one network: its name, its accuracy as text, and a line for each detail."""

    name: str
    accuracy: str
    details: tuple[str, ...]
    best: bool  # of the spiking networks on these data; of all, if none spikes


@dataclass(frozen=True)
class Headline:
    """The best result on one set of images in a sentence, and the cards of all networks measured on it."""

    data: str
    sentence: str
    glances: tuple[Glance, ...]


def headlines(networks: Sequence[NetworkReport]) -> list[Headline]:
    """One headline for all networks measured on the same images, in the order of the networks."""
    return [
        _headline(data, [network for network in networks if evaluation_of(network) == data], networks)
        for data in dict.fromkeys(map(evaluation_of, networks))
    ]


def steps_to_reach(network: NetworkReport, accuracy: float) -> int | None:
    """The first time step from which on the accuracy stays at or above this one, in percent; None if it never does."""
    curve = 100 * by_step(network.evaluation, "accuracy")
    below = curve.index[curve.to_numpy() < accuracy]
    if not len(curve) or (len(below) and below[-1] == curve.index[-1]):
        return None
    return int(curve.index[curve.index > below[-1]][0] if len(below) else curve.index[0])


def standard_error(accuracy: float, images: float) -> float:
    """The standard error, in points, of an accuracy in percent measured on so many images."""
    return math.sqrt(accuracy * (100 - accuracy) / images)


def _headline(data: str, members: Sequence[NetworkReport], networks: Sequence[NetworkReport]) -> Headline:
    # A layer-synchronous run is no rival of a streaming one: it takes more steps for the same T.
    streaming = [network for network in members if not len(layer_synchronous(network))] or members
    best = max([network for network in streaming if network.kind == "snn"] or streaming, key=_merit)
    return Headline(
        data=data,
        sentence=_sentence(best, networks),
        glances=tuple(
            Glance(network.label, f"{_final(network):.2f} %", tuple(_details(network, networks)), network is best)
            for network in members
        ),
    )


def _merit(network: NetworkReport) -> tuple[float, float, float]:
    """Ranks by accuracy, then by fewer steps, then by fewer spikes."""
    spikes = total(network.evaluation, "spikes-per-image")
    return _final(network), -(last_step(network) or 0), -spikes if spikes == spikes else -math.inf


def _final(network: NetworkReport) -> float:
    if len(synchronous := layer_synchronous(network)):
        return 100 * float(synchronous.iloc[-1])
    steps = last_step(network)
    return 100 * (
        total(network.evaluation, "accuracy") if steps is None else by_step(network.evaluation, "accuracy")[steps]
    )


def _sentence(best: NetworkReport, networks: Sequence[NetworkReport]) -> str:
    accuracy, reference = _final(best), reference_accuracy(best, networks)
    images, spikes, latency = (total(best.evaluation, metric) for metric in ("images", "spikes-per-image", "latency"))
    steps = int(latency) if len(layer_synchronous(best)) else last_step(best)
    of_images = f"of {images:,.0f} images" if images == images else "of the images"
    what = "The best spiking network" if best.kind == "snn" else "The best network"
    words = f"{what}, {best.label}, classifies {accuracy:.2f} % {of_images} correctly"
    words += f" in {_steps(steps)}" if steps is not None else ""
    words += f" with {whole(spikes)} spikes for each" if spikes == spikes else ""
    if reference == reference:
        words += f": {_compared(accuracy - reference)} the ANN ({reference:.2f} %)"
    if images == images:
        words += (
            f". With so many images, one is {100 / images:.2g} points, and the standard error of this accuracy is "
            f"{standard_error(accuracy, images):.2g} points"
        )
    return words + "."


def _compared(difference: float) -> str:
    shown = f"{abs(difference):.2f}"
    if shown == "0.00":
        return "the same as"
    return f"{shown} points {'above' if difference > 0 else 'below'}"


def _details(network: NetworkReport, networks: Sequence[NetworkReport]) -> list[str]:
    details = [network.stage]
    steps, reference = last_step(network), reference_accuracy(network, networks)
    if steps is not None:
        details.append(f"T = {steps}")
    if len(synchronous := layer_synchronous(network)):
        details.append(f"layer-synchronous, T = {synchronous.index[-1]}")
        details.append(f"latency of {_steps(int(total(network.evaluation, 'latency')))}")
    if reference == reference:
        details.append(f"{signed(_final(network) - reference)} points to the ANN")
        near = steps_to_reach(network, reference - NEAR)
        if near is not None:
            details.append(f"within {NEAR:.0f} point from T = {near} on")
    spikes = total(network.evaluation, "spikes-per-image")
    if spikes == spikes:
        details.append(f"{whole(spikes)} spikes per image")
    return details


def _steps(steps: int) -> str:
    return f"{steps} time step{'s' if steps > 1 else ''}"
