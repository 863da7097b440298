"""`--precision auto`: what it chooses, and why."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from hybridsnn.batch import Batch
from hybridsnn.conversion import spiking_body
from hybridsnn.encoders import Encoder
from hybridsnn.model import SpikingModel
from hybridsnn.stages import compute, precision
from hybridsnn.stages.compute import fabric_for, has_bfloat16, processor_flags

SHAPE, CLASSES = (2, 4, 4), 3


@pytest.fixture(autouse=True)
def machine_with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this one has: the check itself runs anywhere."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)


def network(*, near: bool = False) -> nn.Module:
    """An ANN whose classes differ by much, or by less than bfloat16 tells apart."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(SHAPE[0], 8, 3, padding=1), nn.Linear(8 * 16, CLASSES)
    if near:
        rows = torch.rand(1, 8 * 16) * (1 + torch.randn(CLASSES, 8 * 16) * 1e-3)
        last.weight.data, last.bias.data = rows, torch.zeros(CLASSES)
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), last).eval()


def spiking(ann: nn.Module) -> SpikingModel:
    model = SpikingModel(spiking_body(ann, SHAPE), Encoder("poisson")).eval()
    for neuron in model.neurons.values():
        neuron.threshold.data.fill_(0.5)
    return model


def batches() -> Any:
    random = torch.Generator().manual_seed(0)
    for first in range(0, 1000, 40):
        images = torch.rand(40, *SHAPE, generator=random)
        yield Batch(images, torch.zeros(40, dtype=torch.int64), torch.arange(first, first + 40))


def choose(model: nn.Module, timesteps: int | None, asked: str = "auto") -> tuple[str, list[str]]:
    """The precision chosen, and what was said."""
    said: list[str] = []
    environment = SimpleNamespace(device="cpu", progress=SimpleNamespace(say=said.append))
    work: Any = SimpleNamespace(environment=environment, device="")
    fabric = precision.settle(work, fabric_for(work, asked), asked, model, batches, timesteps)  # type: ignore[arg-type]
    with fabric.autocast():
        half = torch.is_autocast_enabled("cpu")
    return "bf16-mixed" if half else "32-true", said


@pytest.mark.parametrize("spikes", [False, True])
def test_half_precision_where_answers_stay(spikes: bool) -> None:
    model = (spiking(network()) if spikes else network()).train()
    chosen, said = choose(model, 12 if spikes else None)
    assert chosen == "bf16-mixed" and model.training
    assert len(said) == 1 and said[0].startswith("precision: bf16-mixed, as in bfloat16 ")
    assert "of 120 images got another answer (allowed: 2%)" in said[0]
    assert ("another spike (allowed: 0.25%)" in said[0]) == spikes
    assert choose(model, 12 if spikes else None) == (chosen, said)


def test_single_precision_where_answers_change() -> None:
    chosen, said = choose(network(near=True), None)
    assert chosen == "32-true" and said[0].startswith("precision: 32-true, as in bfloat16 ")
    changed = int(said[0].split(" of 120")[0].split()[-1])
    assert changed > 0.02 * 120


def test_single_precision_where_spikes_change() -> None:
    """Though answers stay: the only layer is just below its threshold, and bfloat16 lifts it there."""
    ann = nn.Sequential(nn.Conv2d(2, 8, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES, bias=False)).eval()
    ann[0].weight.data.fill_(0.0)
    ann[0].bias.data.fill_(1 - 2**-10)  # 1 in bfloat16
    ann[3].weight.data = torch.tensor([[1.0], [0.0], [0.0]]).expand(3, 8).contiguous()
    model = SpikingModel(spiking_body(ann, SHAPE), Encoder("direct")).eval()
    for neuron in model.neurons.values():
        neuron.threshold.data.fill_(1.0)
    chosen, said = choose(model, 8)
    assert chosen == "32-true" and "0 of 120 images got another answer" in said[0]
    assert "12.50% of neurons and steps another spike" in said[0]


def test_single_precision_without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", has_bfloat16)
    monkeypatch.setattr(compute, "processor_flags", lambda among: [])
    chosen, said = choose(network(), None)
    assert chosen == "32-true"
    assert len(said) == 1 and "has no instructions for bfloat16" in said[0]
    monkeypatch.setattr(compute, "processor_flags", lambda among: list(among))
    for capability, has in (("AVX2", False), ("AVX512", True)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert has_bfloat16("cpu") == has


@pytest.mark.parametrize("asked", ["32-true", "bf16-mixed"])
def test_what_is_asked_for_is_not_checked(asked: str) -> None:
    assert choose(network(near=True), None, asked) == (asked, [])


def test_flags_are_those_of_the_system() -> None:
    assert processor_flags(("no such instruction",)) == []
