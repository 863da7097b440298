"""What every balancer is, and what those that measure have in common."""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import Tensor, fx

from hybridsnn.conversion.activation_scales import apply_thresholds
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.conversion.replacement import for_measuring
from hybridsnn.options import Options


class Balancer(Options):
    """Sets the thresholds of a spiking body. The fields of a balancer are its options.

    Attributes:
        summary: one line for lists.
        initial_potential: that neurons begin with where nobody chose it and inputs do not change in time, as a
            fraction of the threshold. Half a threshold centres the rounding of such an input.
    """

    summary: ClassVar[str]
    initial_potential: ClassVar[float] = 0.5

    threshold_scale: float = Field(
        1.0, gt=0, description="Factor on all thresholds; below 1 for few time steps (hybrid paper: 0.7)."
    )

    @property
    def folds_batch_norm(self) -> bool:
        """Whether batch norm must be folded into the synapses, because they are rescaled."""
        return True

    @abstractmethod
    def set_thresholds(self, body: fx.GraphModule, draw: Callable[[int], Calibration]) -> None:
        """Set all thresholds, and rescale the weights as they imply.

        Args:
            body: has the ANN's weights; is changed in place.
            draw: gives that many training images, or all there are, for a balancer that measures.
        """
        ...


class MeasuringBalancer(Balancer):
    """A balancer that measures thresholds on training images."""

    calibration_images: int = Field(256, gt=0, description="Number of training images to measure thresholds on.")

    @abstractmethod
    def measure(self, body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
        """Thresholds by the name of the neuron, scalar or `[channels]` as the neurons have them.

        If you know activations rather than thresholds, end with `thresholds_for_activations`.

        Args:
            body: a spiking body with the ANN's weights, which may be changed.
        """
        ...

    def balance(self, body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
        """Measure thresholds and put them, and the weights they imply, into a spiking body with the ANN's weights.

        Args:
            body: is changed in place.

        Returns:
            The thresholds by the name of the neuron, as they are in the body now: scalar or `[channels]`, scalar too
            where all neurons of a layer have the same one each.
        """
        measured = self.measure(for_measuring(body), calibration)
        thresholds = {name: threshold * self.threshold_scale for name, threshold in measured.items()}
        apply_thresholds(body, thresholds, calibration.encoder.scale)
        return thresholds

    def set_thresholds(self, body: fx.GraphModule, draw: Callable[[int], Calibration]) -> None:
        self.balance(body, draw(self.calibration_images))


def largest(values: Tensor, per_channel: bool) -> Tensor:
    """The maximum of values `[T, B, *N]`, or of each channel, the first of *N."""
    if not per_channel:
        return values.amax()
    return values.amax(dim=[axis for axis in range(values.dim()) if axis != 2])
