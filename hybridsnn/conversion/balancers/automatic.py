"""The choice of a balancer by what it comes to on validation images."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from pydantic import Field
from torch import fx

from hybridsnn.conversion.balancers.base import Balancer
from hybridsnn.conversion.balancers.calibration import Calibration
from hybridsnn.conversion.corrections.base import Correction
from hybridsnn.errors import ConversionError


class Automatic(Balancer):
    """Tries every balancer that measures, each with several corrections, and takes the most accurate.

    A choice needs labels, so the stage `convert` makes it, on validation images; this holds its options.
    """

    summary: ClassVar[str] = "tries all that measure, with corrections, and takes the best on validation images"
    granularity: ClassVar[str] = "channel"

    auto_images: int = Field(
        1000, gt=0, description="Number of validation images to compare balancers on, or all there are."
    )
    calibration_images: int = Field(256, gt=0, description="Number of training images to measure thresholds on.")

    def set_thresholds(
        self, body: fx.GraphModule, draw: Callable[[int], Calibration], corrections: Sequence[Correction] = ()
    ) -> None:
        raise ConversionError("balance: 'auto' compares on labelled images, which only the stage convert has")
