"""`train-ann`: train an ANN."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import nn

from hybridsnn.batch import Batch
from hybridsnn.config import Choice
from hybridsnn.data import DATASETS, DataSpec, TrainingDefaults
from hybridsnn.evaluation.accuracy import ann_accuracy
from hybridsnn.evaluation.measurement import evaluate
from hybridsnn.learning import BackPropagation, seed_of
from hybridsnn.networks import NETWORKS
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import fabric_for
from hybridsnn.stages.images import open_new, outside_of_images
from hybridsnn.stages.networks import save_network
from hybridsnn.stages.precision import settle
from hybridsnn.stages.training import INITIAL_WEIGHTS, TrainingSettings, train

ACTIVATIONS = {
    "relu": "the ANN of the papers on conversion",
    "qcfs": "a staircase of --levels steps up to a ceiling that learns, which becomes the threshold",
}


class NetworkSettings(DataSpec):
    """Which network, for which images."""

    network: Annotated[str, Choice(NETWORKS, "network")] = Field("digits-cnn", description="Network.")
    batch_norm: bool = Field(False, description="Batch norm after each convolution; convert folds or keeps it.")
    width: float = Field(1.0, gt=0, description="Factor on the number of channels of every layer.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Dropout probability; unset: the network's own.")
    activation: Annotated[str, Choice(ACTIVATIONS, "activation")] = Field(
        "relu", description="Between layers; convert a network of qcfs with --balance qcfs."
    )
    levels: int = Field(4, gt=0, description="Steps of the activation qcfs: the T that matters.")


class TrainConfig(TrainingSettings, NetworkSettings):
    """Trains on the training images and keeps the weights of the epoch with the best validation accuracy.

    The test images are never used. An interrupted training resumes when the command is repeated, and ends with the
    same weights. With `--epochs 0` the network stays untrained, to be trained from scratch as a spiking network.
    What is not set is chosen for the data set: see `hybridsnn list datasets`.
    """

    follows: ClassVar[Mapping[str, str]] = {field.name: "dataset" for field in fields(TrainingDefaults)}

    epochs: int = Field(30, ge=0, description="Number of epochs; 0: leave untrained.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each label that is spread over all classes in the loss."
    )

    @classmethod
    def own_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        dataset = values.get("dataset", cls.model_fields["dataset"].default)
        known = isinstance(dataset, str) and dataset in DATASETS  # else it will be refused
        return asdict(DATASETS[dataset].training) | {"augmentation": DATASETS[dataset].augmentation} if known else {}


def run(work: Work) -> None:
    """Train and save; see `TrainConfig`."""
    config = cast(TrainConfig, work.config)
    fabric = fabric_for(work, config.precision)
    images = open_new(config, work).on(fabric.device)
    spec = images.network(
        config.network,
        batch_norm=config.batch_norm,
        width=config.width,
        dropout=config.dropout,
        levels=config.levels if config.activation == "qcfs" else None,
    )
    torch.manual_seed(seed_of(config.seed, INITIAL_WEIGHTS))
    network = spec.build().to(memory_format=torch.channels_last)
    known = images.measuring("train", config.batch_size)
    fabric = settle(work, fabric, config.precision, network, lambda: known.epoch(0))

    def measure(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        return {row["metric"]: row["value"] for row in evaluate(ann_accuracy(model, fabric.device), batches)}

    train(
        STAGE.name,
        work,
        fabric,
        network,
        BackPropagation(label_smoothing=config.label_smoothing),
        config,
        images,
        seed=config.seed,
        encode=lambda batch, epoch: fabric.to_device(batch.time_average.contiguous(memory_format=torch.channels_last)),
        measure=measure,
    )
    save_network(work.folder, images.description(spec), network)


STAGE = Stage(
    name="train-ann",
    summary="Train an ANN to convert.",
    config=TrainConfig,
    consumes=(),
    produces="ann",
    run=run,
    folder=lambda config, parents: "train-ann",
    outside=outside_of_images,
    example="hybridsnn train-ann --dataset mnist --network lenet5 --epochs 10",
)
