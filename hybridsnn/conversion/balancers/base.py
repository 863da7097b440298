"""What every balancer is, and what those that measure have in common."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor, fx

from hybridsnn.conversion.activation_scales import apply_thresholds
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.conversion.balancers.sweep import Layer, sweep
from hybridsnn.conversion.corrections.base import Correction
from hybridsnn.conversion.replacement import for_measuring
from hybridsnn.options import Options


class Balancer(Options):
    """Sets the thresholds of a spiking body. The fields of a balancer are its options.

    Attributes:
        summary: one line for lists.
        rescales: whether weights are rescaled such that each spike stands for a part of an activation of the ANN.
        initial_potential: that neurons begin with where nobody chose it and inputs do not change in time, as a
            fraction of the threshold. Half a threshold centres the rounding of such an input.
        granularity: of thresholds where nobody chose it.
    """

    summary: ClassVar[str]
    rescales: ClassVar[bool] = False
    initial_potential: ClassVar[float] = 0.5
    granularity: ClassVar[str] = "layer"

    threshold_scale: float = Field(
        1.0, gt=0, description="Factor on all thresholds; below 1 for few time steps (hybrid paper: 0.7)."
    )

    @property
    def folds_batch_norm(self) -> bool:
        """Whether batch norm must be folded into the synapses, because they are rescaled."""
        return True

    @abstractmethod
    def set_thresholds(
        self, body: fx.GraphModule, draw: Callable[[int], Calibration], corrections: Sequence[Correction] = ()
    ) -> None:
        """Set all thresholds, and rescale the weights as they imply.

        Args:
            body: has the ANN's weights; is changed in place.
            draw: gives that many training images, or all there are, for a balancer that measures.
            corrections: for a balancer that measures; the body has what they need. Not handed in if there are none.
        """
        ...


class MeasuringBalancer(Balancer):
    """A balancer that measures thresholds on training images."""

    rescales: ClassVar[bool] = True

    calibration_images: int = Field(256, gt=0, description="Number of training images to measure thresholds on.")

    @abstractmethod
    def measure(self, body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
        """Thresholds by the name of the neuron, scalar or `[channels]` as the neurons have them.

        If you know activations rather than thresholds, end with `thresholds_for_activations`.

        Args:
            body: a spiking body with the ANN's weights, which may be changed.
        """
        ...

    def balance(
        self, body: fx.GraphModule, calibration: Calibration, corrections: Sequence[Correction] = ()
    ) -> dict[str, Tensor]:
        """Measure thresholds and put them, and the weights they imply, into a spiking body with the ANN's weights.

        Args:
            body: is changed in place.
            corrections: applied in this order to each layer, at the T of the calibration, before the next layer.

        Returns:
            The thresholds by the name of the neuron, as they are in the body now: scalar or `[channels]`, scalar too
            where all neurons of a layer have the same one each.
        """
        measured = self.measure(for_measuring(body), calibration)
        thresholds = {name: threshold * self.threshold_scale for name, threshold in measured.items()}
        if corrections:
            steps = calibration.timesteps
            return sweep(
                body, calibration, lambda layer: thresholds[layer.name], timesteps=steps, corrections=corrections
            )
        scales = apply_thresholds(body, thresholds, calibration.encoder.scale)
        return {str(neuron.target): threshold.clone() for neuron, threshold in scales.thresholds.items()}

    def set_thresholds(
        self, body: fx.GraphModule, draw: Callable[[int], Calibration], corrections: Sequence[Correction] = ()
    ) -> None:
        self.balance(body, draw(self.calibration_images), corrections)


class FittedBalancer(MeasuringBalancer):
    """A balancer that fits each layer's threshold to the T of the calibration, on what the layers before it send."""

    @abstractmethod
    def fit(self, layer: Layer) -> Tensor:
        """The threshold of a layer, a scalar or `[channels]`."""
        ...

    def measure(self, body: fx.GraphModule, calibration: Calibration) -> dict[str, Tensor]:
        return sweep(body, calibration, self.fit, timesteps=calibration.timesteps, compares=True)

    def balance(
        self, body: fx.GraphModule, calibration: Calibration, corrections: Sequence[Correction] = ()
    ) -> dict[str, Tensor]:
        """The same in one sweep: each layer gets its threshold and is corrected before the next."""

        def threshold_of(layer: Layer) -> Tensor:
            return self.fit(layer) * self.threshold_scale

        steps = calibration.timesteps
        return sweep(body, calibration, threshold_of, timesteps=steps, corrections=corrections, compares=True)


def largest(values: Tensor, per_channel: bool) -> Tensor:
    """The maximum of values `[T, B, *N]`, or of each channel, the first of *N."""
    if not per_channel:
        return values.amax()
    return values.amax(dim=[axis for axis in range(values.dim()) if axis != 2])
