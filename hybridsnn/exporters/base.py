"""What an exporter is: from a network to files, and a check of the files by the tool they are for."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

from torch import Tensor

from hybridsnn.errors import ConfigError
from hybridsnn.exporters.comparison import Verdict
from hybridsnn.model import SpikingModel
from hybridsnn.options import Options


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        model: the network; of integers (`IntegerModel`) for an export of integers.
        sample: the shape of a frame of one image.
        timesteps: T.
        largest_input: the largest absolute value of a frame.
    """

    model: SpikingModel
    sample: tuple[int, ...]
    timesteps: int
    largest_input: float


@dataclass(frozen=True)
class Export:
    """Files by name, and what a program that runs them has to know."""

    files: dict[str, bytes]
    interface: dict[str, Any] = field(default_factory=dict)


class Exporter(Options):
    """A format; the fields of a subclass are its options.

    Attributes:
        summary: one line for lists and help.
        needs: modules that have to be installed, which the extra of this name installs.
        extra: that extra.
        integers: whether it has to be given a network of integers, whatever the weights that are asked for.
        must_agree: tools that have to give every spike, or the export is refused.
        grid: of the integer thresholds it takes, see `hybridsnn.conversion.integers.GRIDS`.
    """

    summary: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    integers: ClassVar[bool] = False
    must_agree: ClassVar[tuple[str, ...]] = ()
    grid: ClassVar[str] = "channel"

    def require(self) -> None:
        """Raise ConfigError unless all that it needs is installed."""
        if missing := [name for name in self.needs if find_spec(name) is None]:
            raise ConfigError(
                f"export: needs {', '.join(missing)}, which is not installed; pip install 'hybridsnn[{self.extra}]'"
            )

    @abstractmethod
    def export(self, source: Source) -> Export:
        """The files.

        Raises:
            ConversionError: if the network has something that the format lacks, all of that in one line.
        """

    @abstractmethod
    def check(self, source: Source, export: Export, frames: Sequence[Tensor], tolerance: float) -> list[Verdict]:
        """Run the files in the tools they are for, and compare every spike of every layer at every step.

        Args:
            frames: batches `[T, B, ...]`.
            tolerance: how far from the threshold, as a share of it, a spike may differ.
        """
