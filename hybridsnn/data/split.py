"""Stratified parts of a data set."""

import torch
from torch import Tensor

from hybridsnn.errors import ConfigError


def split_validation(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Positions to train on and positions to validate on.

    Every class gives its share of the validation part, rounded down or up, and the parts together hold every position
    once. The same labels, fraction and seed give the same split on every machine.

    Args:
        labels: int64 [N].
        fraction: of the images that go to validation, 0 <= fraction < 1. With 0 the validation part is empty.
        seed: picks the images.

    Returns:
        Two sorted int64 tensors, [N - round(fraction * N)] and [round(fraction * N)].

    Raises:
        ConfigError: if the fraction is out of range.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"validation fraction: got {fraction}, must be at least 0 and less than 1")
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[stratified(labels, round(fraction * len(labels)), seed)] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """The sorted positions, int64 [count], of images to which every class gives its share, rounded down or up.

    Args:
        labels: int64 [N].
        count: of images, 0 <= count <= N.
        seed: picks them; the same labels, count and seed give the same images on every machine.
    """
    total = len(labels)
    shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Evenly spaced picks from a list grouped by class take from each class in proportion to its length.
    picks = (2 * torch.arange(count) + 1) * total // (2 * max(count, 1))
    return by_class[picks].sort().values
