"""`convert --balance auto`: every balancer that measures, compared on validation images."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hybridsnn.artifacts import write_json
from hybridsnn.conversion import BALANCERS, CORRECTIONS, Correction, MeasuringBalancer
from hybridsnn.conversion.balancers import Automatic, Balancer
from hybridsnn.data import Batches
from hybridsnn.errors import ConfigError, OutOfTimeError
from hybridsnn.evaluation.accuracy import snn_accuracy
from hybridsnn.evaluation.measurement import Rows, evaluate
from hybridsnn.model import SpikingModel
from hybridsnn.stages.base import Work

# From the simplest on: of two that are equally accurate, the earlier is taken.
CORRECTIONS_TRIED: tuple[tuple[str, ...], ...] = ((), ("bias",), ("bias", "potential"), ("weights", "bias"))
BATCH = 100
TRIED = "tried.json"  # in the scratch folder: what each came to, for a conversion that was interrupted


@dataclass(frozen=True)
class Way:
    """A balancer and the corrections after it, by name and in order, with their options."""

    balance: str
    balancer: Balancer
    corrections: Mapping[str, Correction]

    def __str__(self) -> str:
        return " + ".join((self.balance, *self.corrections))


def ways(options: Automatic, chosen: Mapping[str, Correction]) -> list[Way]:
    """What to try, from the simplest on: each balancer that measures with each set of corrections.

    Args:
        options: shared by all.
        chosen: corrections that the user chose, in the place of all sets; empty: none chosen.
    """
    shared: dict[str, Any] = {
        "calibration_images": options.calibration_images,
        "threshold_scale": options.threshold_scale,
    }
    balancers = {name: entry(**shared) for name, entry in BALANCERS.items() if issubclass(entry, MeasuringBalancer)}
    sets = [chosen] if chosen else [{name: CORRECTIONS[name]() for name in names} for names in CORRECTIONS_TRIED]
    return [Way(name, balancer, tried) for tried in sets for name, balancer in balancers.items()]


def best_way(
    tried: Sequence[Way],
    convert: Callable[[Way], SpikingModel],
    validation: Batches,
    work: Work,
    *,
    timesteps: int,
    seed: int,
) -> tuple[Way, Rows]:
    """The most accurate after T steps, the first of several; and a row for what each came to.

    Args:
        convert: makes the network of a way.
        validation: images to compare on.
        timesteps: T.
        seed: of the encoder.

    Raises:
        ConfigError: if there are no validation images.
        OutOfTimeError: between two ways, once the time limit is reached; the same command resumes there.
    """
    count = len(validation.positions)
    if not count:
        raise ConfigError(
            "convert.balance: got 'auto', which compares on validation images, and none were held out; hold some out "
            "(--validation of the first stage), or choose a balancer"
        )
    say, path = work.environment.progress.say, work.scratch / TRIED
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    width = max(len(str(way)) for way in tried)
    say(f"auto: accuracy on {count} validation images at T = {timesteps}")
    for done, way in enumerate(tried):
        if str(way) not in known:
            if done and work.environment.time_is_up():
                raise OutOfTimeError(
                    f"interrupted after {done} of {len(tried)} that 'auto' tries: time limit reached; "
                    "the same command resumes there"
                )
            known[str(way)] = _accuracy(convert(way), validation, timesteps, seed)
            write_json(path, known)
        say(f"  {way!s:<{width}}  {100 * known[str(way)]:6.2f} %")
    best = max(tried, key=lambda way: known[str(way)])
    say(f"auto: takes {best}")
    rows: Rows = [{"split": "validation", "step": timesteps, "metric": "accuracy", "value": known[str(best)]}]
    for way in tried:
        rows.append(
            {"split": "validation", "step": timesteps, "layer": str(way), "metric": "tried", "value": known[str(way)]}
        )
    return best, rows


def _accuracy(model: SpikingModel, validation: Batches, timesteps: int, seed: int) -> float:
    device: torch.device = next(model.parameters()).device
    rows = evaluate(snn_accuracy(model, device, timesteps=timesteps, seed=seed, energy=False), validation.epoch(0))
    return next(float(row["value"]) for row in rows if row["metric"] == "accuracy" and row["step"] == timesteps)
