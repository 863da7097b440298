"""The neuron scan: its definition against a loop over single neurons, every kernel against its definition."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hybridsnn.errors import ConfigError
from hybridsnn.kernels.neuron import KERNELS, cuda, reference, scan, slopes
from hybridsnn.neurons import NEVER, RESETS, SpikingNeuron
from hybridsnn.surrogates import SHAPES as SHAPES_OF_SURROGATES
from hybridsnn.surrogates import SURROGATES, Surrogate

SHAPES = [(1, 1, 1), (7, 1, 63), (3, 5, 205), (4, 2, 1025), (6, 2, 3, 5, 7), (5, 3, 1, 4, 3), (4, 2, 8, 1, 1)]
GRANULARITIES = ["layer", "channel", "neuron"]
HERE = [name for name, kernel in KERNELS.items() if kernel.supports(torch.zeros(1))]  # test_cuda.py has the other
MEMORY = ["contiguous", "channels-last", "constant in time"]


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """What `torch.empty` hands out is NaN (or the largest integer), so that a value nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(4).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@dataclass
class Case:
    """Inputs of a scan, and the gradients that enter its outputs."""

    current: Tensor
    threshold: Tensor
    leak: Tensor
    membrane: Tensor
    since_spike: Tensor
    into_spikes: Tensor
    into_membrane: Tensor

    @classmethod
    def random(cls, shape: tuple[int, ...], granularity: str, memory: str, seed: int = 0) -> "Case":
        random = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=random, dtype=torch.float64)

        def parameter(low: float, high: float) -> Tensor:
            size = {"layer": (), "channel": shape[2:3], "neuron": shape[2:]}[granularity]
            return low + (high - low) * torch.rand(size, generator=random, dtype=torch.float64)

        current = normal(*shape) + 0.3
        if memory == "constant in time":
            current = current[:1].expand(shape)
        elif memory == "channels-last" and len(shape) == 5:
            current = current.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])
        since = torch.randint(1, 40, shape[1:], generator=random, dtype=torch.int32)
        since[torch.rand(shape[1:], generator=random) < 0.3] = NEVER
        return cls(
            current, parameter(0.4, 1.5), parameter(0.3, 1.0), normal(*shape[1:]), since, normal(*shape),
            normal(*shape[1:]),
        )  # fmt: skip

    def run(self, kernel: str, reset: str, surrogate: Surrogate | None) -> dict[str, Tensor]:
        """Outputs, final state and every gradient, by name."""
        floats = {
            name: getattr(self, name).detach().requires_grad_() for name in ("current", "threshold", "leak", "membrane")
        }
        if kernel == "definition":
            outputs = reference.scan(*floats.values(), self.since_spike, reset == "hard", surrogate)
        else:
            outputs = scan(
                **floats, since_spike=self.since_spike, hard_reset=reset == "hard", surrogate=surrogate, kernel=kernel
            )
        spikes, membrane, since = outputs
        results = {"spikes": spikes, "final membrane": membrane, "final since_spike": since}
        loss = (spikes * self.into_spikes).sum() + (membrane * self.into_membrane).sum()
        if surrogate is not None:
            gradients = torch.autograd.grad(loss, list(floats.values()))
            results |= {f"gradient of {name}": value for name, value in zip(floats, gradients, strict=True)}
        return {name: value.detach() for name, value in results.items()}


def slope_of(surrogate: str, potential: float, threshold: float, since: int) -> float:
    """ds/dU as each paper states it."""
    distance = abs(potential / threshold - 1)
    return {
        "spike-time": 0.3 / threshold * math.exp(-0.01 * since),
        "linear": 0.3 / threshold * max(0.0, 1 - distance),
        "exponential": math.exp(-abs(potential - threshold)),
        "triangle": max(0.0, 1 - abs(potential - threshold)),
        "sigmoid": 1 / threshold / math.cosh(2 * distance) ** 2,
    }[surrogate]


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_the_definition_is_the_equations(surrogate: str, reset: str) -> None:
    """One neuron at a time, in Python's own numbers: forward recursion, then the error's recursion backward."""
    steps, batch, neurons = shape = (9, 2, 6)
    case = Case.random(shape, "neuron", "contiguous", seed=3)
    results = case.run("definition", reset, SURROGATES[surrogate])
    leak_gradient, threshold_gradient = np.zeros(neurons), np.zeros(neurons)
    for b in range(batch):
        for n in range(neurons):
            level, leak, start = float(case.threshold[n]), float(case.leak[n]), float(case.membrane[b, n])
            since = int(case.since_spike[b, n])
            rest, potentials, spikes, slopes, rests = start, [], [], [], [start]
            for t in range(steps):
                potential = leak * rest + float(case.current[t, b, n])
                slopes.append(slope_of(surrogate, potential, level, since))
                spike = float(potential >= level)
                rest = potential * (1 - spike) if reset == "hard" else potential - level * spike
                since = 1 if spike else since + 1
                potentials.append(potential)
                spikes.append(spike)
                rests.append(rest)
            assert spikes == results["spikes"][:, b, n].tolist()
            assert rest == pytest.approx(float(results["final membrane"][b, n]), abs=1e-12)
            assert since == results["final since_spike"][b, n]
            carried = float(case.into_membrane[b, n])
            for t in reversed(range(steps)):
                fresh = float(case.into_spikes[t, b, n]) * slopes[t]
                total = fresh + carried * (1 - spikes[t] if reset == "hard" else 1)
                threshold_gradient[n] -= fresh + (carried * spikes[t] if reset == "soft" else 0)
                leak_gradient[n] += total * rests[t]
                assert total == pytest.approx(float(results["gradient of current"][t, b, n]), abs=1e-12)
                carried = leak * total
            assert carried == pytest.approx(float(results["gradient of membrane"][b, n]), abs=1e-12)
    assert results["spikes"].mean() > 0.1
    np.testing.assert_allclose(results["gradient of threshold"], threshold_gradient, atol=1e-12)
    np.testing.assert_allclose(results["gradient of leak"], leak_gradient, atol=1e-12)


def pairs(first: Iterable[Any], second: Iterable[Any], turn: int) -> list[tuple[Any, Any]]:
    """All pairs, a different one first in each turn: several turns, of which each uses some, use all of them."""
    every = list(product(first, second))
    return every[turn % len(every) :] + every[: turn % len(every)]


@pytest.mark.parametrize("surrogate", [None, *SURROGATES])
@pytest.mark.parametrize("reset", RESETS)
def test_every_kernel_is_the_definition(reset: str, surrogate: str | None) -> None:
    """From a state in the middle of a run, over odd sizes and both sides of a block's boundary.

    Each shape meets each granularity in each order of memory in one of the ten tests.
    """
    chosen = None if surrogate is None else SURROGATES[surrogate]
    turn = 2 * [None, *SURROGATES].index(surrogate) + list(RESETS).index(reset)
    for shape, (granularity, memory) in zip(SHAPES, pairs(GRANULARITIES, MEMORY, turn), strict=False):
        case = Case.random(shape, granularity, memory)
        expected = case.run("definition", reset, chosen)
        for kernel in HERE:
            got = case.run(kernel, reset, chosen)
            assert got.keys() == expected.keys()
            what = f"{shape} by {kernel}, {granularity}, {memory}"
            for name, value in expected.items():
                torch.testing.assert_close(
                    got[name], value, rtol=1e-10, atol=1e-10, msg=lambda text, w=f"{name} of {what}": f"{w}: {text}"
                )
            assert got["final since_spike"].dtype == torch.int32, what
            assert set(got["spikes"].unique().tolist()) <= {0.0, 1.0}, what


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", HERE)
def test_bits_are_the_spikes(kernel: str, dtype: torch.dtype) -> None:
    """In whole bytes, the unused bits 0; in the memory order of the currents, whose memory may be used again."""
    ways = product([*SHAPES, (8, 1, 5), (16, 1, 1), (17, 2, 4, 3, 3)], (False, True))
    for place, (shape, overwrite) in enumerate(ways):
        case = Case.random(shape, "channel", MEMORY[place % 3])  # both ways with each, but not for each shape
        current = case.current.to(dtype)  # stays constant in time in memory too
        wide = torch.promote_types(dtype, torch.float32)
        inputs = (case.threshold.to(wide), case.leak.to(wide), case.membrane.to(wide), case.since_spike, False)
        expected = reference.scan(current, *inputs, None)
        spikes, membrane, _, bits, potentials = KERNELS[kernel].forward(
            current.clone(memory_format=torch.preserve_format), *inputs, pack=True, potentials=True, overwrite=overwrite
        )
        assert spikes.dtype == dtype and torch.equal(spikes, expected[0])
        assert bits.dtype == torch.uint8 and bits.shape == (math.ceil(shape[0] / 8), *shape[1:])
        assert torch.equal(KERNELS[kernel].unpack(bits, shape[0], dtype), spikes)
        assert torch.equal(reference.unpack(bits, 8 * len(bits), dtype).sum(0), spikes.sum(0))
        assert potentials.dtype == wide
        level = reference.broadcast(inputs[0], current)
        assert torch.equal(potentials >= level, spikes > 0)
        torch.testing.assert_close(potentials[-1] - level * spikes[-1].to(wide), membrane)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("kernel", HERE)
def test_half_precision_gradients_are_rounded_once(
    kernel: str, surrogate: str, dtype: torch.dtype, overwrite: bool
) -> None:
    """To the nearest: what enters and leaves is half, everything between is float32."""
    for shape in SHAPES:
        case = Case.random(shape, "channel", "channels-last")
        parameters = (case.threshold.float(), case.leak.float())
        state = (case.membrane.float(), case.since_spike)
        forward = KERNELS[kernel].forward(
            case.current.to(dtype), *parameters, *state, False, pack=True, potentials=True
        )
        into = case.into_spikes.to(dtype)
        if len(shape) == 5:
            into = into.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])
        rest = (case.into_membrane.float(), *forward[3:], *parameters, *state, False, SURROGATES[surrogate])
        learns: Any = {"learns_threshold": True, "learns_leak": True}
        wide = KERNELS[kernel].backward(into.float(), *rest, **learns)
        got = KERNELS[kernel].backward(
            into.clone(memory_format=torch.preserve_format), *rest, **learns, overwrite=overwrite
        )
        assert got[0].dtype == dtype and torch.equal(got[0], wide[0].to(dtype))
        assert all(torch.equal(one, other) for one, other in zip(got[1:], wide[1:], strict=True))


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("kernel", HERE)
def test_clocks_go_back_as_they_went(kernel: str, rate: float) -> None:
    """Through chunks of any length, to spikes long ago or before the start, in either memory order."""
    random = torch.Generator().manual_seed(0)
    lengths, sample = [8, 3, 16, 1, 13, 8, 5], (2, 3, 5, 7)
    since = torch.randint(1, 40, sample, generator=random, dtype=torch.int32)
    chosen, chunks, clocks = KERNELS[kernel], [], [since]
    one = torch.ones(())
    for steps in lengths:
        current = (torch.rand(steps, *sample, generator=random) < rate).float()
        current = current.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (steps, 2))
        spikes, _, after, bits, _ = chosen.forward(current, one, one, torch.zeros(sample), clocks[-1], True, pack=True)
        assert torch.equal(spikes, current)
        assert torch.equal(chosen.advance(clocks[-1], bits, steps), after)
        chunks.append((bits, steps))
        clocks.append(after)
    for place, (bits, steps) in enumerate(chunks):
        before = chosen.rewind(clocks[place + 1], bits, steps, chunks[:place], since)
        assert before.dtype == torch.int32 and torch.equal(before, clocks[place])


@pytest.mark.parametrize("kernel", HERE)
def test_every_kernel_knows_surrogates_of_a_user_s_own(kernel: str) -> None:
    case = Case.random(SHAPES[0], "channel", "contiguous")
    for shape, relative in product(("spike-time", "triangle", "exponential", "sigmoid"), (False, True)):
        surrogate = Surrogate("own", "", shape, height=0.7, decay=0.1, relative=relative)
        expected, got = case.run("definition", "soft", surrogate), case.run(kernel, "soft", surrogate)
        for name, value in expected.items():
            what = f"{name} of {shape}{' relative' * relative}"
            torch.testing.assert_close(
                got[name], value, rtol=1e-10, atol=1e-10, msg=lambda text, w=what: f"{w}: {text}"
            )


class Rectangle(Surrogate):
    """A shape that no compiled kernel knows."""

    def slope(self, membrane: Tensor, threshold: Tensor, since_spike: Tensor) -> Tensor:
        return self.height * ((membrane - threshold).abs() < 0.5)


def bump(distance: Tensor) -> Tensor:
    return 1 / (1 + distance) ** 2


@pytest.mark.parametrize("kind", ["subclass", "entry"])
@pytest.mark.parametrize("shape", [(7, 1, 63), (6, 2, 3, 5, 7)])
def test_a_new_shape_runs_by_its_definition(shape: tuple[int, ...], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no kernel takes it for another."""
    if kind == "subclass":
        surrogate: Surrogate = Rectangle("own", "", "rectangle", height=0.7)
    else:
        monkeypatch.setitem(SHAPES_OF_SURROGATES, "bump", bump)
        surrogate = Surrogate("own", "", "bump", height=0.7, relative=True)
    case = Case.random(shape, "channel", "channels-last")
    expected = case.run("definition", "soft", surrogate)
    for kernel in ("auto", "reference"):
        for name, value in case.run(kernel, "soft", surrogate).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)
    wrong = case.run("numba", "soft", SURROGATES["exponential"])["gradient of current"]
    assert (wrong - expected["gradient of current"]).abs().max() > 0.01
    with pytest.raises(ConfigError) as error:
        case.run("numba", "soft", surrogate)
    assert str(error.value) == (
        f"kernel: 'numba' cannot run surrogate 'own', got the shape '{surrogate.shape}'; "
        "allowed: exponential, sigmoid, spike-time, triangle; use 'auto' or 'reference'"
    )
    current, one, clock = case.current.float(), torch.ones(()), case.since_spike
    outputs = KERNELS["numba"].forward(current, one, one, case.membrane.float(), clock, False, pack=True)
    with pytest.raises(ConfigError, match="'numba' cannot run surrogate 'own'"):  # whoever did not ask before
        KERNELS["numba"].backward(
            current, None, outputs[3], current, one, one, None, clock, False, surrogate,
            learns_threshold=False, learns_leak=False,
        )  # fmt: skip


def test_a_shape_has_one_definition() -> None:
    with pytest.raises(
        ConfigError, match=r"surrogate 'own': unknown shape 'bum'. Choices: exponential, sigmoid, spike-time, tri"
    ):
        Surrogate("own", "", "bum", height=1.0)
    with pytest.raises(
        ConfigError, match="surrogate 'own': has a slope of its own and got the shape 'triangle', which"
    ):
        Rectangle("own", "", "triangle", height=1.0)
    assert set(slopes.SHAPES) <= set(SHAPES_OF_SURROGATES) and set(cuda.SHAPES) <= set(SHAPES_OF_SURROGATES)


@pytest.mark.parametrize("shape", [(3, 1, 40003), (2, 3, 5, 61, 67)])
def test_every_kernel_is_the_definition_on_several_threads(shape: tuple[int, ...]) -> None:
    case = Case.random(shape, "channel", "channels-last")
    expected = case.run("definition", "soft", SURROGATES["linear"])
    before = torch.get_num_threads()
    for kernel, threads in product(HERE, (2, 3)):
        torch.set_num_threads(threads)
        try:
            got = case.run(kernel, "soft", SURROGATES["linear"])
        finally:
            torch.set_num_threads(before)
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kernel", HERE)
def test_spikes_in_single_precision_are_exact_where_sums_are(kernel: str, reset: str) -> None:
    for shape, memory in product(SHAPES, MEMORY):
        case = Case.random(shape, "channel", memory)
        for name in ("threshold", "membrane"):
            setattr(case, name, (getattr(case, name) * 256).round() / 256)
        rows = case.current[:1] if memory == "constant in time" else case.current
        case.current = ((rows * 256).round() / 256).expand(shape)
        case.leak = torch.full((), 0.5)
        wide = case.run("definition", reset, None)
        for name in ("current", "threshold", "leak", "membrane"):
            setattr(case, name, getattr(case, name).float())
        if memory == "constant in time":
            case.current = case.current[:1].expand(shape)
        narrow = case.run(kernel, reset, None)
        assert torch.equal(narrow["spikes"], wide["spikes"].float())
        assert torch.equal(narrow["final membrane"], wide["final membrane"].float())
        assert torch.equal(narrow["final since_spike"], wide["final since_spike"])


@pytest.mark.parametrize("kernel", HERE)
def test_gradients_in_single_precision(kernel: str) -> None:
    case = Case.random((6, 2, 3, 5, 7), "channel", "channels-last")
    wide = {name: case.run("definition", "soft", surrogate) for name, surrogate in SURROGATES.items()}
    for name in ("current", "threshold", "leak", "membrane", "into_spikes", "into_membrane"):
        setattr(case, name, getattr(case, name).float())
    for name, surrogate in SURROGATES.items():
        narrow = case.run(kernel, "soft", surrogate)
        for key, value in wide[name].items():
            if key.startswith("gradient"):
                torch.testing.assert_close(narrow[key].double(), value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", HERE)
def test_charge_is_conserved(kernel: str) -> None:
    """Soft reset, no leak: what flowed in left with the spikes or is still in the membrane."""
    for shape in SHAPES:
        case = Case.random(shape, "layer", "contiguous")
        case.leak = torch.ones((), dtype=torch.float64)
        results = case.run(kernel, "soft", None)
        spent = case.threshold * results["spikes"].sum(0) + results["final membrane"] - case.membrane
        torch.testing.assert_close(case.current.sum(0), spent, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kernel", HERE)
def test_a_common_power_of_two_changes_no_spike(kernel: str, reset: str) -> None:
    """Relative surrogates scale as a derivative must: by one over the factor, for the same gradient into spikes."""
    relative = [surrogate for surrogate in SURROGATES.values() if surrogate.relative]
    assert relative
    for surrogate, factor in product(relative, (2.0**-20, 0.5, 8.0, 2.0**30)):
        case = Case.random((9, 2, 63), "channel", "contiguous")
        for name in ("current", "threshold", "leak", "membrane"):
            setattr(case, name, getattr(case, name).float())
        case.into_membrane.zero_()
        before = case.run(kernel, reset, surrogate)
        for name in ("current", "threshold", "membrane"):
            setattr(case, name, getattr(case, name) * factor)
        after = case.run(kernel, reset, surrogate)
        assert torch.equal(after["spikes"], before["spikes"])
        assert torch.equal(after["final membrane"], before["final membrane"] * factor)
        torch.testing.assert_close(after["gradient of current"] * factor, before["gradient of current"])
        torch.testing.assert_close(after["gradient of leak"], before["gradient of leak"])


def counts(currents: Tensor, threshold: float, timesteps: int, kernel: str, start: float = 0.0) -> Tensor:
    """Spikes of neurons with currents `[N]` that never change, in so many steps."""
    spikes, _, _ = scan(
        currents.expand(timesteps, 1, -1),
        torch.tensor(threshold, dtype=currents.dtype),
        torch.ones((), dtype=currents.dtype),
        torch.full((1, len(currents)), start, dtype=currents.dtype),
        torch.full((1, len(currents)), NEVER, dtype=torch.int32),
        kernel=kernel,
    )
    return spikes.sum(0)[0]


def test_the_error_of_a_rate_falls_with_one_over_time() -> None:
    threshold = 0.7
    currents = threshold * torch.rand(997, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = [2**power for power in range(3, 13)]
    errors = [float((counts(currents, threshold, t, "auto") * threshold / t - currents).abs().max()) for t in times]
    assert all(error <= threshold / t for t, error in zip(times, errors, strict=True))
    order, _ = np.polyfit(np.log(times), np.log(errors), 1)
    assert -1.1 <= order <= -0.9


@pytest.mark.parametrize("kernel", HERE)
def test_half_a_threshold_to_start_with_rounds_the_rate(kernel: str) -> None:
    """The spike count of a constant current z is clip(floor(z T / threshold + 1/2), 0, T), at ties too."""
    currents = torch.arange(-64, 192) / 64
    for timesteps in (1, 4, 7, 32):
        expected = (currents.double() * timesteps / 1.5 + 0.5).floor().clamp(0, timesteps)
        assert torch.equal(counts(currents, 1.5, timesteps, kernel, start=0.75).double(), expected)


@pytest.mark.parametrize("kernel", HERE)
def test_half_precision_currents_have_single_precision_membranes(kernel: str) -> None:
    current = torch.full((300, 1, 5), 1 / 128, dtype=torch.bfloat16)
    neuron = SpikingNeuron(kernel=kernel)
    spikes, state = neuron(current)
    assert spikes.dtype == torch.bfloat16 and state.membrane.dtype == torch.float32
    assert spikes.sum(0).tolist() == [[2.0] * 5]  # 300 / 128; in bfloat16 the membrane would stick below 1
    assert state.membrane.tolist() == [[300 / 128 - 2] * 5]


@pytest.mark.parametrize("kernel", HERE)
def test_without_a_surrogate_or_a_gradient_nothing_is_kept(kernel: str) -> None:
    current = torch.rand(3, 2, 4, requires_grad=True)
    neuron = SpikingNeuron(kernel=kernel)
    assert neuron(current, surrogate=SURROGATES["linear"])[0].requires_grad
    assert not neuron(current)[0].requires_grad
    with torch.no_grad():
        assert not neuron(current, surrogate=SURROGATES["linear"])[0].requires_grad


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("shape", [(), (3,), (3, 4, 4)])
def test_a_neuron_starts_where_it_says(shape: tuple[int, ...], reset: str) -> None:
    neuron = SpikingNeuron(shape, reset=reset, initial_potential=0.5)
    assert neuron.threshold.shape == shape and neuron.leak.shape == ()
    thresholds = torch.arange(1.0, 1 + neuron.threshold.numel()).view(shape)
    with torch.no_grad():
        neuron.threshold.copy_(thresholds)
    state = neuron.initial_state(torch.zeros(1, 2, 3, 4, 4))
    assert (state.since_spike == NEVER).all()
    expected = thresholds / 2 if len(shape) != 1 else thresholds.view(3, 1, 1) / 2
    assert torch.equal(state.membrane, expected.expand(2, 3, 4, 4))


def test_what_cannot_run_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"kernel: unknown 'numbs'. Did you mean 'numba'\?"):
        SpikingNeuron(kernel="numbs")(torch.zeros(1, 1, 1))
    with pytest.raises(ConfigError, match=r"kernel: 'numba' cannot run torch.float32 on meta"):
        SpikingNeuron(kernel="numba").to("meta")(torch.zeros(1, 1, 1, device="meta"))
    with pytest.raises(ConfigError, match="reset: unknown 'sofd'"):
        SpikingNeuron(reset="sofd")
