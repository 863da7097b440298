"""Batches of augmented, normalised images, prepared in a background thread."""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from hybridsnn.batch import Batch
from hybridsnn.data.augmentation import AUGMENTATIONS
from hybridsnn.data.images import Images
from hybridsnn.data.preprocessing import Preprocessing
from hybridsnn.errors import ConfigError
from hybridsnn.registry import look_up

PREFETCH = 2  # batches prepared ahead: one in progress, one ready
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of the images at `positions` (int64 [N]), epoch by epoch.

    With a seed the order is shuffled. It is a function of (seed, epoch), and the augmentation one of (seed, epoch,
    batch number), so an interrupted training that resumes after any batch sees the same batches. Without a seed
    the images come in the order of `positions`, and cannot be augmented.

    Images are augmented and normalised on `device`; random changes are the same on all devices, up to the rounding of
    resampled pixels. Labels and positions stay on the CPU.

    Raises:
        ConfigError: if the augmentation is unknown or lacks a seed.
    """

    images: Images
    positions: Tensor
    preprocessing: Preprocessing
    batch_size: int
    _: KW_ONLY
    augmentation: str = "none"
    seed: int | None = None
    device: torch.device = CPU

    def __post_init__(self) -> None:
        look_up(AUGMENTATIONS, self.augmentation, "augmentation")
        if self.augmentation != "none" and self.seed is None:
            raise ConfigError(f"augmentation: got '{self.augmentation}' without a seed. Give a seed, or use 'none'")

    def __len__(self) -> int:
        """Batches per epoch."""
        return math.ceil(len(self.positions) / self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, the next ones prepared by one thread while the caller uses the current one.

        With `start`, that many batches at the beginning are skipped at no cost; the others are unchanged.

        The thread ends with the iterator, whether that is exhausted, closed or deleted.

        Raises:
            DataError: where an image cannot be read or does not fit the preprocessing.
        """
        order = self.positions
        if self.seed is not None:
            order = order[torch.randperm(len(order), generator=_generator(self.seed, number, 0))]
        # PyTorch gives each thread that calls it threads of its own; more of them than cores cost a third of an epoch.
        pool = ThreadPoolExecutor(1, "hybridsnn-batches", initializer=torch.set_num_threads, initargs=(1,))
        try:
            pending: deque[Future[Batch]] = deque()
            for batch_number in range(start, len(self)):
                indices = order[batch_number * self.batch_size : (batch_number + 1) * self.batch_size]
                pending.append(pool.submit(self._prepare, indices, number, batch_number))
                if len(pending) > PREFETCH:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, indices: Tensor, epoch: int, batch_number: int) -> Batch:
        images = self.images.batch(indices).to(self.device)  # as bytes, a quarter of the size of normalised images
        if self.seed is not None:
            generator = _generator(self.seed, epoch, 1 + batch_number)
            # Frames over time become channels of one image, so that all frames of a recording change alike.
            merged = images.flatten(1, -3)
            changed = AUGMENTATIONS[self.augmentation].apply(merged, self.preprocessing.size, generator)
            images = changed.unflatten(1, images.shape[1:-2])
        return Batch(self.preprocessing(images), self.images.labels[indices], indices)


def _generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    state = np.random.SeedSequence((seed, epoch, stream)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))
