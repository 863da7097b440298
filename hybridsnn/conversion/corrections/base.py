"""What every correction is, and the search that those that shift a layer's membrane have in common."""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from hybridsnn.neurons import along_channels
from hybridsnn.options import Options

if TYPE_CHECKING:
    from hybridsnn.conversion.balancers.sweep import Layer, Readout


class Correction(Options):
    """Brings what a layer's spikes stand for nearer to the activations of the ANN. Its fields are its options.

    Attributes:
        summary: one line for lists.
        biases: whether it needs a bias in front of each layer of neurons.
        calibration_images: how many it asks for, where nobody chose their number; 0: as many as the balancer.
        potentials: the granularity of the initial membrane potentials it needs; None: one for the whole network.
    """

    summary: ClassVar[str]
    biases: ClassVar[bool] = False
    calibration_images: ClassVar[int] = 0

    @property
    def potentials(self) -> Literal["channel", "neuron"] | None:
        return None

    def prepare(self, layer: "Layer") -> None:
        """Change a layer in place before it gets its threshold."""

    def correct(self, layer: "Layer") -> None:
        """Correct a layer that has its threshold, on its own currents in the spiking network, in place."""

    def correct_readout(self, readout: "Readout") -> None:
        """Correct in place what the readout sums, once all layers are done."""


class Shift(Correction):
    """Searches for a constant for each group of neurons, such as a channel, that is added to their current.

    From `d = 0`, repeat `d += rate * mean(a - threshold * n / T)`, `a` the activation of the ANN and n the number of
    spikes in T steps, but only for groups in which this makes the squared error smaller; the next steps of others are
    half as long.
    """

    correction_rounds: int = Field(5, gt=0, description="How many times a correction is computed anew.")
    correction_rate: float = Field(0.7, gt=0, le=1, description="Share of the mean error that is corrected at once.")

    def search(self, layer: "Layer", granularity: str, *, at_start: bool) -> Tensor | None:
        """The constants, float64 `[channels]` or `[*N]`, in units of the current; None if all are 0.

        Args:
            at_start: add T times the constant to the initial membrane potential, not the constant at each step.
        """
        found = torch.zeros((), dtype=torch.float64, device=layer.neuron.threshold.device)
        mean, error = self._error(layer, found, granularity, at_start)
        found, rate = torch.zeros_like(mean), torch.full_like(mean, self.correction_rate)
        for _ in range(self.correction_rounds):
            trial = found + rate * mean
            trial_mean, trial_error = self._error(layer, trial, granularity, at_start)
            better = trial_error < error
            found, mean = torch.where(better, trial, found), torch.where(better, trial_mean, mean)
            error, rate = torch.where(better, trial_error, error), torch.where(better, rate, rate / 2)
        return found if bool((found != 0).any()) else None

    @staticmethod
    def _error(layer: "Layer", shift: Tensor, granularity: str, at_start: bool) -> tuple[Tensor, Tensor]:
        """The mean of the error of each group, and the sum of its squares."""
        total: Tensor | float = 0.0
        squares: Tensor | float = 0.0
        images = 0
        alone = zip(layer.currents(), layer.targets, strict=True)  # each neuron for itself
        for current, target in alone if granularity == "neuron" else layer.sampled():
            spread = along_channels(shift, target).to(target)
            if at_start:
                error = layer.error(current, target, potential=layer.timesteps * spread)
            else:
                error = layer.error(current + spread, target)
            axes = {"channel": [0, *range(2, error.dim())], "neuron": [0]}[granularity]
            total = total + error.sum(axes, dtype=torch.float64)
            squares = squares + error.double().square().sum(axes)
            images += len(target)
        assert isinstance(total, Tensor) and isinstance(squares, Tensor)  # there are images
        return total * (total.numel() / (images * target[0].numel())), squares
