"""The benchmarks' own checks: they agree where things agree, and see where they do not."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MODULES = ("activations", "compare_peers", "kernels", "networks", "peers", "plain", "results", "scaling")


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    """The modules beside the scripts, which import each other as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield SimpleNamespace(**{name: import_module(name) for name in MODULES})


@pytest.fixture(scope="module")
def case(scripts: SimpleNamespace) -> Any:
    return scripts.networks.Case.hybrid_paper("vgg5", 6, 2, side=8, width=1 / 16)


@pytest.fixture(scope="module")
def exact(scripts: SimpleNamespace, case: Any) -> Any:
    return scripts.networks.Specimen.of(case, exact=True)


@pytest.mark.parametrize("way", ["hybridsnn", "spikingjelly", "snntorch-channels-last"])
def test_every_library_fires_as_a_plain_loop_does(scripts: SimpleNamespace, case: Any, way: str) -> None:
    peers = [way] if way in scripts.peers.PEERS else []
    for peer in peers:
        missing = scripts.peers.PEERS[peer].missing
        if missing:
            pytest.skip(f"{', '.join(missing)} not installed (extra 'bench')")
    setting = scripts.compare_peers.Setting("32-true", "cpu", 1)
    assert scripts.compare_peers.failing(case, setting, peers) == {}


@pytest.mark.skipif(find_spec("snntorch") is None, reason="snntorch not installed (extra 'bench')")
def test_the_check_names_the_layer_that_differs(scripts: SimpleNamespace, exact: Any) -> None:
    peer = scripts.peers.PEERS["snntorch-channels-last"].build(exact.model)
    names = list(exact.model.neurons)
    peer.layers[peer.names.index(names[1])].threshold *= 1.01
    right = scripts.peers.spike_counts(partial(scripts.plain.simulate, exact), exact.frames)
    counts = scripts.peers.spike_counts(peer, exact.frames)
    assert counts[names[0]] == right[names[0]]
    assert f"layer {names[1]}:" in scripts.peers.first_difference(counts, right, 1e-4)


def test_layers_fire_at_the_rate_asked_for(scripts: SimpleNamespace, case: Any) -> None:
    specimen = scripts.networks.Specimen.of(case)
    counts = scripts.peers.spike_counts(specimen.model, specimen.frames)
    assert len(counts) == 5
    for count, most in counts.values():
        assert count / most == pytest.approx(case.rate, rel=0.1)


def test_balancing_finds_the_thresholds_of_a_plain_loop(scripts: SimpleNamespace, exact: Any) -> None:
    right = scripts.plain.thresholds(exact)
    compare = scripts.compare_peers
    found = compare.balancer_of(exact).measure(compare.body_of(exact), compare.calibration_of(exact))
    assert found.keys() == right.keys()
    assert all(torch.equal(found[name], right[name]) for name in right)


def test_activations_are_what_has_not_the_shape_of_a_weight(scripts: SimpleNamespace) -> None:
    network = nn.Linear(4, 3, bias=False)
    images = torch.ones(5, 4)

    def step() -> None:
        current = images @ network.weight.detach().t()  # 60 bytes
        gradient = current.t() @ images
        network.weight.grad = gradient.t().contiguous().t()  # [3, 4] and a copy [4, 3]
        del current

    assert scripts.activations.activation_bytes(network, step) == 60


def test_exponents_are_slopes_of_logarithms(scripts: SimpleNamespace) -> None:
    sizes = scripts.scaling.doubled(4, 3)
    assert sizes == [4, 8, 16, 32]
    assert scripts.scaling.exponent(sizes, 3 * np.array(sizes) ** 1.5) == pytest.approx(1.5)
    assert scripts.scaling.exponent(sizes, 7 + 3 * np.array(sizes)) < 1


def test_kernels_are_held_to_the_definition(scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = scripts.kernels
    monkeypatch.setattr(kernels, "CHANNELS", 2)
    monkeypatch.setattr(kernels, "SIDE", 4)
    right: Callable[..., Tensor] = partial(kernels.kernel_scan, "numba")
    assert kernels.wrong(kernels.plain_loop, "cpu") is None
    assert kernels.wrong(right, "cpu") is None
    assert "spikes differ" in kernels.wrong(lambda current, surrogate: right(current * 2, surrogate), "cpu")
    assert "gradients" in kernels.wrong(
        lambda current, surrogate: right(current, surrogate) + 0 * current + (current - current.detach()), "cpu"
    )


def test_results_say_what_made_them(scripts: SimpleNamespace, tmp_path: Path) -> None:
    frame = pd.DataFrame({"what": ["a: b", "c"], "ratio": [1.23456, 0.5]})
    scripts.results.write(frame, tmp_path / "folder" / "x.csv")
    again, conditions = scripts.results.read(tmp_path / "folder" / "x.csv")
    pd.testing.assert_frame_equal(again, frame)
    assert list(conditions) == ["date", "versions", "device", "instructions", "command"]
    assert f"torch {torch.__version__.split('+')[0]}" in conditions["versions"]
    assert conditions["instructions"].startswith(f"PyTorch uses {torch.backends.cpu.get_cpu_capability()}; ")
    assert scripts.results.markdown(frame).splitlines()[1:3] == ["| --- | ---: |", "| a: b | 1.23 |"]


def test_the_table_of_rates_has_the_faster_layout_of_spikingjelly(scripts: SimpleNamespace) -> None:
    def row(measure: str, peer: str, rate: float, median: float) -> dict[str, Any]:
        return {
            "measure": measure, "between": f"{peer} / hybridsnn", "network": "vgg5", "precision": "32-true",
            "rate": rate, "median": median,
        }  # fmt: skip

    measured = pd.DataFrame(
        [
            row("inference", "spikingjelly", 0.05, 3.0),
            row("inference", "spikingjelly-channels-last", 0.05, 2.0),
            row("inference", "snntorch-channels-last", 0.05, 1.0),
            row("inference", "spikingjelly", 0.15, 1.5),
            row("training step", "spikingjelly", 0.05, 4.0),
            row("memory of a training step", "spikingjelly", 0.05, 0.1),
        ]
    )
    lines = scripts.results.markdown(scripts.results.rate_table(measured)).splitlines()
    assert lines[0] == "| precision | network | measure | 5% | 15% |"
    assert lines[2:] == ["| 32-true | vgg5 | inference | 2 | 1.5 |", "| 32-true | vgg5 | training step | 4 |  |"]


def test_a_known_budget_leaves_the_times_alone(scripts: SimpleNamespace, case: Any) -> None:
    """At the second rate only what depends on it is measured, within the memory of the first."""
    compare = scripts.compare_peers
    if scripts.peers.PEERS["spikingjelly"].missing:
        pytest.skip("spikingjelly not installed (extra 'bench')")
    setting = compare.Setting("32-true", "cpu", 1)
    rows, failures, budget = compare.compare(replace(case, rate=0.15), setting, ["spikingjelly"], 2**20)
    assert failures == [] and budget == 2**20
    times = ["inference", "training step", "training step" + compare.WITHIN]
    assert [row.measure for row in rows] == times and {row.rate for row in rows} == {0.15}
