"""How `train-ann` trains on a data set if nothing else is asked for."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TrainingDefaults:
    """Defaults of the settings of `train-ann` with the same names; what is chosen by name is in the registries.

    A data set that says nothing has those of the digits.
    """

    network: str = "digits-cnn"
    batch_norm: bool = False
    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    schedule: str = "cosine"
    weight_decay: float = 5e-4
    decay_biases: bool = True
    label_smoothing: float = 0.0
    average_decay: float = 0.0

    def __str__(self) -> str:
        norm = " with batch norm" if self.batch_norm else ""
        parts = [
            f"{self.network}{norm}",
            f"{self.epochs} epochs in batches of {self.batch_size}",
            f"{self.optimizer} at {self.learning_rate:g}, {self.schedule}",
            f"weight decay {self.weight_decay:g}{'' if self.decay_biases else ' but for biases and norms'}",
            *([f"label smoothing {self.label_smoothing:g}"] if self.label_smoothing else []),
            *([f"moving average {self.average_decay:g}"] if self.average_decay else []),
        ]
        return ", ".join(parts)


DIGITS = TrainingDefaults()
# Short trainings to a high accuracy: a large learning rate for most of the time, its noise averaged away at the end.
SMALL_IMAGES = TrainingDefaults(
    network="vgg8",
    batch_norm=True,
    epochs=40,
    batch_size=128,
    optimizer="nesterov",
    learning_rate=0.1,
    schedule="one-cycle",
    decay_biases=False,
    label_smoothing=0.1,
    average_decay=0.999,
)
GREY_DIGITS = replace(SMALL_IMAGES, network="lenet5", epochs=15)
CLOTHES = replace(SMALL_IMAGES, epochs=20)
LARGE_IMAGES = replace(SMALL_IMAGES, network="resnet34", epochs=90, batch_size=256, weight_decay=1e-4)
RECORDINGS = replace(SMALL_IMAGES, network="vgg11-gap", epochs=60, batch_size=32, learning_rate=0.025)
