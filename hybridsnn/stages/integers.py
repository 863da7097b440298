"""A spiking network of integers, for the stages that measure and export one."""

from hybridsnn.conversion.integers import PIXELS, integer_model
from hybridsnn.encoders import ENCODERS
from hybridsnn.errors import ConfigError
from hybridsnn.model import IntegerModel, SpikingModel
from hybridsnn.program.graph import Node
from hybridsnn.program.ranges import EXACT, Range, ranges
from hybridsnn.stages.networks import ModelDescription


def largest_input(description: ModelDescription, *, integers: bool) -> float:
    """The largest absolute value of a frame."""
    assert description.spiking is not None
    encoder = description.spiking.encoder
    coding = ENCODERS[encoder.name]
    if coding.random:
        return 1.0
    if coding.events or integers:
        return float(PIXELS)  # more events in a pixel of one frame do not occur; an image is scaled to it
    return description.preprocessing.bound / encoder.scale


def as_integers(
    model: SpikingModel, description: ModelDescription, timesteps: int, *, bits: int, grid: str
) -> tuple[IntegerModel, dict[Node, Range]]:
    """A network of integers that does not overflow in so many steps, with the ranges that prove it.

    Raises:
        ConversionError: if something in it has no integer counterpart.
        ConfigError: if a sum could exceed what float32 holds exactly.
    """
    sample = tuple(description.network.input_shape)
    made = integer_model(model, sample, bits=bits, grid=grid, largest_pixel=description.preprocessing.bound)
    found = ranges(made.program, sample, timesteps, largest_input(description, integers=True))
    worst = max(found, key=lambda node: found[node].extent)
    if found[worst].extent >= EXACT:
        raise ConfigError(
            f"weight_bits: got {bits}; at {timesteps} time steps '{worst.name}' may reach {found[worst].extent:,.0f}, "
            f"must stay below {EXACT:,}, to be exact in float32; take fewer bits or steps"
        )
    return made, found
