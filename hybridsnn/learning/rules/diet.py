"""DIET-SNN: BPTT under which thresholds and leaks learn with the weights."""

from typing import ClassVar

from pydantic import Field

from hybridsnn.learning.rules.linear import LinearBPTT


class DIET(LinearBPTT):
    """DIET-SNN (Rathi and Roy, IEEE TNNLS 2021): `linear`, with a threshold and a leak of each layer that learn.

    The paper pairs it with direct coding, T = 5, thresholds balanced and scaled by 0.2, and Adam at 1e-4. Its reset
    subtracts the threshold without the leak; ours multiplies what the reset left by the leak.
    """

    summary: ClassVar[str] = "DIET-SNN: the method linear, with thresholds and leaks that learn too"

    learn_thresholds: bool = Field(True, description="Train thresholds too; a projection keeps them above 0.")
    learn_leaks: bool = Field(True, description="Train leaks too; a projection keeps them in [0, 1].")
