"""The way back of errors through what does not change in time: all steps together, once."""

import torch
from torch import Tensor

from hybridsnn.program.graph import Node
from hybridsnn.program.run import Run


def return_through_static(run: Run, errors: dict[Node, Tensor]) -> None:
    """Add to `.grad` what the parameters before static values get, from errors `[B, ...]` summed over time.

    The values are computed once more, so that what their backward pass needs was not kept all along.
    """
    if not errors:
        return
    with torch.enable_grad():
        values = run.static_values()
    torch.autograd.backward(
        [values[node] for node in errors], [error.to(values[node].dtype) for node, error in errors.items()]
    )
