"""The neuron scan alone: nanoseconds a neuron and step of each kernel, and as ratio to a plain loop in PyTorch.

First a check against the definition in float64: with currents on a grid, where sums are exact, spikes are equal and
gradients agree to float32's precision. A kernel that fails gets no time, and the exit code is 1. The plain loop is
what one writes in PyTorch without further thought: a few operations on `[B, *N]` a step, and a custom gradient for the
spike.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from results import markdown, write
from timing import in_turns
from torch import Tensor

from hybridsnn.errors import ConfigError
from hybridsnn.kernels.neuron import KERNELS, Surrogate, choose, scan
from hybridsnn.neurons import NEVER
from hybridsnn.stages.compute import keep_freed_memory
from hybridsnn.surrogates import SURROGATES

CHANNELS, SIDE = 64, 32
GRID, THRESHOLD = 256, 1.0
LEARNED = ("spike-time", "triangle")  # STDB's surrogate, and SpikingJelly's `PiecewiseQuadratic`
TOLERANCE = 1e-5  # of the largest gradient


class Spike(torch.autograd.Function):
    """A spike at or above 0; backward, the slope it was given."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, slope: Tensor | None) -> Tensor:
        ctx.save_for_backward(slope)
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, None]:
        (slope,) = ctx.saved_tensors
        return errors[0] * slope, None


def plain_loop(current: Tensor, surrogate: Surrogate | None) -> Tensor:
    """Currents `[T, B, *N]` to spikes, of integrate-and-fire neurons with a soft reset."""
    membrane = torch.zeros_like(current[0])
    threshold = torch.full((), THRESHOLD, device=current.device)
    since = torch.full_like(membrane, NEVER)
    spikes = []
    for step in current:
        membrane = membrane + step
        slope = None if surrogate is None else surrogate.slope(membrane.detach(), threshold, since)
        spikes.append(Spike.apply(membrane - threshold, slope))
        fired = spikes[-1].detach()
        if surrogate is not None and not surrogate.needs_membrane:
            since = torch.where(fired > 0, 1, since + 1)
        membrane = membrane - threshold * fired
    return torch.stack(spikes)


def kernel_scan(name: str, current: Tensor, surrogate: Surrogate | None) -> Tensor:
    """The same by a kernel."""
    like, device = current[0], current.device
    one = torch.ones((), dtype=current.dtype, device=device)
    since = torch.full_like(like, NEVER, dtype=torch.int32)
    return scan(
        current, THRESHOLD * one, one, torch.zeros_like(like), since, surrogate=surrogate, kernel=name
    )[0]  # fmt: skip


def gradient(way: Callable[..., Tensor], current: Tensor, into: Tensor, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    """Spikes, and the gradient of the currents when `into` enters the spikes."""
    current = current.detach().requires_grad_()
    spikes = way(current, surrogate)
    return spikes.detach(), torch.autograd.grad(spikes, current, into)[0]


def currents(timesteps: int, batch: int, device: str) -> Tensor:
    """Multiples of 1/256, channels-last, at which about a tenth of the neurons fire."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(timesteps * batch, CHANNELS, SIDE, SIDE, generator=random) * 0.5
    rounded = (values * GRID).round() / GRID
    return rounded.to(device).contiguous(memory_format=torch.channels_last).unflatten(0, (timesteps, batch))


def wrong(way: Callable[..., Tensor], device: str) -> str | None:
    """How a way differs from the definition in float64; None if it does not."""
    current = currents(10, 1, device)
    into = torch.randn(current.shape, generator=torch.Generator().manual_seed(1)).to(device)
    for name in LEARNED:
        surrogate = SURROGATES[name]
        true_spikes, true = gradient(
            lambda *given: kernel_scan("reference", *given), current.double(), into.double(), surrogate
        )
        spikes, found = gradient(way, current, into, surrogate)
        if not torch.equal(spikes.double(), true_spikes):
            return f"{int((spikes.double() != true_spikes).sum())} spikes differ"
        error = float((found - true).abs().max() / true.abs().max())
        if not error < TOLERANCE:
            return f"gradients of '{name}' differ by {error:.1e}"
    return None


def measure(ways: dict[str, Callable[..., Tensor]], current: Tensor, repeats: int) -> pd.DataFrame:
    """A row for each kernel and pass: nanoseconds a neuron and step, and the plain loop's time in units of it."""
    into = torch.randn_like(current)
    rows = []
    passes = {"forward": None, **{f"forward and backward, {name}": SURROGATES[name] for name in LEARNED}}
    for what, surrogate in passes.items():

        def run(way: Callable[..., Tensor], surrogate: Surrogate | None = surrogate) -> object:
            if surrogate is None:
                with torch.no_grad():
                    return way(current, None)
            return gradient(way, current, into, surrogate)

        seconds = in_turns({name: lambda way=way: run(way) for name, way in ways.items()}, repeats)
        for name in ways:
            relative = seconds["plain loop"] / seconds[name]
            rows.append(
                {
                    "pass": what,
                    "kernel": name,
                    "device": current.device.type,
                    "ns a neuron and step": 1e9 * seconds[name].median() / current.numel(),
                    "plain loop / kernel, median": relative.median(),
                    "smallest": relative.min(),
                    "largest": relative.max(),
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder for kernels.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as every stage does
    ways: dict[str, Callable[..., Tensor]] = {"plain loop": plain_loop}
    for name in KERNELS:
        try:
            choose(name, currents(1, 1, arguments.device))
        except ConfigError as error:
            print(f"left out: {error}")
            continue
        ways[name] = lambda *given, name=name: kernel_scan(name, *given)
    failures = {name: difference for name, way in ways.items() if (difference := wrong(way, arguments.device))}
    ways = {name: way for name, way in ways.items() if name not in failures}
    current = currents(arguments.timesteps, arguments.batch, arguments.device)
    rows = measure(ways, current, arguments.repeats)
    print(f"T = {arguments.timesteps}, batch {arguments.batch}, {CHANNELS} x {SIDE} x {SIDE} neurons, float32")
    print(markdown(rows))
    if arguments.output:
        write(rows, arguments.output / "kernels.csv", arguments.device)
    if failures:
        raise SystemExit("\n".join(f"no times for '{name}': {difference}" for name, difference in failures.items()))


if __name__ == "__main__":
    main()
