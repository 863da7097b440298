"""Small networks for small images: LeNet-5 with average pools, and a net for 8x8 digits."""

from torch import Tensor, nn


class LeNet5(nn.Module):
    """LeNet-5 (LeCun et al., 1998) with ReLU: two 5x5 convolutions with average pools, three linear layers.

    Args:
        input_shape: (channels, height, width).
        classes: outputs.
        width: factor on the channels 6, 16 and the hidden widths 120, 84.
        batch_norm: after each convolution.
        dropout: between the linear layers.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], classes: int, *, width: float, batch_norm: bool, dropout: float
    ):
        super().__init__()
        first, second, third, fourth = (max(1, round(width * base)) for base in (6, 16, 120, 84))
        height, breadth = (side // 2 - 4 for side in input_shape[1:])
        self.features = nn.Sequential(
            nn.Conv2d(input_shape[0], first, 5, padding=2),
            *([nn.BatchNorm2d(first)] if batch_norm else []),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(first, second, 5),
            *([nn.BatchNorm2d(second)] if batch_norm else []),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(second * (height // 2) * (breadth // 2), third),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(third, fourth),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(fourth, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, classes]`."""
        return self.classifier(self.features(images))


class DigitsNet(nn.Module):
    """Two 3x3 convolutions, an average pool, two linear layers, no biases: trains on a laptop in seconds.

    Args: as for `LeNet5`; `width` multiplies the channels 24, 48 and the hidden width 128.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], classes: int, *, width: float, batch_norm: bool, dropout: float
    ):
        super().__init__()
        first, second, hidden = (max(1, round(width * base)) for base in (24, 48, 128))
        self.features = nn.Sequential(
            nn.Conv2d(input_shape[0], first, 3, padding=1, bias=False),
            *([nn.BatchNorm2d(first)] if batch_norm else []),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, padding=1, bias=False),
            *([nn.BatchNorm2d(second)] if batch_norm else []),
            nn.ReLU(),
            nn.AvgPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(second * (input_shape[1] // 2) * (input_shape[2] // 2), hidden, bias=False),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes, bias=False),
        )

    def forward(self, images: Tensor) -> Tensor:
        """`[B, C, H, W]` to logits `[B, classes]`."""
        return self.classifier(self.features(images))
