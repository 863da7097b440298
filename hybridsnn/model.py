"""A spiking network as a whole: an encoder, a body in which only neurons see time, an accumulating readout."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, fx, nn

from hybridsnn.encoders import Encoder, Frames
from hybridsnn.kernels.neuron import Surrogate
from hybridsnn.kernels.synapse.choice import transmit
from hybridsnn.neurons import SpikingNeuron, TemporalModule

SYNAPSES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # the modules that can carry spikes with weights
Observer = Callable[[str, Tensor], None]


class ModelState(NamedTuple):
    """What a network carries from one chunk of time to the next."""

    modules: dict[str, Any]  # by name: NeuronState, or the mask of a dropout
    readout: Tensor  # accumulated output, float64 [B, K]

    def of(self, images: Tensor) -> "ModelState":
        """The state of some of the images alone, which are given by a mask or by their places."""
        return ModelState({name: _of(state, images) for name, state in self.modules.items()}, self.readout[images])


def _of(state: Any, images: Tensor) -> Any:
    """A module's state of some of the images: a tensor `[B, ...]`, several, or None of a dropout that drops nothing."""
    if state is None:
        return None
    return state[images] if isinstance(state, Tensor) else type(state)(*(part[images] for part in state))


class Simulates(Protocol):
    """A way to run a body over time."""

    def simulate(self, *inputs: Any) -> Tensor: ...


class Simulation(fx.Interpreter):
    """Runs a body on `[T*B, ...]`, showing time only to its temporal modules.

    A value that does not change in time (a directly coded image and what synapses make of it) is computed once,
    on `[B, ...]`, and repeated where it meets one that does.

    Args:
        body: the captured graph of a spiking network, or of a part of one.
        states: of the temporal modules, from an earlier chunk. `simulate` leaves the final ones in `self.states`.
        surrogate: for the backward pass; None runs without gradients through spikes.
        observe: called with the name and the spikes `[T, B, *N]` of each layer of neurons.
    """

    def __init__(
        self,
        body: fx.GraphModule,
        *,
        states: dict[str, Any] | None = None,
        surrogate: Surrogate | None = None,
        observe: Observer | None = None,
    ):
        super().__init__(body)
        self.states = dict(states or {})
        self.surrogate, self.observe = surrogate, observe
        self.timesteps = self.batch = 0
        self.constant: set[fx.Node] = set()
        self.node: Any = None  # the one that is running

    def simulate(self, *inputs: Tensor) -> Tensor:
        """Inputs `[T, B, ...]` to what the graph makes of them, `[T, B, ...]`; stride 0 along `T` says constant."""
        self.timesteps, self.batch = inputs[0].shape[:2]
        placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        still = [self.timesteps == 1 or values.stride(0) == 0 for values in inputs]
        self.constant = {node for node, constant in zip(placeholders, still, strict=True) if constant}
        flat = (values[0] if constant else values.flatten(0, 1) for values, constant in zip(inputs, still, strict=True))
        return self.run(*flat)

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        inputs = [node for node in n.all_input_nodes if node.op != "get_attr"]
        held_back = n.op == "output" or self.is_temporal(n) or _asks_shape(n)
        if inputs and not held_back and self.constant.issuperset(inputs):
            self.constant.add(n)
        return super().run_node(n)

    def is_temporal(self, node: fx.Node) -> bool:
        """Whether a node of the graph calls a module that sees time."""
        return node.op == "call_module" and isinstance(self.fetch_attr(str(node.target)), TemporalModule)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        if n in self.constant:
            return args, kwargs

        temporal = n.op == "output" or self.is_temporal(n)

        def present(node: fx.Node) -> Any:
            value = self.env[node]
            if node.op == "get_attr" or not isinstance(value, Tensor):
                return value
            if node in self.constant:
                if _asks_shape(n):
                    return value[:1].expand(self.timesteps * self.batch, *value.shape[1:])
                value = value.unsqueeze(0).expand(self.timesteps, *value.shape)
                return value if temporal else value.flatten(0, 1)
            return value.unflatten(0, (self.timesteps, self.batch)) if temporal else value

        return fx.node.map_arg(n.args, present), fx.node.map_arg(n.kwargs, present)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, SYNAPSES) and not torch.is_grad_enabled():
            return transmit(module, *args, **kwargs)
        if not isinstance(module, TemporalModule):
            return super().call_module(target, args, kwargs)
        before = self.states.get(target)  # values are [T, B, *N]
        if isinstance(module, SpikingNeuron):
            overwrite = self.is_last_use()
            values, self.states[target] = module(args[0], before, self.surrogate, overwrite=overwrite)
            if self.observe is not None:
                self.observe(target, values)
        else:
            values, self.states[target] = module(args[0], before, self.surrogate)
        return values.flatten(0, 1)

    def is_last_use(self) -> bool:
        """Whether nothing but the running node reads its input, which a synapse made: its memory may be used."""
        (source,) = self.node.all_input_nodes
        synapse = source.op == "call_module" and isinstance(self.fetch_attr(str(source.target)), SYNAPSES)
        return synapse and len(source.users) == 1 and source not in self.constant


def _asks_shape(node: fx.Node) -> bool:
    """Whether a node asks for the shape of a value: the answer may be applied to one that changes in time."""
    return node.target in ("size", getattr)


class SpikingModel(nn.Module):
    """A spiking network.

    Args:
        body: a captured graph whose nonlinearities are `SpikingNeuron`s; synapses see `[T*B, ...]`.
        encoder: how images become the frames it is run on.
        readout_leak: what the readout keeps of itself from one step to the next; 1 accumulates everything.
    """

    def __init__(self, body: fx.GraphModule, encoder: Encoder, *, readout_leak: float = 1.0):
        super().__init__()
        self.body = body
        self.encoder = encoder
        self.readout_leak = readout_leak

    @property
    def neurons(self) -> dict[str, SpikingNeuron]:
        """The layers of neurons by name, in the order in which they run."""
        modules = dict(self.body.named_modules())
        called = [str(node.target) for node in self.body.graph.nodes if node.op == "call_module"]
        return {name: module for name in called if isinstance(module := modules[name], SpikingNeuron)}

    def forward(
        self,
        frames: Tensor,
        state: ModelState | None = None,
        *,
        surrogate: Surrogate | None = None,
        observe: Observer | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Run over time. T steps at once equal a steps and then b steps with the state handed on.

        Args:
            frames: `[T, B, ...]`; stride 0 along `T` says that they do not change, and computes their synapse once.
            state: where an earlier call ended; None starts a run.
            surrogate: how gradients pass spikes; None gives no gradient.
            observe: called with each layer's name and its spikes `[T, B, *N]`.

        Returns:
            outputs `[T, B, K]`, the readout accumulated up to each step, and the state.
        """
        simulation = Simulation(
            self.body, states=state.modules if state else None, surrogate=surrogate, observe=observe
        )
        currents = self.currents(frames, simulation)
        sums = self.accumulate(currents, None if state is None else state.readout)
        outputs = sums if currents.dtype == torch.float64 else sums.float()
        return outputs, ModelState(simulation.states, sums[-1])

    def currents(self, frames: Tensor | Frames, simulation: "Simulates") -> Tensor:
        """What flows into the readout at each step, `[T, B, K]`, for frames `[T, B, ...]`."""
        return simulation.simulate(frames)

    def accumulate(self, currents: Tensor, before: Tensor | None = None) -> Tensor:
        """The readout `O[t] = readout_leak * O[t-1] + I[t]`, float64 `[T, B, K]`, for currents `[T, B, K]`.

        In float64, so that the sum does not depend on how time was cut into chunks.

        Args:
            before: the readout `[B, K]` at the step before the first; None starts a run.
        """
        wide = currents.double()
        if self.readout_leak == 1:
            sums = wide.cumsum(0)
            return sums if before is None else sums + before
        readout = torch.zeros_like(wide[0]) if before is None else before
        steps = []
        for current in wide:
            readout = self.readout_leak * readout + current
            steps.append(readout)
        return torch.stack(steps)
