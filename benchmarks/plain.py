"""A converted network run the straightforward way: dense PyTorch, layer by layer, a loop over time. What is right."""

from collections.abc import Callable

import torch
from networks import Specimen, chain
from torch import Tensor

from hybridsnn.neurons import SpikingNeuron
from hybridsnn.program.run import Observer


@torch.no_grad()
def simulate(
    specimen: Specimen,
    frames: Tensor,
    observe: Observer = lambda name, spikes: None,
    threshold_of: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Run the ANN's synapses and integrate-and-fire neurons with a soft reset.

    Args:
        frames: `[T, B, ...]`.
        observe: called with each layer's name and its spikes `[T, B, *N]`.
        threshold_of: gives the threshold of a layer from its name and its currents `[T, B, *N]`;
            None takes that of the spiking network.
    """
    values = frames.flatten(0, 1)
    for name, module in chain(specimen.model).items():
        if not isinstance(module, SpikingNeuron):
            values = specimen.ann.get_submodule(name)(values)
            continue
        currents = values.unflatten(0, frames.shape[:2])
        threshold = module.threshold if threshold_of is None else threshold_of(name, currents)
        membrane = torch.zeros_like(currents[0], dtype=torch.float32)
        spikes = []
        for current in currents:
            membrane = membrane + current
            spikes.append((membrane >= threshold).to(current.dtype))
            membrane = membrane - threshold * spikes[-1]
        observe(name, torch.stack(spikes))
        values = torch.cat(spikes)


def thresholds(specimen: Specimen) -> dict[str, Tensor]:
    """The largest current into each layer that the spike trains of the layers before it produce, by name."""
    found: dict[str, Tensor] = {}

    def largest(name: str, currents: Tensor) -> Tensor:
        return found.setdefault(name, currents.max())

    simulate(specimen, specimen.frames, threshold_of=largest)
    return found
