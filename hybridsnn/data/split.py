"""Take a stratified part of a data set away for validation."""

import torch
from torch import Tensor

from hybridsnn.errors import ConfigError


def split_validation(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to train on and positions to validate on.

    Every class gives its share of the validation part, rounded down or up, and the parts together hold every position
    once. The same labels, fraction and seed give the same split on every machine.

    Args:
        labels: int64 [N].
        fraction: of the pictures that go to validation, 0 <= fraction < 1. With 0 the validation part is empty.
        seed: picks the pictures.

    Returns:
        Two sorted int64 tensors, [N - round(fraction * N)] and [round(fraction * N)].

    Raises:
        ConfigError: if the fraction is out of range.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"validation fraction: got {fraction}, must be at least 0 and less than 1")
    total = len(labels)
    count = round(fraction * total)
    shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Evenly spaced picks from a list grouped by class take from each class in proportion to its length.
    picks = (2 * torch.arange(count) + 1) * total // (2 * max(count, 1))
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[by_class[picks]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()
