"""Networks of basic blocks: those of the hybrid paper (Rathi et al., ICLR 2020), and two of He et al. (CVPR 2016)."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from hybridsnn.networks.initialisation import initialise, initialise_to_train

WIDTHS = (64, 128, 256, 512)
BLOCKS = {
    "resnet8": (1, 1, 0, 0),
    "resnet12": (1, 1, 1, 1),
    "resnet20": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
}
CIFAR_WIDTHS = (16, 32, 64)  # He et al., section 4.2


def convolution(inputs: int, outputs: int, size: int, stride: int, batch_norm: bool) -> list[nn.Module]:
    """A convolution without bias that keeps the side up to its stride, and its batch norm if there is one."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)]
    return [*layers, nn.BatchNorm2d(outputs)] if batch_norm else layers


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, ReLU after the sum; a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, batch_norm: bool, dropout: float):
        super().__init__()
        self.residual = nn.Sequential(
            *convolution(inputs, outputs, 3, stride, batch_norm),
            nn.ReLU(),
            nn.Dropout(dropout),
            *convolution(outputs, outputs, 3, 1, batch_norm),
        )
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*(convolution(inputs, outputs, 1, stride, batch_norm) if changes else []))
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """`[B, inputs, H, W]` to `[B, outputs, H / stride, W / stride]`."""
        return self.relu(self.residual(features) + self.shortcut(features))


def block_shapes(inputs: int, widths: Sequence[int], blocks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Inputs, outputs and stride of each block: from the second width on, the first of a width halves the map."""
    for stage, (outputs, count) in enumerate(zip(widths, blocks, strict=True)):
        for place in range(count):
            yield inputs, outputs, 2 if stage > 0 and place == 0 else 1
            inputs = outputs


class ResNet(nn.Module):
    """Three 3x3 convolutions of 64 channels, a pool, basic blocks, one linear layer on the flattened map.

    Args:
        blocks: how many for each of the widths 64, 128, 256, 512 (times `width`).
        input_shape: (channels, height, width); from 128 pixels on, the first pool is 3x3 with stride 3 and
            the last map is averaged over 7x7, as for ImageNet (a smaller map is averaged as a whole).
        classes: outputs.
        width: factor on all channels.
        batch_norm: after each convolution.
        dropout: after the convolutions of the stem, and within blocks.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        width: float,
        batch_norm: bool,
        dropout: float,
    ):
        super().__init__()
        channels, height, breadth = input_shape
        large = min(height, breadth) >= 128
        widths = [max(1, round(width * base)) for base in WIDTHS]
        stem: list[nn.Module] = []
        for place in range(3):
            stem += [*convolution(channels if place == 0 else widths[0], widths[0], 3, 1, batch_norm), nn.ReLU()]
            if place < 2:  # a pool follows the last
                stem.append(nn.Dropout(dropout))
        pool = 3 if large else 2
        self.stem = nn.Sequential(*stem, nn.AvgPool2d(pool))
        height, breadth = height // pool, breadth // pool

        stages: list[nn.Module] = []
        outputs = widths[0]
        for inputs, outputs, stride in block_shapes(widths[0], widths, blocks):
            stages.append(BasicBlock(inputs, outputs, stride, batch_norm=batch_norm, dropout=dropout))
            height, breadth = -(-height // stride), -(-breadth // stride)
        self.stages = nn.Sequential(*stages)
        if large:
            size = (min(7, height), min(7, breadth))
            stages.append(nn.AvgPool2d(size))
            self.stages = nn.Sequential(*stages)
            height, breadth = height // size[0], breadth // size[1]
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(outputs * height * breadth, classes, bias=False))
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, classes]`."""
        return self.head(self.stages(self.stem(images)))


class GlobalPoolResNet(nn.Module):
    """One 3x3 convolution, basic blocks, a global average pool, one linear layer; made to be trained from scratch.

    With two blocks for each of `WIDTHS` it is the ResNet-18 of small images (without the first pool), with three for
    each of `CIFAR_WIDTHS` the ResNet-20 of CIFAR-10. Shortcuts are 1x1 convolutions where the shape changes (option B).

    Args:
        widths: channels of each stage.
        blocks: how many for each of the widths.
        input_shape, classes, width, batch_norm, dropout: as for `ResNet`; dropout within blocks only.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: Sequence[int],
        input_shape: tuple[int, int, int],
        classes: int,
        *,
        width: float,
        batch_norm: bool,
        dropout: float,
    ):
        super().__init__()
        widths = [max(1, round(width * base)) for base in widths]
        self.stem = nn.Sequential(*convolution(input_shape[0], widths[0], 3, 1, batch_norm), nn.ReLU())
        self.stages = nn.Sequential(
            *(
                BasicBlock(inputs, outputs, stride, batch_norm=batch_norm, dropout=dropout)
                for inputs, outputs, stride in block_shapes(widths[0], widths, blocks)
            ),
            nn.AdaptiveAvgPool2d(1),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1], classes))
        initialise_to_train(self)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, classes]`."""
        return self.head(self.stages(self.stem(images)))
