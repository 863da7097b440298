"""`train-ann`: train a network that can be converted."""

from collections.abc import Iterable
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import nn

from hybridsnn.batch import Batch
from hybridsnn.config import Choice
from hybridsnn.evaluation.accuracy import ann_accuracy
from hybridsnn.evaluation.measurement import evaluate
from hybridsnn.learning import BackPropagation, seed_of
from hybridsnn.networks import NETWORKS
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import fabric_for
from hybridsnn.stages.images import ImageSettings, open_new, outside
from hybridsnn.stages.networks import ModelDescription, save_network
from hybridsnn.stages.precision import settle
from hybridsnn.stages.training import INITIAL_WEIGHTS, TrainingSettings, train


class NetworkSettings(ImageSettings):
    """Which network, for which pictures."""

    network: Annotated[str, Choice(NETWORKS, "network")] = Field("digits-cnn", description="Network.")
    batch_norm: bool = Field(False, description="Batch norm after each convolution; convert folds it or keeps it.")
    width: float = Field(1.0, gt=0, description="Factor on all channels.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Probability of dropout; unset: the network's own.")


class TrainConfig(TrainingSettings, NetworkSettings):
    """Trains on the training images and keeps the epoch that is best on images kept back from them.

    The test images are never touched. An interrupted training goes on where it was when the same command is given
    again, and ends with the same weights. With `--epochs 0` the network stays untrained: the start of a
    from-scratch control.
    """

    epochs: int = Field(30, ge=0, description="How often the training images are seen; 0: leave untrained.")


def run(work: Work) -> None:
    """Train and save; see `TrainConfig`."""
    config = cast(TrainConfig, work.config)
    fabric = fabric_for(work, config.precision)
    pictures = open_new(config, work).on(fabric.device)
    spec = pictures.network(config.network, batch_norm=config.batch_norm, width=config.width, dropout=config.dropout)
    torch.manual_seed(seed_of(config.seed, INITIAL_WEIGHTS))
    network = spec.build().to(memory_format=torch.channels_last)
    known = pictures.measuring("train", config.batch_size)
    fabric = settle(work, fabric, config.precision, network, lambda: known.epoch(0))

    def measure(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        return {row["metric"]: row["value"] for row in evaluate(ann_accuracy(model, fabric.device), batches)}

    train(
        STAGE.name,
        work,
        fabric,
        network,
        BackPropagation(),
        config,
        pictures,
        seed=config.seed,
        encode=lambda batch, epoch: fabric.to_device(batch.pictures.contiguous(memory_format=torch.channels_last)),
        measure=measure,
    )
    save_network(work.folder, ModelDescription(network=spec, images=pictures.description), network)


STAGE = Stage(
    name="train-ann",
    summary="Train a network to convert later.",
    config=TrainConfig,
    consumes=(),
    produces="ann",
    run=run,
    folder=lambda config, parents: "train-ann",
    outside=outside,
    example="hybridsnn train-ann --dataset mnist --network lenet5 --epochs 10",
)
