"""Other libraries' networks with the weights and thresholds of ours, and the check that they compute the same thing."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from networks import chain
from torch import Tensor, nn

from hybridsnn.model import Observer, SpikingModel
from hybridsnn.neurons import SpikingNeuron

# Of a layer's neurons and steps, where sums are rounded and so depend on their order; a spike more here is several in
# the layers after it. bfloat16 has 8 bits, in which some libraries keep their membranes too.
TOLERANCES = {"32-true": 5e-4, "bf16-mixed": 2.5e-3}


class Peer(nn.Module):
    """A sequence of another library's modules, by the names of ours; frames `[T, B, ...]` to logits `[B, K]`."""

    def __init__(self, model: SpikingModel, translate: Callable[[nn.Module], nn.Module]):
        super().__init__()
        modules = chain(model)
        self.names = tuple(modules)
        self.layers = nn.ModuleList(translate(module) for module in modules.values())
        for layer, module in zip(self.layers, modules.values(), strict=True):
            if isinstance(module, nn.Conv2d | nn.Linear):
                layer.weight.data.copy_(module.weight.data)
        self.to(next(model.parameters()).device)


class SpikingJelly(Peer):
    """SpikingJelly in multi-step mode: each layer runs over all of time, synapses on `[T*B, ...]`."""

    def __init__(self, model: SpikingModel):
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        def translate(module: Any) -> nn.Module:
            match module:
                case SpikingNeuron():
                    return neuron.IFNode(
                        float(module.threshold), v_reset=None, surrogate_function=surrogate.PiecewiseQuadratic()
                    )
                case nn.Conv2d():
                    sizes = (module.in_channels, module.out_channels, module.kernel_size)
                    return layer.Conv2d(*sizes, stride=module.stride, padding=module.padding, bias=False)
                case nn.Linear():
                    return layer.Linear(module.in_features, module.out_features, bias=False)
                case nn.AvgPool2d():
                    return layer.AvgPool2d(module.kernel_size)
            assert isinstance(module, nn.Flatten)
            return layer.Flatten()

        super().__init__(model, translate)
        functional.set_step_mode(self, "m")
        self.neuron, self.functional = neuron.IFNode, functional

    def forward(self, frames: Tensor, observe: Observer | None = None) -> Tensor:
        """See `Peer`."""
        values = frames
        for name, layer in zip(self.names, self.layers, strict=True):
            values = layer(values)
            if observe is not None and isinstance(layer, self.neuron):
                observe(name, values)
        self.functional.reset_net(self)
        return values.sum(0)


class SnnTorch(Peer):
    """snnTorch, whose networks run one step at a time.

    Its `Leaky` with `beta` 1 and its default delayed reset computes U[t] = U[t-1] + I[t] - threshold * s[t-1], which is
    our equation. It fires above the threshold, not at it, so it is handed its own arctangent surrogate with `>=`. Its
    membranes are given as float32, in which it keeps them, as the others do at any precision.
    """

    def __init__(self, model: SpikingModel):
        import snntorch

        class Reached(snntorch.surrogate.ATan):
            @staticmethod
            def forward(ctx: Any, distance: Tensor, alpha: float) -> Tensor:
                ctx.save_for_backward(distance)
                ctx.alpha = alpha
                return (distance >= 0).float()

        def translate(module: Any) -> nn.Module:
            match module:
                case SpikingNeuron():
                    return snntorch.Leaky(1.0, float(module.threshold), lambda distance: Reached.apply(distance, 2.0))
                case nn.Conv2d():
                    sizes = (module.in_channels, module.out_channels, module.kernel_size)
                    return nn.Conv2d(*sizes, stride=module.stride, padding=module.padding, bias=False)
                case nn.Linear():
                    return nn.Linear(module.in_features, module.out_features, bias=False)
                case nn.AvgPool2d():
                    return nn.AvgPool2d(module.kernel_size)
            assert isinstance(module, nn.Flatten)
            return nn.Flatten()

        super().__init__(model, translate)
        self.neuron = snntorch.Leaky

    def forward(self, frames: Tensor, observe: Observer | None = None) -> Tensor:
        """See `Peer`."""
        membranes: dict[str, Tensor] = {}
        logits = torch.zeros((), device=frames.device)
        for values in frames:
            for name, layer in zip(self.names, self.layers, strict=True):
                if not isinstance(layer, self.neuron):
                    values = layer(values)
                    continue
                membrane = membranes.get(name)
                if membrane is None:
                    membrane = torch.zeros_like(values, dtype=torch.float32)
                values, membranes[name] = layer(values, membrane)
                if observe is not None:
                    observe(name, values)
            logits = logits + values
        return logits


@dataclass(frozen=True)
class Library:
    """An entry of `PEERS`: the packages it needs, our network in its terms, and how that lies in memory.

    Channels-last is what suits all of them on a CPU, ours too; contiguous is how networks come.
    """

    packages: tuple[str, ...]
    peer: Callable[[SpikingModel], Peer]
    layout: torch.memory_format = torch.contiguous_format

    def build(self, model: SpikingModel) -> Peer:
        """Our network, with weights of its own."""
        return self.peer(model).to(memory_format=self.layout)

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package in self.packages if find_spec(package) is None]


PEERS = {
    "spikingjelly": Library(("spikingjelly", "loguru"), SpikingJelly),
    "spikingjelly-channels-last": Library(("spikingjelly", "loguru"), SpikingJelly, torch.channels_last),
    "snntorch-channels-last": Library(("snntorch",), SnnTorch, torch.channels_last),
}


@torch.no_grad()
def spike_counts(run: Callable[..., object], frames: Tensor) -> dict[str, tuple[float, int]]:
    """For each layer how many spikes there were, and how many there could have been."""
    counts: dict[str, tuple[float, int]] = {}

    def observe(name: str, spikes: Tensor) -> None:
        count, most = counts.get(name, (0.0, 0))
        counts[name] = count + float(spikes.sum(dtype=torch.float64)), most + spikes.numel()

    run(frames, observe=observe)
    return counts


def first_difference(
    ours: dict[str, tuple[float, int]], theirs: dict[str, tuple[float, int]], tolerance: float
) -> str | None:
    """The first layer whose counts differ by more than a share of its neurons and steps, in words, or None."""
    for name, (count, most) in ours.items():
        other, other_most = theirs[name]
        if most != other_most or abs(count - other) > tolerance * most:
            return f"layer {name}: {count:.0f} and {other:.0f} spikes"
    return None
