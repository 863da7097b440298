"""Encoders: the random generator against published answers, and rates, signs and independence of random spikes."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hybridsnn.encoders import ENCODERS, Encoder, _philox, philox_of_tensors, poisson_of_tensors
from hybridsnn.errors import ConfigError


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    """Of Random123's own file of known answers."""
    assert _philox(*map(np.uint32, counter), *map(np.uint32, key)) == words
    c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
    assert tuple(int(word) for word in philox_of_tensors((c0, c1, c2, c3), (key[0], key[1]))) == words


def random_images(name: str, *shape: int) -> Tensor:
    """[B, C, H, W], or nine frames of them for a code of events."""
    batch, *rest = shape
    time = [9] if ENCODERS[name].events else []
    return torch.randn(batch, *time, *rest, generator=torch.Generator().manual_seed(0))


def encode(name: str, images: Tensor, timesteps: int, start: int = 0, seed: int = 0, first: int = 0) -> Tensor:
    return Encoder(name)(images, torch.arange(first, first + len(images)), timesteps, start=start, seed=seed)


def test_each_spike_follows_from_its_counter() -> None:
    """1[u < |p|] sign(p), with u the top 24 bits of the word of (pixel, step, image) under the seed as key."""
    images = torch.linspace(-1, 1, 2 * 11).view(2, 1, 1, 11)
    indices, seed, start = [7, 2**40 + 3], 2**35 + 11, 5
    frames = Encoder("poisson")(images, torch.tensor(indices), 3, start=start, seed=seed)
    for t in range(3):
        for b, index in enumerate(indices):
            for i in range(11):
                counter = (i // 4, start + t, index % 2**32, index >> 32, seed % 2**32, seed >> 32)
                uniform = (_philox(*map(np.uint32, counter))[i % 4] >> 8) / 2**24
                pixel = float(images[b, 0, 0, i])
                assert frames[t, b, 0, 0, i] == (math.copysign(1, pixel) if uniform < abs(pixel) else 0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (3, 16, 16)])
@pytest.mark.parametrize(("seed", "start"), [(0, 0), (2**35 + 11, 5), (2**64 - 1, 2**20)])
def test_tensors_make_the_spikes_of_the_compiled_loop(shape: tuple[int, ...], seed: int, start: int) -> None:
    """What a GPU does, to the bit."""
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    images[0] = torch.tensor([0.0, 1.0, -1.0, float("nan")]).repeat(images[0].numel())[: images[0].numel()].view(shape)
    indices = torch.tensor([0, 7, 2**32 - 1, 2**40 + 3])
    expected = Encoder("poisson")(images, indices, 6, start=start, seed=seed)
    assert torch.equal(poisson_of_tensors(images, indices, 6, start, seed), expected)
    assert 0 < expected.abs().mean() < 1
    with FakeTensorMode(allow_non_fake_inputs=True):  # on a GPU that is only made believe
        frames = Encoder("poisson")(torch.empty(4, *shape, device="cuda"), indices, 6, start=start, seed=seed)
    assert frames.device == torch.device("cuda:0") and frames.shape == expected.shape


def test_rates_are_the_pixels() -> None:
    """Within five deviations of a binomial count; 0 never and 1 always; the sign of the pixel."""
    pixels = torch.tensor([0.0, 1.0, -1.0, 0.001, -0.02, 0.1, 0.3, -0.5, 0.75, -0.99, 1.7, -3.0])
    timesteps, copies = 400, 50
    frames = encode("poisson", pixels.expand(copies, 1, 1, -1), timesteps)
    mean = frames.double().mean((0, 1, 2, 3))
    rate = pixels.double().clamp(-1, 1)
    bound = 5 * (rate.abs() * (1 - rate.abs()) / (timesteps * copies)).sqrt()
    assert ((mean - rate).abs() <= bound + 1e-15).all()
    assert torch.equal(frames.abs().amax((0, 1, 2, 3)) * pixels.sign(), frames.sum((0, 1, 2, 3)).sign())
    assert set(frames.unique().tolist()) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("other", ["step", "image", "seed", "high seed", "distant image"])
def test_spikes_are_unrelated(other: str) -> None:
    """Correlation within five deviations of none, between what differs in one part of the counter only."""
    images = torch.full((1, 3, 40, 41), 0.5)
    size = 8 * images.numel()
    one = encode("poisson", images, 8)
    two = {
        "step": lambda: encode("poisson", images, 8, start=8),
        "image": lambda: encode("poisson", images, 8, first=1),
        "seed": lambda: encode("poisson", images, 8, seed=1),
        "high seed": lambda: encode("poisson", images, 8, seed=2**63),
        "distant image": lambda: encode("poisson", images, 8, first=2**32),
    }[other]()
    correlation = float(((one - 0.5) * (two - 0.5)).double().mean() * 4)
    assert abs(correlation) < 5 / math.sqrt(size)
    neighbours = float(((one.flatten()[1:] - 0.5) * (one.flatten()[:-1] - 0.5)).double().mean() * 4)
    assert abs(neighbours) < 5 / math.sqrt(size)


@pytest.mark.parametrize("name", ENCODERS)
def test_frames_do_not_depend_on_chunks_or_batches(name: str) -> None:
    images = random_images(name, 5, 2, 3, 3)
    indices = torch.tensor([3, 0, 2**33, 9, 4])
    encoder = Encoder(name)
    whole = encoder(images, indices, 9, seed=6)
    assert whole.shape == (9, 5, 2, 3, 3) and whole.dtype == images.dtype
    assert torch.equal(
        torch.cat([encoder(images, indices, 4, seed=6), encoder(images, indices, 5, start=4, seed=6)]), whole
    )
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(encoder(images[order], indices[order], 9, seed=6), whole[:, order])
    assert torch.equal(encoder(images[2:3], indices[2:3], 9, seed=6), whole[:, 2:3])
    turned = images.transpose(-1, -3).contiguous().transpose(-1, -3)  # channels last in memory
    assert torch.equal(encoder(turned, indices, 9, seed=6), whole)


@pytest.mark.parametrize("name", ENCODERS)
def test_pixels_are_measured_in_units_of_the_scale(name: str) -> None:
    images = random_images(name, 4, 3, 5, 5)
    indices = torch.arange(4)
    scaled = Encoder(name, scale=2.0)(images, indices, 6)
    assert torch.equal(scaled, Encoder(name)(images / 2, indices, 6))
    assert not torch.equal(scaled, Encoder(name)(images, indices, 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ENCODERS)
def test_frames_have_the_type_of_the_images(name: str, dtype: torch.dtype) -> None:
    assert encode(name, random_images(name, 2, 1, 2, 2).to(dtype), 3).dtype == dtype


def test_direct_frames_take_no_memory() -> None:
    images = torch.rand(2, 1, 4, 4)
    frames = encode("direct", images, 100)
    assert frames.shape == (100, 2, 1, 4, 4) and torch.equal(frames[50], images)
    assert frames.stride(0) == 0 and frames.untyped_storage().nbytes() == images.untyped_storage().nbytes()


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_its_plain_values(name: str) -> None:
    encoder = Encoder(name, scale=1.5)
    assert asdict(encoder) == {"name": name, "scale": 1.5, "whole": False}


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"encoder: unknown 'poison'. Did you mean 'poisson'\?"):
        Encoder("poison")
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"encoder.scale: got .*, must be above 0"):
            Encoder("direct", scale=scale)


@pytest.mark.parametrize("name", ENCODERS)
def test_what_is_called_random_depends_on_its_seed(name: str) -> None:
    images = torch.full_like(random_images(name, 2, 1, 4, 4), 0.5)
    same = torch.equal(encode(name, images, 9, seed=0), encode(name, images, 9, seed=1))
    assert same is not ENCODERS[name].random


@pytest.mark.parametrize("threads", [2, 3])
def test_frames_do_not_depend_on_threads(threads: int) -> None:
    images = torch.rand(5, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = encode("poisson", images, 23, seed=6)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    frames = encode("poisson", images, 23, seed=6)
    torch.set_num_threads(before)
    assert torch.equal(frames, expected)
