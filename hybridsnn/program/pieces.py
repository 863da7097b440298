"""The pieces of batch and time in which back-propagation through time fits in a memory budget."""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from torch import Tensor

from hybridsnn.encoders import Frames
from hybridsnn.errors import ConfigError
from hybridsnn.neurons import SharedDropout
from hybridsnn.program.graph import Program
from hybridsnn.program.operations import Role
from hybridsnn.program.passes import shapes
from hybridsnn.surrogates import Surrogate

BYTE = 8  # steps whose spikes fill a byte
WORKSPACE = 2**28  # bytes that the work on a chunk may take where nothing is said
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Footprint:
    """Bytes that one sample needs in a training step.

    Attributes:
        neurons: how many there are.
        bits: for each step of the run: the spikes of all neurons.
        membranes: for each step of the run, where the surrogate sees them or a leak learns.
        state: once: membranes of all neurons, or their errors, and masks of dropouts.
        working: for each step of a chunk: values and errors around the layer that has most of them.
    """

    neurons: int
    bits: float
    membranes: float
    state: float
    working: float

    @classmethod
    def of(cls, program: Program, sample: tuple[int, ...], surrogate: Surrogate, value: int = FLOAT) -> "Footprint":
        """For samples of this shape; `value`: bytes of a number that a synapse gives, 2 in half precision."""
        neurons = masks = working = 0
        sizes = {node: math.prod(shape) for node, shape in shapes(program, sample).items()}
        for node, size in sizes.items():
            if node.role is Role.INPUT:
                continue
            if isinstance(node.module, SharedDropout) and node.module.training and node.module.probability > 0:
                masks += size
            inputs = sum(sizes.get(source, 0) for source in node.inputs)
            if node.role is Role.NEURON:
                neurons += size
                work = size  # the errors of currents take the place of those of spikes
            elif node.role is Role.SYNAPSE:
                work = size + 2 * inputs  # the error of the output; the input, and its error
            else:
                work = size + inputs
            working = max(working, work)
        learns_leak = any(node.module.leak.requires_grad for node in program.neurons if node.module is not None)
        membranes = FLOAT * neurons if surrogate.needs_membrane or learns_leak else 0
        return cls(neurons, neurons / BYTE, membranes, FLOAT * (neurons + masks), value * working)


@dataclass(frozen=True)
class Pieces:
    """How a training step is cut: each part of the batch runs through all chunks of time and back, then the next.

    Attributes:
        samples: of each part, all but equal.
        timesteps: of each chunk, all but equal.
    """

    samples: tuple[int, ...]
    timesteps: tuple[int, ...]

    @classmethod
    def of(
        cls,
        program: Program,
        frames: Tensor | Frames,
        surrogate: Surrogate,
        budget: int | None,
        value: int = FLOAT,
    ) -> "Pieces":
        """As few pieces as there can be of a run over frames `[T, B, ...]`.

        Of choices with as many pieces, the one that needs least.

        Args:
            budget: bytes for what is kept over the run and for the work on one piece; None: the batch is not cut,
                and for the work on a chunk there are `WORKSPACE` bytes, or 8 steps if they take more.
            value: bytes of what a synapse gives: 2 in half precision.

        Raises:
            ConfigError: if the budget is too small for any.
        """
        first = frames[:1]
        batch, timesteps = first.shape[1], len(frames)
        footprint = Footprint.of(program, tuple(first.shape[2:]), surrogate, value)
        if budget is not None:
            return _fewest(footprint, batch, timesteps, budget)
        fitting = int(WORKSPACE / (batch * footprint.working))
        return cls((batch,), _cut(timesteps, timesteps if timesteps <= fitting else max(BYTE, fitting // BYTE * BYTE)))

    def kept(self, footprint: Footprint) -> float:
        """Bytes that the largest part keeps over its run."""
        longest, shortest, number = max(self.timesteps), min(self.timesteps), len(self.timesteps)
        longer = sum(self.timesteps) - shortest * number
        whole_bytes = BYTE * (longer * math.ceil(longest / BYTE) + (number - longer) * math.ceil(shortest / BYTE))
        run = footprint.bits * whole_bytes + footprint.membranes * sum(self.timesteps) + footprint.state
        return max(self.samples) * run

    def working(self, footprint: Footprint) -> float:
        """Bytes for the work on the largest piece."""
        return max(self.samples) * max(self.timesteps) * footprint.working

    def needed(self, footprint: Footprint) -> float:
        """Bytes in all."""
        return self.kept(footprint) + self.working(footprint)


@lru_cache
def _fewest(footprint: Footprint, batch: int, timesteps: int, budget: int) -> Pieces:
    """See `Pieces.of`; lengths of chunks are whole bytes of spikes, or less than one."""
    lengths = (timesteps, *range(timesteps // BYTE * BYTE, 0, -BYTE), *range(min(timesteps, BYTE), 0, -1))
    chunks = {_cut(timesteps, longest) for longest in lengths}
    parts = {_cut(batch, most) for most in range(1, batch + 1)}
    choices = [Pieces(*cuts) for cuts in product(parts, chunks)]
    needs = {choice: choice.needed(footprint) for choice in choices}
    fitting = [choice for choice in choices if needs[choice] <= budget]
    if fitting:
        return min(fitting, key=lambda choice: (len(choice.samples) * len(choice.timesteps), needs[choice]))
    least = min(choices, key=lambda choice: needs[choice])
    raise ConfigError(
        f"memory_budget: got {budget / 2**30:.3g} GiB, must be at least {_gib(needs[least])}: "
        f"one sample x {timesteps} steps x {footprint.neurons:,} neurons take {_gib(least.kept(footprint))}, "
        f"the work on {max(least.timesteps)} at a time {_gib(least.working(footprint))}; give more, or fewer timesteps"
    )


def _gib(size: float) -> str:
    """Bytes in GiB to three digits, rounded up: so much is enough."""
    digit = 10.0 ** (math.floor(math.log10(size / 2**30)) - 2)
    return f"{math.ceil(size / 2**30 / digit) * digit:.3g}"


def _cut(whole: int, longest: int) -> tuple[int, ...]:
    """As few pieces as there can be, all but equal, the longer ones first."""
    count = math.ceil(whole / longest)
    length, longer = divmod(whole, count)
    return (length + 1,) * longer + (length,) * (count - longer)
