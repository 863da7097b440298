"""Networks in artifacts: `model.json` describes how to build one, `model.safetensors` holds its weights. No pickle."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hybridsnn.artifacts import Artifact, write_json
from hybridsnn.config import Choice
from hybridsnn.conversion import GRANULARITIES, MAX_POOL_CHOICES, spiking_body
from hybridsnn.data import DataSpec, Preprocessing
from hybridsnn.encoders import ENCODERS, Encoder
from hybridsnn.errors import ArtifactError, HybridSNNError
from hybridsnn.model import SpikingModel
from hybridsnn.networks import NetworkSpec

MODEL, WEIGHTS, METRICS = "model.json", "model.safetensors", "metrics.csv"
COLUMNS = ("stage", "split", "epoch", "step", "layer", "metric", "value")
START = "start"  # one more column where a row has it: of a window of the readout, the first step; `step` is its last


class _Description(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SpikingDescription(_Description):
    """How the network is made spiking.

    Attributes:
        timesteps: number of time steps T, all counted, unless an evaluation sets another.
        granularity, reset, initial_potential, max_pool: see `spiking_body`.
        batch_norm: folded into the synapses, or kept in them.
        readout_leak, readout_from, pre_steps: see `SpikingModel`.
        biases, potentials: what corrections needed, see `spiking_body`.
        balance, corrections: what set the thresholds, and what corrected them; of "auto", what it chose.
    """

    encoder: Encoder
    timesteps: int
    granularity: Annotated[str, Choice(GRANULARITIES, "granularity")]
    reset: Literal["soft", "hard"]
    initial_potential: float
    max_pool: Annotated[str, Choice(MAX_POOL_CHOICES, "max_pool")]
    batch_norm: Literal["fold", "keep"] = "fold"  # defaults: an artifact of version 0.1.0 does not say
    readout_leak: float = 1.0
    readout_from: int = 1
    pre_steps: int = 0
    biases: bool = False
    potentials: Literal["channel", "neuron"] | None = None
    balance: str | None = None
    corrections: tuple[str, ...] = ()

    def build(self, network: nn.Module, input_shape: tuple[int, ...]) -> SpikingModel:
        """The spiking network with a network's weights, and thresholds of 1.

        Raises:
            ConversionError: if the network has a part that cannot be made spiking.
        """
        body = spiking_body(
            network,
            input_shape,
            granularity=self.granularity,
            reset=self.reset,
            initial_potential=self.initial_potential,
            fold_batch_norm=self.batch_norm == "fold",
            max_pool=self.max_pool,
            biases=self.biases,
            potentials=self.potentials,
        )
        return SpikingModel(
            body,
            self.encoder,
            readout_leak=self.readout_leak,
            readout_from=self.readout_from,
            pre_steps=self.pre_steps,
        )


class ModelDescription(_Description):
    """The content of `model.json`.

    Attributes:
        data: the images that the network was made for.
        preprocessing: of those images.
        classes: their names.
        spiking: None for an ANN.
    """

    network: NetworkSpec
    data: DataSpec
    preprocessing: Preprocessing
    classes: list[str]
    spiking: SpikingDescription | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, content: Any) -> Any:
        """Read the earlier form, in which one mapping `images` held `data`, `preprocessing` and `classes`."""
        if not isinstance(content, dict) or not isinstance(content.get("images"), dict):
            return content
        images, rest = dict(content["images"]), {key: value for key, value in content.items() if key != "images"}
        events = images.pop("events", None) or {}
        rest["preprocessing"] = {
            "size": images.get("image_size"),
            "mean": images.pop("mean", None),
            "std": images.pop("std", None),
        }
        rest["classes"] = images.pop("classes", None)
        renamed = {"count": "images", "split_seed": "seed"}
        rest["data"] = {renamed.get(key, key): value for key, value in images.items()} | {
            f"event_{key}": value for key, value in events.items()
        }
        return rest

    def build(self) -> nn.Module:
        """The ANN with fresh weights, or the spiking network with thresholds of 1."""
        network = self.network.build()
        return network if self.spiking is None else self.spiking.build(network, self.network.input_shape)


def save_network(folder: Path, description: ModelDescription, network: nn.Module) -> None:
    """Write a network into an artifact that is being made."""
    write_json(folder / MODEL, description.model_dump(mode="json"))
    tensors = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)


def describe(artifact: Artifact) -> ModelDescription:
    """The description of a network in an artifact.

    Raises:
        ArtifactError: if it is not one that this version understands.
    """
    try:
        return ModelDescription.model_validate_json(artifact.file(MODEL).read_text(encoding="utf-8"))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or MODEL
        raise ArtifactError(
            f"{artifact.path / MODEL}: {place}: {problem['msg']}; not a network of this version"
        ) from None
    except HybridSNNError as error:
        raise ArtifactError(f"{artifact.path / MODEL}: {error}") from None


def load_network(artifact: Artifact) -> tuple[nn.Module, ModelDescription]:
    """Build an artifact's network and load its weights: an ANN, or a `SpikingModel`; channels-last, the fastest layout.

    Raises:
        ArtifactError: if the network cannot be built, or weights are missing, left over or misshapen.
    """
    description = describe(artifact)
    try:
        network = description.build()
    except HybridSNNError as error:
        raise ArtifactError(f"{artifact.path / MODEL}: {error}") from None
    path = artifact.file(WEIGHTS)
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ArtifactError(f"{path}: not a safetensors file ({error})") from None
    if problem := mismatch(network, weights):
        raise ArtifactError(f"{path}: {problem}")
    network.load_state_dict(weights)
    return network.to(memory_format=torch.channels_last).eval(), description


def mismatch(network: nn.Module, weights: dict[str, Tensor]) -> str | None:
    """How weights differ from those of a network, in one line; None if they match exactly."""
    needed = network.state_dict()
    groups = {
        "missing": [name for name in needed if name not in weights],
        "not in the network": [name for name in weights if name not in needed],
        "of another shape": [
            f"{name} (got {list(weights[name].shape)}, needs {list(tensor.shape)})"
            for name, tensor in needed.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    parts = [f"{len(names)} {group}: {', '.join(names)}" for group, names in groups.items() if names]
    return "weights do not match the network; " + "; ".join(parts) if parts else None


def encoder_for(name: str, preprocessing: Preprocessing) -> Encoder:
    """An encoder; a rate code is scaled by the largest possible pixel, so that it does not saturate."""
    return Encoder(name, scale=preprocessing.bound if ENCODERS[name].random else 1.0)


def write_metrics(folder: Path, stage: str, split: str, rows: list[dict[str, Any]]) -> None:
    """Write rows of metrics in long form; the `split` of a row, if it has one, replaces the one given."""
    columns = (*COLUMNS, START) if any(START in row for row in rows) else COLUMNS
    frame = pd.DataFrame([{"stage": stage, "split": split, **row} for row in rows], columns=list(columns))
    whole = {column: frame[column].astype("Int64") for column in ("epoch", "step", START) if column in columns}
    frame.assign(**whole).to_csv(folder / METRICS, index=False)


def read_metrics(artifact: Artifact) -> pd.DataFrame:
    """An artifact's metrics in the long form."""
    return pd.read_csv(artifact.file(METRICS))
