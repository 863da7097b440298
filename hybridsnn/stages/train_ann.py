"""`train-ann`: train an ANN, from random weights or from another ANN."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from lightning_fabric import Fabric
from pydantic import Field
from torch import nn

from hybridsnn.activations import QCFS
from hybridsnn.batch import Batch
from hybridsnn.config import Choice
from hybridsnn.data import AUGMENTATIONS, DATASETS, DataSpec, TrainingDefaults
from hybridsnn.errors import ConfigError
from hybridsnn.evaluation.accuracy import ann_accuracy
from hybridsnn.evaluation.measurement import evaluate
from hybridsnn.learning import OPTIMISERS, BackPropagation, OwnRate, Targets, seed_of
from hybridsnn.networks import NETWORKS, NetworkSpec
from hybridsnn.stages.base import Stage, Work
from hybridsnn.stages.compute import fabric_for
from hybridsnn.stages.distillation import DistillationSettings, distillation
from hybridsnn.stages.images import LoadedImages, open_again, open_new, outside_of_images
from hybridsnn.stages.networks import load_network, save_network
from hybridsnn.stages.precision import settle
from hybridsnn.stages.staircases import with_staircases
from hybridsnn.stages.training import INITIAL_WEIGHTS, TrainingSettings, train

ACTIVATIONS = {
    "relu": "the ANN of the papers on conversion",
    "qcfs": "a staircase of --levels steps up to a ceiling that learns, which becomes the threshold",
}
LEVELS = 4
CeilingsPer = Literal["layer", "channel"]


class NetworkSettings(DataSpec):
    """Which network, for which images."""

    network: Annotated[str, Choice(NETWORKS, "network")] = Field("digits-cnn", description="Network.")
    batch_norm: bool = Field(False, description="Batch norm after each convolution; convert folds or keeps it.")
    width: float = Field(1.0, gt=0, description="Factor on the number of channels of every layer.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Dropout probability; unset: the network's own.")
    activation: Annotated[str, Choice(ACTIVATIONS, "activation")] = Field(
        "relu", description="Between layers; convert a network of qcfs with --balance qcfs."
    )
    levels: int = Field(LEVELS, gt=0, description="Steps of the activation qcfs: the T that matters.")
    ceiling_per: CeilingsPer = Field("layer", description="What has a ceiling of its own in the activation qcfs.")


class ANNSettings(TrainingSettings):
    """How an ANN is trained."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of each label that is spread over all classes in the loss."
    )
    ceiling_learning_rate: float | None = Field(
        None, gt=0, description="Learning rate of the ceilings of qcfs; unset: that of the weights."
    )
    ceiling_weight_decay: float | None = Field(
        None, ge=0, description="Weight decay of the ceilings of qcfs; unset: that of biases."
    )

    def own_rates(self, network: nn.Module) -> list[OwnRate]:
        """What ceilings are trained with; nothing where they are trained like biases."""
        if self.ceiling_learning_rate is None and self.ceiling_weight_decay is None:
            return []
        ceilings = [module.ceiling for module in network.modules() if isinstance(module, QCFS)]
        decay = self.weight_decay if self.decay_biases else 0.0
        return [
            OwnRate(
                ceilings,
                self.learning_rate if self.ceiling_learning_rate is None else self.ceiling_learning_rate,
                decay if self.ceiling_weight_decay is None else self.ceiling_weight_decay,
            )
        ]


class TrainConfig(ANNSettings, NetworkSettings):
    """Trains on the training images and keeps the weights of the epoch with the best validation accuracy.

    The test images are never used. An interrupted training resumes when the command is repeated, and ends with the
    same weights. With `--epochs 0` the network stays untrained, to be trained from scratch as a spiking network.
    What is not set is chosen for the data set: see `hybridsnn list datasets`.

    With `--from ANN`, network and data set are those of that ANN, and its weights are where training starts: a few
    epochs at a lower learning rate, to make it ready for few time steps with `--activation qcfs`, whose ceilings start
    where the staircases come nearest to its activations.
    """

    follows: ClassVar[Mapping[str, str]] = {field.name: "dataset" for field in fields(TrainingDefaults)}

    epochs: int = Field(30, ge=0, description="Number of epochs; 0: leave untrained.")

    @classmethod
    def own_defaults(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        dataset = values.get("dataset", cls.model_fields["dataset"].default)
        known = isinstance(dataset, str) and dataset in DATASETS  # else it will be refused
        return asdict(DATASETS[dataset].training) | {"augmentation": DATASETS[dataset].augmentation} if known else {}

    @classmethod
    def unknown_setting(cls, name: str, where: str) -> ConfigError:
        if name not in ContinueConfig.model_fields:
            return super().unknown_setting(name, where)
        return ConfigError(
            f"{where}.{name}: is for a training that starts from an ANN; name one with from, or leave it out"
        )


class ContinueConfig(ANNSettings, DistillationSettings):
    """Trains an ANN further; its network and its data set stay."""

    activation: Annotated[str, Choice(ACTIVATIONS, "activation")] | None = Field(
        None, description="With --from, unset: that of the ANN."
    )
    levels: int | None = Field(None, gt=0, description=f"With --from, unset: those of the ANN, else {LEVELS}.")
    ceiling_per: CeilingsPer | None = Field(None, description="With --from, unset: as in the ANN, else layer.")
    calibration_images: int = Field(
        256, gt=0, description="Number of training images whose activations the first ceilings are fitted to."
    )
    images: int | None = Field(
        None, gt=0, description="With --from, of those that the ANN was trained on, without validation; unset: all."
    )
    augmentation: Annotated[str, Choice(AUGMENTATIONS, "augmentation")] | None = Field(
        None, description="With --from, unset: as for the ANN."
    )
    epochs: int = Field(2, ge=0, description="Number of epochs; 0: leave untrained.")
    batch_size: int = Field(128, gt=0, description="Batch size.")
    optimizer: Annotated[str, Choice(OPTIMISERS, "optimizer")] = Field("nesterov", description="Optimiser.")
    learning_rate: float = Field(0.01, gt=0, description="Initial learning rate.")
    decay_biases: bool = Field(False, description="Weight decay of biases and batch norms too.")
    seed: int = Field(0, ge=0, description="Random seed.")

    def staircase(self, start: NetworkSpec) -> tuple[int | None, str]:
        """The levels and `ceilings_per` of the network, given those of the ANN that it starts from."""
        activation = self.activation or ("relu" if start.levels is None else "qcfs")
        levels = (self.levels or start.levels or LEVELS) if activation == "qcfs" else None
        return levels, self.ceiling_per or start.ceilings_per

    @classmethod
    def unknown_setting(cls, name: str, where: str) -> ConfigError:
        if name not in NetworkSettings.model_fields:
            return super().unknown_setting(name, where)
        return ConfigError(f"{where}.{name}: is that of the ANN that the training starts from; leave it out")


def run(work: Work) -> None:
    """Train and save; see `TrainConfig`."""
    config = work.config
    fabric = fabric_for(work, cast(ANNSettings, config).precision)
    if isinstance(config, ContinueConfig):
        _continue(work, fabric, config)
    else:
        _start(work, fabric, cast(TrainConfig, config))


def _start(work: Work, fabric: Fabric, config: TrainConfig) -> None:
    images = open_new(config, work).on(fabric.device)
    spec = images.network(
        config.network,
        batch_norm=config.batch_norm,
        width=config.width,
        dropout=config.dropout,
        levels=config.levels if config.activation == "qcfs" else None,
        ceilings_per=config.ceiling_per,
    )
    torch.manual_seed(seed_of(config.seed, INITIAL_WEIGHTS))
    network = spec.build().to(memory_format=torch.channels_last)
    _train(work, fabric, network, config, images, config.seed)
    save_network(work.folder, images.description(spec), network)


def _continue(work: Work, fabric: Fabric, config: ContinueConfig) -> None:
    (start,) = work.parents
    ann, description = load_network(start)
    images = open_again(description, work).on(fabric.device)
    levels, ceilings_per = config.staircase(description.network)
    network, spec = with_staircases(
        ann,
        description.network,
        levels,
        ceilings_per,
        lambda: images.calibration(config.calibration_images, config.seed)[0],
    )
    _train(
        work,
        fabric,
        network.to(memory_format=torch.channels_last),
        config,
        images,
        config.seed,
        augmentation=config.augmentation,
        count=config.images,
        targets=distillation(STAGE.name, start, fabric.device, config),
    )
    save_network(work.folder, description.model_copy(update={"network": spec}), network)


def _train(
    work: Work,
    fabric: Fabric,
    network: nn.Module,
    config: ANNSettings,
    images: LoadedImages,
    seed: int,
    *,
    augmentation: str | None = None,
    count: int | None = None,
    targets: Targets | None = None,
) -> None:
    known = images.measuring("train", config.batch_size)
    fabric = settle(work, fabric, config.precision, network, lambda: known.epoch(0))
    staircases = [module for module in network.modules() if isinstance(module, QCFS)]

    def measure(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        return {row["metric"]: row["value"] for row in evaluate(ann_accuracy(model, fabric.device), batches)}

    def project() -> None:
        for staircase in staircases:
            staircase.project()

    train(
        STAGE.name,
        work,
        fabric,
        network,
        BackPropagation(label_smoothing=config.label_smoothing),
        config,
        images,
        seed=seed,
        encode=lambda batch, epoch: fabric.to_device(batch.time_average.contiguous(memory_format=torch.channels_last)),
        measure=measure,
        augmentation=augmentation,
        count=count,
        targets=targets,
        own_rates=config.own_rates(network),
        project=project,
    )


def _folder(config: Any, parents: tuple[Any, ...]) -> str:
    return f"train-ann-{config.activation}" if parents and config.activation else "train-ann"


STAGE = Stage(
    name="train-ann",
    summary="Train an ANN to convert.",
    config=TrainConfig,
    consumes=("ann",),
    produces="ann",
    run=run,
    folder=_folder,
    continues=ContinueConfig,
    outside=outside_of_images,
    example="hybridsnn train-ann --dataset mnist --network lenet5 --epochs 10\n"
    "    hybridsnn train-ann --from train-ann --activation qcfs --levels 4 --distil 1",
)
