"""The modules that see time: spiking neurons, and dropout that keeps its mask for a whole run."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybridsnn.errors import ConfigError
from hybridsnn.kernels.neuron import Surrogate, scan
from hybridsnn.surrogates import NEVER

SMALLEST_THRESHOLD = 1e-3  # the lower bound of a learned threshold
RESIDUAL = 1e-3  # of the threshold: a membrane that pre-steps leave at or below it tells of an activation of 0
RESETS = {"soft": "subtract the threshold", "hard": "set the membrane to 0"}


class NeuronState(NamedTuple):
    """What a layer of neurons carries from one chunk of time to the next."""

    membrane: Tensor  # after the reset of the last step, [B, *N]
    since_spike: Tensor  # steps from the last spike to the next step, int32 [B, *N]


class TemporalModule(nn.Module):
    """A module that sees time: `forward(values [T, B, *N], state, surrogate) -> (values, state)`."""

    def analogue(self, values: Tensor) -> Tensor:
        """What it does in a network without time, to values `[B, *N]`."""
        return values


def along_channels(values: Tensor, samples: Tensor) -> Tensor:
    """Values `[]`, `[channels]` or `[*N]`, shaped to broadcast to samples `[B, *N]`."""
    return values.view(-1, *[1] * (samples.dim() - 2)) if values.dim() == 1 else values


class SpikingNeuron(TemporalModule):
    """A layer of integrate-and-fire neurons with thresholds and leaks in its state dict.

    Args:
        shape: of the thresholds: `()` for one per layer, `(channels,)`, or the sample's shape for one per neuron.
            The leak is one per layer.
        reset: "soft" or "hard".
        initial_potential: initial membrane potential, as a fraction of the threshold.
        potential_shape: of a buffer of initial potentials, as that of the thresholds; None: one number for the layer.
        ceiling: the activation at which the ReLU of the ANN saturates; None: it does not.
        kernel: how to run the scan, see `hybridsnn.kernels.neuron.KERNELS`.

    Raises:
        ConfigError: if `reset` is unknown.
    """

    def __init__(
        self,
        shape: tuple[int, ...] = (),
        *,
        reset: str = "soft",
        initial_potential: float = 0.0,
        potential_shape: tuple[int, ...] | None = None,
        ceiling: float | None = None,
        kernel: str = "auto",
    ):
        super().__init__()
        if reset not in RESETS:
            raise ConfigError(f"reset: unknown '{reset}'. Choices: {', '.join(RESETS)}")
        # Frozen until a learning rule unfreezes them.
        self.threshold = nn.Parameter(torch.ones(shape), requires_grad=False)
        self.leak = nn.Parameter(torch.ones(()), requires_grad=False)
        self.reset = reset
        self.initial_potential: float | Tensor
        if potential_shape is None:
            self.initial_potential = initial_potential
        else:
            self.register_buffer("initial_potential", torch.full(potential_shape, initial_potential))
        self.ceiling = ceiling
        self.kernel = kernel

    def analogue(self, values: Tensor) -> Tensor:
        """The ReLU of the ANN, with its ceiling."""
        return nn.functional.relu(values) if self.ceiling is None else values.clamp(0, self.ceiling)

    def initial_state(
        self, current: Tensor, surrogate: Surrogate | None = None, *, threshold: Tensor | None = None
    ) -> NeuronState:
        """The state before the first step, for currents `[T, B, *N]`.

        Args:
            surrogate: says how long ago neurons that have not fired count as having fired; None: `NEVER`.
            threshold: a scalar, `[channels]` or `[*N]`, in the place of the neurons' own.
        """
        wide = current.dtype if current.dtype == torch.float64 else torch.float32
        level = along_channels(self.threshold.detach() if threshold is None else threshold, current[0]).to(wide)
        potential = self.initial_potential
        if isinstance(potential, Tensor):
            potential = along_channels(potential, current[0]).to(wide)
        membrane = (potential * level).expand(current.shape[1:])
        never = NEVER if surrogate is None else surrogate.never
        since_spike = torch.full((), never, dtype=torch.int32, device=current.device)
        return NeuronState(membrane, since_spike.expand(current.shape[1:]))

    def forward(
        self,
        current: Tensor,
        state: NeuronState | None = None,
        surrogate: Surrogate | None = None,
        *,
        overwrite: bool = False,
    ) -> tuple[Tensor, NeuronState]:
        """Currents `[T, B, *N]` to spikes `[T, B, *N]` and the state that continues the run.

        With `overwrite` the memory of the currents may hold the spikes, where no gradients are asked for.
        """
        membrane, since_spike = self.initial_state(current, surrogate) if state is None else state
        spikes, membrane, since_spike = scan(
            current,
            self.threshold,
            self.leak,
            membrane,
            since_spike,
            hard_reset=self.reset == "hard",
            surrogate=surrogate,
            kernel=self.kernel,
            overwrite=overwrite,
        )
        return spikes, NeuronState(membrane, since_spike)

    def restart(self, state: NeuronState) -> NeuronState:
        """The state to start from anew after pre-steps (SRP: Hao et al., AAAI 2023).

        With soft reset, all that came in is in the spikes and in the membrane. One that is left at or below about 0
        has sent spikes for a current that did not last, so the neuron stays silent: its membrane starts at minus
        infinity, where no current moves it. The paper's bound, 1e-3, is taken as a share of the threshold, since
        membranes here are in units that differ from layer to layer.
        """
        membrane, since_spike = self.initial_state(state.membrane.unsqueeze(0))
        level = along_channels(self.threshold.detach(), membrane).to(membrane)
        return NeuronState(membrane.masked_fill(state.membrane <= RESIDUAL * level, -torch.inf), since_spike)

    @torch.no_grad()
    def project(self) -> None:
        """Bring a learned threshold back above 0 and a learned leak back into [0, 1], to the nearest value."""
        self.threshold.clamp_(min=SMALLEST_THRESHOLD)
        self.leak.clamp_(0, 1)

    def extra_repr(self) -> str:
        shape = tuple(self.threshold.shape)
        potential = self.initial_potential
        told = f"of shape {tuple(potential.shape)}" if isinstance(potential, Tensor) else potential
        return f"thresholds {shape}, reset={self.reset}, initial_potential={told}"


class IntegerNeuron(SpikingNeuron):
    """Integrate-and-fire neurons whose membranes start at integers.

    Args:
        threshold: integers, `[]`, `[channels]` or `[*N]`.
        start: integers likewise.
        reset: see `SpikingNeuron`.
    """

    start: Tensor

    def __init__(self, threshold: Tensor, start: Tensor, *, reset: str = "soft"):
        super().__init__(tuple(threshold.shape), reset=reset)
        self.threshold.data.copy_(threshold)
        self.register_buffer("start", start.to(self.threshold.dtype))

    def initial_state(
        self, current: Tensor, surrogate: Surrogate | None = None, *, threshold: Tensor | None = None
    ) -> NeuronState:
        """See `SpikingNeuron`."""
        membrane = along_channels(self.start, current[0]).expand(current.shape[1:])
        since_spike = torch.full((), NEVER if surrogate is None else surrogate.never, dtype=torch.int32)
        return NeuronState(membrane, since_spike.to(current.device).expand(current.shape[1:]))


class SharedDropout(TemporalModule):
    """Dropout with one mask per sample, kept for all time steps.

    Args:
        probability: of a value being dropped, in [0, 1).
        whole_channels: drop channels instead of single values.
    """

    def __init__(self, probability: float, *, whole_channels: bool = False):
        super().__init__()
        self.probability = probability
        self.whole_channels = whole_channels

    def forward(self, values: Tensor, state: Tensor | None = None, surrogate: Any = None) -> tuple[Tensor, Any]:
        """Values `[T, B, *N]` and the mask `[B, *N]` of earlier chunks (None draws one) to values and mask."""
        if not self.training or self.probability == 0:
            return values, None
        if state is None:
            shape = values.shape[1:]
            if self.whole_channels:
                shape = torch.Size((*shape[:2], *[1] * (len(shape) - 2)))
            state = nn.functional.dropout(values.new_ones(shape), self.probability)
        return values * state, state

    def extra_repr(self) -> str:
        return f"probability={self.probability}, whole_channels={self.whole_channels}"


class GatedMaxPool(TemporalModule):
    """A max pool over spike trains: a window sends what the largest of its sums over time grows by.

        out[t] = max over the window of S[t] - max over the window of S[t-1],   S[t] = x[0] + ... + x[t]

    The largest count of spikes grows by 0 or 1, so of spikes it makes spikes, and their number at any time is exactly
    the largest number among the inputs. (Rueckauer et al., Frontiers in Neuroscience 2017, let the input with the
    largest count through, which counts spikes twice when the lead changes.)

    Args:
        pool: the max pool of the ANN.
    """

    def __init__(self, pool: nn.Module):
        super().__init__()
        self.pool = pool

    def analogue(self, values: Tensor) -> Tensor:
        pooled: Tensor = self.pool(values)
        return pooled

    def forward(self, values: Tensor, state: Tensor | None = None, surrogate: Any = None) -> tuple[Tensor, Any]:
        """Values `[T, B, *N]` and their sum `[B, *N]` over earlier steps to values `[T, B, *M]` and the sum so far."""
        wide = torch.promote_types(values.dtype, torch.float32)
        before = torch.zeros_like(values[0], dtype=wide) if state is None else state
        largest = self.pool(before) if state is not None else 0.0
        steps = []
        for step in values:
            before = before + step
            pooled = self.pool(before)
            steps.append((pooled - largest).to(values.dtype))
            largest = pooled
        return torch.stack(steps), before
