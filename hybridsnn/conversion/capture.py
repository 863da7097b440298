"""From any module to a graph: what it does to a few images is written down, with the sizes that they have.

Values are computed while the forward of the network runs on symbols. So its Python may ask for shapes and branch on
them, and what an operation really did, to which memory, is known and need not be guessed from its name.
"""

import copy
import inspect
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from hybridsnn.errors import ConversionError
from hybridsnn.program.graph import attribute, has_hooks
from hybridsnn.program.operations import MODULES

IMAGES = 3  # of a capture: no other number of images is what an operation that mixes them would take for granted
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}  # of the largest value
QUESTIONS = (
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "stride",
    "is_contiguous",
    "is_floating_point",
    "get_device",
)


@dataclass(frozen=True)
class Captured:
    """A network as a graph.

    Attributes:
        body: the graph and its modules.
        values: of each node for the images that it was captured on, `[IMAGES, ...]`, or whatever else it is.
        changing: the nodes that write into what they read.
        images: another number of them.
        answers: of the network to those.
    """

    body: fx.GraphModule
    values: dict[fx.Node, Any]
    changing: frozenset[fx.Node]
    images: Tensor
    answers: Tensor

    def check(self, body: fx.GraphModule) -> None:
        """See to it that another form of the graph answers the same.

        Raises:
            ConversionError: if it does not.
        """
        answers = body(self.images.clone())
        if answers.is_meta:
            return  # a network without numbers, of which only shapes are asked
        if answers.shape != self.answers.shape or difference(answers, self.answers) > TOLERANCE[answers.dtype]:
            raise ConversionError(
                "network: its graph computes something else than the network does; its answer for an image must not "
                "depend on the other images of the batch, on their number, on chance or on earlier calls"
            )


def difference(values: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest value expected; 0 where both are not finite."""
    values, expected = values.double().nan_to_num(), expected.double().nan_to_num()
    largest = expected.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return float((values - expected).abs().max() / largest)


def capture(network: nn.Module, input_shape: tuple[int, ...]) -> Captured:
    """Capture a network, in double precision where its own code allows that; the network itself is not changed.

    Args:
        network: any module whose forward does not branch on values.
        input_shape: of one sample.

    Raises:
        ConversionError: if it cannot be captured, with the reason.
    """
    plain = plain_copy(network)
    _check_signature(plain)
    try:
        return _trace(copy.deepcopy(plain).double(), input_shape)
    except ConversionError:
        raise
    except Exception:  # its code makes tensors of a precision of its own
        try:
            return _trace(plain, input_shape)
        except ConversionError:
            raise
        except Exception as error:  # whatever a module's code does when it is run on symbols
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConversionError(
                f"network: {type(network).__name__} cannot be captured as a graph ({reason}); "
                f"its forward must take images of {'x'.join(map(str, input_shape))} and not branch on values"
            ) from error


def plain_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in which computed weights (weight norm, spectral norm, pruning) are plain ones.

    Raises:
        ConversionError: if a module has hooks, which a graph would not call.
    """
    computed: dict[int, Any] = {}  # a deep copy refuses tensors that were computed
    for module in network.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                computed[id(value)] = value.detach().clone()
    made = copy.deepcopy(network, computed).eval()
    for module in list(made.modules()):
        if parametrize.is_parametrized(module):
            _remove_parametrizations(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
    for name, module in made.named_modules():
        if has_hooks(module):
            raise ConversionError(
                f"network: '{name or type(network).__name__}' has forward or backward hooks, which a conversion does "
                "not follow; remove them"
            )
    return made


def _remove_parametrizations(module: Any) -> None:
    """Leave the present values; torch's own function would change the class, which the original shares."""
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def _check_signature(network: nn.Module) -> None:
    """Refuse networks that take anything but images."""
    parameters = list(inspect.signature(type(network).forward).parameters.values())[1:]
    needed = [
        each
        for each in parameters
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    if len(needed) > 1 or not parameters:
        raise ConversionError(
            f"network: takes {'several' if needed else 'no'} inputs, must take one: a batch of images"
        )


def some_images(network: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    """Random images `[IMAGES, ...]`, always the same, of a network's precision and where it is."""
    like = next(network.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, *input_shape, generator=generator).to(like)


@torch.no_grad()
def _trace(network: nn.Module, input_shape: tuple[int, ...]) -> Captured:
    images = some_images(network, input_shape)
    tracer = _Tracer(images.clone())
    graph = tracer.trace(network)
    values = {node: tracer.value_of(node) for node in graph.nodes if node.op != "output"}
    (answer,) = next(node for node in graph.nodes if node.op == "output").args
    if not isinstance(answer, fx.Node) or not isinstance(values[answer], Tensor):
        kind = type(values[answer] if isinstance(answer, fx.Node) else answer).__name__.removeprefix("immutable_")
        raise ConversionError(
            f"network: {type(network).__name__} returns a {kind}, must return one tensor: what it thinks of each class"
        )
    others = images[[IMAGES - 1, 0]]
    body = fx.GraphModule(network, graph)
    copies = dict(zip(graph.nodes, body.graph.nodes, strict=True))
    values = {copies[node]: value for node, value in values.items()}
    changing = frozenset(copies[node] for node in tracer.changing if node in copies)
    return Captured(body, values, changing, others, network(others.clone()))


class _Symbol(fx.Proxy):
    """A value of the network: to operations it is a symbol, to questions for its form it answers what it has."""

    tracer: "_Tracer"

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.tracer.value_of(self.node), name)
        if isinstance(found, Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        if callable(found) and name not in QUESTIONS:
            return Attribute(self, name)
        return found

    def __len__(self) -> int:
        return len(self.tracer.value_of(self.node))

    def __iter__(self) -> Iterator[Any]:
        whole: Any = self
        return iter([whole[place] for place in range(len(self))])


def _in_place(name: str) -> Callable[[_Symbol, Any], Any]:
    """`y += x` and the like, which torch.fx takes for `y = y + x`."""
    function = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ipow", "ifloordiv", "imod"):
    setattr(_Symbol, f"__{_name}__", _in_place(_name))


class _Tracer(fx.Tracer):
    """Takes what the table of operations knows as a whole, and computes as it goes."""

    def __init__(self, images: Tensor):
        super().__init__()
        self.images = images
        self.values: dict[fx.Node, Any] = {}
        self.latest: dict[fx.Node, fx.Node] = {}  # what a value has become, where it was changed in place
        self.changing: set[fx.Node] = set()
        self.stale: dict[fx.Node, fx.Node] = {}  # what has changed a part of it
        self.running = False

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in MODULES or super().is_leaf_module(module, name)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The images alone: other arguments have defaults."""
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def proxy(self, node: fx.Node) -> _Symbol:
        return _Symbol(node, self)

    def value_of(self, node: fx.Node) -> Any:
        """The value of a node."""
        if node not in self.values:  # made by torch.fx itself
            running, self.running = self.running, True
            self.values[node] = attribute(self.root, str(node.target))
            self.running = running
        return self.values[node]

    def create_arg(self, argument: Any) -> Any:
        if isinstance(argument, fx.Proxy):
            node = argument.node
            if node in self.stale:
                raise ConversionError(
                    f"network: '{self.stale[node].name}' changes a part of '{node.name}' in place, which is used "
                    "afterwards; use the operation that makes a new value"
                )
            while node in self.latest:
                node = self.latest[node]
            return node
        return super().create_arg(argument)

    def call_module(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.running:  # a module within one that is taken as a whole
            return forward(*args, **kwargs)
        return super().call_module(module, forward, args, kwargs)

    def getattr(self, name: str, value: Any, cache: dict[str, Any]) -> Any:
        return value if self.running else super().getattr(name, value, cache)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """A symbol for the result of an operation; the result itself, if it is no tensor."""
        symbol = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = symbol.node
        if kind == "placeholder":
            self.values[node] = self.images
        elif kind.startswith("call"):
            self.values[node] = self._run(node)
            if not _tensors(self.values[node]):
                return self.values[node]
        return symbol

    def _run(self, node: fx.Node) -> Any:
        sources = [(source, self.value_of(source)) for source in node.all_input_nodes]
        before = [(source, value, value._version) for source, value in sources if isinstance(value, Tensor)]
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.value_of)
        self.running = True
        try:
            if node.op == "call_module":
                result = self.root.get_submodule(str(node.target))(*args, **kwargs)
            elif node.op == "call_function":
                result = node.target(*args, **kwargs)  # type: ignore[operator]
            else:
                result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        finally:
            self.running = False
        for _, value, version in before:
            if value._version != version:
                self.changing.add(node)
                self._changed(node, value, result)
        return result

    def _changed(self, node: fx.Node, changed: Tensor, result: Any) -> None:
        """An operation has written into a value: whoever reads it from now on, under any name, gets the result."""
        for other, value in self.values.items():
            for tensor in _tensors(value):
                if tensor.untyped_storage()._cdata != changed.untyped_storage()._cdata or other in self.latest:
                    continue
                if isinstance(value, Tensor) and isinstance(result, Tensor) and same_memory(value, result):
                    self.latest[other] = node
                else:
                    self.stale.setdefault(other, node)


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers at the same places in memory."""
    shared = one.untyped_storage()._cdata == other.untyped_storage()._cdata
    forms = [(each.storage_offset(), tuple(each.shape), each.stride()) for each in (one, other)]
    return shared and forms[0] == forms[1]


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in a value."""
    if isinstance(value, Tensor):
        return [value]
    return [each for each in value if isinstance(each, Tensor)] if isinstance(value, (tuple, list)) else []
