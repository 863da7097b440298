"""What the kernels must know of a surrogate gradient, and how they refuse one whose shape they lack."""

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from hybridsnn.errors import ConfigError


class Surrogate(Protocol):
    """A surrogate gradient, as the kernels see it; `hybridsnn.surrogates` holds the real ones.

    Its definition is `slope`. A kernel that has formulas of its own goes by the name of the shape, and must have that.
    """

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> str: ...
    @property
    def height(self) -> float: ...
    @property
    def decay(self) -> float: ...
    @property
    def relative(self) -> bool: ...
    @property
    def never(self) -> int: ...
    @property
    def needs_membrane(self) -> bool: ...
    @property
    def needs_clock(self) -> bool: ...

    def slope(self, membrane: Tensor, threshold: Tensor, since_spike: Tensor) -> Tensor: ...


def shape_of(surrogate: Surrogate, known: Collection[str], kernel: str) -> str:
    """The shape of a surrogate, if it is among those that a kernel knows.

    Raises:
        ConfigError: if it is not.
    """
    if surrogate.shape not in known:
        raise ConfigError(
            f"kernel: '{kernel}' cannot run surrogate '{surrogate.name}', got the shape '{surrogate.shape}'; "
            f"allowed: {', '.join(sorted(known))}; use 'auto' or 'reference'"
        )
    return surrogate.shape
