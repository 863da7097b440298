"""Thresholds at which a staircase of T steps comes closest to the activations of the ANN; nothing is simulated."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, fx

from hybridsnn.conversion.activation_scales import thresholds_for_activations
from hybridsnn.conversion.balancers.analog import observe_activations
from hybridsnn.conversion.balancers.base import MeasuringBalancer, largest
from hybridsnn.conversion.balancers.calibration import Calibration

BINS = 4096  # of the histogram of a layer's or channel's activations
CANDIDATES = 40  # equally spaced up to the largest activation; the search starts from the best
ROUNDS = 100


class Lloyd(MeasuringBalancer):
    """The staircase `threshold * q(a)` with the smallest squared error, fitted to T (Lloyd, 1982; Max, 1960).

    `q(a) = clip(floor(a T / threshold + 1/2), 0, T) / T` is the rate of a neuron that starts from half a threshold and
    gets a constant current. Iterates `threshold <- E[a q] / E[q^2]` on a histogram of the ANN's activations.
    """

    summary: ClassVar[str] = "fitted to T: the staircase nearest to the ANN's activations; nothing is simulated"

    def measure(self, body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
        ceilings = nearest_ceilings(
            partial(observe_activations, body, calibration),
            calibration.available(calibration.timesteps),
            per_channel=body.meta["granularity"] == "channel",
            advance=calibration.advance,
        )
        return thresholds_for_activations(body, ceilings, calibration.encoder.scale)


@torch.no_grad()
def nearest_ceilings(
    run: Callable[[Callable[[str, Tensor], None]], None],
    levels: int,
    *,
    per_channel: bool,
    advance: Callable[[str], None] = lambda name: None,
) -> dict[str, Tensor]:
    """The ceiling of the staircase nearest to each layer's activations, by name: scalar, or `[channels]`.

    Args:
        run: runs the ANN on some images, and calls its argument with the name of each layer and its rectified
            activations `[B, *N]`; is called twice.
        levels: number of steps of the staircase.
        advance: called with a layer's name when its ceiling is known.
    """
    peaks: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}  # [groups, BINS]

    def find_peak(name: str, activation: Tensor) -> None:
        peak = largest(activation.unsqueeze(0), per_channel)
        peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

    def count(name: str, activation: Tensor) -> None:
        peak = peaks[name].reshape(-1, 1)
        rows = activation.transpose(0, 1).flatten(1) if peaks[name].dim() else activation.reshape(1, -1)
        place = (rows / peak.clamp(min=torch.finfo(rows.dtype).tiny) * BINS).long().clamp(max=BINS - 1)
        place = place + BINS * torch.arange(len(rows), device=rows.device).unsqueeze(1)
        found = torch.bincount(place.flatten(), minlength=BINS * len(rows)).view(len(rows), BINS)
        counts[name] = counts[name] + found if name in counts else found

    run(find_peak)
    run(count)
    ceilings = {}
    for name, peak in peaks.items():
        share = nearest_staircase(counts[name].double(), levels)
        ceilings[name] = (share.view(peak.shape) * peak.double()).to(peak)
        advance(name)
    return ceilings


def nearest_staircase(counts: Tensor, timesteps: int) -> Tensor:
    """The best threshold of each group, `[groups]`, as a share of its largest value.

    Args:
        counts: a histogram, float64 `[groups, bins]`, from 0 to the largest value.
        timesteps: number of steps of the staircase.
    """
    bins = counts.shape[1]
    values = (torch.arange(bins, dtype=torch.float64, device=counts.device) + 0.5) / bins
    # The lowest bin holds the zeros of the rectified, which no staircase changes.
    values[0] = 0

    def moments(threshold: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of a q and of q^2 for thresholds `[groups]`."""
        rate = (values * timesteps / threshold.unsqueeze(1) + 0.5).floor().clamp(0, timesteps) / timesteps
        return (counts * values * rate).sum(1), (counts * rate.square()).sum(1)

    def gain(threshold: Tensor) -> Tensor:
        product, square = moments(threshold)
        return threshold * (2 * product - threshold * square)

    candidates = [torch.full_like(counts[:, 0], (place + 1) / CANDIDATES) for place in range(CANDIDATES)]
    gains = torch.stack([gain(candidate) for candidate in candidates])
    threshold = torch.stack(candidates).gather(0, gains.argmax(0, keepdim=True)).squeeze(0)
    for _ in range(ROUNDS):
        product, square = moments(threshold)
        threshold = torch.where(square > 0, product / square, threshold)
    return threshold
