"""A spiking network run layer by layer: each layer takes in all T steps before it fires for T steps.

Soft-reset neurons without leak then send a number of spikes that depends on their total current alone,

    count = clip(floor((V0 + sum_t I[t]) / threshold), 0, T)

and as synapses, pools and sums are affine, so is what the next layer gets in all: T times what it makes of the share
`count / T` of steps with a spike. One pass over mean values gives the counts of every layer, for any number of T side
by side: they take the place of the time steps of a run.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridsnn.neurons import SpikingNeuron, along_channels
from hybridsnn.program.graph import Node, Program
from hybridsnn.program.run import Flow, Observer, Run


class Staircase(Flow):
    """Neurons give the share of steps at which they would spike, of their mean current.

    Args:
        timesteps: the T of each place along what a run takes for time, `[n]`, each at least 1.
    """

    def __init__(self, timesteps: Tensor):
        super().__init__()
        self.timesteps = timesteps

    def fire(self, run: Run, node: Node, current: Tensor) -> Tensor:
        """Mean currents `[n, B, *N]` to `count / T`, `[n, B, *N]`."""
        neuron = node.module
        assert isinstance(neuron, SpikingNeuron)
        start, _ = neuron.initial_state(current)
        steps = self.timesteps.to(start).view(-1, *[1] * start.dim())
        threshold = along_channels(neuron.threshold, start).to(start)
        counts = ((start + steps * current) / threshold).floor().clamp(min=0)
        return (torch.minimum(counts, steps) / steps).to(current.dtype)


@torch.no_grad()
def layer_synchronous(
    program: Program, frame: Tensor, timesteps: Sequence[int], observe: Observer | None = None
) -> Tensor:
    """What a layer-synchronous run of T steps sums up in the readout, for each T.

    Args:
        program: of soft-reset neurons without leak.
        frame: the input of every step, `[B, ...]`.
        timesteps: the T to run for, n numbers of at least 1.
        observe: called with the name and the shares `count / T`, `[n, B, *N]`, of each layer of neurons.

    Returns:
        float64 `[n, B, K]`.
    """
    steps = torch.tensor(timesteps, device=frame.device)
    run = Run(program, Staircase(steps), observe=observe)
    means = run.simulate(frame.unsqueeze(0).expand(len(steps), *frame.shape))
    return means.double() * steps.view(-1, 1, 1)


def depth(program: Program) -> int:
    """The largest number of layers of neurons on a way from the input to the output."""
    layers = dict.fromkeys(program.inputs, 0)
    for node in program.neurons:
        layers[node] = 1 + max(layers[source] for source in program.segments[node].sources)
    return max(layers.values())
