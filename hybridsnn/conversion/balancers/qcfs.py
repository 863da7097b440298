"""Thresholds that the ANN has learned itself, as the ceilings of its activations."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import fx

from hybridsnn.conversion.activation_scales import apply_thresholds, thresholds_for_activations
from hybridsnn.conversion.balancers.base import Balancer
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.conversion.corrections.base import Correction
from hybridsnn.conversion.replacement import CEILINGS, for_measuring
from hybridsnn.errors import ConversionError
from hybridsnn.neurons import SpikingNeuron


class LearnedCeilings(Balancer):
    """A layer's threshold is the ceiling of its staircase activation (QCFS, Bu et al., ICLR 2022); nothing is measured.

    With membranes that start at half a threshold and T equal to the levels that the ANN was trained with, a layer under
    a constant current fires as often as its activation has levels.
    """

    rescales: ClassVar[bool] = True
    summary: ClassVar[str] = "the ceilings that an ANN trained with '--activation qcfs' has learned"

    def set_thresholds(
        self, body: fx.GraphModule, draw: Callable[[int], Calibration], corrections: Sequence[Correction] = ()
    ) -> None:
        ceilings, granularity = body.meta[CEILINGS], body.meta["granularity"]
        if not ceilings:
            raise ConversionError(
                "convert.balance: got 'qcfs', but the ANN has no ceilings to take thresholds from; "
                "train it with --activation qcfs, or choose another balancer"
            )
        layers = [name for name, module in body.named_modules() if isinstance(module, SpikingNeuron)]
        if bare := [name for name in layers if name not in ceilings]:
            raise ConversionError(
                f"convert.balance: got 'qcfs', but {', '.join(bare)} of the ANN are ReLUs without a ceiling; "
                "choose another balancer"
            )
        if granularity != "channel" and any(ceiling.dim() for ceiling in ceilings.values()):
            raise ConversionError(
                f"convert.granularity: got '{granularity}', but the ANN has a ceiling for each channel; "
                "convert with --granularity channel"
            )
        scale = draw(1).encoder.scale  # of the encoder; the image is not used
        thresholds = thresholds_for_activations(for_measuring(body), ceilings, scale)
        thresholds = {name: threshold * self.threshold_scale for name, threshold in thresholds.items()}
        apply_thresholds(body, thresholds, scale)
