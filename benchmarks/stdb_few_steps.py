"""Why STDB needs help at few time steps: from one start, some hundred updates by several methods, and their gradients.

    python stdb_few_steps.py --data FOLDER --output ../docs/benchmarks

trains a small network with batch norm on a part of MNIST, converts it, and fine-tunes it at T = 4 from two starts: the
thresholds of `max`, and the same times the factor with the best accuracy on training images. It writes
`stdb_few_steps.csv`, which docs/stdb.md shows. Takes some minutes on one core.
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.datasets import MNIST

from hybridsnn.conversion import Calibration, MaximumCurrent, spiking_body
from hybridsnn.encoders import Encoder
from hybridsnn.learning import RULES, LearningRule
from hybridsnn.model import SpikingModel

TIMESTEPS = 4
TRAINING, VALIDATION, BATCH = 8000, 2000, 64
RATES = (2e-4, 1e-3, 5e-3)
SCALES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
RULES_COMPARED: dict[str, LearningRule] = {
    "linear": RULES["linear"](),
    "stop-w": RULES["stop-w"](loss="readout"),
    "rate": RULES["rate"](),
    "diet": RULES["diet"](),
    **{f"stdb {clock}": RULES["stdb"](never_fired=clock) for clock in (1000, 300, 100, 0)},
}
Data = tuple[Tensor, Tensor]


def mnist(folder: Path) -> tuple[Data, Data]:
    """Training and validation images of MNIST's training split, in [-1, 1], and their labels."""
    whole = MNIST(str(folder), train=True)
    images, labels = whole.data.unsqueeze(1).float() / 127.5 - 1, whole.targets
    end = TRAINING + VALIDATION
    return (images[:TRAINING], labels[:TRAINING]), (images[TRAINING:end], labels[TRAINING:end])


def batches(data: Data, updates: int, seed: int) -> Iterator[Data]:
    """So many random batches."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        chosen = torch.randint(len(data[0]), (BATCH,), generator=random)
        yield data[0][chosen], data[1][chosen]


def ann(data: Data, updates: int) -> nn.Module:
    """A trained network: three convolutions with batch norm and ReLU, two average pools, a linear layer."""
    torch.manual_seed(0)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    network = nn.Sequential(
        *block(1, 16), nn.AvgPool2d(2), *block(16, 32), nn.AvgPool2d(2), *block(32, 32),
        nn.AvgPool2d(7), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for images, labels in batches(data, updates, seed=1):
        optimiser.zero_grad()
        functional.cross_entropy(network(images), labels).backward()
        optimiser.step()
    return network.eval()


def converted(network: nn.Module, images: Tensor) -> SpikingModel:
    """By the balancer `max`, one threshold a layer."""
    body = spiking_body(network, (1, 28, 28), initial_potential=0.5)
    calibration = Calibration(images, torch.arange(len(images)), Encoder("direct"))
    MaximumCurrent().balance(body, calibration)
    return SpikingModel(body, Encoder("direct"))


def frames_of(images: Tensor) -> Tensor:
    return images.unsqueeze(0).expand(TIMESTEPS, *images.shape)


@torch.no_grad()
def measure(model: SpikingModel, data: Data) -> dict[str, float]:
    """Accuracy, and the share of neurons that never fire within T steps, over an image's mean, by layer and in all."""
    model.eval()
    silent: dict[str, float] = {}
    correct = neurons = 0
    for images, labels in zip(data[0].split(500), data[1].split(500), strict=True):

        def observe(name: str, spikes: Tensor) -> None:
            silent[name] = silent.get(name, 0.0) + float((spikes.sum(0) == 0).flatten(1).float().mean(1).sum())

        outputs, _ = model(frames_of(images), observe=observe)
        correct += int((outputs[-1].argmax(1) == labels).sum())
        neurons += len(labels)
    shares = {f"silent {name}": value / neurons for name, value in silent.items()}
    return {"accuracy": correct / neurons, **shares}


def rescaled(model: SpikingModel, data: Data) -> tuple[SpikingModel, float]:
    """With all thresholds times the factor with which it is most accurate; the weights stay."""
    best: tuple[float, float, SpikingModel] | None = None
    for scale in SCALES:
        other = copy.deepcopy(model)
        for neuron in other.neurons.values():
            neuron.threshold.data *= scale
        accuracy = measure(other, data)["accuracy"]
        if best is None or accuracy > best[0]:
            best = accuracy, scale, other
    assert best is not None
    return best[2], best[1]


def gradient(rule: LearningRule, model: SpikingModel, data: Data) -> dict[str, Tensor]:
    """What a rule teaches the weights of each layer at the start, on one batch, as a flat vector."""
    model = copy.deepcopy(model).train()
    ((images, labels),) = batches(data, 1, seed=2)
    rule.step(model, frames_of(images), labels, lambda loss: loss.backward())
    return {
        name: parameter.grad.flatten()
        for name, parameter in model.body.named_parameters()
        if parameter.grad is not None and name.endswith("weight")
    }


def tuned(rule: LearningRule, start: SpikingModel, data: Data, updates: int, rate: float) -> SpikingModel:
    """After so many updates with Adam."""
    model = copy.deepcopy(start).train()
    neurons = list(model.neurons.values())
    for neuron in neurons:
        neuron.threshold.requires_grad_(rule.learns_thresholds)
        neuron.leak.requires_grad_(rule.learns_leaks)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate, amsgrad=True)
    for images, labels in batches(data, updates, seed=3):
        optimiser.zero_grad()
        rule.step(model, frames_of(images), labels, lambda loss: loss.backward())
        optimiser.step()
        for neuron in neurons:
            neuron.project()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST/raw")
    parser.add_argument("--output", type=Path, required=True, help="folder for stdb_few_steps.csv")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--ann-updates", type=int, default=300)
    options = parser.parse_args()
    training, validation = mnist(options.data)
    network = ann(training, options.ann_updates)
    with torch.no_grad():
        accuracy = float((network(validation[0]).argmax(1) == validation[1]).float().mean())
    print(f"ANN {100 * accuracy:.2f} %")
    some = training[0][:1000], training[1][:1000]
    largest = converted(network, training[0][:128])
    scaled, scale = rescaled(largest, some)
    rows = []
    for name, start in {"max": largest, f"max x {scale}": scaled}.items():
        before = measure(start, validation)
        print(name, {key: round(100 * value, 2) for key, value in before.items()})
        reference = gradient(RULES["linear"](), start, training)
        for method, rule in RULES_COMPARED.items():
            found = gradient(rule, start, training)
            row: dict[str, object] = {"start": name, "method": method, "before": 100 * before["accuracy"]}
            for rate in RATES:
                after = measure(tuned(rule, start, training, options.updates, rate), validation)
                row[f"lr {rate:g}"] = 100 * after["accuracy"]
                row[f"silent {rate:g}"] = 100 * sum(v for k, v in after.items() if k != "accuracy") / (len(after) - 1)
            for layer, value in reference.items():
                row[f"norm {layer}"] = float(found[layer].norm())
                row[f"cosine {layer}"] = float(functional.cosine_similarity(found[layer], value, dim=0))
            rows.append(row)
            print(pd.DataFrame([row]).round(3).to_string(index=False, header=len(rows) == 1), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).round(4).to_csv(options.output / "stdb_few_steps.csv", index=False)


if __name__ == "__main__":
    main()
