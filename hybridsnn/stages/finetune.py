"""`finetune`: train a spiking network further, through time."""

from collections.abc import Iterable
from typing import Annotated, ClassVar, cast

from pydantic import Field
from torch import nn

from hybridsnn.batch import Batch
from hybridsnn.config import Choice
from hybridsnn.data import AUGMENTATIONS
from hybridsnn.encoders import Frames
from hybridsnn.errors import ConfigError
from hybridsnn.evaluation.accuracy import snn_accuracy
from hybridsnn.evaluation.measurement import evaluate
from hybridsnn.learning import OPTIMISERS, RULES, LearningRule, OwnRate, seed_of
from hybridsnn.model import SpikingModel
from hybridsnn.neurons import SharedDropout
from hybridsnn.options import OptionSettings
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import fabric_for
from hybridsnn.stages.distillation import DistillationSettings, distillation
from hybridsnn.stages.images import open_again
from hybridsnn.stages.networks import load_network, save_network
from hybridsnn.stages.precision import settle
from hybridsnn.stages.training import SPIKES, TrainingSettings, train


class FinetuneConfig(TrainingSettings, DistillationSettings, OptionSettings):
    """Starts from a converted or tuned network and keeps the weights, those it began with
    included, that are best on validation images.

    To train from scratch, convert a network made by `train-ann --epochs 0`. An interrupted training goes on where it
    was when the same command is given again, and ends with the same weights.
    """

    chooser: ClassVar[str] = "method"

    method: Annotated[str, Choice(RULES, "method")] = Field("stdb", description="Learning rule.")
    timesteps: int | None = Field(None, gt=0, description="Number of time steps T; unset: that of the network.")
    optimizer: Annotated[str, Choice(OPTIMISERS, "optimizer")] = Field("adam", description="Optimiser.")
    learning_rate: float = Field(1e-4, gt=0, description="At the start of the schedule.")
    threshold_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of thresholds, where they learn; unset: that of the weights."
    )
    leak_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of leaks, where they learn; unset: that of the weights."
    )
    dropout: float | None = Field(None, ge=0, lt=1, description="Probability of dropout; unset: the network's own.")
    augmentation: Annotated[str, Choice(AUGMENTATIONS, "augmentation")] | None = Field(
        None, description="Random changes to training images; unset: as for the ANN."
    )
    seed: int = Field(0, ge=0, description="Seed of everything random.")

    def rule(self) -> LearningRule:
        """The learning rule with its options."""
        return cast(LearningRule, self.chosen())


def run(work: Work) -> None:
    """Fine-tune and save; see `FinetuneConfig`."""
    config = cast(FinetuneConfig, work.config)
    fabric = fabric_for(work, config.precision)
    loaded, description = load_network(work.parents[0])
    model = cast(SpikingModel, loaded)
    spiking = description.spiking
    assert spiking is not None  # the parent is an snn
    if model.first_answer > 1:
        raise ConfigError(
            f"finetune: {work.parents[0].path} is read from step {model.first_answer} on; fine-tune a network that was "
            "converted without --readout-from and --pre-steps"
        )
    timesteps = config.timesteps or spiking.timesteps
    rule = config.rule().at(timesteps)
    images = open_again(description, work).on(fabric.device)
    known = images.measuring("train", config.batch_size)
    fabric = settle(work, fabric, config.precision, model, lambda: known.epoch(0), timesteps)

    own_rates = [
        OwnRate(parameters, config.learning_rate if rate is None else rate)
        for learns, rate, parameters in (
            (
                rule.learns_thresholds,
                config.threshold_learning_rate,
                [neuron.threshold for neuron in model.neurons.values()],
            ),
            (rule.learns_leaks, config.leak_learning_rate, [neuron.leak for neuron in model.neurons.values()]),
        )
        if learns
    ]
    for group in own_rates:
        for parameter in group.parameters:
            parameter.requires_grad_(True)
    if config.dropout is not None:
        for module in model.modules():
            if isinstance(module, SharedDropout):
                module.probability = config.dropout

    def project() -> None:
        if own_rates:
            for neuron in model.neurons.values():
                neuron.project()

    def encode(batch: Batch, epoch: int) -> Frames:
        inputs = fabric.to_device(batch.images)
        return Frames(model.encoder, inputs, batch.indices, timesteps, seed=seed_of(config.seed, SPIKES, epoch))

    def measure(wrapped: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        seed = seed_of(config.seed, SPIKES)
        rows = evaluate(snn_accuracy(model, fabric.device, timesteps=timesteps, seed=seed, energy=False), batches)
        return {row["metric"]: row["value"] for row in rows if row.get("step") == timesteps}

    train(
        STAGE.name,
        work,
        fabric,
        model,
        rule,
        config,
        images,
        seed=config.seed,
        encode=encode,
        measure=measure,
        augmentation=config.augmentation,
        targets=distillation(STAGE.name, work.parents[0], fabric.device, config),
        own_rates=own_rates,
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
