"""Activations, dropout, synapses, norms and pools, as modules or functions, in their one form."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from hybridsnn.conversion.form import NormalForm, axes_of, keep
from hybridsnn.conversion.refusals import MIXES, name_of

COMPUTED = "its weights depend on the image; make them parameters"
INDICES = "it gives the places of its maxima too; leave return_indices out"


# Activations and dropout.


def relu_module(form: NormalForm, node: Any) -> fx.Node:
    """A ReLU with or without a ceiling."""
    module: Any = form.body.get_submodule(str(node.target))
    if isinstance(module, nn.Hardtanh) and (module.min_val != 0 or module.max_val <= 0):
        return form.refuse(node)
    if hasattr(module, "inplace"):
        module.inplace = False
    return keep(form, node)


def relu(form: NormalForm, node: Any) -> fx.Node:
    return form.module(node.name, nn.ReLU(), form.of(node.all_input_nodes[0]))


def relu6(form: NormalForm, node: Any) -> fx.Node:
    return form.module(node.name, nn.ReLU6(), form.of(node.all_input_nodes[0]))


def clamp(form: NormalForm, node: Any) -> fx.Node:
    hard = name_of(form.body, node)[1].startswith("hardtanh")
    if hard:
        _, low, high = form.arguments(node, "input", "min_val", "max_val", min_val=-1.0, max_val=1.0)
    else:
        _, low, high = form.arguments(node, "input", "min", "max")
    if low != 0 or not (high is None or (isinstance(high, (int, float)) and high > 0)):
        return form.refuse(node)
    module = nn.ReLU() if high is None else nn.Hardtanh(0.0, float(high))
    return form.module(node.name, module, form.of(node.all_input_nodes[0]))


def clamp_min(form: NormalForm, node: Any) -> fx.Node:
    return relu(form, node) if form.arguments(node, "input", "min")[1] == 0 else form.refuse(node)


def dropout_module(form: NormalForm, node: Any) -> fx.Node:
    module: Any = form.body.get_submodule(str(node.target))
    module.inplace = False
    return keep(form, node)


def dropout(form: NormalForm, node: Any) -> fx.Node:
    value, probability, training = form.arguments(node, "input", "p", "training", p=0.5, training=True)
    if training:
        return form.refuse(node, "it drops values in evaluation too; call it with training=self.training")
    kind = {"dropout2d": nn.Dropout2d, "dropout3d": nn.Dropout3d, "dropout1d": nn.Dropout1d}
    name = name_of(form.body, node)[1].removesuffix("_")
    return form.module(node.name, kind.get(name, nn.Dropout)(float(probability)), form.of(value))


def max_pool_module(form: NormalForm, node: Any) -> fx.Node:
    return keep(form, node) if isinstance(form.values[node], Tensor) else form.refuse(node, INDICES)


def max_pool(form: NormalForm, node: Any) -> fx.Node:
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    value, size, stride, padding, dilation, ceil_mode = form.arguments(
        node, *names, padding=0, dilation=1, ceil_mode=False
    )
    if not isinstance(form.values[node], Tensor):
        return form.refuse(node, INDICES)
    kind = {"1": nn.MaxPool1d, "2": nn.MaxPool2d, "3": nn.MaxPool3d}[name_of(form.body, node)[1][-2]]
    made = kind(size, stride or None, padding, dilation, ceil_mode=ceil_mode)
    return form.module(node.name, made, form.of(value))


# Synapses and norms that are called as functions.


def linear(form: NormalForm, node: Any) -> fx.Node:
    value, weight, bias = map(form.of, form.arguments(node, "input", "weight", "bias"))
    if not isinstance(value, fx.Node) or isinstance(weight, fx.Node) or isinstance(bias, fx.Node):
        return form.refuse(node, COMPUTED)
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return form.module(node.name, _with(made, weight, bias), value)


def convolution(form: NormalForm, node: Any) -> fx.Node:
    name = name_of(form.body, node)[1]
    transposed = "transpose" in name
    order = ["input", "weight", "bias", "stride", "padding"]
    order += ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
    given = form.arguments(node, *order, stride=1, padding=0, output_padding=0, groups=1, dilation=1)
    value, weight, bias = map(form.of, given[:3])
    if not isinstance(value, fx.Node) or isinstance(weight, fx.Node) or isinstance(bias, fx.Node):
        return form.refuse(node, COMPUTED)
    options = dict(zip(order[3:], given[3:], strict=True))
    groups, space = options["groups"], weight.dim() - 2
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{space}d")
    channels = weight.shape[0], weight.shape[1] * groups
    made = kind(*(channels if transposed else channels[::-1]), tuple(weight.shape[2:]), bias=bias is not None,
                device="meta", **options)  # fmt: skip
    return form.module(node.name, _with(made, weight, bias), value)


def batch_norm(form: NormalForm, node: Any) -> fx.Node:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = form.arguments(node, *names, training=False, momentum=0.1, eps=1e-5)
    value, mean, variance, weight, bias = map(form.of, given[:5])
    if given[5] or not isinstance(value, fx.Node) or mean is None:
        return form.refuse(node, "it keeps no running statistics; train with track_running_stats=True")
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[form.values[node].dim()]
    made: Any = kind(len(mean), eps=given[7], momentum=given[6], affine=weight is not None)
    made.to(mean).running_mean.copy_(mean)
    made.running_var.copy_(variance)
    if weight is not None:
        made.weight.data.copy_(weight)
        made.bias.data.copy_(bias)
    return form.module(node.name, made.eval(), value)


def _with(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A module that is on no device yet, with these weights."""
    module.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        module.bias = nn.Parameter(bias.detach().clone())
    return module


# Means and pools.


def mean(form: NormalForm, node: Any) -> Any:
    source, axes, keeps = form.arguments(node, "input", "dim", "keepdim", keepdim=False)
    rank = form.values[source].dim()
    if axes is None or 0 in (found := [axis % rank for axis in axes_of(axes)]):
        return form.refuse(node, MIXES)
    function = torch.mean if name_of(form.body, node)[1] == "mean" else torch.sum
    return form.call(function, form.of(source), tuple(found), bool(keeps))
