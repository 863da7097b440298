"""How the gradients of a run come about: frozen objects, each of which makes what one run keeps for them."""

from hybridsnn.program.gradients.automatic import Automatic, Gradient
from hybridsnn.program.gradients.bits import Bits, can_run_in_chunks
from hybridsnn.program.gradients.rates import Rates
from hybridsnn.program.gradients.traces import Traces

__all__ = ["Automatic", "Bits", "Gradient", "Rates", "Traces", "can_run_in_chunks"]
