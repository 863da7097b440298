"""The pieces of batch and time in which back-propagation through time fits in a memory budget."""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn

from hybridsnn.encoders import Frames
from hybridsnn.errors import ConfigError
from hybridsnn.model import SYNAPSES
from hybridsnn.neurons import SharedDropout, SpikingNeuron, TemporalModule
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
    def of(cls, body: fx.GraphModule, frame: Tensor, surrogate: Surrogate, value: int = FLOAT) -> "Footprint":
        """For frames like this one, `[1, ...]`, of one sample; `value`: bytes of what a synapse gives."""
        sizes = _Sizes(body)
        sizes.run(frame.to("meta"))
        learns_leak = any(module.leak.requires_grad for module in body.modules() if isinstance(module, SpikingNeuron))
        membranes = FLOAT * sizes.neurons if surrogate.needs_membrane or learns_leak else 0
        state = FLOAT * (sizes.neurons + sizes.masks)
        return cls(sizes.neurons, sizes.neurons / BYTE, membranes, state, value * sizes.working)


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
        body: fx.GraphModule,
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
        footprint = Footprint.of(body, first[0, :1], surrogate, value)
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


class _Sizes(fx.Interpreter):
    """Runs a body on tensors without data, and adds up their sizes."""

    def __init__(self, body: fx.GraphModule):
        super().__init__(body)
        self.neurons = self.masks = self.working = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op not in ("placeholder", "get_attr", "output") and isinstance(result, Tensor):
            inputs = sum(_numel(self.env[source]) for source in n.all_input_nodes if source.op != "get_attr")
            module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
            if isinstance(module, SharedDropout) and module.training and module.probability > 0:
                self.masks += result.numel()
            if isinstance(module, SpikingNeuron):
                self.neurons += result.numel()
                work = result.numel()  # the errors of currents take the place of those of spikes
            elif isinstance(module, SYNAPSES):
                work = result.numel() + 2 * inputs  # the error of the output; the input, and its error
            else:
                work = result.numel() + inputs
            self.working = max(self.working, work)
        return result

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.to("meta") if isinstance(value, Tensor) else value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module: nn.Module = self.fetch_attr(target)
        if isinstance(module, TemporalModule):
            return args[0]
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        weightless = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
        return torch.func.functional_call(module, weightless, args, kwargs)


def _numel(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 0
