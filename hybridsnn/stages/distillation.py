"""What `train-ann` and `finetune` share: learning from the answers of an ANN."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hybridsnn.artifacts import Artifact, lineage
from hybridsnn.batch import Batch
from hybridsnn.config import StageConfig
from hybridsnn.errors import ArtifactError, ConfigError
from hybridsnn.learning import Targets
from hybridsnn.stages.networks import load_network


class DistillationSettings(StageConfig):
    """How much is learned from the answers of the ANN that a training starts from, or that its network comes from."""

    distil: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of distillation in the loss: of KL(ANN || network), the divergence from the answers of "
        "the ANN that the network comes from, against the cross-entropy of the labels.",
    )
    temperature: float = Field(1.0, gt=0, description="What the logits of the ANN are divided by for distillation.")


def distillation(stage: str, start: Artifact, device: torch.device, settings: DistillationSettings) -> Targets | None:
    """What is learned in the place of labels: probabilities `[B, K]` that mix them with the answers of the ANN.

    The cross-entropy of logits against `(1 - w) label + w softmax(ANN / temperature)` is, but for a constant, the
    mixture of the cross-entropy of the label and KL(ANN || network). So every rule can learn it, at every step if it
    has a loss at every step. The ANN sees the augmented images of the batch.

    Args:
        stage: its name, for messages.
        start: an ANN, or what was made from one: the latest ANN of its lineage answers.

    Returns:
        None if nothing is to be distilled.

    Raises:
        ConfigError: if the ANN is gone or has changed.
    """
    if settings.distil == 0:
        return None
    try:
        teachers = [ancestor for ancestor in lineage(start) if ancestor.kind == "ann"]
        teachers[-1].verify()
        network, _ = load_network(teachers[-1])
    except (ArtifactError, IndexError) as error:
        raise ConfigError(
            f"{stage}.distil: got {settings.distil:g}, which needs the ANN that '{start.name}' was converted from "
            f"({error}); bring it back, or leave distil out"
        ) from None
    teacher: Any = network.to(device)

    @torch.no_grad()
    def targets(batch: Batch, labels: Tensor) -> Tensor:
        images = batch.time_average.to(device).contiguous(memory_format=torch.channels_last)
        answers = torch.softmax(teacher(images) / settings.temperature, 1)
        return torch.lerp(functional.one_hot(labels, answers.shape[1]).to(answers), answers, settings.distil)

    return targets
