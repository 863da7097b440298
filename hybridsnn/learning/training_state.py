"""The state of a training between two batches, as its checkpoint holds it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hybridsnn.checkpoint import load_checkpoint, save_checkpoint

FILE = "checkpoint.safetensors"
TENSORS = ("model", "average", "optimiser", "best", "sums", "random")
VALUES = ("epoch", "batch", "precision", "peak_live_bytes", "best_accuracy", "best_epoch", "history")


@dataclass
class TrainingState:
    """All that the rest of a training depends on, so that resuming it gives the same weights.

    Attributes:
        epoch: number of epochs completed, validation included.
        batch: number of batches completed in the epoch after those.
        model: the model's state dict.
        average: the moving average of the weights, if there is one.
        optimiser: the state of each parameter by its place: `"<place>/<name>"`.
        precision: the state of loss scaling in mixed precision.
        sums: loss, correct answers and images summed over the completed batches of the current epoch.
        random: see `random_states`, after the completed batches; between two epochs it follows from the seed.
        peak_live_bytes: peak memory of live tensors in the first training step.
        best: the state dict of the best epoch so far.
        best_accuracy, best_epoch: its validation accuracy and its number; 0 is before training.
        history: rows of metrics.
    """

    epoch: int = 0
    batch: int = 0
    model: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    precision: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    peak_live_bytes: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_accuracy: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def record(self, epoch: int, measured: dict[str, dict[str, float]], model: nn.Module) -> None:
        """Add the metrics of an epoch, by split, to the history; keep the weights if none before were better.

        Without a validation split the last weights count as the best.
        """
        self.epoch, self.batch, self.sums, self.random = epoch, 0, {}, {}
        self.history += [
            {"epoch": epoch, "split": split, "metric": metric, "value": value}
            for split, values in measured.items()
            for metric, value in values.items()
        ]
        accuracy = measured["validation"]["accuracy"] if "validation" in measured else self.best_accuracy
        if accuracy >= self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, epoch
            self.best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Replace the checkpoint in `folder`; a crash leaves the earlier one or the new one, never a part of either."""
        tensors = {f"{part}/{name}": tensor for part in TENSORS for name, tensor in getattr(self, part).items()}
        save_checkpoint(folder / FILE, {name: getattr(self, name) for name in VALUES}, tensors)

    @classmethod
    def load(cls, folder: Path) -> "TrainingState | None":
        """The state in `folder`; None if there is no checkpoint.

        Raises:
            ArtifactError: if the file is damaged, or of another layout.
        """
        kept = load_checkpoint(folder / FILE)
        if kept is None:
            return None
        values, tensors = kept
        state = cls(**values)
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            getattr(state, part)[name] = tensor
        return state


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the random generators that a training on a device uses, by type of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_states`; a generator without a state here stays as it is."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state as flat tensors."""
    return {
        f"{place}/{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for place, values in optimiser.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`, for an optimiser built for the same model."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        place, _, name = key.partition("/")
        parameter = parameters[int(place)]
        # A fused optimiser walks through memory and takes its state to lie there in the parameter's order.
        ordered = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
        state.setdefault(int(place), {})[name] = ordered
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
