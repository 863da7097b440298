"""Accuracy at few time steps without training, by balancer and correction.

    python few_steps.py --data FOLDER --output ../docs/benchmarks

trains a small network with batch norm on MNIST, converts it for each T with thresholds per channel measured on 256
training images, and gives the accuracy on the test images in per cent. `FOLDER` holds `MNIST/raw`. Takes some minutes.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from results import markdown, write
from stdb_few_steps import ann
from torch import Tensor, nn
from torchvision.datasets import MNIST

from hybridsnn.conversion import BALANCERS, CORRECTIONS, Calibration, MeasuringBalancer, spiking_body
from hybridsnn.encoders import Encoder
from hybridsnn.model import SpikingModel

TIMESTEPS = (1, 2, 4, 8, 16)
UPDATES, CALIBRATION = 1800, 256  # two epochs
WAYS = {
    "max": (),
    "percentile": (),
    "ltb": (),
    "lloyd": (),
    "mmse": (),
    "max + bias": ("bias",),
    "lloyd + bias": ("bias",),
    "mmse + bias": ("bias",),
    "mmse + bias + potential": ("bias", "potential"),
}
Data = tuple[Tensor, Tensor]


def mnist(folder: Path, *, train: bool) -> Data:
    """Images in [-1, 1] and labels."""
    whole = MNIST(str(folder), train=train)
    return whole.data.unsqueeze(1).float() / 127.5 - 1, whole.targets


def converted(network: nn.Module, images: Tensor, way: str, timesteps: int) -> SpikingModel:
    """A network that is balanced, and corrected, for so many time steps."""
    balancer = BALANCERS[way.split(" + ")[0]]()
    assert isinstance(balancer, MeasuringBalancer)
    corrections = [CORRECTIONS[name]() for name in WAYS[way]]
    body = spiking_body(
        network, (1, 28, 28), granularity="channel", initial_potential=0.5, biases=bool(corrections),
        potentials=next((found for each in corrections if (found := each.potentials)), None),
    )  # fmt: skip
    calibration = Calibration(images, torch.arange(len(images)), Encoder("direct"), timesteps=timesteps)
    balancer.balance(body, calibration, corrections)
    return SpikingModel(body, Encoder("direct")).eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, timesteps: int | None = None) -> float:
    """In per cent; of a spiking network after its last step."""
    right = 0
    for images, labels in zip(*(part.split(500) for part in data), strict=True):
        outputs = model(images) if timesteps is None else model(images.expand(timesteps, *images.shape))[0][-1]
        right += int((outputs.argmax(1) == labels).sum())
    return 100 * right / len(data[1])


def main() -> None:
    """Train, convert, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--output", type=Path, help="folder for few_steps.csv")
    arguments = parser.parse_args()
    training, test = mnist(arguments.data, train=True), mnist(arguments.data, train=False)
    network = ann(training, UPDATES)
    known = training[0][:CALIBRATION]
    rows = [{"way": "ann", **dict.fromkeys(map(str, TIMESTEPS), accuracy(network, test))}]
    for way in WAYS:
        row: dict[str, object] = {"way": way}
        for timesteps in TIMESTEPS:
            row[str(timesteps)] = accuracy(converted(network, known, way, timesteps), test, timesteps)
        rows.append(row)
        print(row, flush=True)
    frame = pd.DataFrame(rows)
    print(markdown(frame))
    if arguments.output:
        write(frame, arguments.output / "few_steps.csv")


if __name__ == "__main__":
    main()
