"""Results: published numbers beside those of our runs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

ANN = "ANN"  # the column of ANNs


@dataclass(frozen=True)
class Result:
    """One number of a table: the published accuracy and those of our runs, in percent."""

    recipe: str  # cifar10-vgg5
    paper: str  # "hybrid", "STOP"
    network: str  # VGG5
    column: str  # "ANN", "conversion, T = 2500", "conversion", "hybrid", "from scratch"
    dataset: str  # exact name, such as "imagefolder:cifar10-jpeg"; or the one that is missing
    images: int | None  # training images used
    timesteps: int | None  # ours; None for an ANN
    published_timesteps: int | None
    published: float | None
    accuracies: tuple[float, ...]  # one a seed; empty: not run
    test_images: int | None
    preset: str  # of the recipe: "full", "laptop", "gpu"
    device: str
    wall_seconds: float | None  # of the stages this number alone adds, mean over seeds
    created: str  # date, UTC
    digests: tuple[str, ...]  # sha256 of the manifests of the evaluations, one a seed
    versions: dict[str, str]
    note: str = ""  # why there is no number, or a remark on it

    @property
    def mean(self) -> float | None:
        """Mean accuracy over the seeds; None if it was not run."""
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation of the accuracy over the seeds; None for fewer than two."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def difference(self) -> float | None:
        """Mean accuracy less the published one, in points; None where either is missing."""
        return _less(self.mean, self.published)


@dataclass(frozen=True)
class Gap:
    """The difference of an accuracy to that of its own ANN, in points; None where one of the two is missing."""

    ours: float | None
    published: float | None


def gaps(results: Sequence[Result]) -> list[Gap]:
    """Of each result, to the ANN of the same recipe and preset; of ANNs themselves there is none."""
    anns = {(result.recipe, result.preset): result for result in results if result.column == ANN}

    def gap(result: Result) -> Gap:
        ann = anns.get((result.recipe, result.preset))
        if ann is None or result.column == ANN:
            return Gap(None, None)
        return Gap(_less(result.mean, ann.mean), _less(result.published, ann.published))

    return [gap(result) for result in results]


def _less(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
