"""An exponential that compiled loops can make vectors of."""

import math
from typing import Any

import numba
import numpy as np
from numba import extending, types

LOG2_E = np.float32(1.4426950408889634)
# exp(x) = 2**n exp(r) with |r| <= ln(2) / 2; ln(2) in two parts keeps r exact.
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
C2, C3, C4, C5, C6 = (np.float32(1 / math.factorial(k)) for k in range(2, 7))
ONE, HALF = np.float32(1), np.float32(0.5)
SMALLEST = np.float32(-87)


def exponential(x: Any) -> Any:
    """`exp(x)` for x <= 0: in float32 to 3e-7 of the value and never below exp(-87); in float64 that of libm."""
    return np.exp(x)


@extending.overload(exponential)
def _exponential(x):  # type: ignore[no-untyped-def]
    if x != types.float32:
        return lambda x: math.exp(x)

    def single(x):  # type: ignore[no-untyped-def]
        bounded = max(x, SMALLEST)
        whole = np.int32(bounded * LOG2_E - HALF)  # cut towards 0: rounds to the nearest for x <= 0
        n = np.float32(whole)
        r = (bounded - n * LN2_HIGH) - n * LN2_LOW
        series = ONE + r * (ONE + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * C6)))))
        power = np.int32((whole + np.int32(127)) << np.int32(23)).view(np.float32)
        return series * power

    return single


@numba.njit(inline="always")
def sigmoid_slope(x, one):  # type: ignore[no-untyped-def]
    """`4 y / (1 + y)^2` with `y = exp(4 x)`, for x <= 0: the slope of a logistic function of 4 x, 1 at x = 0.

    `one` is 1 in the type of x, which a literal would widen.
    """
    twice = x + x
    decayed = exponential(twice + twice)
    root = decayed + decayed
    whole = one + decayed
    return (root + root) / (whole * whole)
