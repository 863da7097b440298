"""`load-ann`: load an ANN that was trained elsewhere."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hybridsnn.artifacts import sha256_of
from hybridsnn.config import StageConfig
from hybridsnn.data import DataSpec
from hybridsnn.errors import ConfigError
from hybridsnn.networks import NETWORKS, external
from hybridsnn.registry import unknown
from hybridsnn.stages.base import Environment, Stage, Work
from hybridsnn.stages.images import open_new, outside_of_images
from hybridsnn.stages.networks import mismatch, save_network


class LoadConfig(DataSpec):
    """Reads weights from a file and checks that they fit the network exactly.

    The network is one of `hybridsnn list networks`, `timm:NAME`, `torchvision:NAME`, or
    `module:PACKAGE.MODULE:FACTORY`, what a function or class of your own makes, in a module that Python finds
    (PYTHONPATH). The file is a safetensors file or a `state_dict` saved by PyTorch; no code in it is executed.
    `--dataset` names the data set that the network was trained on: later stages calibrate and evaluate with it.
    """

    network: str = Field(
        "digits-cnn",
        description="Network: see `hybridsnn list networks`, or timm:NAME, torchvision:NAME, module:MODULE:FACTORY.",
    )
    batch_norm: bool = Field(False, description="Batch norm after each convolution; not of timm, torchvision.")
    width: float = Field(1.0, gt=0, description="Factor on the channels of every layer; not of timm, torchvision.")
    weights: Path | None = Field(
        None, description="File of weights (.safetensors, .pt, .pth).", json_schema_extra={"location": True}
    )


def outside(config: StageConfig, environment: Environment) -> Mapping[str, str]:
    """The content of the file of weights identifies the result, wherever it lies."""
    hashes = dict(outside_of_images(config, environment))
    path = cast(LoadConfig, config).weights
    if path is not None and path.is_file():
        hashes["weights"] = sha256_of(path)
    return hashes


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file or a saved `state_dict`, which may lie under "state_dict" or "model".

    Raises:
        ConfigError: if there is no such file or it holds something else.
    """
    if not path.is_file():
        raise ConfigError(f"load-ann.weights: {path} is not a file; give a .safetensors, .pt or .pth file")
    try:
        values: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"load-ann.weights: {path} cannot be read as weights ({reason})") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(values, dict) and isinstance(values.get(wrapper), dict):
            values = values[wrapper]
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise ConfigError(f"load-ann.weights: {path} holds no state_dict; save one with torch.save(net.state_dict())")
    return dict(values)


def run(work: Work) -> None:
    """Load, check and save; see `LoadConfig`."""
    config = cast(LoadConfig, work.config)
    if config.weights is None:
        raise ConfigError("load-ann.weights: is required; name a .safetensors, .pt or .pth file")
    if config.network not in NETWORKS and not external.is_external(config.network):
        others = [f"{library}:NAME" for library in external.LIBRARIES]
        raise unknown("load-ann.network", config.network, [*NETWORKS, *others])
    weights = read_weights(config.weights)
    images = open_new(config, work)
    spec = images.network(config.network, batch_norm=config.batch_norm, width=config.width)
    network = spec.build()
    if problem := mismatch(network, weights):
        raise ConfigError(f"load-ann.weights: {config.weights}: {problem}")
    network.load_state_dict(weights)
    save_network(work.folder, images.description(spec), network)


STAGE = Stage(
    name="load-ann",
    summary="Load an ANN that was trained elsewhere.",
    config=LoadConfig,
    consumes=(),
    produces="ann",
    run=run,
    folder=lambda config, parents: "load-ann",
    outside=outside,
    example="hybridsnn load-ann --network lenet5 --dataset mnist --weights lenet5.safetensors",
)
