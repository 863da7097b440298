"""Accuracy of an ANN, and accuracy at every time step, firing rates and spikes per image of a spiking network."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybridsnn.batch import Batch
from hybridsnn.evaluation.measurement import Measurement, Rows
from hybridsnn.evaluation.operations import OperationCounter
from hybridsnn.model import ModelState, SpikingModel

CHUNK = 16  # time steps simulated at once


def ann_accuracy(model: nn.Module, device: torch.device) -> Measurement[Rows]:
    """Rows `metric`, `value`: `accuracy` in [0, 1], mean cross-entropy `loss`, `images`."""

    @torch.no_grad()
    def of_batch(batch: Batch) -> dict[str, Tensor]:
        model.eval()
        logits, labels = model(batch.time_average.to(device)).float(), batch.labels.to(device)
        loss = functional.cross_entropy(logits, labels, reduction="none")
        return {"correct": (logits.argmax(1) == labels).cpu(), "loss": loss.double().cpu()}

    def result(measured: dict[str, Tensor]) -> Rows:
        images = len(measured["correct"])
        return [
            {"metric": "accuracy", "value": int(measured["correct"].sum()) / images},
            {"metric": "loss", "value": float(measured["loss"].sum()) / images},
            {"metric": "images", "value": float(images)},
        ]

    return Measurement(of_batch, result)


def snn_accuracy(model: SpikingModel, device: torch.device, *, timesteps: int, seed: int) -> Measurement[Rows]:
    """Simulate T time steps, chunk by chunk, so that memory does not grow with T.

    Args:
        timesteps: T.
        seed: of the encoder.

    Returns:
        rows `metric`, `value` and, where it applies, `step` (1..T) or `layer`: `accuracy` and `loss` of the output
        accumulated up to each step, `firing-rate` (spikes per neuron and step) and `spikes-per-image` of each layer,
        `spikes-per-image` of all, `images`; and operations and energy, see `OperationCounter.rows`.
    """
    layers = list(model.neurons)
    operations = OperationCounter(model, timesteps)

    @torch.no_grad()
    def of_batch(batch: Batch) -> dict[str, Tensor]:
        """Sums over the images of the batch: per time step, and per layer."""
        model.eval()
        correct = torch.zeros(timesteps, dtype=torch.float64)
        loss = torch.zeros(timesteps, dtype=torch.float64)
        spikes = dict.fromkeys(layers, 0.0)
        neurons = dict.fromkeys(layers, 0)

        def observe(name: str, values: Tensor) -> None:
            spikes[name] += float(values.sum(dtype=torch.float64))
            neurons[name] = values[0].numel()
            operations.fired(name, values, start)

        images, labels = batch.images.to(device), batch.labels.to(device)
        state: ModelState | None = None
        for start in range(0, timesteps, CHUNK):
            steps = min(CHUNK, timesteps - start)
            frames = model.encoder(images, batch.indices, steps, start=start, seed=seed)
            if start == 0:
                operations.begin(tuple(frames.shape[2:]))
            operations.frames(frames, start)
            outputs, state = model(frames, state, observe=observe)
            window = slice(start, start + steps)
            correct[window] = (outputs.argmax(2) == labels).sum(1).double().cpu()
            repeated = labels.expand(steps, -1).flatten()
            entropy = functional.cross_entropy(outputs.flatten(0, 1).float(), repeated, reduction="none")
            loss[window] = entropy.view(steps, -1).sum(1).double().cpu()
        sums = {
            "images": torch.tensor(len(labels)),
            "correct": correct,
            "loss": loss,
            "spikes": torch.tensor(list(spikes.values()), dtype=torch.float64),
            "neurons": torch.tensor(list(neurons.values())),
            **operations.sums,
        }
        return {name: values.unsqueeze(0) for name, values in sums.items()}

    def result(measured: dict[str, Tensor]) -> Rows:
        sums = {name: values.sum(0) for name, values in measured.items()}
        images, spikes = int(sums["images"]), sums["spikes"].tolist()
        rows: Rows = []
        for step in range(timesteps):
            rows.append({"step": step + 1, "metric": "accuracy", "value": float(sums["correct"][step]) / images})
            rows.append({"step": step + 1, "metric": "loss", "value": float(sums["loss"][step]) / images})
        for name, count, neurons in zip(layers, spikes, sums["neurons"].tolist(), strict=True):
            rows.append({"layer": name, "metric": "firing-rate", "value": count / neurons / timesteps})
            rows.append({"layer": name, "metric": "spikes-per-image", "value": count / images})
        rows.append({"metric": "spikes-per-image", "value": sum(spikes) / images})
        rows.append({"metric": "images", "value": float(images)})
        return rows + operations.rows(measured, images)

    return Measurement(of_batch, result)
