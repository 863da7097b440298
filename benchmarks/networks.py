"""Spiking networks for benchmarks: converted from untrained ones, with thresholds at which every layer fires alike."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridsnn.conversion import spiking_body
from hybridsnn.encoders import Encoder
from hybridsnn.model import SpikingModel
from hybridsnn.networks import NetworkSpec
from hybridsnn.neurons import SharedDropout, SpikingNeuron

GRID = 256  # weights that are multiples of 1/256, and spikes, have sums that float32 holds exactly
HALVINGS = 12  # of the range in which a threshold is sought
SEARCHED = 4  # images on which it is sought


@dataclass(frozen=True)
class Case:
    """What is measured: an ANN for `[B, 3, side, side]` to `[B, classes]`, and the run of the spiking network it gives.

    Attributes:
        build: gives the ANN, whose modules form a sequence.
        rate: spikes a neuron and step, of every layer. A share of what is silent costs an event-driven path nothing,
            so times mean little without it. Converted and fine-tuned networks fire at 1 to 10 %.
    """

    name: str
    build: Callable[[], nn.Module]
    timesteps: int
    batch: int
    side: int
    rate: float = 0.05
    classes: int = 10

    @classmethod
    def hybrid_paper(cls, name: str, timesteps: int, batch: int, *, side: int = 32, width: float = 1.0) -> "Case":
        """A network of the hybrid paper with hybridsnn's initial weights: no biases, batch norm or dropout."""
        spec = NetworkSpec(name, (3, side, side), cls.classes, width=width, dropout=0.0)
        return cls(name, spec.build, timesteps, batch, side)


CASES = {
    case.name: case for case in (Case.hybrid_paper("vgg5", 25, 32), Case.hybrid_paper("vgg16", 10, 16))
}  # what SpikingJelly was first timed on


@dataclass(frozen=True)
class Specimen:
    """A spiking network, where it came from, and what it is run on.

    Attributes:
        ann: the network it was converted from.
        model: it, channels-last, in evaluation mode.
        images: `[B, 3, side, side]`, uniform in [-1, 1].
        frames: of these images, `[T, B, 3, side, side]`.
        labels: int64 `[B]`.
    """

    ann: nn.Module
    model: SpikingModel
    images: Tensor
    frames: Tensor
    labels: Tensor

    @classmethod
    def of(cls, case: Case, *, encoder: str = "poisson", exact: bool = False, device: str = "cpu") -> "Specimen":
        """Build, convert, and find thresholds; everything follows from seed 0.

        Args:
            exact: round weights to multiples of 1/256 and thresholds likewise, so that all sums are exact in float32.
        """
        torch.manual_seed(0)
        ann = case.build().eval()
        images = 2 * torch.rand(case.batch, 3, case.side, case.side) - 1
        labels = torch.randint(case.classes, (case.batch,))
        if exact:
            for parameter in ann.parameters():
                parameter.data = (parameter.data * GRID).round() / GRID
        ann, images = ann.to(device), images.to(device)
        encode = Encoder(encoder)
        body = spiking_body(ann, tuple(images.shape[1:]))
        model = SpikingModel(body, encode).to(memory_format=torch.channels_last).eval()
        frames = encode(images, torch.arange(case.batch), case.timesteps)
        set_thresholds(model, frames, case.rate, GRID if exact else None)
        return cls(ann, model, images, frames, labels.to(device))

    @property
    def images_of_ann(self) -> Tensor:
        """As many images as there are frames, `[T*B, 3, side, side]`: what the ANN has to do to be as long at work."""
        return self.images.repeat(len(self.frames), 1, 1, 1)


def chain(model: SpikingModel) -> dict[str, nn.Module]:
    """The modules of a body that is a plain sequence, by name, in the order in which they run; without dropouts."""
    first, *called = (node for node in model.body.graph.nodes if node.op != "output")
    for before, node in zip([first, *called], called, strict=False):
        assert node.op == "call_module" and node.all_input_nodes == [before], f"{node} is not one of a sequence"
    modules = {str(node.target): model.body.get_submodule(str(node.target)) for node in called}
    return {name: module for name, module in modules.items() if not isinstance(module, SharedDropout)}


@torch.no_grad()
def set_thresholds(model: SpikingModel, frames: Tensor, rate: float, grid: int | None) -> None:
    """Layer by layer, the threshold at which neurons fire at a given rate, by halving the range it can lie in.

    Balancing by the largest current would leave most layers of an untrained deep network with a spike or two in all.
    """
    steps = frames[:, :SEARCHED].shape[:2]
    values = frames[:, :SEARCHED].flatten(0, 1)
    for module in chain(model).values():
        if not isinstance(module, SpikingNeuron):
            values = module(values)
            continue
        current = values.unflatten(0, steps)
        low, high = 0.0, len(frames) * float(current.max())
        for _ in range(HALVINGS):
            module.threshold.fill_((low + high) / 2)
            if float(module(current)[0].mean()) > rate:
                low = float(module.threshold)
            else:
                high = float(module.threshold)
        module.threshold.fill_(high if grid is None else max(1, round(high * grid)) / grid)
        values = module(current)[0].flatten(0, 1)
