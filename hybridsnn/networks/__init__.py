"""The networks that can be trained and converted, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from hybridsnn.activations import with_qcfs
from hybridsnn.errors import ConfigError
from hybridsnn.networks import external
from hybridsnn.networks.lenet import DigitsNet, LeNet5
from hybridsnn.networks.resnet import BLOCKS, CIFAR_WIDTHS, WIDTHS, GlobalPoolResNet, ResNet
from hybridsnn.networks.vgg import GLOBAL_POOL_PLANS, PLANS, POOL, VGG, GlobalPoolVGG
from hybridsnn.registry import look_up


@dataclass(frozen=True)
class NetworkSpec:
    """All that is needed to build a network; plain values, kept in `model.json`.

    Attributes:
        name: in `NETWORKS`, or `timm:NAME`, `torchvision:NAME`, `module:PACKAGE.MODULE:FACTORY`.
        input_shape: (channels, height, width).
        classes: number of outputs.
        batch_norm: after each convolution.
        width: factor on the channels of every layer (1 in the papers).
        dropout: probability; None: the network's own.
        levels: of staircases in the place of ReLUs, see `QCFS`; None: ReLUs.
        ceilings_per: what has a ceiling of its own in those: `layer` or `channel`.
    """

    name: str
    input_shape: tuple[int, int, int]
    classes: int
    batch_norm: bool = False
    width: float = 1.0
    dropout: float | None = None
    levels: int | None = None
    ceilings_per: str = "layer"

    def build(self) -> nn.Module:
        """The network with fresh weights, which depend on torch's random state alone.

        Raises:
            ConfigError: if the name is unknown or the images are too small for the network.
        """
        network = self._with_relus()
        if self.levels is None:
            return network
        return with_qcfs(network, self.levels, self.input_shape if self.ceilings_per == "channel" else None)

    def _with_relus(self) -> nn.Module:
        if external.is_external(self.name):
            return external.build(self.name, self.input_shape, self.classes)
        entry = look_up(NETWORKS, self.name, "network")
        if min(self.input_shape[1:]) < entry.smallest:
            raise ConfigError(
                f"network: '{self.name}' got images of {self.input_shape[1]}x{self.input_shape[2]}, "
                f"needs at least {entry.smallest}x{entry.smallest}; choose a smaller network or a larger --image-size"
            )
        return entry.build(self)


@dataclass(frozen=True)
class Network:
    """An entry of `NETWORKS`.

    Attributes:
        build: from a specification to a module.
        smallest: the least height and width of its images, pixels.
    """

    summary: str
    build: Callable[[NetworkSpec], nn.Module]
    smallest: int


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _scaled(plan: Sequence[int | str], width: float) -> tuple[int | str, ...]:
    return tuple(entry if isinstance(entry, str) else max(1, round(width * entry)) for entry in plan)


def _vgg(name: str, hidden: int) -> Network:
    plan = PLANS[name]

    def build(spec: NetworkSpec) -> nn.Module:
        scaled = _scaled(plan, spec.width)
        # The paper's VGG-11 is its CIFAR-100 net, with a narrower head; the ImageNet VGG-16 has a fifth pool.
        if name == "vgg16" and min(spec.input_shape[1:]) >= 128:
            scaled = (*scaled, POOL)
        return VGG(
            scaled,
            spec.input_shape,
            spec.classes,
            hidden=max(1, round(spec.width * hidden)),
            batch_norm=spec.batch_norm,
            dropout=_or(spec.dropout, 0.2),
            classifier_dropout=_or(spec.dropout, 0.5),
        )

    layers = [str(entry) for entry in plan]
    summary = f"hybrid paper: convolutions {' '.join(layers)} (A: average pool), linear layers {hidden}-{hidden}"
    return Network(summary, build, 2 ** plan.count(POOL))


def _resnet(name: str) -> Network:
    def build(spec: NetworkSpec) -> nn.Module:
        return ResNet(
            BLOCKS[name],
            spec.input_shape,
            spec.classes,
            width=spec.width,
            batch_norm=spec.batch_norm,
            dropout=_or(spec.dropout, 0.2),
        )

    counts = "-".join(map(str, BLOCKS[name]))
    return Network(f"hybrid paper: 3 convolutions, basic blocks {counts} of 64-128-256-512", build, 8)


def _global_pool_vgg(name: str, summary: str) -> Network:
    plan = GLOBAL_POOL_PLANS[name]

    def build(spec: NetworkSpec) -> nn.Module:
        return GlobalPoolVGG(
            _scaled(plan, spec.width),
            spec.input_shape,
            spec.classes,
            batch_norm=spec.batch_norm,
            dropout=_or(spec.dropout, 0.0),
        )

    layers = " ".join(map(str, plan))
    return Network(
        f"{summary}: convolutions {layers}, global average pool, one linear layer", build, 2 ** plan.count(POOL)
    )


def _global_pool_resnet(summary: str, widths: Sequence[int], blocks: Sequence[int]) -> Network:
    def build(spec: NetworkSpec) -> nn.Module:
        return GlobalPoolResNet(
            widths,
            blocks,
            spec.input_shape,
            spec.classes,
            width=spec.width,
            batch_norm=spec.batch_norm,
            dropout=_or(spec.dropout, 0.0),
        )

    shape = f"basic blocks {'-'.join(map(str, blocks))} of {'-'.join(map(str, widths))}"
    return Network(f"{summary}: 1 convolution, {shape}, global average pool", build, 2 ** len(widths) // 2)


def _small(kind: type[DigitsNet] | type[LeNet5], dropout: float) -> Callable[[NetworkSpec], nn.Module]:
    def build(spec: NetworkSpec) -> nn.Module:
        return kind(
            spec.input_shape,
            spec.classes,
            width=spec.width,
            batch_norm=spec.batch_norm,
            dropout=_or(spec.dropout, dropout),
        )

    return build


NETWORKS: dict[str, Network] = {
    "digits-cnn": Network("2 convolutions, 2 linear layers, for 8x8 digits", _small(DigitsNet, 0.2), 4),
    "lenet5": Network("LeNet-5 with average pools and ReLU", _small(LeNet5, 0.0), 12),
    **{name: _vgg(name, 1024 if name == "vgg11" else 4096) for name in PLANS},
    **{name: _resnet(name) for name in BLOCKS},
    "vgg8": _global_pool_vgg("vgg8", "small enough to train in an hour on two cores"),
    "vgg11-gap": _global_pool_vgg("vgg11-gap", "STOP paper"),
    "vgg16-gap": _global_pool_vgg("vgg16-gap", "VGG-16 of the low-latency literature"),
    "resnet18": _global_pool_resnet("STOP paper", WIDTHS, (2, 2, 2, 2)),
    "cifar-resnet20": _global_pool_resnet("ResNet-20 of He et al. (--width 2: 32-64-128)", CIFAR_WIDTHS, (3, 3, 3)),
}
