"""Operations counted from spikes, and the energy that follows from them."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from toy_networks import SHAPE, Residual, exact, pictures, seeded, spiking

from hybridsnn.batch import Batch
from hybridsnn.evaluation.accuracy import CHUNK, snn_accuracy
from hybridsnn.evaluation.energy import BASES, Costs, Counts, activation_bits, energy
from hybridsnn.evaluation.measurement import Rows, evaluate, join
from hybridsnn.evaluation.operations import SHORTCUT
from hybridsnn.model import SpikingModel

IMAGES, TIMESTEPS = 5, CHUNK + 3


def sequential() -> nn.Sequential:
    """Convolutions with strides, groups, dilations and borders, and no pools."""
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 2, padding=1, dilation=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 3 * 3, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
    )


def pooled() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 2 * 2, 3),
    )


def without_pools(network: nn.Sequential) -> nn.Sequential:
    """The same function: each pool is a part of the convolution or linear layer behind it."""
    first, second, last = (module for module in network if isinstance(module, (nn.Conv2d, nn.Linear)))
    wide = nn.Conv2d(4, 6, 6, stride=2, padding=2)
    whole = nn.Linear(6 * 4 * 4, 3)
    block = torch.full((2, 2), 0.25)
    with torch.no_grad():
        wide.weight.copy_(torch.kron(second.weight, block))
        wide.bias.copy_(second.bias)
        whole.weight.copy_(torch.kron(last.weight.view(3, 6, 2, 2), block).flatten(1))
        whole.bias.copy_(last.bias)
    return nn.Sequential(first, nn.ReLU(), wide, nn.ReLU(), nn.Flatten(), whole).eval()


def batch(first: int = 0, last: int = IMAGES) -> Batch:
    return Batch(pictures(IMAGES)[first:last], torch.zeros(last - first, dtype=torch.int64), torch.arange(first, last))


def rows_of(model: SpikingModel, *batches: Batch, timesteps: int = TIMESTEPS) -> Rows:
    return evaluate(snn_accuracy(model, torch.device("cpu"), timesteps=timesteps, seed=0), batches or [batch()])


def value(rows: Rows, metric: str, **at: object) -> float:
    wanted = {"metric": metric, "step": None, "layer": None, **at}
    (found,) = [row for row in rows if all(row.get(key) == wanted[key] for key in wanted)]
    return float(found["value"])


def with_ones(module: nn.Module, values: Tensor) -> float:
    """The sum of a layer's output, where all weights that are not 0 are 1 and there is no bias."""
    ones = {
        name: torch.zeros_like(tensor) if name == "bias" else (tensor != 0).float()
        for name, tensor in module.named_parameters()
    }
    hooks, module._forward_pre_hooks = module._forward_pre_hooks, {}  # type: ignore[assignment]
    total = torch.func.functional_call(module, ones, (values,)).sum(dtype=torch.float64)
    module._forward_pre_hooks = hooks
    return float(total)


@pytest.mark.parametrize("encoder", ["direct", "poisson"])
def test_operations_are_those_of_layers_with_weights_of_one(encoder: str) -> None:
    network = seeded(sequential())
    with torch.no_grad():
        network[2].weight[0, 0] = 0  # as after pruning
    model = spiking(network, encoder)
    rows = rows_of(model)
    counted: dict[str, float] = {}
    layers = {name: part for name, part in model.body.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))}
    for name, part in layers.items():

        def count(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            counted[name] = counted.get(name, 0.0) + with_ones(module, (inputs[0] != 0).float())

        part.register_forward_pre_hook(count)
    with torch.no_grad():
        model(model.encoder(batch().images, batch().indices, TIMESTEPS))
    for place, (name, total) in enumerate(counted.items()):
        multiplies = place == 0 and encoder == "direct"
        for kind, expected in (("multiplications", multiplies), ("accumulates", not multiplies)):
            found = value(rows, f"{kind}-per-image", layer=name)
            assert found == (pytest.approx(total / IMAGES, rel=1e-12) if expected else 0)
        assert total > 0
    assert len(counted) == 5


@pytest.mark.parametrize("network", [sequential, pooled])
def test_operations_equal_those_of_neurobench(network) -> None:
    """Which counts by hooks on layers; for it, pools become parts of the layers behind them, so that inputs are 0 or 1.

    The first layer is called once, as its input does not change in time.
    """
    pytest.importorskip("neurobench", reason="neurobench is not installed (hybridsnn[neurobench])")
    from neurobench.metrics.workload import SynapticOperations
    from neurobench.models import TorchModel

    original = exact(seeded(network()))
    rows = rows_of(spiking(original))
    model = spiking(original if network is sequential else without_pools(original))
    wrapped = TorchModel(model.body)
    wrapped.register_hooks()
    measured = batch()
    with torch.no_grad():
        outputs, _ = model(model.encoder(measured.images, measured.indices, TIMESTEPS))
    expected = SynapticOperations()(wrapped, outputs, (measured.images, measured.labels))
    last = {"step": TIMESTEPS}
    assert value(rows, "accumulates-per-image", **last) == expected["Effective_ACs"] > 0
    assert value(rows, "multiplications-per-image", **last) == expected["Effective_MACs"] > 0


def test_a_pool_costs_what_the_layer_costs_that_holds_it() -> None:
    network = exact(seeded(pooled()))
    rows, folded = rows_of(spiking(network)), rows_of(spiking(without_pools(network)))
    for metric in ("accumulates-per-image", "multiplications-per-image"):
        assert value(rows, metric, step=TIMESTEPS) == value(folded, metric, step=TIMESTEPS) > 0
    # The ANN pools first, so its layers are smaller.
    assert value(rows, "ann-multiplications-per-image") < value(folded, "ann-multiplications-per-image")


POOLS = {
    "average": nn.AvgPool2d(3, stride=2, padding=1),
    "ceil": nn.AvgPool2d(3, stride=2, ceil_mode=True),
    "no padding counted": nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    "adaptive": nn.AdaptiveAvgPool2d((3, 5)),
    "global": nn.AdaptiveAvgPool2d(1),
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_a_spike_counts_in_each_window_that_it_is_in(pool: nn.Module) -> None:
    features = pool(torch.zeros(1, 4, *SHAPE[1:])).numel()
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(features, 3))
    model = spiking(seeded(network))
    rows = rows_of(model)
    spikes: list[Tensor] = []
    with torch.no_grad():
        frames = model.encoder(batch().images, batch().indices, TIMESTEPS)
        model(frames, observe=lambda name, values: spikes.append(values))
    maps = spikes[0].double().sum((0, 1))
    windows = torch.zeros(SHAPE[1:])
    for place in range(windows.numel()):  # how many windows of the pool see this position
        one = torch.zeros(1, 1, windows.numel())
        one[..., place] = 1
        windows.view(-1)[place] = (pool(one.view(1, 1, *SHAPE[1:])) != 0).sum()
    expected = float((maps * windows).sum() * 3 / IMAGES)
    assert value(rows, "accumulates-per-image", step=TIMESTEPS) == pytest.approx(expected, rel=1e-12)
    assert expected > 0


def test_shortcuts_accumulate_whatever_weight_is_folded_into_them() -> None:
    model = spiking(seeded(Residual()))
    rows = rows_of(model)
    spikes: dict[str, float] = {}

    def observe(name: str, values: Tensor) -> None:
        spikes[name] = float(values.sum()) / IMAGES

    with torch.no_grad():
        model(model.encoder(batch().images, batch().indices, TIMESTEPS), observe=observe)
    shortcuts = {str(row["layer"]) for row in rows if SHORTCUT in str(row.get("layer"))}
    assert len(shortcuts) == 1  # the other has a convolution
    (name,) = shortcuts
    # The stem's spikes go through a pool to the shortcut: one accumulate each.
    assert value(rows, "accumulates-per-image", layer=name) == pytest.approx(spikes["stem.1"], rel=1e-12)
    assert value(rows, "multiplications-per-image", layer=name) == 0


def test_counts_do_not_depend_on_batches_and_grow_with_the_steps() -> None:
    model = spiking(exact(seeded(Residual())))
    whole, parts = rows_of(model), rows_of(model, batch(0, 2), batch(2, 5))
    assert [(row["metric"], row["value"]) for row in whole if row["metric"] != "loss"] == [
        (row["metric"], pytest.approx(row["value"], rel=1e-12)) for row in parts if row["metric"] != "loss"
    ]
    short = rows_of(model, timesteps=3)
    for metric in ("accumulates-per-image", "membrane-updates-per-image", "energy-memory", "energy-quantised"):
        series = [value(whole, metric, step=step) for step in range(1, TIMESTEPS + 1)]
        assert series == sorted(series)
        assert value(short, metric, step=3) == pytest.approx(series[2], rel=1e-12)


def test_measurements_of_another_process_give_the_same_rows() -> None:
    model = spiking(seeded(Residual()))
    run = {"timesteps": 3, "seed": 0}
    measured = join([snn_accuracy(model, torch.device("cpu"), **run).of_batch(batch())])
    assert snn_accuracy(model, torch.device("cpu"), **run).result(measured) == rows_of(model, timesteps=3)


COUNTS = Counts(
    timesteps=4,
    accumulates=1000.0,
    multiplications=200.0,
    spikes=50.0,
    updates=400.0,
    constants=100.0,
    leaks=0.0,
    ann_multiplications=5000.0,
    first_multiplications=300.0,
    ann_values=100.0,
)


def test_energy_of_a_known_network() -> None:
    bit = 10 / 64
    assert energy(COUNTS, "operations").spiking == pytest.approx(1000 * 0.9 + 200 * 4.6)
    assert energy(COUNTS, "operations").ann == pytest.approx(5000 * 4.6)
    arithmetic = 1000 * 0.9 + 200 * 4.6 + (400 + 100 + 50) * 0.9
    assert COUNTS.memory_accesses == 3 * 1000 + 2 * 200 + 2 * 400 + 100 + 2 * 50
    assert energy(COUNTS, "memory").spiking == pytest.approx(arithmetic + COUNTS.memory_accesses * 32 * bit)
    assert COUNTS.ann_memory_accesses == 2 * 5000 + 100
    assert energy(COUNTS, "memory").ann == pytest.approx(5000 * 4.6 + COUNTS.ann_memory_accesses * 32 * bit)
    # 4 steps: 5 levels, 3 bits.
    first, later = 0.3 + 16 * bit, 0.2 * 3 / 8 + 0.1 + 11 * bit
    assert energy(COUNTS, "quantised").ann == pytest.approx(300 * first + 4700 * later + 100 * 3 * bit)
    spiking = 1000 * (0.1 + 72 * bit) + 50 * (0.1 + 64 * bit) + 400 * (0.1 + 64 * bit) + 100 * (0.1 + 32 * bit)
    assert energy(COUNTS, "quantised").spiking == pytest.approx(spiking + 200 * first)


@pytest.mark.parametrize(("timesteps", "bits"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (15, 4), (16, 5)])
def test_bits_of_an_ann_with_as_many_levels(timesteps: int, bits: int) -> None:
    assert activation_bits(timesteps) == bits
    assert Costs.quantised(timesteps).activation == bits


@pytest.mark.parametrize("basis", BASES)
def test_at_the_break_even_rate_both_need_the_same(basis: str) -> None:
    rate = COUNTS.spikes / COUNTS.updates
    even = energy(COUNTS, basis).break_even(rate)
    factor = even / rate
    there = replace(COUNTS, accumulates=factor * COUNTS.accumulates, spikes=factor * COUNTS.spikes)
    assert energy(there, basis).spiking == pytest.approx(energy(there, basis).ann)
    assert even > 0
    # Nothing to gain where membranes alone cost more, and nothing to say where nothing fires.
    assert energy(replace(COUNTS, ann_multiplications=0.0, first_multiplications=0.0), basis).break_even(rate) == 0
    assert math.isnan(energy(replace(COUNTS, accumulates=0.0, spikes=0.0), basis).break_even(rate))


def test_counting_changes_nothing_else() -> None:
    model = spiking(seeded(Residual()))
    counted = rows_of(model, timesteps=3)
    plain = evaluate(snn_accuracy(model, torch.device("cpu"), timesteps=3, seed=0, energy=False), [batch()])
    assert [row for row in counted if row in plain] == plain and len(counted) > len(plain)
