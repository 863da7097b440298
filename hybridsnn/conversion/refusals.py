"""Why a part of a network cannot be made spiking, and what to do instead."""

from dataclasses import dataclass, field

from torch import fx, nn

from hybridsnn.errors import ConversionError
from hybridsnn.program.operations import module_of

ALLOWED = (
    "ReLU, ReLU6, convolutions, linear layers, batch norm, average pools, dropout, sums, products with constants, "
    "concatenation, interpolation and changes of shape"
)
MIXES = "it mixes the images of a batch; keep the first dimension, the batch, as it is"
MAX_POOL = "train with average pools, or convert with --max-pool gate, move, average or any-spike"
OWN_STATISTICS = "an image's own statistics are not known before its last spike; train with batch norm"
NEGATIVE = "spikes cannot carry its negative values; train with ReLU"
CURVED = "firing rates are piecewise linear, from 0 to a ceiling; train with ReLU or ReLU6"
FACTOR = "firing rates are piecewise linear; choose a network without it (no squeeze-and-excitation, no attention)"
PRODUCT = (
    "spikes are added, two values of a network cannot be multiplied; choose a network without it (no "
    "squeeze-and-excitation, no attention)"
)

REMEDIES: dict[str, str] = {
    **dict.fromkeys(("LeakyReLU", "leaky_relu", "leaky_relu_", "PReLU", "prelu", "RReLU", "rrelu", "ELU", "elu",
                     "elu_", "SELU", "selu", "CELU", "celu"), NEGATIVE),
    **dict.fromkeys(("SiLU", "silu", "GELU", "gelu", "Hardswish", "hardswish", "Mish", "mish", "Softplus", "softplus",
                     "Tanh", "tanh", "Swish", "Hardtanh", "hardtanh", "clamp", "clip"), CURVED),
    **dict.fromkeys(("Sigmoid", "sigmoid", "sigmoid_", "Hardsigmoid", "hardsigmoid", "Softmax", "softmax",
                     "MultiheadAttention", "scaled_dot_product_attention", "GLU", "glu"), FACTOR),
    **dict.fromkeys(("LayerNorm", "layer_norm", "GroupNorm", "group_norm", "InstanceNorm1d", "InstanceNorm2d",
                     "InstanceNorm3d", "instance_norm", "LocalResponseNorm", "local_response_norm", "RMSNorm",
                     "rms_norm", "normalize", "norm"), OWN_STATISTICS),
    **dict.fromkeys(("mul", "imul", "mul_", "multiply", "truediv", "div", "matmul", "bmm", "einsum", "addmm",
                     "baddbmm"), PRODUCT),
    **dict.fromkeys(("MaxPool1d", "MaxPool2d", "MaxPool3d", "max_pool1d", "max_pool2d", "max_pool3d"), MAX_POOL),
}  # fmt: skip


@dataclass
class Refusals:
    """What of a network has no spiking counterpart, gathered until all is known."""

    found: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, place: str, label: str, remedy: str | None = None) -> None:
        """Note a part of the network by its name and that of its kind, with a remedy if it is not that of its kind."""
        remedy = remedy or REMEDIES.get(label) or f"allowed are {ALLOWED}"
        self.found.setdefault((label, remedy), []).append(place)

    def check(self) -> None:
        """Refuse the network if there are any.

        Raises:
            ConversionError: that names all of them in one line.
        """
        if self.found:
            raise ConversionError(
                "network: " + "; ".join(_told(*entry, places) for entry, places in self.found.items())
            )


def _told(label: str, remedy: str, places: list[str]) -> str:
    names = " and ".join(f"'{place}'" for place in places[:2])
    rest = f" and {len(places) - 2} more" if len(places) > 2 else ""
    verb = "has" if len(places) == 1 else "have"
    return f"{names}{rest} ({label}) {verb} no spiking counterpart; {remedy}"


def name_of(body: fx.GraphModule, node: fx.Node) -> tuple[str, str]:
    """The place of a node in a network, and the name of its kind."""
    module: nn.Module | None = module_of(body, node)
    if module is not None:
        return str(node.target), type(module).__name__
    return node.name, getattr(node.target, "__name__", str(node.target))
