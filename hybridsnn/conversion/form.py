"""A graph that is written from a captured one: what those who write it read and call."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from hybridsnn.conversion.capture import Captured
from hybridsnn.conversion.refusals import Refusals, name_of
from hybridsnn.program.operations import Weighting


def add_module(body: nn.Module, name: str, module: nn.Module) -> str:
    """Add a submodule under a free name near `name` (the parent must exist); returns the name."""
    free, count = name, 1
    taken = dict(body.named_modules())
    while free in taken or hasattr(body, free):
        count += 1
        free = f"{name}_{count}"
    owner, _, leaf = free.rpartition(".")
    body.get_submodule(owner).add_module(leaf, module)
    return free


class NormalForm:
    """The graph that is written, and what is known of that which is read.

    Attributes:
        graph: so far.
        written: a node of the captured graph to one of the new graph, or to the constant that it is.
    """

    def __init__(self, captured: Captured, refusals: Refusals):
        self.body, self.values, self.changing = captured.body, captured.values, captured.changing
        self.refusals = refusals
        self.graph = fx.Graph()
        self.written: dict[fx.Node, Any] = {}
        self.called: set[str] = set()

    # What handlers read.

    def of(self, argument: Any) -> Any:
        """What an argument of a captured node is now: a node of the new graph, or a constant."""
        return self.written[argument] if isinstance(argument, fx.Node) else argument

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a captured node's value for one sample."""
        return tuple(self.values[node].shape[1:])

    def arguments(self, node: fx.Node, *names: str, **defaults: Any) -> list[Any]:
        """Arguments of a captured node in the order of these names, given by place or by name."""
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        return [given.get(name, defaults.get(name)) for name in names]

    # What handlers write.

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function."""
        return self.graph.call_function(function, args, kwargs)

    def module(self, name: str, module: nn.Module, value: fx.Node) -> fx.Node:
        """A call of a new module, under a free name near `name`."""
        name = add_module(self.body, name, module.eval())
        self.called.add(name)
        return self.graph.call_module(name, (value,))

    def affine(self, name: str, value: fx.Node, weight: Any, bias: Any = None) -> Any:
        """Constants times a value, plus constants."""
        if not isinstance(weight, Tensor) and weight == 1 and not isinstance(bias, Tensor) and not bias:
            return value
        like = next(each for each in self.values.values() if isinstance(each, Tensor))
        weight, bias = (None if each is None else torch.as_tensor(each).to(like) for each in (weight, bias))
        return self.module(f"{name}_weighting", Weighting.of(weight, bias), value)

    def refuse(self, node: fx.Node, remedy: str | None = None) -> fx.Node:
        """Note that a node has no spiking counterpart; something stands for it until all are known."""
        self.refusals.add(*name_of(self.body, node), remedy)
        return self.call(operator.pos, next(iter(self.graph.nodes)))


def refuse(form: NormalForm, node: Any) -> fx.Node:
    """What has no spiking counterpart."""
    return form.refuse(node)


def keep(form: NormalForm, node: fx.Node) -> fx.Node:
    """A module that is known as it is, with a copy of its own for each call."""
    (value,) = node.all_input_nodes
    name = str(node.target)
    module = form.body.get_submodule(name)
    if name in form.called:
        name = add_module(form.body, name, copy.deepcopy(module))
    form.called.add(name)
    return form.graph.call_module(name, (form.of(value),))


def keep_function(form: NormalForm, node: Any) -> fx.Node:
    """A function that is known as it is."""
    assert callable(node.target)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), form.of)
    return form.call(node.target, *args, **kwargs)


def axes_of(given: Any) -> list[int]:
    """Dimensions that are given as one number or several."""
    return list(given) if isinstance(given, (tuple, list)) else [given]
