"""The start of a training from an ANN: its weights, and staircases fitted to its activations."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from hybridsnn.activations import QCFS, SMALLEST_CEILING
from hybridsnn.batch import time_average
from hybridsnn.conversion import nearest_ceilings
from hybridsnn.networks import NetworkSpec

AT_ONCE = 64  # images


def with_staircases(
    ann: nn.Module, spec: NetworkSpec, levels: int | None, ceilings_per: str, draw: Callable[[], Tensor]
) -> tuple[nn.Module, NetworkSpec]:
    """A network with the weights and batch norms of an ANN, and with ReLUs or staircases between its layers.

    Ceilings are those of the ANN if it has them already, else those of the staircases of so many levels that come
    nearest to its activations (see `Lloyd`). A silent channel gets the largest ceiling of its layer.

    Args:
        spec: of the ANN.
        levels: of staircases; None: ReLUs.
        ceilings_per: `layer` or `channel`.
        draw: images `[N, C, H, W]` or events `[N, T, C, H, W]` to fit staircases to; called if there are any to fit.
    """
    wanted = replace(spec, levels=levels, ceilings_per="layer" if levels is None else ceilings_per)
    network = wanted.build()
    weights, own = ann.state_dict(), network.state_dict()
    known = {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
    network.load_state_dict(own | known)
    unfitted = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, QCFS) and f"{name}.ceiling" not in known
    }
    if unfitted:
        assert levels is not None  # a staircase has levels
        ceilings = fitted_ceilings(ann, list(unfitted), draw(), levels, per_channel=ceilings_per == "channel")
        for name, staircase in unfitted.items():
            ceiling = ceilings[name]
            staircase.ceiling.data.copy_(torch.where(ceiling > 0, ceiling, ceiling.max()).clamp(min=SMALLEST_CEILING))
    return network, wanted


def fitted_ceilings(
    ann: nn.Module, names: list[str], images: Tensor, levels: int, *, per_channel: bool
) -> dict[str, Tensor]:
    """The ceilings at which staircases in the place of these activations come nearest to them, by name.

    Args:
        ann: on any device, in evaluation mode.
        images: see `with_staircases`.
    """
    device = next(ann.parameters()).device

    def run(observe: Callable[[str, Tensor], None]) -> None:
        def observer(name: str) -> Callable[[nn.Module, object, Tensor], None]:
            return lambda module, given, activation: observe(name, activation)

        hooks = [ann.get_submodule(name).register_forward_hook(observer(name)) for name in names]
        for batch in images.split(AT_ONCE):
            ann(time_average(batch).to(device))
        for hook in hooks:
            hook.remove()

    return nearest_ceilings(run, levels, per_channel=per_channel)
