"""What a conversion proves about itself, on images: every form of a network computes what the one before did.

The firing rates of a network of integrate-and-fire neurons tend, with time, to the activations of the network of
rectifiers with the same weights. So it is enough to run that one, without time, beside the ANN.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from hybridsnn.conversion.activation_scales import ActivationScales, apply_thresholds
from hybridsnn.conversion.capture import TOLERANCE, difference, plain_copy
from hybridsnn.conversion.preparation import prepare
from hybridsnn.errors import ConversionError
from hybridsnn.neurons import SpikingNeuron, along_channels
from hybridsnn.program.graph import Node, Program
from hybridsnn.program.operations import Role, module_of, role_of
from hybridsnn.program.passes import analogue

FAULT = "so the network is not converted; report it as a fault of hybridsnn, with the network"


@torch.no_grad()
def prove_preparation(network: nn.Module, images: Tensor, prepared: fx.GraphModule | None = None) -> None:
    """See to it that a network, prepared for conversion, gives the activations and answers of the original.

    In double precision, if the network's code allows that.

    Args:
        network: the original.
        images: `[N, ...]`, normalised, without time.
        prepared: as `prepare` gives it, with max pools where the original has them; None prepares it.

    Raises:
        ConversionError: that names the first activation that differs.
    """
    network = plain_copy(network)
    try:
        wide = copy.deepcopy(network).double()
        wide(images.double())
        network, images = wide, images.double()
    except RuntimeError:
        pass
    if prepared is None:
        prepared = prepare(network, tuple(images.shape[1:]), max_pool="any-spike")
    prepared = copy.deepcopy(prepared).to(images.dtype)
    names = [str(node.target) for node in prepared.graph.nodes if role_of(prepared, node) is Role.RELU]
    originals = dict(network.named_modules())
    expected: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            expected.setdefault(name, output.clone())

        return hook

    hooks = [originals[name].register_forward_hook(keep(name)) for name in names if name in originals]
    expected_answers = network(images.clone())
    for hook in hooks:
        hook.remove()
    for name, value in _values(prepared, images).items():
        known = expected_answers if name == "output" else expected.get(name)
        # What a module of that name gave may be another's input by now: then only the answers tell.
        if known is not None and (known.shape != value.shape or difference(value, known) > TOLERANCE[value.dtype]):
            raise ConversionError(
                f"network: the prepared network differs from the original at '{name}', {_size(value, known)}, {FAULT}"
            )


@torch.no_grad()
def prove_scales(
    original: fx.GraphModule, balanced: fx.GraphModule, images: Tensor, input_scale: float = 1.0, *, corrected: bool
) -> None:
    """See to it that the values of a balanced network are those of the ANN in units of their activation scales.

    The thresholds of the balanced network are put into a copy of the original in double precision, whose neurons are
    rectifiers with the ceilings of the ANN's; weights and biases of the balanced network are those of the copy.

    Args:
        original: the spiking body with the ANN's weights.
        balanced: the same with thresholds.
        images: `[N, ...]`, normalised, without time.
        input_scale: the activation scale of the input.
        corrected: whether weights and biases were changed afterwards, and are not compared.

    Raises:
        ConversionError: that names the first layer that differs.
    """
    original = copy.deepcopy(original).double()
    scaled = copy.deepcopy(original)
    thresholds = {
        name: module.threshold if module.threshold.dim() < 2 else module.threshold.flatten()[0]
        for name, module in balanced.named_modules()
        if isinstance(module, SpikingNeuron)
    }
    scales = apply_thresholds(scaled, thresholds, input_scale)
    images = images.double()
    expected, ceilings = _values(original, images), _ceilings(scales)

    def rate(node: Node, current: Tensor) -> Tensor:
        """Spikes a step, after infinite time and with no upper limit but the ANN's."""
        rectified, module = nn.functional.relu(current), node.module
        assert isinstance(module, SpikingNeuron)
        if node.name in ceilings:
            rectified = torch.minimum(rectified, ceilings[node.name])
        return rectified / along_channels(module.threshold, rectified)

    found = _values(scaled, images / input_scale, rate)
    for node in scaled.graph.nodes:
        name = "output" if node.op == "output" else str(node.target)
        if name not in found or not (node.op == "output" or role_of(scaled, node) is Role.NEURON):
            continue
        scale = scales.of[node.all_input_nodes[0] if node.op == "output" else node]
        value, known = found[name] * scale, expected[name]
        if difference(value, known) > TOLERANCE[torch.float64]:
            raise ConversionError(
                f"network: after rescaling, the activations of '{name}' are not those of the ANN, "
                f"{_size(value, known)}, {FAULT}"
            )
    if not corrected:
        _compare_weights(scaled, balanced)


def _compare_weights(expected: fx.GraphModule, found: fx.GraphModule) -> None:
    """In the order of the layers."""
    for node in found.graph.nodes:
        if node.op != "call_module":
            continue
        for name, value in found.get_submodule(str(node.target)).named_parameters():
            known = expected.get_submodule(str(node.target)).get_parameter(name)
            if name != "leak" and difference(value, known.expand(value.shape)) > TOLERANCE[value.dtype]:
                raise ConversionError(
                    f"network: the {name} of '{node.target}' is not what the thresholds imply, "
                    f"{_size(value, known.expand(value.shape))}, {FAULT}"
                )


def _values(
    body: fx.GraphModule, images: Tensor, activation: Callable[[Node, Tensor], Tensor] | None = None
) -> dict[str, Tensor]:
    """The activations and the answers of a network without time, by name."""
    program = Program(body)
    answers = program.output.inputs[0]
    kept: dict[str, Tensor] = {}

    def observe(node: Node, value: Any) -> None:
        if node.role in (Role.NEURON, Role.RELU):
            kept[node.name] = value
        if node is answers:
            kept["output"] = value

    analogue(program, images, observe, activation)
    return kept


def _ceilings(scales: ActivationScales) -> dict[str, Tensor]:
    """The ceilings of the ANN's activations in units of the current of each layer that has one."""
    found = {}
    for node in scales.body.graph.nodes:
        module = module_of(scales.body, node)
        if isinstance(module, SpikingNeuron) and module.ceiling is not None:
            found[str(node.target)] = module.ceiling / scales.of[node.all_input_nodes[0]]
    return found


def _size(found: Tensor, expected: Tensor) -> str:
    """By how much values differ, in words; the channel, the second dimension, that does most."""
    if found.shape != expected.shape:
        return f"of shape {list(found.shape[1:])} instead of {list(expected.shape[1:])}"
    error = (found.double() - expected.double()).abs()
    place = int(error.argmax()) // max(1, error[0, 0].numel() if error.dim() > 1 else 1)
    channel = f" in channel {place % error.shape[1]}" if error.dim() > 1 else ""
    return f"by {float(error.max()):.3g} of at most {float(expected.abs().max()):.3g}{channel}"
