"""From any module to a captured graph that can be made spiking: checked, normalised, batch norm folded."""

import copy
from collections.abc import Callable

from torch import fx, nn
from torch.nn.utils import fusion

from hybridsnn.errors import ConversionError
from hybridsnn.program.graph import Program
from hybridsnn.program.operations import MODULES, SYNAPSES, Role, is_sum, module_of, operation_of, role_of
from hybridsnn.program.passes import shapes

MAX_POOL_CHOICES = {
    "refuse": "a network with max pools is not converted",
    "any-spike": "a window passes a spike whenever one of its neurons fires; accurate only after fine-tuning",
}
MAX_POOL_REMEDY = "train with average pools, or convert with --max-pool any-spike and fine-tune"
ALLOWED = "ReLU, convolutions, linear layers, batch norm after them, average pools, dropout, flatten and sums"


class _Tracer(fx.Tracer):
    """Takes what the table of operations knows as a whole."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in MODULES or super().is_leaf_module(module, name)


def prepare(network: nn.Module, *, fold_batch_norm: bool = True, max_pool: str = "refuse") -> fx.GraphModule:
    """Capture a copy of a network as a graph of convertible modules. The network itself is not changed.

    Functional ReLUs and dropouts become modules, sums in place plain sums; a module that is called several times
    becomes several (with equal weights), since each call needs thresholds of its own; batch norm is folded into the
    synapse before it.

    Args:
        network: any module that torch.fx can capture.
        fold_batch_norm: or leave it where it is, as a part of the synapse.
        max_pool: one of `MAX_POOL_CHOICES`.

    Raises:
        ConversionError: if the network cannot be captured or has a part that cannot be made spiking, by name.
    """
    network = copy.deepcopy(network).eval()
    try:
        graph = _Tracer().trace(network)
    except Exception as error:  # whatever a module's code does when it is run on symbols
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConversionError(
            f"network: {type(network).__name__} cannot be captured as a graph ({reason}); "
            "its forward must not branch on values"
        ) from error
    body = fx.GraphModule(network, graph)
    _unshare(body)
    _modules_for_calls(body)
    _check_statistics(body)
    if fold_batch_norm:
        _fold_batch_norm(body)
    _check(body, fold_batch_norm, max_pool == "any-spike")
    body.graph.lint()
    body.delete_all_unused_submodules()
    body.recompile()
    return body


def add_module(body: fx.GraphModule, name: str, module: nn.Module) -> str:
    """Add a submodule under a free name near `name` (the parent must exist); returns the name."""
    free, count = name, 1
    taken = dict(body.named_modules())
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    body.add_submodule(free, module)
    return free


def _unshare(body: fx.GraphModule) -> None:
    """Give every call of a module a module of its own."""
    seen: set[str] = set()
    for node in body.graph.nodes:
        if node.op == "call_module":
            if node.target in seen:
                node.target = add_module(body, str(node.target), copy.deepcopy(body.get_submodule(str(node.target))))
            seen.add(str(node.target))


def _modules_for_calls(body: fx.GraphModule) -> None:
    """Replace functional ReLUs and dropouts by modules, and sums in place by plain ones."""
    for node in list(body.graph.nodes):
        module: nn.Module | None = None
        role = None if node.op == "call_module" else role_of(body, node)
        if role is Role.RELU:
            module = nn.ReLU()
        elif role is Role.DROPOUT:
            module = nn.Dropout(_dropout_probability(node))
        elif node.op == "call_method" and node.target == "add_":
            node.target = "add"  # whose summands stay as they are, so that it can be differentiated alone
        elif node.op == "call_method" and node.target == "view":
            node.target = "reshape"  # what lies where in memory is for the kernels to say
        if module is None:
            continue
        name = add_module(body, node.name, module)
        with body.graph.inserting_after(node):
            fresh = body.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        node.replace_all_uses_with(fresh)
        body.graph.erase_node(node)


def _dropout_probability(node: fx.Node) -> float:
    value = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
    if not isinstance(value, (int, float)):
        raise ConversionError(f"network: the probability of dropout '{node.name}' is computed, must be a number")
    return float(value)


def _check_statistics(body: fx.GraphModule) -> None:
    """Refuse batch norms whose result for an image depends on the others of its batch."""
    for node in body.graph.nodes:
        norm = module_of(body, node)
        if norm is not None and role_of(body, node) is Role.NORM and norm.running_mean is None:
            raise ConversionError(
                f"network: batch norm '{node.target}' keeps no running statistics; train with track_running_stats=True"
            )


def _fold_batch_norm(body: fx.GraphModule) -> None:
    """Fold each batch norm into the synapse before it: the folded network computes the same function."""
    for node in list(body.graph.nodes):
        norm = module_of(body, node)
        if norm is None or role_of(body, node) is not Role.NORM:
            continue
        source = node.args[0]
        synapse = module_of(body, source) if isinstance(source, fx.Node) else None
        if not isinstance(synapse, SYNAPSES) or len(source.users) > 1:
            raise ConversionError(
                f"network: batch norm '{node.target}' does not follow a convolution or linear layer of its own, "
                "so it cannot be folded; put it right after one"
            )
        fuse: Callable[..., nn.Module] = (
            fusion.fuse_linear_bn_eval if isinstance(synapse, nn.Linear) else fusion.fuse_conv_bn_eval
        )
        body.set_submodule(str(source.target), fuse(synapse, norm))
        node.replace_all_uses_with(source)
        body.graph.erase_node(node)


def _check(body: fx.GraphModule, folded: bool, max_pools: bool) -> None:
    """Refuse, by name, whatever has no spiking counterpart."""
    for node in body.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        module = module_of(body, node)
        operation = operation_of(node, module)
        allowed = operation.convertible
        if operation.role is Role.NORM:
            allowed = not folded
        elif operation.role is Role.MAX_POOL:
            allowed = max_pools
        elif is_sum(node):
            allowed = [type(argument) for argument in node.args[:2]] == [fx.Node, fx.Node]
        if not allowed:
            place = node.target if node.op == "call_module" else node.name
            label = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
            remedy = MAX_POOL_REMEDY if operation.role is Role.MAX_POOL else f"allowed are {ALLOWED}"
            raise ConversionError(f"network: '{place}' ({label}) has no spiking counterpart; {remedy}")
    if len([node for node in body.graph.nodes if node.op == "placeholder"]) != 1:
        raise ConversionError("network: takes several inputs, must take one: a batch of images")


def record_shapes(body: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
    """Write the shape that each node gives for one sample, without the batch, into `node.meta["shape"]`."""
    for node, shape in shapes(Program(body), input_shape).items():
        node.source.meta["shape"] = shape
