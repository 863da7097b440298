"""How time and memory grow with time steps, batch and depth.

Time: one axis is doubled several times, the others stay; all sizes of an axis are timed in turns, and each counts with
its shortest time, which is the one that nothing else on the machine added to. The exponent is the slope of log time
against log size, by least squares; 1 is linear. What does not grow (preparing weights, launching loops) makes it
smaller, the more so the smaller the sizes, so the exponent of the last doubling alone stands beside it.

Memory: the peak of live bytes of an STDB step (gradients and what else has the shape of a weight left out) against T.
Its slope over T, divided by neurons and batch, is what a neuron and step cost; what does not grow with T is left out.
A step works on as many steps of time at once as fit in its workspace, so short runs of small batches grow by the values
of all their layers. A batch that fills the workspace grows by what is kept for the way back: one bit, 1/8 byte.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from activations import activation_bytes
from networks import Case, Specimen
from results import markdown, write
from timing import in_turns
from torch import nn

from hybridsnn.learning import RULES
from hybridsnn.stages.compute import keep_freed_memory

TIMESTEPS, BATCH, DEPTH = 16, 16, 4  # from where one is doubled: a layer's values have left the cache already
CHANNELS, SIDE = 64, 16
RULE = RULES["stdb"]()
FULL_BATCH = 512  # one layer of it fills the workspace of an STDB step


def deep(depth: int) -> nn.Module:
    """So many equal hidden convolutions behind the first one, and a readout."""
    layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(SIDE), nn.Flatten(), nn.Linear(CHANNELS, Case.classes, bias=False))


def specimen(timesteps: int = TIMESTEPS, batch: int = BATCH, depth: int = DEPTH) -> Specimen:
    """A network of `deep` and its frames."""
    return Specimen.of(Case(f"depth {depth}", partial(deep, depth), timesteps, batch, SIDE))


def stdb_step(case: Specimen) -> Callable[[], None]:
    """Forward and backward pass of STDB, without the update, which depends on none of the three axes alone."""
    model: Any = case.model.train()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        RULE.step(model, case.frames, case.labels, lambda loss: loss.backward())

    return step


def simulation(case: Specimen) -> Callable[[], object]:
    """A run without gradients."""
    return torch.no_grad()(lambda: case.model(case.frames))


def exponent(sizes: list[int], seconds: np.ndarray) -> float:
    """k of seconds = b size^k, by least squares in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def doubled(start: int, doublings: int) -> list[int]:
    """A size and its doubles."""
    return [start * 2**place for place in range(doublings + 1)]


def growth(doublings: int, repeats: int) -> Iterator[dict[str, object]]:
    """Exponents of time along each axis."""
    for axis, start in (("timesteps", TIMESTEPS), ("batch", BATCH), ("depth", DEPTH)):
        sizes = doubled(start, doublings)
        cases = [specimen(**{axis: size}) for size in sizes]
        for what, way in (("simulation", simulation), ("STDB step", stdb_step)):
            seconds = in_turns({str(size): way(case) for size, case in zip(sizes, cases, strict=True)}, repeats)
            shortest = seconds.min().to_numpy()
            for first in (0, -2):
                some = sizes[first:]
                over, value = f"{axis} {some[0]} to {some[-1]}", exponent(some, shortest[first:])
                yield {"what": f"{what}: exponent of its time", "over": over, "value": value}


def memory(doublings: int) -> Iterator[dict[str, object]]:
    """Bytes that a neuron and a step of time add to the peak of an STDB step."""
    for start, batch, depth in ((TIMESTEPS, BATCH, DEPTH), (TIMESTEPS, FULL_BATCH, 0)):
        steps = doubled(start, doublings)
        peaks = []
        for timesteps in steps:
            case = specimen(timesteps, batch, depth)
            peaks.append(activation_bytes(case.model, stdb_step(case)))
        slope = np.polyfit(steps, peaks, 1)[0] / ((depth + 1) * CHANNELS * SIDE**2 * batch)
        yield {
            "what": f"STDB step, batch {batch}: bytes of peak memory a neuron and step",
            "over": f"timesteps {steps[0]} to {steps[-1]}",
            "value": float(slope),
        }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--doublings", type=int, default=3, help="of each axis")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder for scaling.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as every stage does
    rows = pd.DataFrame([*growth(arguments.doublings, arguments.repeats), *memory(arguments.doublings - 1)])
    print(f"T {TIMESTEPS}, batch {BATCH}, depth {DEPTH}, {CHANNELS} channels of {SIDE} x {SIDE} neurons")
    print(markdown(rows))
    if arguments.output:
        write(rows, arguments.output / "scaling.csv")


if __name__ == "__main__":
    main()
