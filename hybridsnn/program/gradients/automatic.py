"""Gradients by automatic differentiation of the whole run, or none."""

from dataclasses import dataclass
from typing import Any, Protocol

from hybridsnn.kernels.neuron import Surrogate
from hybridsnn.program.graph import Program
from hybridsnn.program.run import Flow, Observer, Run


class Gradient(Protocol):
    """How the gradients of a run come about."""

    def begin(self, program: Program, states: dict[str, Any] | None = None, observe: Observer | None = None) -> Run:
        """A run that keeps what these gradients need; arguments are those of `Run`.

        Raises:
            ConfigError: if the program has something that they cannot pass.
        """
        ...


@dataclass(frozen=True)
class Automatic:
    """Automatic differentiation, which keeps all values of all steps.

    Attributes:
        surrogate: stands in for the derivative of a spike; None gives no gradient through spikes.
    """

    surrogate: Surrogate | None = None

    def begin(self, program: Program, states: dict[str, Any] | None = None, observe: Observer | None = None) -> Run:
        """See `Gradient`."""
        return Run(program, Flow(self.surrogate), states=states, observe=observe)
