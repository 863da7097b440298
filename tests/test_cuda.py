"""The scan on a GPU against its definition: compiled where there is a GPU, else run by Triton's interpreter."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridsnn.kernels.neuron import cuda, scan
from hybridsnn.kernels.neuron.reference import broadcast
from hybridsnn.neurons import NEVER, RESETS
from hybridsnn.surrogates import SURROGATES, Surrogate

GPU = torch.cuda.is_available()
# The interpreter of earlier versions is at odds with NumPy 2.4.
pytest.importorskip("triton", minversion=None if GPU else "3.9")

DEVICE = "cuda" if GPU else "cpu"
GRANULARITIES = ["layer", "channel", "neuron"]
MEMORY = ["contiguous", "channels-last", "constant in time"]


@pytest.fixture(autouse=True, scope="module")
def loops() -> Iterator[ModuleType]:
    """The kernels. Whether Triton interprets them is settled when they are first imported."""
    with pytest.MonkeyPatch.context() as patch:
        if not GPU:
            patch.setenv("TRITON_INTERPRET", "1")
        from hybridsnn.kernels.neuron import cuda_loops

        yield cuda_loops


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """What `torch.empty` hands out is NaN (or the largest integer), so that a value nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
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
    def random(
        cls,
        shape: tuple[int, ...],
        *,
        granularity: str = "channel",
        memory: str = "channels-last",
        leak: float | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> "Case":
        """From a state in the middle of a run. The leak is shared as the threshold is, unless it has a value."""
        random = torch.Generator().manual_seed(0)
        wide = torch.promote_types(dtype, torch.float32)
        shared = {"layer": (), "channel": shape[2:3], "neuron": shape[2:]}[granularity]

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=random)

        def parameter(low: float, high: float) -> Tensor:
            return (low + (high - low) * torch.rand(shared, generator=random)).to(DEVICE, wide)

        current = normal(*shape).to(DEVICE, dtype) + 0.3
        if memory == "constant in time":
            current = current[:1].expand(shape)
        elif memory == "channels-last" and len(shape) == 5:
            current = current.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])
        since = torch.randint(1, 40, shape[1:], generator=random, dtype=torch.int32)
        since[torch.rand(shape[1:], generator=random) < 0.3] = NEVER
        return cls(
            current,
            parameter(0.4, 1.5),
            parameter(0.3, 1.0) if leak is None else torch.tensor(leak, device=DEVICE, dtype=wide),
            normal(*shape[1:]).to(DEVICE, wide),
            since.to(DEVICE),
            normal(*shape).to(DEVICE, dtype),
            normal(*shape[1:]).to(DEVICE, wide),
        )

    def double(self) -> "Case":
        """The same values in float64."""
        return Case(**{name: value if name == "since_spike" else value.double() for name, value in vars(self).items()})

    def defined(self, reset: str, surrogate: Surrogate) -> dict[str, Tensor]:
        """Outputs, final state, what may be kept for the backward pass, and every gradient, of the definition."""
        floats = {
            name: getattr(self, name).detach().requires_grad_() for name in ("current", "threshold", "leak", "membrane")
        }
        spikes, membrane, since = scan(
            **floats, since_spike=self.since_spike, hard_reset=reset == "hard", surrogate=surrogate, kernel="reference"
        )
        loss = (spikes * self.into_spikes).sum() + (membrane * self.into_membrane).sum()
        gradients = torch.autograd.grad(loss, list(floats.values()))
        results = {
            "spikes": spikes, "final membrane": membrane, "final since_spike": since, "bits": packed(spikes),
            "potentials": self.potentials(spikes, reset),
            **{f"gradient of {name}": value for name, value in zip(floats, gradients, strict=True)},
        }  # fmt: skip
        return {name: value.detach() for name, value in results.items()}

    def potentials(self, spikes: Tensor, reset: str) -> Tensor:
        """The membranes before each reset that these spikes make."""
        threshold, leak = broadcast(self.threshold, self.current), broadcast(self.leak, self.current)
        rest, potentials = self.membrane, []
        for current, spike in zip(self.current, spikes, strict=True):
            potentials.append(leak * rest + current)
            rest = potentials[-1] * (1 - spike) if reset == "hard" else potentials[-1] - threshold * spike
        return torch.stack(potentials)

    def run(self, reset: str, surrogate: Surrogate) -> dict[str, Tensor]:
        """What `defined` gives, of the kernels under test."""
        hard = reset == "hard"
        spikes, membrane, since, bits, potentials = cuda.forward(
            self.current, self.threshold, self.leak, self.membrane, self.since_spike, hard, pack=True, potentials=True
        )
        assert bits is not None and potentials is not None
        by_current, by_membrane, by_threshold, by_leak = cuda.backward(
            self.into_spikes, self.into_membrane, bits, potentials, self.threshold, self.leak, self.membrane,
            self.since_spike, hard, surrogate, learns_threshold=True, learns_leak=True,
        )  # fmt: skip
        assert by_threshold is not None and by_leak is not None
        return {
            "spikes": spikes, "final membrane": membrane, "final since_spike": since, "bits": bits,
            "potentials": potentials, "gradient of current": by_current, "gradient of threshold": by_threshold,
            "gradient of leak": by_leak, "gradient of membrane": by_membrane,
        }  # fmt: skip


def packed(spikes: Tensor) -> Tensor:
    """`[T, ...]` to uint8 `[ceil(T / 8), ...]`: the spike of step t in bit `t % 8`."""
    weighted = torch.stack([spike.int() << (t % 8) for t, spike in enumerate(spikes)])
    return torch.stack([eight.sum(0) for eight in weighted.split(8)]).byte()


def assert_is_the_definition(case: Case, reset: str, surrogate: Surrogate) -> None:
    expected, got = case.defined(reset, surrogate), case.run(reset, surrogate)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_every_surrogate_and_reset(surrogate: str, reset: str) -> None:
    for steps, leak in [(1, 0.9), (7, 1.0), (8, 1.0), (9, 0.9)]:
        assert_is_the_definition(Case.random((steps, 2, 3, 5, 1), leak=leak), reset, SURROGATES[surrogate])


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_order_in_memory(granularity: str, memory: str, reset: str) -> None:
    """Odd sizes, more neurons than one program takes, sizes of one."""
    for shape in [(2, 2, 3, 13, 17), (3, 1, 1, 4, 3), (2, 3, 8, 1, 1), (3, 2, 63), (1, 1, 1)]:
        case = Case.random(shape, granularity=granularity, memory=memory)
        assert_is_the_definition(case, reset, SURROGATES["linear"])


@pytest.mark.parametrize("steps", [32, 33, 70])
def test_clocks_over_many_steps(steps: int) -> None:
    """Neurons that fire at every step, seldom and never: times since a spike reach over words of the packed spikes."""
    case = Case.random((steps, 1, 3, 7), granularity="neuron", leak=1.0)
    case.threshold = torch.logspace(-3, 3, 21, dtype=torch.float64, device=DEVICE).view(3, 7)
    assert_is_the_definition(case, "soft", Surrogate("own", "", "spike-time", height=0.7, decay=0.1))
    rates = case.run("soft", SURROGATES["linear"])["spikes"].mean((0, 1))
    assert rates.min() == 0 and rates.max() > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_narrow_currents(surrogate: str, reset: str, dtype: torch.dtype) -> None:
    """Every spike and membrane is that of the definition to the bit; gradients are close to those of float64."""
    case = Case.random((9, 2, 3, 5, 1), leak=0.9, dtype=dtype)
    narrow = case.defined(reset, SURROGATES[surrogate])
    expected, got = case.double().defined(reset, SURROGATES[surrogate]), case.run(reset, SURROGATES[surrogate])
    assert torch.equal(narrow["spikes"].double(), expected["spikes"])
    for name in expected:
        assert got[name].dtype == narrow[name].dtype, name
        if name.startswith("gradient"):
            step = torch.finfo(got[name].dtype).eps
            torch.testing.assert_close(got[name].double(), expected[name], rtol=2 * step, atol=1e-4)
        else:
            assert torch.equal(got[name], narrow[name]), name


def test_a_membrane_at_the_threshold_fires() -> None:
    """Currents of a quarter of the threshold, exact in binary: one spike every fourth step, nothing left over."""
    one, rest = torch.ones((), device=DEVICE), torch.zeros(1, 1, device=DEVICE)
    current = torch.full((10, 1, 1), 0.25, device=DEVICE)
    spikes, membrane, since, *_ = cuda.forward(current, one, one, rest, rest.int(), False)
    assert spikes.flatten().nonzero().flatten().tolist() == [3, 7]
    assert (membrane.item(), since.item()) == (0.5, 3)


def test_results_lie_in_memory_as_the_currents_do() -> None:
    case = Case.random((9, 2, 3, 5, 7), memory="channels-last")
    results = case.run("soft", SURROGATES["spike-time"])
    steps, neurons = 9, 2 * 3 * 5 * 7
    inner = case.current.stride()[1:]
    assert inner != case.current.contiguous().stride()[1:]
    for name in ("spikes", "bits", "potentials", "gradient of current"):
        assert results[name].stride() == (neurons, *inner), name
    for name in ("final membrane", "final since_spike", "gradient of membrane"):
        assert results[name].stride() == inner, name
    assert results["bits"].shape[0] == 2 and results["spikes"].shape[0] == steps


@pytest.mark.parametrize("reset", RESETS)
def test_a_run_in_two_parts_is_the_run(reset: str) -> None:
    case = Case.random((13, 2, 3, 5))
    whole = case.run(reset, SURROGATES["linear"])
    state, spikes = (case.membrane, case.since_spike), []
    for part in case.current.split([5, 8]):
        out, *state, bits, potentials = cuda.forward(part, case.threshold, case.leak, *state, reset == "hard")
        assert bits is None and potentials is None
        spikes.append(out)
    assert torch.equal(torch.cat(spikes), whole["spikes"])
    assert torch.equal(state[0], whole["final membrane"]) and torch.equal(state[1], whole["final since_spike"])


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_what_is_not_needed_may_be_left_out(surrogate: str) -> None:
    """Gradients into the spikes that are the same at every step, none into the membrane, no parameter that learns."""
    case = Case.random((9, 2, 3, 5))
    case.into_spikes = case.into_spikes[:1].expand(9, 2, 3, 5)
    case.into_membrane = torch.zeros_like(case.into_membrane)
    full = case.run("soft", SURROGATES[surrogate])
    potentials = full["potentials"] if SURROGATES[surrogate].needs_membrane else None
    by_current, by_membrane, by_threshold, by_leak = cuda.backward(
        case.into_spikes, None, full["bits"], potentials, case.threshold, case.leak, None, case.since_spike, False,
        SURROGATES[surrogate], learns_threshold=False, learns_leak=False,
    )  # fmt: skip
    assert torch.equal(by_current, full["gradient of current"])
    assert torch.equal(by_membrane, full["gradient of membrane"])
    assert by_threshold is None and by_leak is None
    assert_is_the_definition(case, "soft", SURROGATES[surrogate])


class Compiler:
    """Stands in for a kernel and compiles it for what it is called with, as a launch on a GPU would."""

    def __init__(self, kernel: Any):
        self.kernel = kernel
        self.assembly: list[str] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *arguments: Any, enable_fp_fusion: bool, **constants: Any) -> None:
        from triton import compile
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from triton.runtime.jit import mangle_type

        given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | constants
        # A launch makes constants of None and 1.
        fixed = {name: value for name, value in given.items() if name in constants or value is None}
        fixed |= {name: 1 for name, value in given.items() if isinstance(value, int) and value == 1 and name != "steps"}
        types = {name: "constexpr" if name in fixed else mangle_type(value) for name, value in given.items()}
        source = ASTSource(self.kernel, types, fixed)
        options = {"enable_fp_fusion": enable_fp_fusion}
        self.assembly.append(compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"])


@pytest.mark.parametrize(
    ("surrogate", "dtype"),
    [
        ("spike-time", torch.float32),
        ("linear", torch.bfloat16),
        ("exponential", torch.float64),
        ("triangle", torch.float16),
        ("sigmoid", torch.float32),
    ],
)
def test_it_compiles_without_a_gpu_and_rounds_each_operation(
    surrogate: str, dtype: torch.dtype, loops: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Triton compiles less than its interpreter runs. A fused multiplication and addition would change spikes."""
    pytest.importorskip("triton", minversion="3.9", reason="the call to compile differs between versions")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    spec = spec_from_file_location("compiled_loops", loops.__file__)
    assert spec is not None and spec.loader is not None
    compiled = module_from_spec(spec)
    spec.loader.exec_module(compiled)
    forward, backward = Compiler(compiled.forward), Compiler(compiled.backward)
    monkeypatch.setattr(loops, "forward", forward)
    monkeypatch.setattr(loops, "backward", backward)
    reset = "hard" if dtype == torch.float32 else "soft"
    Case.random((2, 2, 3, 5), dtype=dtype, granularity="layer").run(reset, SURROGATES[surrogate])
    for assembly in forward.assembly:
        assert "fma.rn" not in assembly and "mul.rn" in assembly
    assert len(forward.assembly) == len(backward.assembly) == 1


@pytest.mark.parametrize("found", [None, SimpleNamespace()])
def test_it_supports_floats_on_a_gpu_with_triton(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_spec", lambda name: found)
    cuda._has_triton.cache_clear()
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert cuda.supports(SimpleNamespace(device=gpu, dtype=torch.bfloat16)) is (found is not None)  # type: ignore[arg-type]
    assert not cuda.supports(SimpleNamespace(device=gpu, dtype=torch.int32))  # type: ignore[arg-type]
    assert not cuda.supports(SimpleNamespace(device=cpu, dtype=torch.float32))  # type: ignore[arg-type]
    cuda._has_triton.cache_clear()


@pytest.mark.skipif(not GPU, reason="too slow for the interpreter")
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_large_layers(surrogate: str, memory: str) -> None:
    case = Case.random((20, 16, 64, 33, 31), memory=memory)
    assert_is_the_definition(case, "soft", SURROGATES[surrogate])
