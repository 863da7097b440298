"""Compares the spikes of two runs of one network, layer by layer and step by step."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hybridsnn.model import SpikingModel
from hybridsnn.neurons import SpikingNeuron, along_channels


@dataclass(frozen=True)
class Difference:
    """The first spike that differs.

    Attributes:
        layer, step: where and when, steps from 1.
        image: its place among those compared.
        neuron: its place in the layer.
        distance: of the membrane from the threshold, in thresholds, before the neuron fired or did not.
    """

    layer: str
    step: int
    image: int
    neuron: int
    distance: float

    def __str__(self) -> str:
        return (
            f"first in layer '{self.layer}' at step {self.step}, image {self.image}, neuron {self.neuron}, "
            f"{self.distance:.2e} of a threshold from it"
        )


@dataclass(frozen=True)
class Verdict:
    """What a tool makes of an export.

    Attributes:
        target: the tool.
        verdict: "exact", "exact with patches", "close", "different" or "not possible".
        images, spikes: how many were compared; spikes that fired in the network itself.
        differing: neurons and steps that differ.
        first: the first of those.
        answers: images whose answer differs.
        note: patches, or the reason why it is not possible.
    """

    target: str
    verdict: str
    images: int = 0
    spikes: int = 0
    differing: int = 0
    first: Difference | None = None
    answers: int = 0
    note: str = ""

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def __str__(self) -> str:
        told = f"{self.target}: {self.verdict}"
        if self.images:
            told += f" on {self.images} images: {self.differing:,} of {self.spikes:,} spikes differ"
            told += f", {self.answers} answers" if self.differing else ""
        if self.first:
            told += f"; {self.first}"
        return told + (f" ({self.note})" if self.note else "")


class Comparison:
    """Adds up batches.

    Args:
        model: the network; what it does is what is right.
    """

    def __init__(self, model: SpikingModel):
        self.model = model
        self.images = self.spikes = self.differing = self.answers = 0
        self.first: Difference | None = None
        self.farthest = 0.0  # of the first differences of each neuron that nothing before made differ

    @torch.no_grad()
    def add(self, frames: Tensor, spikes: Mapping[str, Tensor], outputs: Tensor | None = None) -> None:
        """Compare a batch.

        Args:
            frames: `[T, B, ...]`.
            spikes: of each layer `[T, B, *N]`, as the tool gave them.
            outputs: the readout after the last step, `[B, K]`, if the tool gives one.
        """
        expected: dict[str, Tensor] = {}
        readout, _ = self.model(frames, observe=lambda name, fired: expected.update({name: fired.clone()}))
        wrong = {
            name: expected[name].reshape(spikes[name].shape) != spikes[name].to(expected[name].dtype)
            for name in expected
        }
        self.spikes += sum(int(fired.sum()) for fired in expected.values())
        self.differing += (count := sum(int(found.sum()) for found in wrong.values()))
        if outputs is not None:
            self.answers += int((readout[-1].argmax(1) != outputs.to(readout).argmax(1)).sum())
        if count:
            self._find_first(frames, wrong)
        self.images += frames.shape[1]

    def _find_first(self, frames: Tensor, wrong: Mapping[str, Tensor]) -> None:
        """The first difference of each image: nothing before it differs, so that it is the rounding's own."""
        begun = {name: found.flatten(2).any(2) for name, found in wrong.items()}  # [T, B]
        for image in torch.stack([found.any(0) for found in begun.values()]).any(0).nonzero()[:, 0].tolist():
            step, name = min(
                (int(found[:, image].nonzero()[0, 0]), place, name)
                for place, (name, found) in enumerate(begun.items())
                if bool(found[:, image].any())
            )[::2]
            neuron = int(wrong[name][step, image].flatten().nonzero()[0, 0])
            distance = self._distance(frames[:, image : image + 1], name, step, neuron)
            self.farthest = max(self.farthest, abs(distance))
            if self.first is None:
                self.first = Difference(name, step + 1, self.images + image, neuron, distance)

    def _distance(self, frames: Tensor, layer: str, step: int, neuron: int) -> float:
        """(U - θ) / θ of a neuron at a step, in the network itself: from its membrane after the step."""
        fired: dict[str, Tensor] = {}
        _, state = self.model(frames[: step + 1], observe=lambda name, spikes: fired.update({name: spikes.clone()}))
        module = self.model.neurons[layer]
        assert isinstance(module, SpikingNeuron)
        membrane = state.modules[layer].membrane
        threshold = along_channels(module.threshold, membrane).expand_as(membrane).flatten()[neuron]
        spike = fired[layer][-1].flatten()[neuron]
        if module.reset == "hard" and spike:
            return float("nan")  # what it was before is lost
        return float((membrane.flatten()[neuron] + threshold * spike - threshold) / threshold)

    def verdict(self, target: str, *, patches: str = "", tolerance: float = 0.0) -> Verdict:
        """What to say of a tool."""
        kind = "close" if self.farthest <= tolerance else "different"
        if not self.differing:
            kind = "exact with patches" if patches else "exact"
        return Verdict(target, kind, self.images, self.spikes, self.differing, self.first, self.answers, patches)
