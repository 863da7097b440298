"""The neuron scan on a GPU: one kernel for each direction, in Triton, that passes over memory once."""

import math
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from hybridsnn.kernels.neuron.layout import Layout
from hybridsnn.kernels.neuron.surrogate import Surrogate, shape_of

SHAPES = ("spike-time", "triangle", "exponential", "sigmoid")  # whose formulas `cuda_loops` has
BLOCK = 512  # neurons of a program, four for each of its threads: loads of 16 bytes, and small layers fill the GPU too
# Multiply and add round apart, as in PyTorch: rounded once, a membrane may fall on the other side of the threshold.
FUSION = False


@cache
def _has_triton() -> bool:
    """Triton comes with the builds of PyTorch for GPUs on Linux, not with the others."""
    return find_spec("triton") is not None


def supports(current: Tensor) -> bool:
    """Whether this kernel runs such currents: any floating type on a GPU, where Triton is installed."""
    return current.device.type == "cuda" and current.dtype.is_floating_point and _has_triton()


def _parameter(layout: Layout, parameter: Tensor) -> tuple[Tensor, int, int]:
    """A parameter as the kernels take it: its entries, how many, and how many neighbouring neurons share each."""
    entries, group = layout.group(parameter)
    return entries.contiguous(), entries.numel(), group


def _stride(rows: Tensor) -> int:
    """Neurons from one row to the next; 0 for the single row of what is constant in time."""
    return rows.shape[1] if rows.shape[0] > 1 else 0


def forward(
    current: Tensor,
    threshold: Tensor,
    leak: Tensor,
    membrane: Tensor,
    since_spike: Tensor,
    hard_reset: bool,
    *,
    pack: bool = False,
    potentials: bool = False,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """See `hybridsnn.kernels.neuron.Kernel`. All outputs lie in memory as `current` does."""
    from hybridsnn.kernels.neuron import cuda_loops

    layout = Layout(current)
    steps = layout.steps
    rows, start = layout.rows(current), layout.row(membrane)
    neurons = len(start)
    spikes = rows.new_empty(steps, neurons)
    final_membrane = torch.empty_like(start)
    final_since = torch.empty_like(start, dtype=torch.int32)
    bits = rows.new_empty(math.ceil(steps / 8), neurons, dtype=torch.uint8) if pack else None
    kept = start.new_empty(steps, neurons) if potentials else None
    with torch.cuda.device_of(current):
        cuda_loops.forward[(math.ceil(neurons / BLOCK),)](
            rows, _stride(rows), *_parameter(layout, threshold), *_parameter(layout, leak),
            start, layout.row(since_spike), spikes, final_membrane, final_since, bits, kept, steps, neurons,
            hard=hard_reset, block=BLOCK, enable_fp_fusion=FUSION,
        )  # fmt: skip
    return (
        layout.restore(spikes),
        layout.restore(final_membrane.unsqueeze(0))[0],
        layout.restore(final_since.unsqueeze(0))[0],
        None if bits is None else layout.restore(bits),
        None if kept is None else layout.restore(kept),
    )


def backward(
    grad_spikes: Tensor,
    grad_membrane: Tensor | None,
    bits: Tensor,
    potentials: Tensor | None,
    threshold: Tensor,
    leak: Tensor,
    membrane: Tensor | None,
    since_spike: Tensor,
    hard_reset: bool,
    surrogate: Surrogate,
    *,
    learns_threshold: bool,
    learns_leak: bool,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """See `hybridsnn.kernels.neuron.Kernel`."""
    from hybridsnn.kernels.neuron import cuda_loops

    layout, shape = Layout(bits), shape_of(surrogate, SHAPES, "triton")
    steps = grad_spikes.shape[0]
    rows, packed = layout.rows(grad_spikes), layout.rows(bits)
    neurons = packed.shape[1]
    wide = torch.promote_types(grad_spikes.dtype, torch.float32)
    grad_current = rows.new_empty(steps, neurons)
    grad_start = rows.new_empty(neurons, dtype=wide)
    by_threshold = torch.empty_like(grad_start) if learns_threshold else None
    by_leak = torch.empty_like(grad_start) if learns_leak else None
    with torch.cuda.device_of(bits):
        cuda_loops.backward[(math.ceil(neurons / BLOCK),)](
            rows, _stride(rows), None if grad_membrane is None else layout.row(grad_membrane),
            packed, None if potentials is None else layout.rows(potentials),
            *_parameter(layout, threshold), *_parameter(layout, leak),
            None if membrane is None else layout.row(membrane), layout.row(since_spike),
            grad_current, grad_start, by_threshold, by_leak, steps, neurons,
            hard=hard_reset, shape=shape, height=surrogate.height, decay=surrogate.decay, relative=surrogate.relative,
            block=BLOCK, enable_fp_fusion=FUSION,
        )  # fmt: skip
    return (
        layout.restore(grad_current),
        layout.restore(grad_start.unsqueeze(0))[0],
        None if by_threshold is None else layout.reduce(by_threshold, threshold),
        None if by_leak is None else layout.reduce(by_leak, leak),
    )
