"""Where results go: CSV files that say what made them, and tables in markdown."""

import platform
import shlex
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import torch

import hybridsnn
from hybridsnn.stages.compute import processor_flags

PACKAGES = ("torch", "numba", "triton", "spikingjelly", "snntorch")


def device_name(device: str) -> str:
    """The processor or graphics card by its own name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux
        return platform.processor() or platform.machine()


def instructions(device: str) -> str:
    """What a processor can do that decides which ways are fast: what PyTorch uses of it, and what it has."""
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        return f"CUDA compute capability {major}.{minor}"
    kinds = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")
    return f"PyTorch uses {torch.backends.cpu.get_cpu_capability()}; {', '.join(processor_flags(kinds)) or 'unknown'}"


def conditions(device: str) -> dict[str, str]:
    """When, with what, on what and how the running script was called."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "versions": f"hybridsnn {hybridsnn.__version__}, Python {platform.python_version()}, {', '.join(versions)}",
        "device": f"{device_name(device)}, {torch.get_num_threads()} threads",
        "instructions": instructions(device),
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def write(frame: pd.DataFrame, path: Path, device: str = "cpu") -> None:
    """A CSV file that begins with a line `# key: value` for each of the conditions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = "".join(f"# {key}: {value}\n" for key, value in conditions(device).items())
    path.write_text(head + frame.to_csv(index=False), encoding="utf-8")


def read(path: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """What `write` wrote: the table and its conditions."""
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    return pd.read_csv(path, comment="#"), dict(line[2:].split(": ", 1) for line in head)


def markdown(frame: pd.DataFrame) -> str:
    """A table; numbers to three digits, to the right."""

    def shown(value: object) -> str:
        return ("" if pd.isna(value) else f"{value:.3g}") if isinstance(value, float) else str(value)

    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]
    rows = [list(frame.columns), ["---:" if right else "---" for right in numeric]]
    rows += [[shown(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rate_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Time of SpikingJelly / ours at each rate, of the faster of its layouts in each case; rows by what is measured."""
    timed = measured[measured["measure"].str.startswith(("inference", "training step"))]
    timed = timed[timed["between"].str.startswith("spikingjelly")]
    table = timed.pivot_table("median", ["precision", "network", "measure"], "rate", aggfunc="min", sort=True)
    table.columns = [f"{rate:.0%}" for rate in table.columns]
    return table.reset_index()


def ratio_table(measured: pd.DataFrame) -> pd.DataFrame:
    """The rows of `compare_peers.py` as people read them."""
    what = measured["measure"] + ": " + measured["between"]
    rates = measured["rate"].map(lambda rate: f"{rate:.0%}")
    run = measured["network"] + " at " + rates + ", " + measured["precision"] + ", " + measured["device"]
    return pd.DataFrame(
        {
            "what": what + ", " + run,
            "ratio, median": measured["median"],
            "smallest": measured["smallest"],
            "largest": measured["largest"],
            "target": measured["target"],
        }
    )
