"""What `train-ann` and `finetune` share: the settings of a training, and its run on loaded images."""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

from lightning_fabric import Fabric
from pydantic import Field
from torch import nn

from hybridsnn.batch import Batch
from hybridsnn.config import Choice, StageConfig
from hybridsnn.learning import OPTIMISERS, SCHEDULES, Encode, LearningRule, Optimisation, OwnRate, Targets, fit, seed_of
from hybridsnn.stages.base import Work
from hybridsnn.stages.compute import PRECISION, Precision
from hybridsnn.stages.images import LoadedImages
from hybridsnn.stages.networks import write_metrics

# Streams of random numbers derived from a stage's seed.
INITIAL_WEIGHTS, EPOCHS, ORDER, SPIKES = range(4)


class TrainingSettings(StageConfig):
    """How weights are trained; stages set their own defaults."""

    epochs: int = Field(10, gt=0, description="Number of epochs.")
    batch_size: int = Field(64, gt=0, description="Batch size.")
    optimizer: Annotated[str, Choice(OPTIMISERS, "optimizer")] = Field("sgd", description="Optimiser.")
    learning_rate: float = Field(0.05, gt=0, description="Initial learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd and nesterov.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay (L2 penalty).")
    decay_biases: bool = Field(True, description="Weight decay of biases and batch norms too.")
    average_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay, per batch, of an exponential moving average of the weights, which is measured and kept in "
        "their place; 0: none.",
    )
    schedule: Annotated[str, Choice(SCHEDULES, "schedule")] = Field("cosine", description="Learning-rate schedule.")
    precision: Precision = Field("32-true", description=PRECISION)


def train(
    stage: str,
    work: Work,
    fabric: Fabric,
    network: nn.Module,
    rule: LearningRule,
    settings: TrainingSettings,
    images: LoadedImages,
    *,
    seed: int,
    encode: Encode,
    measure: Callable[[nn.Module, Iterable[Batch]], dict[str, float]],
    augmentation: str | None = None,
    count: int | None = None,
    targets: Targets | None = None,
    own_rates: Sequence[OwnRate] = (),
    project: Callable[[], None] = lambda: None,
) -> None:
    """Train a network in place, with checkpoints in the scratch folder, and write its history as metrics.

    Args:
        stage: its name, for the metrics.
        encode: see `fit`.
        measure: `loss` and `accuracy` of a network on the validation batches, to choose the best epoch.
        augmentation: in place of that of the images' `DataSpec`.
        count: number of training images to use; None: all.
        targets, own_rates, project: see `fit`.
    """
    validation = images.measuring("validation", settings.batch_size) if images.spec.validation else None

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
            decay_biases=settings.decay_biases,
            average_decay=settings.average_decay,
        ),
        images.training(settings.batch_size, seed_of(seed, ORDER), augmentation, count),
        encode=encode,
        validate=validate if validation is not None else None,
        folder=work.scratch,
        seed=seed_of(seed, EPOCHS),
        targets=targets,
        own_rates=own_rates,
        project=project,
        track=progress.track,
        say=progress.say,
        time_is_up=work.environment.time_is_up,
    )
    write_metrics(work.folder, stage, "train", history)
