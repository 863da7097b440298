"""`train-ann`: train a network that can be converted."""

from typing import Annotated, cast

import torch
from pydantic import Field
from torch import nn

from hybridsnn.config import Choice
from hybridsnn.learning import OPTIMISERS, SCHEDULES, BackPropagation, Optimisation, fit, seed_of
from hybridsnn.metrics import evaluate_ann
from hybridsnn.networks import NETWORKS, NetworkSpec
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import PRECISION, Precision, fabric_for
from hybridsnn.stages.images import ImageSettings, open_new, outside
from hybridsnn.stages.networks import ModelDescription, save_network, write_metrics

WEIGHTS, EPOCHS = 0, 1  # streams of random numbers derived from the seed


class NetworkSettings(ImageSettings):
    """Which network, for which pictures."""

    network: Annotated[str, Choice(NETWORKS, "network")] = Field("digits-cnn", description="Network.")
    batch_norm: bool = Field(False, description="Batch norm after each convolution; folded away by convert.")
    width: float = Field(1.0, gt=0, description="Factor on all channels.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Probability of dropout; unset: the network's own.")


class TrainConfig(NetworkSettings):
    """Trains on the training images and keeps the epoch that is best on images kept back from them.

    The test images are never touched. An interrupted training goes on from its last epoch when the same command
    is given again, and ends with the same weights. With `--epochs 0` the network stays untrained: the start of a
    from-scratch control.
    """

    epochs: int = Field(30, ge=0, description="How often the training images are seen; 0: leave untrained.")
    batch_size: int = Field(64, gt=0, description="Images in one update.")
    optimizer: Annotated[str, Choice(OPTIMISERS, "optimizer")] = Field("sgd", description="Optimiser.")
    learning_rate: float = Field(0.05, gt=0, description="At the start of the schedule.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd.")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty on weights.")
    schedule: Annotated[str, Choice(SCHEDULES, "schedule")] = Field("cosine", description="Of the learning rate.")
    precision: Precision = Field("32-true", description=PRECISION)


def run(work: Work) -> None:
    """Train and save; see `TrainConfig`."""
    config = cast(TrainConfig, work.config)
    fabric = fabric_for(work, config.precision)
    pictures = open_new(config, work)
    channels = pictures.data.train.shape[0]
    size = pictures.description.image_size
    spec = NetworkSpec(
        config.network,
        (channels, size, size),
        len(pictures.data.classes),
        batch_norm=config.batch_norm,
        width=config.width,
        dropout=config.dropout,
    )
    torch.manual_seed(seed_of(config.seed, WEIGHTS))
    network = spec.build().to(memory_format=torch.channels_last)
    progress = work.environment.progress
    validation = pictures.measuring("validation", config.batch_size) if config.validation else None

    def validate(model: nn.Module) -> dict[str, float]:
        assert validation is not None
        rows = evaluate_ann(model, validation.epoch(0), fabric.device)
        return {row["metric"]: row["value"] for row in rows if row["metric"] != "images"}

    history = fit(
        fabric,
        network,
        BackPropagation(),
        Optimisation(
            config.optimizer,
            config.schedule,
            config.learning_rate,
            config.momentum,
            config.weight_decay,
            config.epochs,
        ),
        pictures.training(config.batch_size, config.seed),
        encode=lambda batch, epoch: batch.images.contiguous(memory_format=torch.channels_last),
        validate=validate if validation is not None else None,
        folder=work.scratch,
        seed=seed_of(config.seed, EPOCHS),
        track=progress.track,
        say=progress.say,
    )
    save_network(work.folder, ModelDescription(network=spec, images=pictures.description), network)
    write_metrics(work.folder, STAGE.name, "train", history)


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
