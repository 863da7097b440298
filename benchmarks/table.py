"""`docs/benchmarks.md` from the CSV files of the benchmarks, each with the conditions under which it was measured."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import compare_peers
import kernels
import pandas as pd
import scaling
import stop_memory
import stop_speed
from results import markdown, rate_table, ratio_table, read

DOCS = Path(__file__).parent.parent / "docs"
INTRODUCTION = """# Benchmarks

Made by `make bench`, and by `make bench-gpu` on a machine with a CUDA device; `benchmarks/table.py` makes this page
from the files in [benchmarks/](benchmarks). Times are ratios, taken in turns in one process: the median over the
rounds, the smallest and the largest.
"""


@dataclass(frozen=True)
class Section:
    """A part of the page: its title, the script whose description it shows, and how its rows are shown."""

    title: str
    script: object
    shown: Callable[[pd.DataFrame], pd.DataFrame]
    first: Callable[[pd.DataFrame], str] | None = None  # what stands before the table


def rates(measured: pd.DataFrame) -> str:
    """The table of rates, with a sentence."""
    return (
        "Time of SpikingJelly / hybridsnn, by the spikes a neuron and step of every layer; of SpikingJelly's memory "
        f"layouts the faster one where both were measured.\n\n{markdown(rate_table(measured))}\n\nEverything:\n"
    )


def stop_memory_table(measured: pd.DataFrame) -> pd.DataFrame:
    """Memory and time of each method in units of `stbp` at the same T."""
    memory, time = (stop_memory.table(measured, what).drop(columns="stbp") for what in ("bytes", "seconds"))
    both = memory.add_prefix("memory, ").join(time.add_prefix("time, "))
    return both.rename_axis("T").reset_index()


SECTIONS = {
    "peers": Section("Against other libraries, the ANN, and balancing", compare_peers, ratio_table, rates),
    "scaling": Section("Growth with time, batch and depth", scaling, lambda measured: measured),
    "kernels": Section("The neuron scan alone", kernels, lambda measured: measured),
    "stop_speed": Section("STOP against a straightforward implementation", stop_speed, lambda measured: measured),
    "stop_memory": Section("STOP and its kin against BPTT", stop_memory, stop_memory_table),
}


def page(folder: Path) -> str:
    """The page for the files in a folder and its subfolders."""
    parts = [INTRODUCTION]
    for name, section in SECTIONS.items():
        for place, path in enumerate(sorted(folder.rglob(f"{name}.csv"))):
            if place == 0:
                parts += [f"## {section.title}\n", f"{inspect.getdoc(section.script)}\n"]
            measured, conditions = read(path)
            parts += [*(f"- {key}: {value}" for key, value in conditions.items()), ""]
            if section.first is not None:
                parts += [section.first(measured)]
            parts += [f"{markdown(section.shown(measured))}\n"]
    return "\n".join(parts)


if __name__ == "__main__":
    (DOCS / "benchmarks.md").write_text(page(DOCS / "benchmarks"), encoding="utf-8")
