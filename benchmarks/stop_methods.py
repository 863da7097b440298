"""Accuracy, memory and time of learning methods on one recipe: the same budget, several seeds.

The recipe has a step `tuned` that fine-tunes and a step `tuned-test` that evaluates it. Every method and seed is a run
of its own under the folder of runs; what is current is not made again. Time is that of one training step on random
images, all methods in turns.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from steps import step_of
from timing import in_turns

from hybridsnn.artifacts import Artifact
from hybridsnn.recipes import running
from hybridsnn.recipes.recipe import load_recipe
from hybridsnn.stages.base import Environment
from hybridsnn.stages.networks import load_network, read_metrics

METHODS = ("stop-w", "stop-wt", "stop-wl", "stop-wtl", "stbp")


def run(recipe: Path, method: str, seed: int, arguments: argparse.Namespace) -> dict[str, Artifact]:
    """The artifacts of one run, by the name of their step."""
    overrides = [f"tuned.method={method}", *arguments.set]
    loaded = load_recipe(recipe, [*overrides, f"tuned.seed={seed}", f"untrained.seed={seed}"])
    artifacts: dict[str, Artifact] = {}
    running.run(
        loaded,
        arguments.checkpoints / f"{loaded.name}-{method}-{seed}",
        Environment(data=arguments.data),
        on_done=lambda step, artifact, made: artifacts.update({step.name: artifact}),
    )
    return artifacts


def measure(artifacts: dict[str, Artifact]) -> dict[str, float]:
    """Test accuracy in percent at the last step, and the peak of live bytes of a training step."""
    tested, tuned = read_metrics(artifacts["tuned-test"]), read_metrics(artifacts["tuned"])
    accuracy = tested[tested["metric"] == "accuracy"].sort_values("step")["value"].iloc[-1]
    peak = tuned[tuned["metric"] == "peak-live-bytes"]["value"].iloc[0]
    return {"accuracy": 100 * accuracy, "bytes": peak}


def times(artifacts: dict[str, Artifact], methods: list[str], repeats: int) -> pd.Series:
    """Median seconds of a training step of each method on the network of the recipe."""
    ways: dict[str, Any] = {}
    for method in methods:
        model, description = load_network(artifacts["converted"])
        settings = artifacts["tuned"].config()
        shape = (settings["batch_size"], *description.network.input_shape)
        labels = torch.randint(description.network.classes, shape[:1])
        model = model.to(memory_format=torch.channels_last)
        ways[method] = step_of(model, method, torch.randn(shape), labels, description.spiking.timesteps)
    return in_turns(ways, repeats).median()


def main() -> None:
    """Run, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=Path("pipelines/mnist-lenet5-scratch.yaml"))
    parser.add_argument("--data", type=Path, help="folder that holds the data sets")
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints/methods"))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="STEP.SETTING=VALUE", help="change the recipe")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows, artifacts = [], {}
    for seed in arguments.seeds:
        for method in arguments.methods:
            artifacts = run(arguments.recipe, method, seed, arguments)
            rows.append({"method": method, "seed": seed, **measure(artifacts)})
            print(f"seed {seed} {method}: {rows[-1]['accuracy']:.2f} %", flush=True)
    measured = pd.DataFrame(rows).groupby("method", sort=False)
    seconds = times(artifacts, arguments.methods, arguments.repeats)
    table = pd.DataFrame(
        {
            "test accuracy (%), mean": measured["accuracy"].mean().round(2),
            "lowest": measured["accuracy"].min().round(2),
            "highest": measured["accuracy"].max().round(2),
            "live memory of a step (MiB)": (measured["bytes"].mean() / 2**20).round(1),
            "time of a step / stbp": (seconds / seconds["stbp"]).round(2),
        }
    )
    print(f"\n{len(arguments.seeds)} seeds, {arguments.threads} threads")
    print(table.to_string())


if __name__ == "__main__":
    main()
