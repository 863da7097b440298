"""`finetune`: train a spiking network further, through time."""

from collections.abc import Iterable
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from hybridsnn.batch import Batch
from hybridsnn.config import Choice
from hybridsnn.data import AUGMENTATIONS
from hybridsnn.learning import OPTIMISERS, RULES, seed_of
from hybridsnn.metrics import evaluate_snn
from hybridsnn.model import SpikingModel
from hybridsnn.neurons import SharedDropout
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import fabric_for
from hybridsnn.stages.images import open_again
from hybridsnn.stages.networks import load_network, save_network
from hybridsnn.stages.training import SPIKES, TrainingSettings, train


class FinetuneConfig(TrainingSettings):
    """Starts from a converted or tuned network and keeps the weights, those it began with
    included, that are best on validation images.

    To train from scratch, convert a network made by `train-ann --epochs 0`. An interrupted training goes on from its
    last epoch when the same command is given again, and ends with the same weights.
    """

    method: Annotated[str, Choice(RULES, "method")] = Field("stdb", description="Learning rule.")
    timesteps: int | None = Field(None, gt=0, description="Time steps T; unset: those of the network.")
    optimizer: Annotated[str, Choice(OPTIMISERS, "optimizer")] = Field("adam", description="Optimiser.")
    learning_rate: float = Field(1e-4, gt=0, description="At the start of the schedule.")
    learn_thresholds: bool = Field(False, description="Train thresholds too (kept above 0 by projection).")
    learn_leaks: bool = Field(False, description="Train leaks too (kept in [0, 1] by projection).")
    neuron_learning_rate: float | None = Field(
        None, gt=0, description="Of thresholds and leaks; unset: that of the weights."
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="Probability of dropout; unset: the network's own.")
    augmentation: Annotated[str, Choice(AUGMENTATIONS, "augmentation")] | None = Field(
        None, description="Random changes to training images; unset: as for the ANN."
    )
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

    def measure(wrapped: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        seed = seed_of(config.seed, SPIKES)
        rows = evaluate_snn(model, batches, fabric.device, timesteps=timesteps, seed=seed)
        return {row["metric"]: row["value"] for row in rows if row.get("step") == timesteps}

    train(
        STAGE.name,
        work,
        fabric,
        model,
        RULES[config.method].rule,
        config,
        pictures,
        seed=config.seed,
        encode=encode,
        measure=measure,
        augmentation=config.augmentation,
        neuron_parameters=learned,
        neuron_learning_rate=config.neuron_learning_rate,
        project=project,
    )
    tuned = description.model_copy(update={"spiking": spiking.model_copy(update={"timesteps": timesteps})})
    save_network(work.folder, tuned, model)


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
