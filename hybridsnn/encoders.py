"""Encoders: images to frames over time. Random spikes are a pure function of seed, image, time step and pixel."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hybridsnn.errors import ConfigError
from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.threads import over_ranges
from hybridsnn.registry import look_up

_PHILOX_M0, _PHILOX_M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_PHILOX_W0, _PHILOX_W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_WORD = 0xFFFFFFFF  # the bits of one
_LOW, _32 = np.uint64(_WORD), np.uint64(32)


@compiled(inline="always")
def _philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Philox4x32-10 (Salmon et al., SC 2011): four random words for one counter and key."""
    for _ in range(10):
        product0 = np.uint64(c0) * _PHILOX_M0
        product1 = np.uint64(c2) * _PHILOX_M1
        # numba widens sums and exclusive-ors to 64 bits; every word goes back to 32.
        c0 = np.uint32(np.uint32(product1 >> _32) ^ c1 ^ k0)
        c2 = np.uint32(np.uint32(product0 >> _32) ^ c3 ^ k1)
        c1, c3 = np.uint32(product1 & _LOW), np.uint32(product0 & _LOW)
        k0 = np.uint32(k0 + _PHILOX_W0)
        k1 = np.uint32(k1 + _PHILOX_W1)
    return c0, c1, c2, c3


@compiled(nogil=True)
def _poisson(begin, end, pixels, indices, start, seed, frames):  # type: ignore[no-untyped-def]
    """frames[t, b, i] = 1[u < |p|] sign(p), u from the counter (i // 4, start + t, image index) and the seed."""
    _, batch, size = frames.shape
    key0, key1 = np.uint32(seed & _LOW), np.uint32(seed >> _32)
    unit = np.float32(1.0 / 16777216.0)
    for row in range(begin, end):
        t, b = row // batch, row % batch
        step = np.uint32(start + t)
        low, high = np.uint32(indices[b] & 0xFFFFFFFF), np.uint32(indices[b] >> 32)
        for quad in range((size + 3) // 4):
            words = _philox(np.uint32(quad), step, low, high, key0, key1)
            for lane in range(min(4, size - 4 * quad)):
                pixel = pixels[b, 4 * quad + lane]
                # 24 random bits: exactly the numbers a float32 below 1 can hold.
                uniform = np.float32(words[lane] >> np.uint32(8)) * unit
                value = np.float32(0)
                if uniform < abs(pixel):
                    value = np.float32(1) if pixel > 0 else np.float32(-1)
                frames[t, b, 4 * quad + lane] = value


@dataclass(frozen=True)
class Encoder:
    """How images are encoded as frames over time.

    Attributes:
        name: its entry in `ENCODERS`.
        scale: activation scale of the input: the pixel value that 1 represents; a rate code saturates above it.
        whole: round frames to integers, for a network of integers.
    """

    name: str
    scale: float = 1.0
    whole: bool = False

    def __post_init__(self) -> None:
        look_up(ENCODERS, self.name, "encoder")
        if not self.scale > 0:
            raise ConfigError(f"encoder.scale: got {self.scale}, must be above 0")

    def __call__(self, images: Tensor, indices: Tensor, timesteps: int, *, start: int = 0, seed: int = 0) -> Tensor:
        """Frames for steps start, ..., start + timesteps - 1.

        Args:
            images: normalised, float `[B, C, H, W]`; for a code of events `[B, T, C, H, W]`.
            indices: of the images in their data set, int64 `[B]`; random spikes depend on them.
            timesteps: number of time steps.
            start: the first step, so that a run can be encoded in chunks.
            seed: of random spikes, 0 <= seed < 2**64.

        Returns:
            `[T, B, C, H, W]`; constant frames have stride 0 along `T`.

        Raises:
            ConfigError: if the encoder does not encode such data (images or events), or recordings have fewer frames.
        """
        coding = ENCODERS[self.name]
        if coding.events != (images.dim() == 5):
            got, choices = (
                ("images", [name for name, entry in ENCODERS.items() if not entry.events])
                if coding.events
                else ("events binned to frames", [name for name, entry in ENCODERS.items() if entry.events])
            )
            raise ConfigError(f"encoder: '{self.name}' got {got}, which it does not encode. Use: {', '.join(choices)}")
        values = images / self.scale
        if self.whole and not coding.random:
            values = values.round()
        return coding.encode(values, indices, timesteps, start, seed)


class Frames:
    """The frames of a run, encoded when they are needed, so that memory does not grow with time.

    `frames[a:b]` is steps a to b - 1 as `[b - a, B, C, H, W]`, `len(frames)` the number of steps.

    Args:
        encoder, images, indices, seed: see `Encoder`.
        timesteps: number of time steps.
    """

    def __init__(self, encoder: Encoder, images: Tensor, indices: Tensor, timesteps: int, seed: int = 0):
        self.encoder, self.images, self.indices = encoder, images, indices
        self.timesteps, self.seed = timesteps, seed

    def __len__(self) -> int:
        return self.timesteps

    def __getitem__(self, steps: slice) -> Tensor:
        start, stop, _ = steps.indices(self.timesteps)
        return self.encoder(self.images, self.indices, stop - start, start=start, seed=self.seed)

    @property
    def constant(self) -> bool:
        """Whether all frames are equal."""
        coding = ENCODERS[self.encoder.name]
        return not (coding.random or coding.events)


def samples_of(frames: Tensor | Frames, part: slice) -> Tensor | Frames:
    """Some samples of frames `[T, B, ...]`; each has the frames that it has in the whole."""
    if isinstance(frames, Tensor):
        return frames[:, part]
    return Frames(frames.encoder, frames.images[part], frames.indices[part], frames.timesteps, frames.seed)


def constant_in_time(frames: Tensor | Frames) -> bool:
    """Whether frames `[T, B, ...]` are known to be the same at every step."""
    return len(frames) == 1 or (frames.constant if isinstance(frames, Frames) else frames.stride(0) == 0)


def _direct(images: Tensor, indices: Tensor, timesteps: int, start: int, seed: int) -> Tensor:
    return images.unsqueeze(0).expand(timesteps, *images.shape)


def _signed_poisson(images: Tensor, indices: Tensor, timesteps: int, start: int, seed: int) -> Tensor:
    if images.device.type != "cpu":
        return poisson_of_tensors(images, indices, timesteps, start, seed)
    pixels = images.detach().float().flatten(1).contiguous()
    frames = torch.empty(timesteps, *pixels.shape)
    over_ranges(
        _poisson,
        timesteps * len(pixels),
        16,
        pixels.numpy(),
        indices.to("cpu", torch.int64).numpy(),
        start,
        np.uint64(seed),
        frames.numpy(),
    )
    return frames.view(timesteps, *images.shape).to(images.dtype)


def poisson_of_tensors(images: Tensor, indices: Tensor, timesteps: int, start: int, seed: int) -> Tensor:
    """The result of `_poisson`, bit for bit, by operations on tensors, for devices other than the CPU."""
    pixels = images.detach().float().flatten(1)
    device, size = pixels.device, pixels.shape[1]
    quad = torch.arange((size + 3) // 4, device=device)
    step = torch.arange(start, start + timesteps, device=device).view(-1, 1, 1)
    image = indices.to(device, torch.int64).view(-1, 1)
    counter = (quad, step, image & _WORD, (image >> 32) & _WORD)
    words = torch.stack(philox_of_tensors(counter, (seed & _WORD, seed >> 32)), dim=-1).flatten(2)[..., :size]
    spikes = (words >> 8).float() * 2.0**-24 < pixels.abs()
    frames = torch.where(spikes, pixels.sign(), 0)
    return frames.view(timesteps, *images.shape).to(images.dtype)


def philox_of_tensors(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """`_philox` on int64 tensors that broadcast together, each value below 2**32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # Products wrap around at 2**64, which leaves their bits right; the mask takes off the copies of the sign.
        product0, product1 = c0 * int(_PHILOX_M0), c2 * int(_PHILOX_M1)
        c0, c2 = ((product1 >> 32) & _WORD) ^ c1 ^ k0, ((product0 >> 32) & _WORD) ^ c3 ^ k1
        c1, c3 = product1 & _WORD, product0 & _WORD
        k0, k1 = (k0 + int(_PHILOX_W0)) & _WORD, (k1 + int(_PHILOX_W1)) & _WORD
    return torch.broadcast_tensors(c0, c1, c2, c3)


def _binned_events(images: Tensor, indices: Tensor, timesteps: int, start: int, seed: int) -> Tensor:
    if start + timesteps > images.shape[1]:
        raise ConfigError(
            f"timesteps: got {start + timesteps}, but the recordings are binned to {images.shape[1]} frames. "
            f"Use {images.shape[1]} or fewer, or a network made with --event-frames {start + timesteps}"
        )
    return images[:, start : start + timesteps].transpose(0, 1)


@dataclass(frozen=True)
class Coding:
    """An entry of `ENCODERS`.

    Attributes:
        encode: (images / scale, indices, timesteps, start, seed) -> frames.
        random: whether it depends on the seed.
        events: whether it encodes frames over time, `[B, T, C, H, W]`, instead of images, `[B, C, H, W]`.
    """

    summary: str
    encode: Callable[[Tensor, Tensor, int, int, int], Tensor]
    random: bool
    events: bool = False


ENCODERS = {
    "direct": Coding("the image itself as a constant current at every step", _direct, random=False),
    "poisson": Coding("signed random spikes, one with probability |pixel| at each step", _signed_poisson, random=True),
    "event": Coding("the frames of a recording of events, one at each step", _binned_events, random=False, events=True),
}
