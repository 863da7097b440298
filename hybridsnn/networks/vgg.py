"""VGG networks with average pools: those of the hybrid paper (Rathi et al., ICLR 2020), and some with a global pool."""

from collections.abc import Sequence

from torch import Tensor, nn

from hybridsnn.networks.initialisation import initialise, initialise_to_train

POOL = "A"
PLANS: dict[str, tuple[int | str, ...]] = {
    "vgg5": (64, POOL, 128, 128, POOL),
    "vgg9": (64, POOL, 128, 256, POOL, 256, 512, POOL, 512, POOL, 512),
    "vgg11": (64, POOL, 128, 256, POOL, 512, 512, POOL, 512, POOL, 512, 512),
    "vgg16": (64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL, 512, 512, 512, POOL, 512, 512, 512),
}
# The last 2x2 pool of each and the global one after it are one global pool here, the same for even maps.
GLOBAL_POOL_PLANS: dict[str, tuple[int | str, ...]] = {
    "vgg8": (32, 64, POOL, 128, 128, POOL, 256, 256, POOL, 512),
    "vgg11-gap": (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512),  # of the STOP paper
    "vgg16-gap": PLANS["vgg16"],
}


def feature_size(plan: Sequence[int | str], side: int) -> int:
    """The side of the last feature map for images of `side` pixels: each pool halves it."""
    return side // 2 ** plan.count(POOL)


def last_width(plan: Sequence[int | str]) -> int:
    """The channels of the last feature map."""
    return [entry for entry in plan if isinstance(entry, int)][-1]


def feature_layers(
    plan: Sequence[int | str], channels: int, *, bias: bool, batch_norm: bool, dropout: float
) -> list[nn.Module]:
    """3x3 convolutions with ReLU and average pools 2x2, dropout after each convolution that no pool follows."""
    layers: list[nn.Module] = []
    for place, width in enumerate(plan):
        if isinstance(width, str):
            layers.append(nn.AvgPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=bias))
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
        if plan[place + 1 : place + 2] != (POOL,):
            layers.append(nn.Dropout(dropout))
        channels = width
    return layers


class VGG(nn.Module):
    """3x3 convolutions without biases, average pools 2x2, three linear layers.

    Args:
        plan: channels of each convolution, `POOL` for a pool.
        input_shape: (channels, height, width).
        classes: outputs.
        hidden: width of the two hidden linear layers.
        batch_norm: after each convolution.
        dropout: after each convolution that no pool follows.
        classifier_dropout: between the linear layers.
    """

    def __init__(
        self,
        plan: Sequence[int | str],
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        hidden: int,
        batch_norm: bool,
        dropout: float,
        classifier_dropout: float,
    ):
        super().__init__()
        layers = feature_layers(plan, input_shape[0], bias=False, batch_norm=batch_norm, dropout=dropout)
        self.features = nn.Sequential(*layers)
        flat = last_width(plan) * feature_size(plan, input_shape[1]) * feature_size(plan, input_shape[2])
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(flat, hidden, bias=False),
            nn.ReLU(),
            nn.Dropout(classifier_dropout),
            nn.Linear(hidden, hidden, bias=False),
            nn.ReLU(),
            nn.Dropout(classifier_dropout),
            nn.Linear(hidden, classes, bias=False),
        )
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, classes]`."""
        return self.classifier(self.features(images))


class GlobalPoolVGG(nn.Module):
    """3x3 convolutions, average pools 2x2, a global average pool, one linear layer; made to be trained from scratch.

    Args: as for `VGG`; convolutions have biases where no batch norm follows.
    """

    def __init__(
        self,
        plan: Sequence[int | str],
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        batch_norm: bool,
        dropout: float,
    ):
        super().__init__()
        layers = feature_layers(plan, input_shape[0], bias=not batch_norm, batch_norm=batch_norm, dropout=dropout)
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(last_width(plan), classes))
        initialise_to_train(self)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, classes]`."""
        return self.classifier(self.features(images))
