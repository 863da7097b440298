"""The ceiling of a spiking network at T steps, and the same network run layer by layer, which reaches it.

At T steps a neuron can show T + 1 levels. The ceiling is the accuracy where each layer shows the level of its mean
current: what a run over time loses to it is unevenness, spikes that come in another order than the mean current would
make; what the ANN is above it is rounding and clipping. A layer-synchronous run, in which each layer takes in all T
steps before it fires, has exactly this accuracy (`program/staircase.py`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hybridsnn.batch import Batch
from hybridsnn.encoders import ENCODERS
from hybridsnn.evaluation.accuracy import CHUNK, activity_rows
from hybridsnn.evaluation.measurement import Measurement, Rows
from hybridsnn.model import SpikingModel
from hybridsnn.program.operations import Role
from hybridsnn.program.staircase import depth, layer_synchronous


def obstacle(model: SpikingModel) -> str | None:
    """Why the spikes of a network depend on more than mean currents, in words; None if they need not."""
    coding, neurons = ENCODERS[model.encoder.name], model.neurons
    seeing_time = [node.name for node in model.program.nodes if node.role is Role.TEMPORAL]
    reasons = {
        f"its encoder '{model.encoder.name}' gives frames that change in time": coding.random or coding.events,
        "its neurons reset to 0": any(neuron.reset != "soft" for neuron in neurons.values()),
        "its neurons leak": any(bool((neuron.leak != 1).any()) for neuron in neurons.values()),
        "its readout leaks": model.readout_leak != 1,
        f"its output is read from step {model.readout_from} on": model.readout_from > 1,
        f"it has a module that sees time, '{seeing_time[0] if seeing_time else ''}'": bool(seeing_time),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def ceiling(model: SpikingModel, device: torch.device, *, timesteps: Sequence[int]) -> Measurement[Rows]:
    """The ceiling at some numbers of time steps; each costs as much as a pass of the ANN.

    Args:
        model: one without an `obstacle`.
        timesteps: above the number of pre-steps, which neurons do not show levels in.

    Returns:
        rows `step`, `metric` (`ceiling`) and `value`.
    """

    def of_batch(batch: Batch) -> dict[str, Tensor]:
        model.eval()
        images, labels = batch.images.to(device), batch.labels.to(device)
        frame, levels = _frame(model, images, batch.indices), [steps - model.pre_steps for steps in timesteps]
        correct = [
            (layer_synchronous(model.program, frame, levels[start : start + CHUNK]).argmax(2) == labels).sum(1).cpu()
            for start in range(0, len(levels), CHUNK)
        ]
        return {"correct": torch.cat(correct).unsqueeze(0), "images": torch.tensor([len(labels)])}

    def result(measured: dict[str, Tensor]) -> Rows:
        images = int(measured["images"].sum())
        return [
            {"step": steps, "metric": "ceiling", "value": correct / images}
            for steps, correct in zip(timesteps, measured["correct"].sum(0).tolist(), strict=True)
        ]

    return Measurement(of_batch, result)


def layer_synchronous_accuracy(model: SpikingModel, device: torch.device, *, timesteps: int) -> Measurement[Rows]:
    """Run layer by layer: each layer of neurons takes in all T steps, and then fires for T steps.

    The current of the first layer does not change, so all of it is known at once. The output is complete when the last
    layer has fired: after L * T steps for L layers of neurons on the longest way through the network.

    Args:
        model: one without an `obstacle` and without pre-steps.
        timesteps: T.

    Returns:
        rows `metric`, `value` and, where it applies, `step` (T) or `layer`: `layer-synchronous-accuracy` and
        `layer-synchronous-loss`, `latency` (L * T), `firing-rate` (of the T steps for which a layer fires) and
        `spikes-per-image` of each layer, `spikes-per-image` of all, `images`.
    """
    layers = list(model.neurons)

    def of_batch(batch: Batch) -> dict[str, Tensor]:
        model.eval()
        spikes, neurons = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0)

        def observe(name: str, shares: Tensor) -> None:
            spikes[name] += timesteps * float(shares.sum(dtype=torch.float64))
            neurons[name] = shares[0].numel()

        images, labels = batch.images.to(device), batch.labels.to(device)
        (outputs,) = layer_synchronous(model.program, _frame(model, images, batch.indices), [timesteps], observe)
        return {
            "correct": (outputs.argmax(1) == labels).cpu(),
            "loss": functional.cross_entropy(outputs, labels, reduction="none").cpu(),
            "spikes": torch.tensor([[*spikes.values()]], dtype=torch.float64),
            "neurons": torch.tensor([[*neurons.values()]]),
        }

    def result(measured: dict[str, Tensor]) -> Rows:
        images = len(measured["correct"])
        accuracy, loss = int(measured["correct"].sum()) / images, float(measured["loss"].sum()) / images
        return [
            {"step": timesteps, "metric": "layer-synchronous-accuracy", "value": accuracy},
            {"step": timesteps, "metric": "layer-synchronous-loss", "value": loss},
            {"metric": "latency", "value": float(depth(model.program) * timesteps)},
            *activity_rows(layers, measured["spikes"].sum(0), measured["neurons"].sum(0), images, timesteps),
        ]

    return Measurement(of_batch, result)


@torch.no_grad()
def _frame(model: SpikingModel, images: Tensor, indices: Tensor) -> Tensor:
    """What flows into the network at every step, `[B, ...]`."""
    return model.encoder(images, indices, 1)[0]
