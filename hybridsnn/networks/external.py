"""Networks of timm and torchvision, by `timm:NAME` and `torchvision:NAME`, and of the user's own modules.

Weights are always local.
"""

import importlib
import inspect
from typing import Any

from torch import nn

from hybridsnn.errors import ConfigError
from hybridsnn.registry import look_up

OWN = "module"  # `module:PACKAGE.MODULE:FACTORY`
LIBRARIES = ("timm", "torchvision", OWN)


def is_external(name: str) -> bool:
    """Whether a name is that of a network of another library."""
    return name.partition(":")[0] in LIBRARIES and ":" in name


def build(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A classification network of timm, torchvision or a module that Python finds, with fresh weights.

    Raises:
        ConfigError: if the library is not installed, has no such network, or cannot build it for these images.
    """
    library, _, model = name.partition(":")
    channels = input_shape[0]
    if library == OWN:
        return _build_own(model, input_shape, classes)
    if library == "timm":
        try:
            import timm
        except ImportError:
            raise ConfigError("network: timm is not installed; run `pip install hybridsnn[timm]`") from None
        look_up({known: known for known in timm.list_models()}, model, "network: timm")
        arguments: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
        if "img_size" in inspect.signature(timm.model_entrypoint(model)).parameters:
            arguments["img_size"] = input_shape[1]
        return timm.create_model(model, pretrained=False, **arguments)
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    look_up({entry: entry for entry in known}, model, "network: torchvision")
    if channels != 3:
        raise ConfigError(f"network: '{name}' takes images of 3 channels, got {channels}; use a network of timm")
    return torchvision.models.get_model(model, weights=None, num_classes=classes)


def _build_own(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """What `PACKAGE.MODULE:FACTORY` makes, which is given the arguments `input_shape` and `classes` if it has them."""
    module, _, factory = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), factory)
        offered = {"input_shape": input_shape, "classes": classes}
        wanted = inspect.signature(make).parameters
        network = make(**{key: value for key, value in offered.items() if key in wanted})
    except Exception as error:  # whatever the module raises: it is the user's
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"network: '{OWN}:{name}' cannot be built ({type(error).__name__}: {reason}); give "
            f"{OWN}:PACKAGE.MODULE:FACTORY, where Python finds the module (PYTHONPATH) and FACTORY(), a function or "
            "class, takes nothing else than input_shape and classes"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"network: '{OWN}:{name}' gives a {type(network).__name__}, must give a torch.nn.Module")
    return network
