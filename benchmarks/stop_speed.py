"""A training step of STOP on VGG-11 with batch norm, against the same step written the straightforward way.

The straightforward way is one custom function for each layer that saves the trace of its input, neurons in eager
PyTorch, and a backward pass at every step. First it is checked, in float64, that the two give the same gradients;
then both are timed in turns. Times are ratios of medians.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from results import markdown, write
from steps import LEAK, SURROGATE, THRESHOLD, learn, spiking_vgg11, step_of
from straightforward import VGG11, training_step
from timing import in_turns, ratios
from torch import nn

from hybridsnn.learning import RULES
from hybridsnn.model import SpikingModel
from hybridsnn.stages.compute import keep_freed_memory


def copy_weights(model: SpikingModel, plain: nn.Module) -> None:
    """Give the straightforward network the weights of ours; both list them in the same order."""
    source = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter, value in zip(plain.parameters(), source, strict=True):
        parameter.data.copy_(value.data)


def check(side: int) -> float:
    """The largest difference between the gradients of the two ways, in float64, relative to the largest gradient."""
    torch.manual_seed(0)
    model = learn(spiking_vgg11(side).double().train(), "stop-w")
    plain = VGG11(leak=LEAK, threshold=THRESHOLD).double()
    copy_weights(model, plain)
    images, labels = torch.randn(4, 3, side, side, dtype=torch.float64), torch.arange(4)
    rule = RULES["stop-w"](surrogate=SURROGATE)
    frames = images.expand(3, *images.shape).clone()  # not constant in memory, so that every step is computed
    rule.step(model, frames, labels, lambda loss: loss.backward())
    training_step(plain, images, labels, 3)
    worst = 0.0
    ours = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for mine, theirs in zip(ours, plain.parameters(), strict=True):
        if mine.dim() > 1:  # the straightforward way has no trace for the scale and shift of a batch norm
            worst = max(worst, float((mine.grad - theirs.grad).abs().max() / theirs.grad.abs().max()))
    return worst


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder for stop_speed.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as every stage does; it serves both ways
    difference = check(arguments.side)
    print(f"gradients differ by {difference:.1e} of the largest (float64)")
    if not difference < 1e-9:
        raise SystemExit("the two ways do not compute the same thing; no time is given")

    torch.manual_seed(0)
    images, labels = (
        torch.randn(arguments.batch, 3, arguments.side, arguments.side),
        torch.randint(10, (arguments.batch,)),
    )
    plain = VGG11(leak=LEAK, threshold=THRESHOLD)
    plain_optimiser = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9)

    def straightforward() -> None:
        plain_optimiser.zero_grad()
        training_step(plain, images, labels, arguments.timesteps)
        plain_optimiser.step()

    model = spiking_vgg11(arguments.side)
    ways = {
        "straightforward": straightforward,
        **{name: step_of(model, name, images, labels, arguments.timesteps) for name in ("stop-w", "stop-wtl")},
    }
    seconds = in_turns(ways, arguments.repeats)
    print(
        f"VGG-11, batch norm, T = {arguments.timesteps}, batch {arguments.batch}, {arguments.threads} threads, float32"
    )
    rows = pd.concat(
        [
            ratios(seconds, base).drop(base).rename_axis("time of a training step").reset_index().assign(**{"to": base})
            for base in ("straightforward", "stop-w")
        ],
        ignore_index=True,
    )
    print(markdown(rows))
    if arguments.output:
        write(rows, arguments.output / "stop_speed.csv")


if __name__ == "__main__":
    main()
