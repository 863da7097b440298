"""A correction of the mean error of each channel, by its bias."""

from typing import TYPE_CHECKING, ClassVar

import torch

from hybridsnn.conversion.corrections.base import Shift

if TYPE_CHECKING:
    from hybridsnn.conversion.balancers.sweep import Layer, Readout


class Bias(Shift):
    """Adds the mean error of each channel to the bias before it (Li et al., ICML 2021), while that helps.

    A layer whose current comes from no synapse of its own is left as it is.
    """

    summary: ClassVar[str] = "the mean error of each channel is added to its bias, where the squared error falls"
    biases: ClassVar[bool] = True

    def correct(self, layer: "Layer") -> None:
        if layer.synapse is None:
            return
        found = self.search(layer, "channel", at_start=False)
        if found is not None:
            bias = layer.synapse.get_parameter("bias")
            bias.add_(found.to(bias))
            layer.forget()

    def correct_readout(self, readout: "Readout") -> None:
        if readout.synapse is None:
            return
        differences = [
            target - current.mean(0) for current, target in zip(readout.currents(), readout.targets, strict=True)
        ]
        bias = readout.synapse.get_parameter("bias")
        bias.add_(torch.cat(differences).mean(0, dtype=torch.float64).to(bias))
