"""Energy from counts: a pure function, with every constant and its source.

Three accounts, from the one that flatters spikes most to the one that flatters them least:

- `operations`: arithmetic of the synapses alone, in float32, beside the same network as a float32 ANN;
- `memory`: the same with the updates of the membranes and all accesses to memory, on both sides;
- `quantised`: with memory, in integers, beside an ANN of 8-bit weights whose activations have ceil(log2(T + 1)) bits,
  since T steps of 0 or 1 tell T + 1 levels apart.

What is read and written follows Lemaire et al. (ICONIP 2022): an accumulate reads a weight and reads and writes a
membrane; a multiplication of an ANN reads a weight and an activation and keeps its sum in a register; every value is
written once. Everything is taken to lie in a small memory beside the arithmetic, which is kind to both; an ANN is
counted dense, so what it could save by skipping zeros is not counted.
"""

import math
from dataclasses import dataclass
from typing import Any

# Horowitz, "Computing's energy problem", ISSCC 2014: 45 nm, 0.9 V, in pJ.
FLOAT_MULTIPLY, FLOAT_ADD = 3.7, 0.9  # 32 bits; together the 4.6 pJ of a multiply-accumulate
BYTE_MULTIPLY, INTEGER_ADD = 0.2, 0.1  # of 8 by 8 bits; of 32 bits
CACHE_ACCESS, CACHE_BITS = 10.0, 64  # one access of 64 bits to a memory of 8 KB

BASES = ("operations", "memory", "quantised")


@dataclass(frozen=True)
class Counts:
    """What a spiking network does for one image in its first T steps, and what its ANN does; means over images.

    Attributes:
        timesteps: T.
        accumulates, multiplications: of synapses.
        spikes: of all neurons.
        updates: of membranes: neurons times steps.
        constants: those updates that add a bias or a constant current.
        leaks: those updates that multiply by a leak.
        ann_multiplications: multiply-accumulates of the ANN, dense.
        first_multiplications: those of them that read the image.
        ann_values: values that the layers of the ANN write.
    """

    timesteps: int
    accumulates: float
    multiplications: float
    spikes: float
    updates: float
    constants: float
    leaks: float
    ann_multiplications: float
    first_multiplications: float
    ann_values: float

    @property
    def memory_accesses(self) -> float:
        """Numbers that the spiking network reads or writes."""
        synapses = 3 * self.accumulates + 2 * self.multiplications
        return synapses + 2 * self.updates + self.constants + 2 * self.spikes

    @property
    def ann_memory_accesses(self) -> float:
        """Numbers that the ANN reads or writes."""
        return 2 * self.ann_multiplications + self.ann_values


@dataclass(frozen=True)
class Costs:
    """Energy of arithmetic in pJ, and the bits of numbers.

    Attributes:
        multiply, image_multiply: of an activation and a weight; of a pixel and a weight.
        add: an accumulate, the addition of a constant, a comparison, a reset.
        weight, activation, pixel, state: bits of a weight, an activation of the ANN, a pixel, a membrane or address.
    """

    multiply: float
    image_multiply: float
    add: float
    weight: int
    activation: int
    pixel: int
    state: int = 32

    @classmethod
    def single_precision(cls) -> "Costs":
        """Everything in float32."""
        return cls(FLOAT_MULTIPLY, FLOAT_MULTIPLY, FLOAT_ADD, 32, 32, 32)

    @classmethod
    def quantised(cls, timesteps: int) -> "Costs":
        """8-bit weights and pixels, sums of 32 bits, activations of ceil(log2(T + 1)) bits.

        A multiplication of b by 8 bits is taken as b / 8 of one of 8 by 8.
        """
        bits = activation_bits(timesteps)
        return cls(BYTE_MULTIPLY * bits / 8, BYTE_MULTIPLY, INTEGER_ADD, 8, bits, 8)


def activation_bits(timesteps: int) -> int:
    """Bits that tell as many levels apart as T steps of a spiking neuron: ceil(log2(T + 1))."""
    return math.ceil(math.log2(timesteps + 1))


@dataclass(frozen=True)
class Energy:
    """Of one image, in pJ.

    Attributes:
        spiking, ann: of the spiking network and of the ANN.
        per_spikes: the part of `spiking` that grows with the number of spikes.
    """

    spiking: float
    ann: float
    per_spikes: float

    def break_even(self, firing_rate: float) -> float:
        """The firing rate at which both need the same, if spikes spread over the layers as they do at this rate.

        0 where the spiking network needs more without any spike; NaN where there are none to go by.
        """
        if self.per_spikes == 0:
            return math.nan
        return max(0.0, firing_rate * (self.ann - (self.spiking - self.per_spikes)) / self.per_spikes)


def energy(counts: Counts, basis: str) -> Energy:
    """The energy of an image on one of `BASES`."""
    costs = Costs.quantised(counts.timesteps) if basis == "quantised" else Costs.single_precision()
    memory = 0.0 if basis == "operations" else CACHE_ACCESS / CACHE_BITS  # per bit
    accumulate = costs.add + memory * (costs.weight + 2 * costs.state)
    first = costs.image_multiply + costs.add + memory * (costs.weight + costs.pixel)
    later = costs.multiply + costs.add + memory * (costs.weight + costs.activation)
    hidden = counts.ann_multiplications - counts.first_multiplications
    ann = first * counts.first_multiplications + later * hidden + memory * costs.activation * counts.ann_values
    per_spikes = accumulate * counts.accumulates
    fixed = first * counts.multiplications
    if basis != "operations":  # a reset and two accesses to an address; a comparison and a membrane read and written
        per_spikes += (costs.add + 2 * memory * costs.state) * counts.spikes
        fixed += (costs.add + 2 * memory * costs.state) * counts.updates
        fixed += (costs.add + memory * costs.state) * counts.constants + costs.multiply * counts.leaks
    return Energy(fixed + per_spikes, ann, per_spikes)


def energy_rows(counts: Counts, firing_rate: float) -> list[dict[str, Any]]:
    """Rows `metric`, `value`, with the step: counts, energies in pJ per image and break-even firing rates."""
    values = {
        "accumulates-per-image": counts.accumulates,
        "multiplications-per-image": counts.multiplications,
        "membrane-updates-per-image": counts.updates,
        "memory-accesses-per-image": counts.memory_accesses,
    }
    for basis in BASES:
        used = energy(counts, basis)
        values[f"energy-{basis}"] = used.spiking
        values[f"ann-energy-{basis}"] = used.ann
        values[f"break-even-rate-{basis}"] = used.break_even(firing_rate)
    return [{"step": counts.timesteps, "metric": name, "value": value} for name, value in values.items()]
