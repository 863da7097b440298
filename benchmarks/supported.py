"""Which networks of timm and torchvision convert, as docs/supported.md: `python benchmarks/supported.py [--write]`.

Weights are random, batch norms get their statistics from one pass, images are small. Each network is converted per
channel and simulated; what remains between its readout and the best multiple of the ANN's answers must fall with time.
"""

import argparse
import copy
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hybridsnn.conversion import BALANCERS, Calibration, prove_preparation, prove_scales, spiking_body
from hybridsnn.encoders import Encoder
from hybridsnn.errors import ConversionError
from hybridsnn.model import SpikingModel
from hybridsnn.networks import NetworkSpec

PAGE = Path(__file__).parents[1] / "docs" / "supported.md"
SIDE, CLASSES, TIMESTEPS = 32, 10, (64, 512)
IMAGES, TRIED = 16, 2  # that statistics and thresholds are from; that are simulated
CHUNK = 32  # time steps at once
NETWORKS = (
    *(f"torchvision:{name}" for name in (
        "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "densenet121",
        "squeezenet1_1", "googlenet", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5",
        "shufflenet_v2_x0_5", "regnet_x_400mf", "regnet_y_400mf", "efficientnet_b0", "convnext_tiny")),
    *(f"timm:{name}" for name in (
        "vgg11_bn", "resnet18", "resnet18d", "resnext26ts", "mobilenetv1_100", "mobilenetv2_100", "regnetx_002",
        "densenet121", "efficientnet_lite0", "tf_efficientnet_lite0", "dla34", "hardcorenas_a", "repvgg_a0",
        "ghostnet_100", "res2net50_14w_8s", "selecsls42", "hrnet_w18_small", "vovnet39a", "ese_vovnet19b_dw",
        "convmixer_768_32")),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a network.

    Attributes:
        rests: what remains at each of `TIMESTEPS`, a share of the readout; None: it is refused.
        note: the max pools that were gated, or the reason of the refusal.
    """

    name: str
    rests: tuple[float, ...] | None
    note: str


def trial(name: str, timesteps: tuple[int, ...] = TIMESTEPS, side: int = SIDE) -> Outcome:
    """Convert and simulate one network."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = NetworkSpec(name, (3, side, side), CLASSES).build()
    images = torch.randn(IMAGES, 3, side, side, generator=torch.Generator().manual_seed(1))
    enliven(network, images)
    gated = any("MaxPool" in type(module).__name__ for module in network.modules())
    try:
        body = spiking_body(network, (3, side, side), granularity="channel", initial_potential=0.5, max_pool="gate")
    except ConversionError as error:
        return Outcome(name, None, str(error).removeprefix("network: "))
    tried, indices = images[:TRIED], torch.arange(IMAGES)
    prove_preparation(network, tried)
    rests = []
    for steps in timesteps:
        fitted = copy.deepcopy(body)
        BALANCERS["percentile"]().balance(fitted, Calibration(images, indices, Encoder("direct"), timesteps=steps))
        prove_scales(body, fitted, tried, corrected=False)
        with torch.no_grad():
            model, state = SpikingModel(fitted, Encoder("direct")).eval(), None
            for start in range(0, steps, CHUNK):
                frames = tried.expand(min(CHUNK, steps - start), *tried.shape)
                outputs, state = model(frames, state)
            rests.append(rest(outputs[-1], network(tried)))
    return Outcome(name, tuple(rests), "max pools gated" if gated else "")


@torch.no_grad()
def enliven(network: nn.Module, images: Tensor) -> None:
    """Give batch norms the statistics of these images, and dead biases of random networks a little life."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
        if norm.weight is not None:
            norm.weight.fill_(1.0)
            norm.bias.copy_(0.1 * torch.randn_like(norm.bias))
    network.eval()
    for norm in norms:
        norm.train()
    network(images)
    network.eval()


def rest(outputs: Tensor, answers: Tensor) -> float:
    """What the best multiple of the answers leaves of the outputs, relative to them; the mean of each class removed."""
    outputs, answers = (values.double() - values.double().mean(0) for values in (outputs, answers))
    factor = (outputs * answers).sum() / answers.square().sum()
    return float((outputs - factor * answers).norm() / outputs.norm()) if outputs.any() else 1.0


def page(outcomes: list[Outcome]) -> str:
    """The page as Markdown."""
    converted = [outcome for outcome in outcomes if outcome.rests is not None]
    refused = [outcome for outcome in outcomes if outcome.rests is None]
    header = " | ".join(f"T = {steps}" for steps in TIMESTEPS)
    rows = [
        f"| `{each.name}` | {' | '.join(f'{100 * value:.1f}' for value in each.rests or ())} | {each.note} |"
        for each in converted
    ]
    reasons = [f"| `{each.name}` | {each.note.replace('|', '/')} |" for each in refused]
    return "\n".join(
        [
            "# Networks of timm and torchvision that convert",
            "",
            "Made by `python benchmarks/supported.py --write`: random weights, statistics of batch norms from one",
            f"pass over {IMAGES} images of {SIDE} x {SIDE}, thresholds per channel from `percentile`,",
            "membranes that start at half a threshold, `--max-pool gate`. All that convert have passed the proof of a",
            "conversion: as rectifiers, their rescaled layers equal the ANN's. The numbers are per cent of the readout",
            "that differ from the ANN's answers (the best multiple of them; what all images have in common is left",
            "out), after T steps. Random weights make differences between images small, and these numbers larger than",
            "those of trained networks.",
            "",
            f"{len(converted)} of {len(outcomes)} convert.",
            "",
            f"| network | {header} | |",
            f"|---|{'---|' * len(TIMESTEPS)}---|",
            *rows,
            "",
            "The others are refused, by name and with what to do:",
            "",
            "| network | reason |",
            "|---|---|",
            *reasons,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args()
    outcomes = []
    for name in arguments.networks:
        start = time.perf_counter()
        outcomes.append(trial(name))
        told = outcomes[-1].rests or outcomes[-1].note[:400]
        print(f"{name} ({time.perf_counter() - start:.0f} s): {told}", file=sys.stderr)
    if arguments.write:
        PAGE.write_text(page(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
