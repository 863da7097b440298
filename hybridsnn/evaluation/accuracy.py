"""Accuracy of an ANN, and accuracy at every time step, firing rates and spikes per image of a spiking network."""

from collections.abc import Sequence

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


def snn_accuracy(
    model: SpikingModel, device: torch.device, *, timesteps: int, seed: int, windows: bool = False, energy: bool = True
) -> Measurement[Rows]:
    """Simulate T time steps, chunk by chunk, so that memory does not grow with T.

    Args:
        timesteps: T, at least `model.first_answer`.
        seed: of the encoder.
        windows: also count the answers of every window of the readout, which does not leak; for T of a few dozen.
        energy: also count operations; without, where accuracy alone is asked, a pass is cheaper.

    Returns:
        rows `metric`, `value` and, where it applies, `step` (1..T) or `layer`: `accuracy` and `loss` of the output
        accumulated up to each step from the first that is read on, `latency` (T: all steps), `firing-rate` (spikes per
        neuron and step) and `spikes-per-image` of each layer, `spikes-per-image` of all, `images`; with windows,
        `window-accuracy` of the output summed over the steps `start` to `step`; and operations
        and energy, see `OperationCounter.rows`.
    """
    layers = list(model.neurons)
    operations = OperationCounter(model, timesteps) if energy else None

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
            if operations is not None:
                operations.fired(name, values, start)

        images, labels = batch.images.to(device), batch.labels.to(device)
        state: ModelState | None = None
        flows: list[Tensor] = []
        for start in range(0, timesteps, CHUNK):
            steps = min(CHUNK, timesteps - start)
            frames = model.encoder(images, batch.indices, steps, start=start, seed=seed)
            if operations is not None:
                if start == 0:
                    operations.begin(tuple(frames.shape[2:]))
                operations.frames(frames, start)
            currents, readout, state = model.run(frames, state, observe=observe)
            outputs = readout if currents.dtype == torch.float64 else readout.float()
            if windows:
                flows.append(currents)
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
            **({} if operations is None else operations.sums),
        }
        if windows:
            sums["windows"] = _right_in_windows(torch.cat(flows), labels).cpu()
        return {name: values.unsqueeze(0) for name, values in sums.items()}

    def result(measured: dict[str, Tensor]) -> Rows:
        sums = {name: values.sum(0) for name, values in measured.items()}
        images = int(sums["images"])
        rows: Rows = []
        for step in range(model.first_answer - 1, timesteps):
            rows.append({"step": step + 1, "metric": "accuracy", "value": float(sums["correct"][step]) / images})
            rows.append({"step": step + 1, "metric": "loss", "value": float(sums["loss"][step]) / images})
        rows.append({"metric": "latency", "value": float(timesteps)})
        if windows:
            right = sums["windows"].tolist()
            rows += [
                {
                    "start": start + 1,
                    "step": stop + 1,
                    "metric": "window-accuracy",
                    "value": right[start][stop] / images,
                }
                for stop in range(timesteps)
                for start in range(model.pre_steps, stop + 1)
            ]
        rows += activity_rows(layers, sums["spikes"], sums["neurons"], images, timesteps)
        return rows if operations is None else rows + operations.rows(measured, images)

    return Measurement(of_batch, result)


def activity_rows(layers: Sequence[str], spikes: Tensor, neurons: Tensor, images: int, timesteps: int) -> Rows:
    """Rows of how much a network fires: see `snn_accuracy`.

    Args:
        spikes: of each layer, of all images.
        neurons: how many a layer has, times the number of images.
        timesteps: for which each layer may fire.
    """
    rows: Rows = []
    for name, count, places in zip(layers, spikes.tolist(), neurons.tolist(), strict=True):
        rows.append({"layer": name, "metric": "firing-rate", "value": count / places / timesteps})
        rows.append({"layer": name, "metric": "spikes-per-image", "value": count / images})
    rows.append({"metric": "spikes-per-image", "value": sum(spikes.tolist()) / images})
    rows.append({"metric": "images", "value": float(images)})
    return rows


def _right_in_windows(currents: Tensor, labels: Tensor) -> Tensor:
    """How many answers are right in each window, float64 `[start, stop]`, from currents into the readout `[T, B, K]`.

    Start and stop are inside the window; the entries of windows that end before they start are 0.
    """
    timesteps = len(currents)
    before = torch.zeros_like(currents[:1], dtype=torch.float64)
    sums = torch.cat([before, currents.double().cumsum(0)])  # over the first 0, 1, ... T steps
    right = torch.zeros(timesteps, timesteps, dtype=torch.float64, device=currents.device)
    for stop in range(1, timesteps + 1):
        outputs = sums[stop] - sums[:stop]
        outputs = outputs if currents.dtype == torch.float64 else outputs.float()  # as the output of all steps is
        right[:stop, stop - 1] = (outputs.argmax(2) == labels).sum(1).double()
    return right
