"""From any module to a captured graph that can be made spiking: checked, in normal form, batch norm folded."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fusion

from hybridsnn.conversion.capture import capture
from hybridsnn.conversion.form import add_module
from hybridsnn.conversion.normal_form import normalise
from hybridsnn.conversion.refusals import MAX_POOL, Refusals, name_of
from hybridsnn.errors import ConversionError
from hybridsnn.neurons import GatedMaxPool
from hybridsnn.program.graph import Program
from hybridsnn.program.operations import SYNAPSES, TRANSPOSED, Role, Weighting, module_of, operation_of, role_of
from hybridsnn.program.passes import shapes

MAX_POOL_CHOICES = {
    "refuse": "a network with max pools is not converted",
    "gate": "a window sends a spike whenever the largest of its counts grows: the largest count, exactly",
    "move": "the max pool is put before the neurons, on their currents; exact only for inputs that do not change",
    "average": "average pools take their place, with a warning; accurate only after fine-tuning",
    "any-spike": "a window passes a spike whenever one of its neurons fires; accurate only after fine-tuning",
}


def prepare(
    network: nn.Module, input_shape: tuple[int, ...], *, fold_batch_norm: bool = True, max_pool: str = "refuse"
) -> fx.GraphModule:
    """Capture a copy of a network as a graph of convertible operations. The network itself is not changed.

    See `normalise` for what the graph is made of. Batch norm is folded into the synapse before it, or, where there is
    none of its own, becomes a factor and a bias for each channel. The graph is run beside the network on a few random
    images: they are the same function.

    Args:
        network: any module whose forward takes a batch of images and does not branch on values.
        input_shape: of one sample.
        fold_batch_norm: or leave it where it is, as a part of the synapse.
        max_pool: one of `MAX_POOL_CHOICES`.

    Raises:
        ConversionError: if the network cannot be captured or has parts that cannot be made spiking, all by name.
    """
    parameter = next(network.parameters(), None)
    captured, refusals = capture(network, input_shape), Refusals()
    with torch.no_grad():
        body = normalise(captured, refusals)
        _check(body, refusals, max_pool)
        refusals.check()
        record_shapes(body, input_shape)
        if fold_batch_norm:
            _fold_batch_norm(body)
        _finish(body)
        captured.check(body)
        if max_pool in REPLACEMENTS:
            _replace_max_pools(body, max_pool)
            _finish(body)
    if parameter is not None:
        body.to(parameter.dtype)
    return body


def _finish(body: fx.GraphModule) -> None:
    body.graph.eliminate_dead_code()
    body.graph.lint()
    body.delete_all_unused_submodules()
    _delete_unused_tensors(body)
    body.recompile()


def _delete_unused_tensors(body: fx.GraphModule) -> None:
    """Those of modules that are not called as a whole: their values have gone into the modules that are."""
    called = {str(node.target) for node in body.graph.nodes if node.op == "call_module"}
    for name, module in body.named_modules():
        parts = name.split(".")
        if not any(".".join(parts[:length]) in called for length in range(1, len(parts) + 1)):
            module._parameters.clear()
            module._buffers.clear()


def _check(body: fx.GraphModule, refusals: Refusals, max_pool: str) -> None:
    """Note what has no spiking counterpart, and is not known to be so from its form alone."""
    for node in body.graph.nodes:
        module = module_of(body, node)
        role = operation_of(node, module).role
        if role is Role.NORM and module is not None and module.running_mean is None:
            refusals.add(*name_of(body, node), "it keeps no running statistics; train with track_running_stats=True")
        elif role is Role.MAX_POOL and max_pool == "refuse":
            refusals.add(*name_of(body, node), MAX_POOL)


def _fold_batch_norm(body: fx.GraphModule) -> None:
    """Fold each batch norm into the synapse before it: the folded network computes the same function."""
    for node in list(body.graph.nodes):
        norm: Any = module_of(body, node)
        if norm is None or role_of(body, node) is not Role.NORM:
            continue
        source = node.args[0]
        synapse: Any = module_of(body, source)
        # A linear layer has its channels in the last dimension, a batch norm in the first.
        meets = isinstance(synapse, SYNAPSES) and not (isinstance(synapse, nn.Linear) and len(source.meta["shape"]) > 1)
        if synapse is None or not meets or len(source.users) > 1:
            body.set_submodule(str(node.target), affine_of(norm, len(source.meta["shape"])))
            continue
        fused: nn.Module
        if isinstance(synapse, nn.Linear):
            fused = fusion.fuse_linear_bn_eval(synapse, norm)
        else:
            fused = fusion.fuse_conv_bn_eval(synapse, norm, transpose=isinstance(synapse, TRANSPOSED))
        body.set_submodule(str(source.target), fused)
        node.replace_all_uses_with(source)
        body.graph.erase_node(node)


def affine_of(norm: Any, rank: int) -> Weighting:
    """What a batch norm does in evaluation: a factor and a bias for each channel, the first of `rank` dimensions."""
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    factor = (variance + norm.eps).rsqrt()
    bias: Tensor = -mean * factor
    if norm.weight is not None:
        weight, shift = norm.get_parameter("weight"), norm.get_parameter("bias")
        factor, bias = factor * weight, bias * weight + shift
    shape = (-1, *[1] * (rank - 1))
    return Weighting.of(factor.view(shape), bias.view(shape), learns=True)


# Max pools.


def _average(body: fx.GraphModule, node: Any, pool: Any) -> None:
    kind = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[len(node.meta["shape"]) - 1]
    if pool.dilation not in (1, (1, 1), (1, 1, 1)):
        raise ConversionError(f"network: max pool '{node.target}' is dilated, so no average pool takes its place")
    warnings.warn(f"max pool '{node.target}' becomes an average pool, which is another function", stacklevel=2)
    options = {"stride": pool.stride, "padding": pool.padding, "ceil_mode": pool.ceil_mode, "count_include_pad": False}
    body.set_submodule(str(node.target), kind(pool.kernel_size, **options))


def _move(body: fx.GraphModule, node: Any, pool: Any) -> None:
    """The maximum of ReLUs is the ReLU of the maximum, and the neurons after the pool are fewer."""
    relu = node.args[0]
    if not isinstance(relu, fx.Node) or role_of(body, relu) is not Role.RELU:
        if isinstance(relu, fx.Node) and role_of(body, relu) in (Role.SYNAPSE, Role.SUM, Role.WEIGHTING):
            return  # it is where it has to be
        raise ConversionError(
            f"network: max pool '{node.target}' does not follow a ReLU, so it cannot be moved before it; "
            "convert with --max-pool gate"
        )
    name = str(relu.target)
    if len(relu.users) > 1:  # what else reads the ReLU goes on reading it
        name = add_module(body, f"{name}_pooled", copy.deepcopy(body.get_submodule(name)))
    with body.graph.inserting_after(node):
        after = body.graph.call_module(name, (node,))
    node.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)
    node.replace_input_with(relu, relu.args[0])
    after.meta["shape"] = node.meta["shape"]


def _gate(body: fx.GraphModule, node: fx.Node, pool: Any) -> None:
    body.set_submodule(str(node.target), GatedMaxPool(pool))


REPLACEMENTS: dict[str, Callable[[fx.GraphModule, fx.Node, Any], None]] = {
    "average": _average,
    "move": _move,
    "gate": _gate,
}


def _replace_max_pools(body: fx.GraphModule, choice: str) -> None:
    for node in list(body.graph.nodes):
        pool = module_of(body, node)
        if pool is not None and role_of(body, node) is Role.MAX_POOL:
            REPLACEMENTS[choice](body, node, pool)


def record_shapes(body: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
    """Write the shape that each node gives for one sample, without the batch, into `node.meta["shape"]`."""
    for node, shape in shapes(Program(body), input_shape).items():
        node.source.meta["shape"] = shape
