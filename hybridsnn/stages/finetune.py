"""`finetune`: train a spiking network further, through time."""

from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from hybridsnn.config import Choice, StageConfig
from hybridsnn.data import AUGMENTATIONS
from hybridsnn.learning import OPTIMISERS, RULES, SCHEDULES, Optimisation, fit, seed_of
from hybridsnn.learning.loop import Batch
from hybridsnn.metrics import evaluate_snn
from hybridsnn.model import SpikingModel
from hybridsnn.neurons import SharedDropout
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import PRECISION, Precision, fabric_for
from hybridsnn.stages.images import open_again
from hybridsnn.stages.networks import load_network, save_network, write_metrics

SPIKES, EPOCHS, ORDER = 0, 1, 2  # streams of random numbers derived from the seed


class FinetuneConfig(StageConfig):
    """Starts from a converted or tuned network and keeps the epoch that is best on validation images.

    To train from scratch, convert a network made by `train-ann --epochs 0`. An interrupted training goes on from its
    last epoch when the same command is given again, and ends with the same weights.
    """

    method: Annotated[str, Choice(RULES, "method")] = Field("stdb", description="Learning rule.")
    timesteps: int | None = Field(None, gt=0, description="Time steps T; unset: those of the network.")
    epochs: int = Field(10, gt=0, description="How often the training images are seen.")
    batch_size: int = Field(64, gt=0, description="Images in one update.")
    optimizer: Annotated[str, Choice(OPTIMISERS, "optimizer")] = Field("adam", description="Optimiser.")
    learning_rate: float = Field(1e-4, gt=0, description="At the start of the schedule.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd.")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty on weights.")
    schedule: Annotated[str, Choice(SCHEDULES, "schedule")] = Field("cosine", description="Of the learning rate.")
    learn_thresholds: bool = Field(False, description="Train thresholds too (kept above 0 by projection).")
    learn_leaks: bool = Field(False, description="Train leaks too (kept in [0, 1] by projection).")
    neuron_learning_rate: float | None = Field(
        None, gt=0, description="Of thresholds and leaks; unset: that of the weights."
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="Probability of dropout; unset: the network's own.")
    augmentation: Annotated[str, Choice(AUGMENTATIONS, "augmentation")] | None = Field(
        None, description="Random changes to training images; unset: as for the ANN."
    )
    precision: Precision = Field("32-true", description=PRECISION)
    seed: int = Field(0, ge=0, description="Seed of everything random.")


def run(work: Work) -> None:
    """Fine-tune and save; see `FinetuneConfig`."""
    config = cast(FinetuneConfig, work.config)
    fabric = fabric_for(work, config.precision)
    loaded, description = load_network(work.parents[0])
    model = cast(SpikingModel, loaded.to(memory_format=torch.channels_last))
    spiking = description.spiking
    assert spiking is not None  # the parent is an snn
    timesteps = config.timesteps or spiking.timesteps
    pictures = open_again(description.images, work)
    progress = work.environment.progress

    learned = [
        *[neuron.threshold for neuron in model.neurons.values() if config.learn_thresholds],
        *[neuron.leak for neuron in model.neurons.values() if config.learn_leaks],
    ]
    for parameter in learned:
        parameter.requires_grad_(True)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, SharedDropout):
                module.probability = config.dropout

    def project() -> None:
        if learned:
            for neuron in model.neurons.values():
                neuron.project()

    def encode(batch: Batch, epoch: int) -> Tensor:
        images = fabric.to_device(batch.images)
        return model.encoder(images, batch.indices, timesteps, seed=seed_of(config.seed, SPIKES, epoch))

    validation = pictures.measuring("validation", config.batch_size) if description.images.validation else None

    def validate(wrapped: nn.Module) -> dict[str, float]:
        assert validation is not None
        seed = seed_of(config.seed, SPIKES)
        rows = evaluate_snn(model, validation.epoch(0), fabric.device, timesteps=timesteps, seed=seed)
        return {row["metric"]: row["value"] for row in rows if row.get("step") == timesteps}

    history = fit(
        fabric,
        model,
        RULES[config.method].rule,
        Optimisation(
            config.optimizer,
            config.schedule,
            config.learning_rate,
            config.momentum,
            config.weight_decay,
            config.epochs,
            config.neuron_learning_rate,
        ),
        pictures.training(config.batch_size, seed_of(config.seed, ORDER) % 2**32, config.augmentation),
        encode=encode,
        validate=validate if validation is not None else None,
        folder=work.scratch,
        seed=seed_of(config.seed, EPOCHS),
        neuron_parameters=learned,
        project=project,
        track=progress.track,
        say=progress.say,
    )
    tuned = description.model_copy(update={"spiking": spiking.model_copy(update={"timesteps": timesteps})})
    save_network(work.folder, tuned, model)
    write_metrics(work.folder, STAGE.name, "train", history)


STAGE = Stage(
    name="finetune",
    summary="Train a spiking network further.",
    config=FinetuneConfig,
    consumes=("snn",),
    produces="snn",
    run=run,
    folder=lambda config, parents: f"finetune-{cast(FinetuneConfig, config).method}",
    example="hybridsnn finetune --method stdb --epochs 10",
)
