"""Networks of timm and torchvision, by `timm:NAME` and `torchvision:NAME`; weights are always local."""

import inspect
from typing import Any

from torch import nn

from hybridsnn.errors import ConfigError
from hybridsnn.registry import look_up

LIBRARIES = ("timm", "torchvision")


def is_external(name: str) -> bool:
    """Whether a name is that of a network of another library."""
    return name.partition(":")[0] in LIBRARIES and ":" in name


def build(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """A classification network of timm or torchvision with fresh weights.

    Raises:
        ConfigError: if the library is not installed, has no such network, or cannot build it for these images.
    """
    library, _, model = name.partition(":")
    channels = input_shape[0]
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
