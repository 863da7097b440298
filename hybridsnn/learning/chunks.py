"""How many steps of back-propagation through time fit in a memory budget."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from hybridsnn.encoders import Frames
from hybridsnn.errors import ConfigError
from hybridsnn.model import SYNAPSES
from hybridsnn.neurons import SharedDropout, SpikingNeuron, TemporalModule
from hybridsnn.surrogates import Surrogate

BYTE = 8  # steps whose spikes fill a byte
WORKSPACE = 2**27  # bytes that the work on a chunk may take where nothing is said
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
    def of(cls, body: fx.GraphModule, frame: Tensor, surrogate: Surrogate) -> "Footprint":
        """For frames like this one, `[1, ...]`, of one sample."""
        sizes = _Sizes(body)
        sizes.run(frame.to("meta"))
        learns_leak = any(module.leak.requires_grad for module in body.modules() if isinstance(module, SpikingNeuron))
        membranes = FLOAT * sizes.neurons if surrogate.needs_membrane or learns_leak else 0
        state = FLOAT * (sizes.neurons + sizes.masks)
        return cls(sizes.neurons, sizes.neurons / BYTE, membranes, state, FLOAT * sizes.working)


def chunks_of_time(
    body: fx.GraphModule, frames: Tensor | Frames, surrogate: Surrogate, budget: int | None
) -> tuple[int, ...]:
    """The lengths of the chunks into which a run over frames `[T, B, ...]` is cut: few, and all but equal.

    Chunks of 8 steps and more fill whole bytes with spikes; shorter ones waste bits, so they are the last resort.

    Args:
        budget: bytes for what is kept over the run and for the work on one chunk; None: for the work on a chunk
            `WORKSPACE`, or 8 steps if they take more.

    Raises:
        ConfigError: if the budget is too small.
    """
    timesteps, first = len(frames), frames[:1]
    batch = first.shape[1]
    footprint = Footprint.of(body, first[0, :1], surrogate)
    working = batch * footprint.working

    def kept(chunks: tuple[int, ...]) -> float:
        whole_bytes = BYTE * sum(math.ceil(steps / BYTE) for steps in chunks)
        return batch * (footprint.bits * whole_bytes + footprint.membranes * timesteps + footprint.state)

    def needed(chunks: tuple[int, ...]) -> float:
        return kept(chunks) + max(chunks) * working

    if budget is None:
        longest = max(BYTE, int(WORKSPACE / working) // BYTE * BYTE)
        return _cut(timesteps, timesteps if timesteps * working <= WORKSPACE else longest)
    lengths = [timesteps, *range(timesteps // BYTE * BYTE, 0, -BYTE), *range(min(timesteps, BYTE), 0, -1)]
    candidates = [_cut(timesteps, longest) for longest in lengths]
    for chunks in candidates:
        if needed(chunks) <= budget:
            return chunks
    least = min(candidates, key=needed)
    raise ConfigError(
        f"memory_budget: got {budget / 2**30:.3g} GiB, must be at least {_gib(needed(least))}: "
        f"batch {batch} x {timesteps} steps x {footprint.neurons:,} neurons take {_gib(kept(least))}, "
        f"the work on {max(least)} at a time {_gib(max(least) * working)}; give more, or a smaller batch"
    )


def _gib(size: float) -> str:
    """Bytes in GiB to three digits, rounded up: so much is enough."""
    digit = 10.0 ** (math.floor(math.log10(size / 2**30)) - 2)
    return f"{math.ceil(size / 2**30 / digit) * digit:.3g}"


def _cut(timesteps: int, longest: int) -> tuple[int, ...]:
    """As few chunks as there can be, all but equal, the longer ones first."""
    count = math.ceil(timesteps / longest)
    length, longer = divmod(timesteps, count)
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
