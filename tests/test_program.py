"""A body compiled into a program: the table of operations, what is static, separate paths, and one loop for all."""

import ast
import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from toy_networks import CLASSES, SHAPE, Residual, encodable, seeded, spiking

import hybridsnn
from hybridsnn.encoders import Encoder
from hybridsnn.errors import ConfigError
from hybridsnn.model import SpikingModel
from hybridsnn.neurons import SharedDropout, SpikingNeuron
from hybridsnn.program import passes
from hybridsnn.program.gradients import Automatic, Bits, Traces
from hybridsnn.program.graph import Program
from hybridsnn.program.operations import FUNCTIONS, METHODS, MODULES, Role, reshaped
from hybridsnn.surrogates import SURROGATES

ROOT = Path(hybridsnn.__file__).parent
LINEAR = SURROGATES["linear"]
GRADIENTS = {
    "automatic": Automatic(LINEAR),
    "bits": Bits(LINEAR, (2, 3)),
    "traces": Traces(LINEAR, 5),
}

# How each linear operation of the table is called on a value `[2, 4, 6, 6]`, where not with the value alone.
FORMS: dict[Any, tuple[Any, ...]] = {
    torch.reshape: ((2, -1),),
    "view": (2, -1),
    "reshape": (2, -1),
    "permute": (0, 2, 3, 1),
    "transpose": (1, 2),
    reshaped: ((12, 12),),
    torch.permute: ((0, 2, 3, 1),),
    torch.flip: ((1,),),
    torch.roll: (1, 2),
    functional.pad: ((1, 1, 0, 2),),
    **dict.fromkeys((functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.interpolate), (2,)),
    **dict.fromkeys((functional.pixel_shuffle, functional.pixel_unshuffle, functional.channel_shuffle), (2,)),
    torch.flatten: (1,),
}
# Those of fewer or more dimensions are called on a value of as many.
RANKS = {
    **dict.fromkeys((functional.avg_pool1d, functional.adaptive_avg_pool1d), 1),
    **dict.fromkeys((functional.avg_pool3d, functional.adaptive_avg_pool3d), 3),
}


def linear_operations() -> list[Any]:
    values = torch.rand(2, 4, 6, 6, dtype=torch.float64)
    found: list[Any] = []
    for function, operation in FUNCTIONS.items():
        if operation.linear and operation.role is not Role.QUESTION:
            if operation.role is Role.SUM or "sub" in function.__name__:
                found.append((function.__name__, lambda x, f=function: f(x, 3 * values)))
            elif function.__name__ == "getitem":
                found.append(("getitem", lambda x, f=function: f(x, (slice(None), 1))))
            elif function is torch.cat:
                found.append(("cat", lambda x: torch.cat([x, x], 1)))
            elif function in RANKS:
                shape = (2, 4, *{1: (36,), 3: (3, 6, 2)}[RANKS[function]])
                found.append((function.__name__, lambda x, f=function, s=shape: f(x.reshape(s), 2)))
            else:
                found.append((function.__name__, lambda x, f=function: f(x, *FORMS.get(f, ()))))
    for method, operation in METHODS.items():
        if operation.linear and operation.role is not Role.QUESTION:
            arguments = (3 * values,) if operation.role is Role.SUM else FORMS.get(method, ())
            found.append((f".{method}", lambda x, m=method, a=arguments: getattr(x, m)(*a)))
    return found


@pytest.mark.parametrize("name, operation", linear_operations(), ids=lambda each: each if isinstance(each, str) else "")
def test_gradients_of_linear_operations_need_no_values(name: str, operation: Any) -> None:
    def gradient_at(values: Tensor) -> Tensor:
        leaf = values.clone().requires_grad_()
        result = operation(leaf + 0)  # which may work in place
        return torch.autograd.grad(result, leaf, torch.arange(1, result.numel() + 1).view(result.shape).double())[0]

    some, blank = torch.rand(2, 4, 6, 6, dtype=torch.float64), torch.zeros(2, 4, 6, 6, dtype=torch.float64)
    assert torch.equal(gradient_at(some), gradient_at(blank))
    assert gradient_at(some).abs().sum() > 0


def test_types_are_exact() -> None:
    """A subclass may compute something else."""

    class Squared(nn.AvgPool2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) ** 2

    assert nn.AvgPool2d in MODULES
    net = nn.Sequential(Squared(2), nn.AvgPool2d(2))
    roles = [node.role for node in Program(fx.GraphModule(net, Traced().trace(net))).nodes]
    assert roles == [Role.INPUT, Role.OTHER, Role.POOL, Role.OUTPUT]


class Traced(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def test_nothing_else_runs_a_graph() -> None:
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                assert not any("Interpreter" in ast.unparse(base) for base in node.bases), file


@pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_are_frozen(gradient: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        gradient.surrogate = None


def test_what_is_static() -> None:
    """What does not change in time before the first neurons; nothing where frames do."""
    program = spiking(seeded(Residual()), "direct").program
    static = program.static(program.inputs)
    first = program.neurons[0]
    assert {node.name for node in static} >= {program.inputs[0].name, first.inputs[0].name}
    assert all(not node.temporal and node.role is not Role.OUTPUT for node in static)
    assert static.isdisjoint(program.neurons) and program.static(()) == frozenset()
    for neurons in program.neurons[1:]:
        assert static.isdisjoint(neurons.inputs)


def test_static_values_are_computed_once() -> None:
    """Also a dropout before the first neurons, whose mask stays for the whole run."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.neurons, self.out = SharedDropout(0.5), SpikingNeuron(), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.neurons(self.drop(x)))

    net = Net()
    model = SpikingModel(fx.GraphModule(net, Traced().trace(net)), Encoder("direct")).train()
    rows = []
    model.body.get_submodule("drop").register_forward_hook(lambda module, args, result: rows.append(args[0].shape[0]))
    frames = torch.rand(1, 3, 6).expand(7, 3, 6)
    _, state = model(frames)
    assert rows == [1]
    mask = state.modules["drop"]
    assert mask.shape == (3, 6) and 0 < (mask == 0).sum() < 18
    assert torch.equal(model(frames, state)[1].modules["drop"], mask)


def test_separate_paths() -> None:
    """Each layer of neurons, and the readout, is driven over nodes of its own; modules are shared."""
    program = spiking(seeded(Residual()), "direct").program
    separated = program.separated
    for node in separated.nodes:
        if node.role in (Role.NEURON, Role.OUTPUT, Role.ATTRIBUTE):
            continue
        assert node.drives is not None and node.drives.ends_path
        for user in node.users:
            if node.role is not Role.INPUT:
                assert user is node.drives or user.drives is node.drives
    assert {node.name for node in separated.neurons} == {node.name for node in program.neurons}
    assert {id(node.module) for node in separated.nodes} == {id(node.module) for node in program.nodes}


def test_shapes_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], passes.analogue
    program = spiking(seeded(Residual()), "direct").program
    monkeypatch.setattr(passes, "analogue", lambda *args: calls.append(1) or original(*args))
    known = [passes.shapes(program, shape) for shape in (SHAPE, SHAPE)]
    assert len(calls) == 1 and known[0] is known[1]
    assert {node: shape for node, shape in known[0].items() if node.role is Role.INPUT} == {program.inputs[0]: SHAPE}


def test_a_body_that_changes_is_compiled_anew() -> None:
    """Or the old module would go on running."""
    model = spiking(seeded(Residual()), "direct").eval()
    frames = torch.rand(1, 3, *SHAPE).expand(4, 3, *SHAPE)
    before = model(frames)[0]
    program = model.program
    assert model.program is program
    name = program.neurons[0].name
    silent = copy.deepcopy(program.neurons[0].module)
    assert silent is not None
    silent.threshold.data.fill_(1e6)
    model.body.set_submodule(name, silent)
    assert model.program is not program
    assert not torch.equal(model(frames)[0], before)
    twin = copy.deepcopy(model)
    twin.body.get_submodule(name).threshold.data.fill_(0.1)
    assert not torch.equal(twin(frames)[0], model(frames)[0])


def test_hooks_are_called_or_refused() -> None:
    """By a run without gradients every hook is called, with what the module sees; faster ways refuse."""
    model = spiking(seeded(Residual()), "direct").eval()
    images = encodable("direct", 3, 5)
    frames = model.encoder(images, torch.arange(3), 5)
    with torch.no_grad():
        before = model(frames)[0]
    seen: dict[str, Tensor] = {}
    for name, module in model.body.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, SpikingNeuron)):
            module.register_forward_hook(lambda module, args, result, name=name: seen.update({name: result}))
    with torch.no_grad():
        torch.testing.assert_close(model(frames)[0], before)  # modules add in another order than the kernels
    assert set(seen) == {node.name for node in model.program.nodes if node.role in (Role.SYNAPSE, Role.NEURON)}
    current = next(node for node in model.program.nodes if node.role is Role.NEURON).inputs[0]
    assert seen[current.name].unique().numel() > 2  # no spikes were written over it
    for gradient in (GRADIENTS["bits"], GRADIENTS["traces"]):
        with pytest.raises(
            ConfigError, match=r"has forward or backward hooks, which learning .* does not call; remove"
        ):
            model.run(frames, gradient=gradient)
