"""The state of a training between two epochs, in one safetensors file that replaces its forerunner atomically."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hybridsnn.errors import ArtifactError

FILE = "checkpoint.safetensors"


@dataclass
class TrainingState:
    """What has to be known to go on as if nothing had happened; random states follow from seed and epoch.

    Attributes:
        epoch: epochs done.
        model: the model's state dict.
        optimiser: the state of each parameter by its place: `"<place>/<name>"`.
        best: the state dict of the best epoch so far.
        best_accuracy, best_epoch: its accuracy on the validation split, and which it was; 0 is the start.
        history: rows of metrics.
    """

    epoch: int = 0
    model: dict[str, Tensor] = field(default_factory=dict)
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_accuracy: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def record(self, epoch: int, measured: dict[str, dict[str, float]], model: nn.Module) -> None:
        """Note what was measured after an epoch, by split, and keep the weights if none before were better.

        Without a validation split the last weights count as the best.
        """
        self.epoch = epoch
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
        """Write to `folder`; a crash leaves the earlier checkpoint or the new one, never half of either."""
        tensors = {
            f"{part}/{name}": tensor.detach().to("cpu").contiguous().clone()
            for part in ("model", "optimiser", "best")
            for name, tensor in getattr(self, part).items()
        }
        words = {name: getattr(self, name) for name in ("epoch", "best_accuracy", "best_epoch", "history")}
        temporary = folder / f"{FILE}.tmp"
        save_file(tensors, temporary, metadata={"training": json.dumps(words)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "TrainingState | None":
        """The state in `folder`, None if there is none.

        Raises:
            ArtifactError: if the file is damaged.
        """
        path = folder / FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                state = cls(**json.loads(file.metadata()["training"]))
                for key in file.keys():  # noqa: SIM118 (an open file is no mapping)
                    part, _, name = key.partition("/")
                    getattr(state, part)[name] = file.get_tensor(key)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"checkpoint: {path} is damaged ({error}); start over with --fresh") from None
        return state


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
