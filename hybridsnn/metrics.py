"""What a network achieves: accuracy at every step, firing rates, spikes per image, in one pass."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybridsnn.batch import Batch
from hybridsnn.model import ModelState, SpikingModel

CHUNK = 16  # time steps simulated at once


@torch.no_grad()
def evaluate_ann(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> list[dict[str, Any]]:
    """Rows `metric`, `value`: `accuracy` in [0, 1], mean cross-entropy `loss`, `images`."""
    model.eval()
    correct, loss, images = 0, 0.0, 0
    for batch in batches:
        logits, labels = model(batch.pictures.to(device)).float(), batch.labels.to(device)
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
        images += len(labels)
    return [
        {"metric": "accuracy", "value": correct / images},
        {"metric": "loss", "value": loss / images},
        {"metric": "images", "value": float(images)},
    ]


@torch.no_grad()
def evaluate_snn(
    model: SpikingModel, batches: Iterable[Batch], device: torch.device, *, timesteps: int, seed: int
) -> list[dict[str, Any]]:
    """One pass over the images gives everything; time is streamed in chunks, so memory does not grow with it.

    Args:
        timesteps: T.
        seed: of random spikes.

    Returns:
        rows `metric`, `value` and, where it applies, `step` (1..T) or `layer`: `accuracy` and `loss` of the output
        accumulated up to each step, `firing-rate` (spikes per neuron and step) and `spikes-per-image` of each layer,
        `spikes-per-image` of all, `images`.
    """
    model.eval()
    correct = torch.zeros(timesteps, dtype=torch.float64)
    loss = torch.zeros(timesteps, dtype=torch.float64)
    spikes: dict[str, float] = {}
    neurons: dict[str, int] = {}
    images = 0

    def observe(name: str, values: Tensor) -> None:
        spikes[name] = spikes.get(name, 0.0) + float(values.sum(dtype=torch.float64))
        neurons[name] = values[0, 0].numel()

    for batch in batches:
        pictures, labels = batch.images.to(device), batch.labels.to(device)
        state: ModelState | None = None
        for start in range(0, timesteps, CHUNK):
            steps = min(CHUNK, timesteps - start)
            frames = model.encoder(pictures, batch.indices, steps, start=start, seed=seed)
            outputs, state = model(frames, state, observe=observe)
            window = slice(start, start + steps)
            correct[window] += (outputs.argmax(2) == labels).sum(1).cpu()
            repeated = labels.expand(steps, -1).flatten()
            entropy = functional.cross_entropy(outputs.flatten(0, 1).float(), repeated, reduction="none")
            loss[window] += entropy.view(steps, -1).sum(1).double().cpu()
        images += len(labels)

    rows: list[dict[str, Any]] = []
    for step in range(timesteps):
        rows.append({"step": step + 1, "metric": "accuracy", "value": float(correct[step]) / images})
        rows.append({"step": step + 1, "metric": "loss", "value": float(loss[step]) / images})
    for name, count in spikes.items():
        rows.append({"layer": name, "metric": "firing-rate", "value": count / images / neurons[name] / timesteps})
        rows.append({"layer": name, "metric": "spikes-per-image", "value": count / images})
    rows.append({"metric": "spikes-per-image", "value": sum(spikes.values()) / images})
    rows.append({"metric": "images", "value": float(images)})
    return rows
