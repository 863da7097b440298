"""Sums, products with constants, and changes of shape and place, in their one form."""

import operator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from hybridsnn.conversion.form import NormalForm, axes_of, keep
from hybridsnn.conversion.refusals import name_of
from hybridsnn.program.operations import reshaped

# Sums, products with constants.


def add(form: NormalForm, node: Any) -> Any:
    one, other, alpha = form.arguments(node, "input", "other", "alpha", alpha=1)
    return _sum(form, node, one, other, alpha)


def subtract(form: NormalForm, node: Any) -> Any:
    one, other, alpha = form.arguments(node, "input", "other", "alpha", alpha=1)
    return _sum(form, node, one, other, -alpha)


def _sum(form: NormalForm, node: fx.Node, one: Any, other: Any, factor: float) -> Any:
    first, second = form.of(one), form.of(other)
    if not isinstance(second, fx.Node):
        return form.affine(node.name, first, 1.0, _sample(form, node, second) * factor)
    if not isinstance(first, fx.Node):
        return form.affine(node.name, second, factor, _sample(form, node, first))
    shapes = form.shape(one), form.shape(other)
    if len({(len(shape), *shape[:1]) for shape in shapes}) > 1:  # one would be repeated over channels
        return form.refuse(node, "it adds values with different channels; give them one shape")
    return form.call(torch.add, first, form.affine(node.name, second, factor))


def multiply(form: NormalForm, node: Any) -> Any:
    one, other = form.arguments(node, "input", "other")
    value, factor = form.of(one), form.of(other)
    if not isinstance(value, fx.Node):
        value, factor = factor, value
    if isinstance(factor, fx.Node):
        return form.refuse(node)
    return form.affine(node.name, value, _sample(form, node, factor))


def divide(form: NormalForm, node: Any) -> Any:
    one, other = form.arguments(node, "input", "other")
    value, divisor = form.of(one), form.of(other)
    if isinstance(divisor, fx.Node) or node.kwargs.get("rounding_mode"):
        return form.refuse(node)
    return form.affine(node.name, value, 1 / _sample(form, node, divisor))


def negate(form: NormalForm, node: Any) -> Any:
    return form.affine(node.name, form.of(node.all_input_nodes[0]), -1.0)


def _sample(form: NormalForm, node: fx.Node, constant: Any) -> Any:
    """A constant as it meets each sample: without the dimension of the batch, and of a sample's rank."""
    if not isinstance(constant, Tensor) or constant.dim() == 0:
        return constant
    rank = len(form.shape(node))
    if constant.dim() > rank:
        constant = constant[0] if len(constant) == 1 else constant
    return constant if constant.dim() > rank else constant.reshape([1] * (rank - constant.dim()) + list(constant.shape))


# Changes of shape and place.


def reshape(form: NormalForm, node: Any) -> Any:
    """Anything that keeps the order of a sample's numbers: flatten, view, squeeze, ..."""
    (source,) = node.all_input_nodes
    if form.shape(source) == form.shape(node):
        return form.of(source)
    return form.call(reshaped, form.of(source), form.shape(node))


def reshape_module(form: NormalForm, node: Any) -> Any:
    """The same by a module, which stays where it leaves the dimension of the batch alone."""
    module = form.body.get_submodule(str(node.target))
    first = module.start_dim if isinstance(module, nn.Flatten) else module.dim
    return keep(form, node) if isinstance(first, int) and first > 0 else reshape(form, node)


def same(form: NormalForm, node: Any) -> Any:
    """What changes no number and no place."""
    source = node.all_input_nodes[0]
    given, value = form.values[source], form.values[node]
    if given.shape != value.shape or given.dtype != value.dtype:
        return form.refuse(node, "it changes the precision or repeats values; leave it out")
    return form.of(source)


def permute(form: NormalForm, node: Any) -> Any:
    source, *rest = node.args
    order = node.kwargs.get("dims", rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest)
    rank = form.values[source].dim()
    return _permuted(form, node, [axis % rank for axis in order])


def transpose(form: NormalForm, node: Any) -> Any:
    names = ("input", "axis0", "axis1") if "swap" in name_of(form.body, node)[1] else ("input", "dim0", "dim1")
    _, one, other = form.arguments(node, *names)
    return _swapped(form, node, one, other)


def last_two(form: NormalForm, node: Any) -> Any:
    return _swapped(form, node, -2, -1)


def _swapped(form: NormalForm, node: fx.Node, one: int, other: int) -> Any:
    order = list(range(form.values[node].dim()))
    order[one], order[other] = order[other], order[one]
    return _permuted(form, node, order)


def _permuted(form: NormalForm, node: fx.Node, order: list[int]) -> Any:
    if order[0] != 0:
        return form.refuse(node, "it moves the first dimension, the batch; keep that where it is")
    return form.call(torch.permute, form.of(node.all_input_nodes[0]), tuple(order))


def pick(form: NormalForm, node: Any) -> Any:
    """Some of a value's numbers, by index; or one of the parts that a value was split into."""
    source, index = node.args
    value = form.of(source)
    if isinstance(value, tuple):  # the parts
        return value[index]
    index = index if isinstance(index, tuple) else (index,)
    whole = index[0] is Ellipsis or (isinstance(index[0], slice) and index[0] == slice(None))
    if not whole or any(isinstance(each, (fx.Node, Tensor)) for each in index):
        return form.refuse(node, "it picks images or by computed places; start with [:, ...] and use numbers")
    return form.call(operator.getitem, value, index)


def parts(form: NormalForm, node: Any) -> Any:
    """Chunks and splits, as slices of the value."""
    names = {"chunk": "chunks", "split": "split_size_or_sections", "tensor_split": "indices_or_sections"}
    name = name_of(form.body, node)[1]
    source, _, axis = form.arguments(node, "input", names.get(name, "split_size"), "dim", dim=0)
    axis %= form.values[source].dim()
    if axis == 0:
        return form.refuse(node, "it takes the images of a batch apart")
    starts = [0]
    for part in form.values[node]:
        starts.append(starts[-1] + part.shape[axis])
    before = (slice(None),) * axis
    return tuple(
        form.call(operator.getitem, form.of(source), (*before, slice(start, stop))) for start, stop in pairwise(starts)
    )


def concatenate(form: NormalForm, node: Any) -> Any:
    given, axis = form.arguments(node, "tensors", "dim", dim=0)
    values = [form.of(value) for value in given]
    if any(not isinstance(value, fx.Node) for value in values):
        return form.refuse(node, "it joins constants to values; add them with a bias")
    axis %= form.values[given[0]].dim()
    if axis == 0:
        return form.refuse(node, "it joins images to a larger batch")
    return values[0] if len(values) == 1 else form.call(torch.cat, tuple(values), axis)


def stack(form: NormalForm, node: Any) -> Any:
    given, axis = form.arguments(node, "tensors", "dim", dim=0)
    axis %= form.values[node].dim()
    if axis == 0 or any(not isinstance(form.of(value), fx.Node) for value in given):
        return form.refuse(node, "it joins images, or constants to values; stack along another dimension")
    sample = form.shape(given[0])
    single = (*sample[: axis - 1], 1, *sample[axis - 1 :])
    return form.call(torch.cat, tuple(form.call(reshaped, form.of(value), single) for value in given), axis)


def pad(form: NormalForm, node: Any) -> Any:
    value, sides, mode, filling = form.arguments(node, "input", "pad", "mode", "value", mode="constant")
    if mode == "constant" and filling not in (None, 0):
        return form.refuse(node, "it fills with a number other than 0; fill with 0")
    rank = form.values[node].dim()
    if len(sides) // 2 >= rank:
        return form.refuse(node, "it adds images to the batch")
    return form.call(torch.nn.functional.pad, form.of(value), tuple(sides), mode)


def flip(form: NormalForm, node: Any) -> Any:
    axes = [axis % form.values[node].dim() for axis in axes_of(form.arguments(node, "input", "dims")[1])]
    if 0 in axes:
        return form.refuse(node, "it turns the order of images round")
    return form.call(torch.flip, form.of(node.args[0]), tuple(axes))
