"""The transforms of `winograd` in one dimension: loops over the channels of neighbouring tiles, line by line."""

import math

import numpy as np
from numba.extending import register_jitable

HALF, SIXTH, TWO_THIRDS = np.float32(1 / 2), np.float32(1 / 6), np.float32(2 / 3)
TWO, FIVE_HALVES = np.float32(2), np.float32(5 / 2)
SMALL, LARGE = np.float32(math.sqrt(1 / 2)), np.float32(math.sqrt(2))  # points, whose product is 1

# Loops over the channels of neighbouring tiles, from and to tuples of lines. To Python they stay plain functions: the
# compiled loops around them are found on disk by these functions' names, and a compiled function has none.
line = register_jitable(fastmath={"contract"})


@line
def two(lines, first, step, low, high):  # type: ignore[no-untyped-def]
    """Two lines, of the values low <= i < high."""
    return lines[first, low:high], lines[first + step, low:high]


@line
def three(lines, first, step, low, high):  # type: ignore[no-untyped-def]
    return (lines[first, low:high], *two(lines, first + step, step, low, high))


@line
def four(lines, first, step, low, high):  # type: ignore[no-untyped-def]
    return two(lines, first, step, low, high) + two(lines, first + 2 * step, step, low, high)


@line
def six(lines, first, step, low, high):  # type: ignore[no-untyped-def]
    return four(lines, first, step, low, high) + two(lines, first + 4 * step, step, low, high)


@line
def inputs_of_two(inputs, values):  # type: ignore[no-untyped-def]
    """B^T: four inputs to four values."""
    a, b, c, d = inputs
    w, x, y, z = values
    for i in range(w.size):
        w[i] = a[i] - c[i]
        x[i] = b[i] + c[i]
        y[i] = c[i] - b[i]
        z[i] = b[i] - d[i]


@line
def inputs_of_four(inputs, values):  # type: ignore[no-untyped-def]
    """B^T: six inputs to six values."""
    a, b, c, d, e, f = inputs
    u, v, w, x, y, z = values
    for i in range(u.size):
        even, odd = e[i] - TWO * c[i], SMALL * d[i] - LARGE * b[i]
        even_too, odd_too = e[i] - HALF * c[i], LARGE * d[i] - SMALL * b[i]
        u[i] = a[i] - FIVE_HALVES * c[i] + e[i]
        v[i] = even + odd
        w[i] = even - odd
        x[i] = even_too + odd_too
        y[i] = even_too - odd_too
        z[i] = b[i] - FIVE_HALVES * d[i] + f[i]


@line
def outputs_of_two(values, outputs):  # type: ignore[no-untyped-def]
    """A^T: four values to two outputs."""
    w, x, y, z = values
    a, b = outputs
    for i in range(a.size):
        a[i] = w[i] + x[i] + y[i]
        b[i] = x[i] - y[i] - z[i]


@line
def outputs_of_four(values, outputs):  # type: ignore[no-untyped-def]
    """A^T: six values to four outputs."""
    u, v, w, x, y, z = values
    a, b, c, d = outputs
    for i in range(a.size):
        even, odd = v[i] + w[i], SMALL * (v[i] - w[i])
        even_too, odd_too = x[i] + y[i], LARGE * (x[i] - y[i])
        a[i] = u[i] + even + even_too
        b[i] = odd + odd_too
        c[i] = HALF * even + TWO * even_too
        d[i] = HALF * odd + TWO * odd_too + z[i]


@line
def errors_of_two(errors, values):  # type: ignore[no-untyped-def]
    """A: the gradients of two outputs to four values."""
    a, b = errors
    w, x, y, z = values
    for i in range(w.size):
        w[i] = a[i]
        x[i] = a[i] + b[i]
        y[i] = a[i] - b[i]
        z[i] = -b[i]


@line
def errors_of_four(errors, values):  # type: ignore[no-untyped-def]
    """A: the gradients of four outputs to six values."""
    a, b, c, d = errors
    u, v, w, x, y, z = values
    for i in range(u.size):
        even, odd = a[i] + HALF * c[i], SMALL * (b[i] + HALF * d[i])
        even_too, odd_too = a[i] + TWO * c[i], LARGE * (b[i] + TWO * d[i])
        u[i] = a[i]
        v[i] = even + odd
        w[i] = even - odd
        x[i] = even_too + odd_too
        y[i] = even_too - odd_too
        z[i] = d[i]


@line
def gradients_of_two(before, values, after, gradients):  # type: ignore[no-untyped-def]
    """B: four values, the last of the tile before and the first of the tile after to the gradients of two inputs."""
    w, x, y, z = values
    a, b = gradients
    for i in range(a.size):
        a[i] = x[i] - y[i] + z[i] - before[i]
        b[i] = x[i] + y[i] - w[i] + after[i]


@line
def gradients_of_four(before, values, after, gradients):  # type: ignore[no-untyped-def]
    """B: six values, the last of the tile before and the first of the tile after to the gradients of four inputs."""
    u, v, w, x, y, z = values
    a, b, c, d = gradients
    for i in range(a.size):
        even, odd = v[i] + w[i], v[i] - w[i]
        even_too, odd_too = x[i] + y[i], x[i] - y[i]
        a[i] = z[i] - LARGE * odd - SMALL * odd_too + before[i]
        b[i] = -FIVE_HALVES * u[i] - TWO * even - HALF * even_too
        c[i] = SMALL * odd + LARGE * odd_too - FIVE_HALVES * z[i]
        d[i] = u[i] + even + even_too + after[i]


@line
def weights_of_two(weights, values):  # type: ignore[no-untyped-def]
    """G: three weights to four values."""
    a, b, c = weights
    w, x, y, z = values
    for i in range(w.size):
        w[i] = a[i]
        x[i] = HALF * (a[i] + b[i] + c[i])
        y[i] = HALF * (a[i] - b[i] + c[i])
        z[i] = c[i]


@line
def weights_of_four(weights, values):  # type: ignore[no-untyped-def]
    """G: three weights to six values."""
    a, b, c = weights
    u, v, w, x, y, z = values
    for i in range(u.size):
        even, odd = -TWO_THIRDS * (a[i] + HALF * c[i]), -TWO_THIRDS * (SMALL * b[i])
        even_too, odd_too = SIXTH * (a[i] + TWO * c[i]), SIXTH * (LARGE * b[i])
        u[i] = a[i]
        v[i] = even + odd
        w[i] = even - odd
        x[i] = even_too + odd_too
        y[i] = even_too - odd_too
        z[i] = c[i]


@line
def weight_gradients_of_two(values, gradients):  # type: ignore[no-untyped-def]
    """G^T: four values to the gradients of three weights."""
    w, x, y, z = values
    a, b, c = gradients
    for i in range(a.size):
        a[i] = w[i] + HALF * (x[i] + y[i])
        b[i] = HALF * (x[i] - y[i])
        c[i] = z[i] + HALF * (x[i] + y[i])


@line
def weight_gradients_of_four(values, gradients):  # type: ignore[no-untyped-def]
    """G^T: six values to the gradients of three weights."""
    u, v, w, x, y, z = values
    a, b, c = gradients
    for i in range(a.size):
        even, odd = -TWO_THIRDS * (v[i] + w[i]), -TWO_THIRDS * (v[i] - w[i])
        even_too, odd_too = SIXTH * (x[i] + y[i]), SIXTH * (x[i] - y[i])
        a[i] = u[i] + even + even_too
        b[i] = SMALL * odd + LARGE * odd_too
        c[i] = HALF * even + TWO * even_too + z[i]
