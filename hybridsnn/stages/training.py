"""What `train-ann` and `finetune` share: the settings of a training, and its run on an opened data set."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

from lightning_fabric import Fabric
from pydantic import Field
from torch import nn

from hybridsnn.batch import Batch
from hybridsnn.config import Choice, StageConfig
from hybridsnn.learning import OPTIMISERS, SCHEDULES, Encode, LearningRule, Optimisation, OwnRate, fit, seed_of
from hybridsnn.stages.base import Work
from hybridsnn.stages.compute import PRECISION, Precision
from hybridsnn.stages.images import Pictures
from hybridsnn.stages.networks import write_metrics

# Streams of random numbers derived from a stage's seed.
INITIAL_WEIGHTS, EPOCHS, ORDER, SPIKES = range(4)


class TrainingSettings(StageConfig):
    """How weights learn; stages set their own defaults."""

    epochs: int = Field(10, gt=0, description="Number of epochs.")
    batch_size: int = Field(64, gt=0, description="Images in one update.")
    optimizer: Annotated[str, Choice(OPTIMISERS, "optimizer")] = Field("sgd", description="Optimiser.")
    learning_rate: float = Field(0.05, gt=0, description="At the start of the schedule.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd.")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty on weights.")
    schedule: Annotated[str, Choice(SCHEDULES, "schedule")] = Field("cosine", description="Of the learning rate.")
    precision: Precision = Field("32-true", description=PRECISION)


def train(
    stage: str,
    work: Work,
    fabric: Fabric,
    network: nn.Module,
    rule: LearningRule,
    settings: TrainingSettings,
    pictures: Pictures,
    *,
    seed: int,
    encode: Encode,
    measure: Callable[[nn.Module, Iterable[Batch]], dict[str, float]],
    augmentation: str | None = None,
    own_rates: Sequence[OwnRate] = (),
    project: Callable[[], None] = lambda: None,
) -> None:
    """Train a network in place with checkpoints in the scratch folder, and write its history as metrics.

    Args:
        stage: the name under which metrics are written.
        encode: see `fit`.
        measure: `loss` and `accuracy` of a network on batches, for the choice of the best epoch.
        augmentation: instead of the one the network was described with.
        own_rates, project: see `fit`.
    """
    validation = pictures.measuring("validation", settings.batch_size) if pictures.description.validation else None

    def validate(model: nn.Module) -> dict[str, float]:
        assert validation is not None
        return measure(model, validation.epoch(0))

    progress = work.environment.progress
    history = fit(
        fabric,
        network,
        rule,
        Optimisation(
            optimiser=settings.optimizer,
            schedule=settings.schedule,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            epochs=settings.epochs,
        ),
        pictures.training(settings.batch_size, seed_of(seed, ORDER), augmentation),
        encode=encode,
        validate=validate if validation is not None else None,
        folder=work.scratch,
        seed=seed_of(seed, EPOCHS),
        own_rates=own_rates,
        project=project,
        track=progress.track,
        say=progress.say,
        time_is_up=work.environment.time_is_up,
    )
    write_metrics(work.folder, stage, "train", history)
