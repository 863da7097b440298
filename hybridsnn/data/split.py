"""Stratified subsets of a data set."""

import torch
from torch import Tensor

from hybridsnn.errors import ConfigError


def split_validation(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """The positions of training and of validation images.

    The split is stratified: each class has its share of the validation images, rounded down or up. Together the parts
    hold every position once. The same labels, fraction and seed give the same split on every machine.

    Args:
        labels: int64 [N].
        fraction: share of validation images, 0 <= fraction < 1; with 0 there are none.
        seed: selects the images.

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
    """The sorted positions, int64 [count], of a stratified subset: each class has its share, rounded down or up.

    Args:
        labels: int64 [N].
        count: number of images, 0 <= count <= N.
        seed: selects them; the same labels, count and seed give the same images on every machine.
    """
    total = len(labels)
    shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Evenly spaced places in a list grouped by class fall into each class in proportion to its size.
    picks = (2 * torch.arange(count) + 1) * total // (2 * max(count, 1))
    return by_class[picks].sort().values
