"""A correction of the mean error by the potential that membranes start from."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from hybridsnn.conversion.corrections.base import Shift
from hybridsnn.neurons import along_channels

if TYPE_CHECKING:
    from hybridsnn.conversion.balancers.sweep import Layer


class Potential(Shift):
    """Adds T times the mean error to the initial membrane potential (Li et al., ICML 2021), while that helps."""

    summary: ClassVar[str] = "T times the mean error is added to the initial potential, where the squared error falls"

    potential_per: Literal["channel", "neuron"] = Field(
        "channel", description="What gets an initial potential of its own."
    )

    @property
    def potentials(self) -> Literal["channel", "neuron"] | None:
        return self.potential_per

    def correct(self, layer: "Layer") -> None:
        found = self.search(layer, self.potential_per, at_start=True)
        if found is None:
            return
        sample, initial = layer.targets[0], layer.neuron.get_buffer("initial_potential")
        in_thresholds = along_channels(layer.timesteps * found, sample) / along_channels(layer.threshold, sample)
        initial.add_(in_thresholds.view_as(initial).to(initial))
