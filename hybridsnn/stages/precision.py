"""`--precision auto`: half precision where the machine has it and a network answers as it does in single precision."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hybridsnn.batch import Batch
from hybridsnn.evaluation.accuracy import CHUNK
from hybridsnn.model import SpikingModel
from hybridsnn.stages.base import Work
from hybridsnn.stages.compute import HALF, fabric_for, has_bfloat16

IMAGES = 100  # that the check sees
ANSWERS = 0.02  # of them may get another answer
SPIKES = 2.5e-3  # of a layer's neurons and steps may be a spike more or less, in all


class Difference(NamedTuple):
    """How far half precision is from single precision.

    Attributes:
        images: how many were looked at.
        answers: of them, how many got another answer at the last step.
        spikes: the difference of the numbers of spikes, as a share of neurons and steps, of the layer with most.
    """

    images: int
    answers: int
    spikes: float

    @property
    def is_small(self) -> bool:
        """Whether half precision will do."""
        return self.answers <= ANSWERS * self.images and self.spikes <= SPIKES


def settle(
    work: Work,
    fabric: Fabric,
    precision: str,
    network: nn.Module,
    batches: Callable[[], Iterator[Batch]],
    timesteps: int | None = None,
) -> Fabric:
    """The Fabric to work with: the one given, or, for "auto", one in half precision if that passes its check.

    The choice depends on the machine, the network and the images, and on nothing else; one line says what it was.

    Args:
        fabric: at the precision asked for, for "auto" in single precision.
        batches: images to check on.
        timesteps: T of a spiking network.
    """
    if precision != "auto":
        return fabric
    say = work.environment.progress.say
    if not has_bfloat16(str(fabric.device)):
        say(f"precision: 32-true, as {work.device} has no instructions for bfloat16")
        return fabric
    half = fabric_for(work, HALF)
    found = difference(network, half, batches(), timesteps)
    measured = f"{found.answers} of {found.images} images got another answer (allowed: {ANSWERS:.0%})"
    if timesteps is not None:
        measured += f" and at most {found.spikes:.2%} of neurons and steps another spike (allowed: {SPIKES:.2%})"
    chosen = half if found.is_small else fabric_for(work, "32-true")
    say(f"precision: {HALF if found.is_small else '32-true'}, as in bfloat16 {measured}")
    return chosen


@torch.no_grad()
def difference(network: nn.Module, half: Fabric, batches: Iterator[Batch], timesteps: int | None) -> Difference:
    """Run a network on some images at both precisions; it is left as it was.

    Args:
        half: Fabric in half precision.
        timesteps: T of a spiking network.
    """
    training = network.training
    network = half.to_device(network).eval()
    images = answers = 0
    changes: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for batch in batches:
        single, single_counts = _answers(network, batch, half.device, timesteps, sizes)
        with half.autocast():
            other, counts = _answers(network, batch, half.device, timesteps, sizes)
        images, answers = images + len(single), answers + int((single != other).sum())
        for name, count in counts.items():
            changes[name] = changes.get(name, 0.0) + count - single_counts[name]
        if images >= IMAGES:
            break
    network.train(training)
    # Each batch was counted twice.
    return Difference(images, answers, max((abs(2 * changes[name]) / sizes[name] for name in changes), default=0.0))


def _answers(
    network: nn.Module, batch: Batch, device: torch.device, timesteps: int | None, sizes: dict[str, int]
) -> tuple[Tensor, dict[str, float]]:
    """The class of each image, and the number of spikes of each layer; adds its neurons and steps to `sizes`."""
    counts: dict[str, float] = {}
    if not isinstance(network, SpikingModel):
        outputs: Tensor = network(batch.time_average.to(device))
        return outputs.argmax(1), counts

    def observe(name: str, spikes: Tensor) -> None:
        counts[name] = counts.get(name, 0.0) + float(spikes.sum(dtype=torch.float64))
        sizes[name] = sizes.get(name, 0) + spikes.numel()

    assert timesteps is not None
    images, state = batch.images.to(device), None
    for start in range(0, timesteps, CHUNK):
        steps = min(CHUNK, timesteps - start)
        outputs, state = network(network.encoder(images, batch.indices, steps, start=start), state, observe=observe)
    return outputs[-1].argmax(1), counts
