"""Where stages compute: Lightning Fabric on the device and at the precision asked for."""

import ctypes
import platform
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from lightning_fabric import Fabric

from hybridsnn.errors import ConfigError
from hybridsnn.stages.base import Work

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "auto"]
PRECISION = (
    "What synapses compute in; membranes and master weights stay in 32 bits. auto: bf16-mixed where the machine has "
    "instructions for it and the network's answers and spikes on some images stay the same, else 32-true."
)
HALF: Precision = "bf16-mixed"


def fabric_for(work: Work, precision: Precision = "32-true") -> Fabric:
    """Fabric on the device of the environment, noted for the manifest; for "auto" in single precision at first.

    Raises:
        ConfigError: if there is no such device, or the precision is not for it.
    """
    kind = "32-true" if precision == "auto" else precision
    accelerator, _, index = work.environment.device.partition(":")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on other devices that could be used
            fabric = Fabric(accelerator=accelerator, devices=[int(index)] if index else 1, precision=kind)
    except Exception as error:  # Fabric raises many kinds for a device that is not there
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"device: got '{work.environment.device}', {reason}; allowed: auto, cpu, cuda, cuda:N"
        ) from None
    if precision == "16-mixed" and fabric.device.type == "cpu":
        raise ConfigError("precision: got '16-mixed' on the CPU, which has none; allowed there: 32-true, bf16-mixed")
    if fabric.device.type == "cpu":
        keep_freed_memory()
    work.device = f"cpu ({torch.get_num_threads()} threads{_processor()})"
    if fabric.device.type == "cuda":
        work.device = f"{fabric.device} ({torch.cuda.get_device_name(fabric.device)})"
    return fabric


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 by instructions of its own, and PyTorch uses them."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    uses_all = not torch.backends.cpu.get_cpu_capability().startswith(("DEFAULT", "NO AVX", "AVX2"))
    return uses_all and bool(processor_flags(("avx512_bf16", "amx_bf16", "bf16")))


def processor_flags(among: Sequence[str]) -> list[str]:
    """Which of some kinds of instructions the processor has, by the names that Linux gives them; none elsewhere."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next(line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
        return [kind for kind in among if kind in flags]
    return []


@cache
def _processor() -> str:
    """Its name, after a comma, where the system tells."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return ", " + next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f", {platform.machine()}"


@cache
def keep_freed_memory() -> None:
    """Have the C library keep large blocks it was given back, instead of asking the system for fresh pages each time.

    Spike trains are allocated anew at every step: on two cores, faulting their pages in took a quarter of the time.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    with suppress(OSError, AttributeError):  # another C library than glibc
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(trim_threshold, 2**31 - 2**12)
        library.mallopt(mmap_max, 0)
