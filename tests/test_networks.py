"""The networks of the tables: plans, shapes and sizes computed by hand, and errors for what cannot be built."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy_networks import seeded

from hybridsnn.errors import ConfigError
from hybridsnn.networks import NETWORKS, NetworkSpec
from hybridsnn.networks.resnet import BLOCKS

CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)
TINY = 0.05

# Kernel sizes times channels, summed by hand from the plans; 9 of them make a 3x3 kernel.
VGG_CONVOLUTIONS = {
    "vgg5": 9 * (3 * 64 + 64 * 128 + 128 * 128),
    "vgg9": 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512 + 512 * 512),
    "vgg11": 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 512 + 512 * 512 + 512 * 512 + 512 * 512),
    "vgg16": 9
    * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 2 * 256 * 256 + 256 * 512 + 2 * 512 * 512 + 3 * 512 * 512),
}
VGG_HEADS = {
    "vgg5": 8 * 8 * 128 * 4096 + 4096 * 4096 + 4096 * 10,
    "vgg9": 2 * 2 * 512 * 4096 + 4096 * 4096 + 4096 * 10,
    "vgg11": 2 * 2 * 512 * 1024 + 1024 * 1024 + 1024 * 10,
    "vgg16": 2 * 2 * 512 * 4096 + 4096 * 4096 + 4096 * 10,
}
RESNET_STEM = 9 * (3 * 64 + 2 * 64 * 64)


def block(inputs: int, outputs: int) -> int:
    """Weights of a basic block: two 3x3 convolutions, a 1x1 where the width changes."""
    return 9 * (inputs * outputs + outputs * outputs) + (inputs * outputs if inputs != outputs else 0)


RESNETS = {
    "resnet8": RESNET_STEM + block(64, 64) + block(64, 128) + 10 * 128 * 8 * 8,
    "resnet12": RESNET_STEM
    + block(64, 64) + block(64, 128) + block(128, 256) + block(256, 512) + 10 * 512 * 2 * 2,
    "resnet20": RESNET_STEM
    + 2 * block(64, 64) + block(64, 128) + block(128, 128) + block(128, 256) + block(256, 256)
    + block(256, 512) + block(512, 512) + 10 * 512 * 2 * 2,
    "resnet34": RESNET_STEM
    + 3 * block(64, 64) + block(64, 128) + 3 * block(128, 128) + block(128, 256) + 5 * block(256, 256)
    + block(256, 512) + 2 * block(512, 512) + 10 * 512 * 2 * 2,
}  # fmt: skip
SMALL = {
    # LeNet-5 of 32x32 images in colour, with biases; the digits' net without.
    "lenet5": 25 * (3 * 6 + 6 * 16) + 6 + 16 + 6 * 6 * 16 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10,
    "digits-cnn": 9 * (3 * 24 + 24 * 48) + 16 * 16 * 48 * 128 + 128 * 10,
}
SCRATCH = {  # with biases, for there is no batch norm
    "vgg8": 9 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512)
    + 32 + 64 + 2 * 128 + 2 * 256 + 512 + 512 * 10 + 10,
    "vgg16-gap": VGG_CONVOLUTIONS["vgg16"] + 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512 + 512 * 10 + 10,
    "cifar-resnet20": 9 * 3 * 16 + 3 * block(16, 16) + block(16, 32) + 2 * block(32, 32) + block(32, 64)
    + 2 * block(64, 64) + 64 * 10 + 10,
    "vgg11-gap": 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 3 * 512 * 512)
    + 64 + 128 + 2 * 256 + 4 * 512 + 512 * 10 + 10,
    "resnet18": 9 * 3 * 64 + 2 * block(64, 64) + block(64, 128) + block(128, 128) + block(128, 256) + block(256, 256)
    + block(256, 512) + block(512, 512) + 512 * 10 + 10,
}  # fmt: skip
SIZES = {**{name: VGG_CONVOLUTIONS[name] + VGG_HEADS[name] for name in VGG_HEADS}, **RESNETS, **SMALL, **SCRATCH}


def build(name: str, shape: tuple[int, int, int] = CIFAR, classes: int = 10, **options: object) -> nn.Module:
    """On the meta device: shapes without memory."""
    with torch.device("meta"):
        return NetworkSpec(name, shape, classes, **options).build()  # type: ignore[arg-type]


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def linears(network: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in network.modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_those_computed_by_hand(name: str) -> None:
    assert size(build(name)) == SIZES[name]


@pytest.mark.parametrize(
    ("name", "width", "parameters"),
    [
        # He et al. count 0.27 million; here with 1x1 shortcuts and their norms. Width 32: 3x3, 1x1, norms, linear.
        ("cifar-resnet20", 1.0, 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)),
        ("cifar-resnet20", 2.0, 1_069_920 + 10_240 + 3_136 + 1_290),
        # The 14,728,266 that are published with biases, for which a norm has no need.
        ("vgg16-gap", 1.0, 14_728_266 - 4_224),
    ],
)
def test_sizes_with_batch_norm_are_those_published(name: str, width: float, parameters: int) -> None:
    assert size(build(name, batch_norm=True, width=width)) == parameters


@pytest.mark.parametrize("name", [*VGG_HEADS, *RESNETS, "digits-cnn"])
def test_the_papers_networks_have_no_biases(name: str) -> None:
    assert not any(key.endswith("bias") for key in build(name).state_dict())


def test_imagenet_variants() -> None:
    vgg = build("vgg16", IMAGENET, 1000)
    assert linears(vgg) == [(512 * 7 * 7, 4096), (4096, 4096), (4096, 1000)]
    assert sum(isinstance(module, nn.AvgPool2d) for module in vgg.modules()) == 5
    resnet = build("resnet34", IMAGENET, 1000)
    assert linears(resnet) == [(512, 1000)]
    pools = [(module.kernel_size, module.stride) for module in resnet.modules() if isinstance(module, nn.AvgPool2d)]
    assert pools == [(3, 3), ((7, 7), (7, 7))]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vgg5", "conv relu pool conv relu drop conv relu pool flat line relu drop line relu drop line"),
        ("vgg9", "conv relu pool conv relu drop conv relu pool conv relu drop conv relu pool conv relu pool "
                 "conv relu drop flat line relu drop line relu drop line"),
        ("resnet8", "conv relu drop conv relu drop conv relu pool conv relu drop conv relu conv relu drop conv conv "
                    "relu flat line"),
        ("vgg11-gap", "conv relu pool conv relu pool conv relu drop conv relu pool conv relu drop conv relu pool "
                      "conv relu drop conv relu drop mean flat line"),
        ("resnet18", "conv relu" + 2 * " conv relu drop conv relu"
                     + 3 * " conv relu drop conv conv relu conv relu drop conv relu" + " mean flat line"),
        ("vgg8", "conv relu drop conv relu pool conv relu drop conv relu pool conv relu drop conv relu pool "
                 "conv relu drop mean flat line"),
        ("cifar-resnet20", "conv relu" + 3 * " conv relu drop conv relu"
                           + 2 * (" conv relu drop conv conv relu" + 2 * " conv relu drop conv relu")
                           + " mean flat line"),
    ],
)  # fmt: skip
def test_layers_come_in_the_paper_s_order(name: str, layers: str) -> None:
    """Dropout after each convolution except before a pool; ReLU after the sum of a block."""
    short = {
        "Conv2d": "conv",
        "ReLU": "relu",
        "AvgPool2d": "pool",
        "AdaptiveAvgPool2d": "mean",
        "Dropout": "drop",
        "Flatten": "flat",
        "Linear": "line",
    }
    found = [short[kind] for module in build(name).modules() if (kind := type(module).__name__) in short]
    assert found == layers.split()


@pytest.mark.parametrize("name", [*BLOCKS, "resnet18", "cifar-resnet20"])
def test_residual_blocks_halve_the_map_from_the_second_width_on(name: str) -> None:
    network = build(name)
    counts = {**BLOCKS, "resnet18": (2, 2, 2, 2), "cifar-resnet20": (3, 3, 3)}[name]
    blocks = [module for module in network.modules() if type(module).__name__ == "BasicBlock"]
    assert len(blocks) == sum(counts)
    changes = [block.shortcut[0].stride for block in blocks if len(block.shortcut)]
    assert changes == [(2, 2)] * (sum(count > 0 for count in counts) - 1)


@pytest.mark.parametrize("side", [28, 32, 34, 48, 64, 128])
@pytest.mark.parametrize("name", SCRATCH)
def test_a_global_pool_takes_images_of_any_size(name: str, side: int) -> None:
    for channels in (1, 2, 3):
        network = build(name, (channels, side, side), batch_norm=True)
        assert network(torch.rand(2, channels, side, side, device="meta")).shape == (2, 10)
        assert linears(network) == [(64 if name == "cifar-resnet20" else 512, 10)]


@torch.no_grad()
def test_the_last_pool_of_the_stop_paper_s_vgg_is_within_the_global_one() -> None:
    network: Any = seeded(NetworkSpec("vgg11-gap", CIFAR, 10, width=TINY, batch_norm=True).build())
    images = torch.rand(2, *CIFAR)
    pooled = nn.functional.avg_pool2d(network.features[:-1](images), 2)
    torch.testing.assert_close(network.classifier(pooled.mean((2, 3))), network(images))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", SCRATCH)
@torch.no_grad()
def test_activations_keep_their_size_from_the_start(name: str, batch_norm: bool) -> None:
    """Through all layers, so that a network that starts from nothing can learn."""
    torch.manual_seed(0)
    network = NetworkSpec(name, CIFAR, 10, width=0.25, batch_norm=batch_norm).build().train()
    sizes: list[float] = []
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, inputs, output: sizes.append(float(output.square().mean())))
    network(torch.randn(8, *CIFAR))
    assert len(sizes) == {"vgg8": 7, "vgg11-gap": 8, "vgg16-gap": 13, "resnet18": 17, "cifar-resnet20": 19}[name]
    assert all(size > 1e-3 for size in sizes) and sizes[-1] < 1e3


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_built(name: str, batch_norm: bool) -> None:
    """From its smallest images on, for odd and oblong ones too."""
    smallest = NETWORKS[name].smallest
    for shape in [(1, smallest, smallest), (3, smallest + 5, smallest + 2)]:
        network = NetworkSpec(name, shape, 7, batch_norm=batch_norm, width=TINY).build().train()
        logits = network(torch.rand(2, *shape))
        assert logits.shape == (2, 7)
        logits.sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
        assert norms == (convolutions if batch_norm else 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_too_small_images_are_refused(name: str) -> None:
    side = NETWORKS[name].smallest - 1
    with pytest.raises(ConfigError, match=f"'{name}' got images of {side}x32, needs at least {side + 1}x{side + 1}"):
        build(name, (3, side, 32))


@pytest.mark.parametrize("name", NETWORKS)
def test_width_multiplies_the_channels(name: str) -> None:
    halved = [module.out_channels for module in build(name, width=0.5).modules() if isinstance(module, nn.Conv2d)]
    full = [module.out_channels for module in build(name).modules() if isinstance(module, nn.Conv2d)]
    assert halved == [channels / 2 for channels in full]
    assert build(name, width=1e-9)(torch.rand(1, *CIFAR, device="meta")).shape == (1, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_can_be_chosen(name: str) -> None:
    def probabilities(dropout: float | None) -> set[float]:
        return {module.p for module in build(name, dropout=dropout).modules() if isinstance(module, nn.Dropout)}

    assert probabilities(0.4) == {0.4}
    assert probabilities(0.0) == {0.0}
    papers = {other: {0.0} for other in ("lenet5", *SCRATCH)} | {other: {0.2, 0.5} for other in VGG_HEADS}
    assert probabilities(None) == papers.get(name, {0.2})


def test_weights_start_as_in_the_paper() -> None:
    torch.manual_seed(0)
    network = NetworkSpec("vgg5", (3, 8, 8), 10, width=0.25).build()
    convolution, linear = network.features[0], network.classifier[4]
    assert float(convolution.weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 16)), rel=0.15)
    assert float(linear.weight.detach().std()) == pytest.approx(0.01, rel=0.01)
    torch.manual_seed(0)
    again = NetworkSpec("vgg5", (3, 8, 8), 10, width=0.25).build()
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("name", "channels"), [("timm:resnet18", 1), ("timm:vgg11", 3), ("torchvision:resnet18", 3)])
def test_networks_of_other_libraries(name: str, channels: int) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    network = build(name, (channels, 64, 64), 7)
    convolution = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert convolution.in_channels == channels
    assert linears(network)[-1:] in ([(512, 7)], [(4096, 7)])


def test_a_network_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from torch import nn

def make(classes, input_shape, width=3):
    return nn.Sequential(nn.Conv2d(input_shape[0], width, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes))

class Plain(nn.Identity):
    pass
"""
    (tmp_path / "mine_for_tests.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    network = build("module:mine_for_tests:make", (2, 8, 8), 7)
    assert network[0].in_channels == 2 and network[3].out_features == 7
    assert isinstance(build("module:mine_for_tests:Plain"), nn.Identity)


@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [
        ("vgg6", 3, "network: unknown 'vgg6'. Did you mean"),
        ("timm:resnet81", 3, "network: timm: unknown 'resnet81'. Did you mean 'resnet18'"),
        ("torchvision:resnet81", 3, "network: torchvision: unknown 'resnet81'. Did you mean 'resnet18'"),
        ("torchvision:resnet18", 1, "network: 'torchvision:resnet18' takes images of 3 channels, got 1"),
        ("keras:vgg16", 3, "network: unknown 'keras:vgg16'"),
        ("module:no.such:thing", 3, "network: 'module:no.such:thing' cannot be built (ModuleNotFoundError: No module"),
        ("module:torch.nn:Lineal", 3, "network: 'module:torch.nn:Lineal' cannot be built (AttributeError: module"),
        ("module:torch.nn:Linear", 3, "network: 'module:torch.nn:Linear' cannot be built (TypeError: "),
        ("module:collections:OrderedDict", 3, "network: 'module:collections:OrderedDict' "),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(name: str, channels: int, message: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(ConfigError) as error:
        build(name, (channels, 32, 32))
    assert str(error.value).startswith(message)
