"""Memory and time of a training step against the number of time steps T: STOP and its kin beside BPTT (`stbp`).

Memory is the peak of live tensor bytes during the step, weights and optimiser not counted: what a training needs on
top of its network. Both are printed as ratios to `stbp` at the same T, and drawn.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pandas as pd
import torch
from results import write
from steps import spiking_vgg11, step_of
from timing import in_turns

from hybridsnn.memory import LiveMemory

METHODS = ("stbp", "stop-w", "stop-wtl", "osstop", "sltt")
TIMESTEPS = (2, 4, 8, 16, 32, 64)


def measure(timesteps: int, batch: int, side: int, repeats: int) -> pd.DataFrame:
    """One row for each method: `timesteps`, `method`, `bytes`, `seconds` (median)."""
    torch.manual_seed(0)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(10, (batch,))
    steps = {name: step_of(spiking_vgg11(side), name, images, labels, timesteps) for name in METHODS}
    rows = []
    for name, step in steps.items():
        step()  # the optimiser's own memory is made here
        with LiveMemory() as memory:
            step()
        rows.append({"timesteps": timesteps, "method": name, "bytes": memory.peak})
    seconds = in_turns(steps, repeats).median()
    return pd.DataFrame([{**row, "seconds": seconds[row["method"]]} for row in rows])


def table(measured: pd.DataFrame, what: str) -> pd.DataFrame:
    """Ratios to `stbp` at the same T; one row for each T, one column for each method."""
    wide = measured.pivot(index="timesteps", columns="method", values=what)[list(METHODS)]
    return wide.div(wide["stbp"], axis=0)


def draw(measured: pd.DataFrame, path: Path) -> None:
    """Curves of memory and time against T, in units of `stbp` at the smallest T."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, what, title in zip(
        axes, ("bytes", "seconds"), ("peak live memory", "time of a training step"), strict=True
    ):
        wide = measured.pivot(index="timesteps", columns="method", values=what)[list(METHODS)]
        relative = wide / wide["stbp"].iloc[0]
        for name, marker in zip(METHODS, "osD^v", strict=True):
            axis.plot(relative.index, relative[name], marker=marker, markersize=4, label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks(relative.index, labels=[str(value) for value in relative.index])
        axis.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, place: f"{value:g}"))
        axis.set_xlabel("time steps T")
        axis.set_title(f"{title} / that of stbp at T = {relative.index[0]}", fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--output", type=Path, default=Path("docs/benchmarks"), help="folder for stop_memory.csv and .png"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"VGG-11, batch norm, batch {arguments.batch}, {arguments.threads} threads, float32")
    parts = []
    for timesteps in arguments.timesteps:
        parts.append(measure(timesteps, arguments.batch, arguments.side, arguments.repeats))
        print(
            f"T = {timesteps}: "
            + ", ".join(f"{row.method} {row.bytes / 2**20:.0f} MiB" for row in parts[-1].itertuples())
        )
    measured = pd.concat(parts, ignore_index=True)
    print("\npeak live memory / that of stbp at the same T")
    print(table(measured, "bytes").round(3).to_string())
    print("\ntime of a training step / that of stbp at the same T")
    print(table(measured, "seconds").round(2).to_string())
    first = measured[measured.timesteps == min(arguments.timesteps)].set_index("method")["bytes"]
    last = measured[measured.timesteps == max(arguments.timesteps)].set_index("method")["bytes"]
    print(f"\npeak live memory at T = {max(arguments.timesteps)} / that at T = {min(arguments.timesteps)}")
    print((last / first)[list(METHODS)].round(3).to_string())
    write(measured, arguments.output / "stop_memory.csv")
    draw(measured, arguments.output / "stop_memory.png")


if __name__ == "__main__":
    main()
