"""The transforms of `winograd` in one dimension, as formulas, and how compiled code runs them on tiles and on lines.

A formula says what becomes of a few numbers. It becomes vector instructions here, over the channels: a compiler that
sees so many places in memory cannot tell that none overlaps another, and would take the channels one by one.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from hybridsnn.kernels.synapse.vectors import INDEX, Code, for_vectors, operands_of, vector_at

SMALL, LARGE = math.sqrt(1 / 2), math.sqrt(2)  # points, whose product is 1
Numbers = tuple[Any, ...]


class _Number:
    """A vector of numbers in code that is being written; products and sums may be fused."""

    def __init__(self, builder: ir.IRBuilder, value: Any):
        self.builder, self.value = builder, value

    def __add__(self, other: "_Number") -> "_Number":
        return _Number(self.builder, self.builder.fadd(self.value, other.value, flags=("contract",)))

    def __sub__(self, other: "_Number") -> "_Number":
        return _Number(self.builder, self.builder.fsub(self.value, other.value, flags=("contract",)))

    def __rmul__(self, factor: float) -> "_Number":
        constant = ir.Constant(self.value.type, [factor] * self.value.type.count)
        return _Number(self.builder, self.builder.fmul(constant, self.value, flags=("contract",)))

    def __neg__(self) -> "_Number":
        return -1.0 * self


def over_tiles(formula: Callable[..., Numbers], *, shifted: bool = False) -> Callable[..., Numbers]:
    """Make a formula work on tiles in compiled functions: on all their columns, then on all lines that this gives.

    There `formula(source, at, line, pixel, target, to, to_line, to_pixel, channels)` reads the value in line i and
    column j of a tile from source[at + i * line + j * pixel + channel], and writes likewise. If the formula is
    `shifted`, one more array has a number to add for each channel.
    """
    size = len(inspect.signature(formula).parameters)

    def vectors(builder: ir.IRBuilder, given: Any, channel: Any, width: int) -> None:
        source, at, line, pixel, target, to, to_line, to_pixel, _, *shift = given

        def place(start: Any, i: Any, j: Any, row: int, column: int) -> Any:
            index = ir.Constant(start.type, row), ir.Constant(start.type, column)
            offset = builder.add(builder.mul(i, index[0]), builder.mul(j, index[1]))
            return builder.add(builder.add(start, channel), offset)

        columns = []
        for j in range(size):
            places = [vector_at(builder, source, place(at, line, pixel, i, j), width) for i in range(size)]
            columns.append(formula(*(_Number(builder, builder.load(each, align=4)) for each in places)))
        for i, numbers in enumerate(zip(*columns, strict=True)):
            for j, result in enumerate(formula(*numbers)):
                if shift:
                    result += _Number(builder, builder.load(vector_at(builder, shift[0], channel, width), align=4))
                goal = vector_at(builder, target, place(to, to_line, to_pixel, i, j), width)
                builder.store(result.value, goal, align=4)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        given = operands_of(context, builder, signature, arguments)
        for_vectors(builder, given[8], lambda channel, width: vectors(builder, given, channel, width))
        return context.get_dummy_value()

    def signature(source: Any, target: Any, *shift: Any) -> Any:
        return types.void(source, INDEX, INDEX, INDEX, target, INDEX, INDEX, INDEX, INDEX, *shift)

    if shifted:

        @intrinsic
        def run_shifted(
            typing: Any, source: Any, at: Any, line: Any, pixel: Any, target: Any, to: Any, to_line: Any,
            to_pixel: Any, channels: Any, shift: Any,
        ) -> Code:  # fmt: skip
            return signature(source, target, shift), generate

        @overload(formula)
        def on_shifted_tiles(source, at, line, pixel, target, to, to_line, to_pixel, channels, shift):  # type: ignore[no-untyped-def]
            return lambda source, at, line, pixel, target, to, to_line, to_pixel, channels, shift: run_shifted(
                source, at, line, pixel, target, to, to_line, to_pixel, channels, shift
            )
    else:

        @intrinsic
        def run(
            typing: Any, source: Any, at: Any, line: Any, pixel: Any, target: Any, to: Any, to_line: Any,
            to_pixel: Any, channels: Any,
        ) -> Code:  # fmt: skip
            return signature(source, target), generate

        @overload(formula)
        def on_tiles(source, at, line, pixel, target, to, to_line, to_pixel, channels):  # type: ignore[no-untyped-def]
            return lambda source, at, line, pixel, target, to, to_line, to_pixel, channels: run(
                source, at, line, pixel, target, to, to_line, to_pixel, channels
            )

    return formula


def over_lines(formula: Callable[..., Numbers]) -> Callable[..., Numbers]:
    """Make a formula work on lines of values in compiled functions.

    There `formula(sources, targets)` is given a tuple of arrays for what it reads, and one, as long, for what it gives.
    """

    @intrinsic
    def run(typing: Any, sources: Any, targets: Any) -> Code:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            lines = [
                [
                    context.make_array(kind)(context, builder, value=line)
                    for kind, line in zip(kinds, cgutils.unpack_tuple(builder, lines), strict=True)
                ]
                for kinds, lines in zip(signature.args, arguments, strict=True)
            ]
            (count,) = cgutils.unpack_tuple(builder, lines[1][0].shape)
            read, write = ([line.data for line in some] for some in lines)

            def vectors(i: Any, width: int) -> None:
                places = [vector_at(builder, line, i, width) for line in read]
                numbers = [_Number(builder, builder.load(place, align=4)) for place in places]
                for line, result in zip(write, formula(*numbers), strict=True):
                    builder.store(result.value, vector_at(builder, line, i, width), align=4)

            for_vectors(builder, count, vectors)
            return context.get_dummy_value()

        return types.void(sources, targets), generate

    @overload(formula)
    def on_lines(sources, targets):  # type: ignore[no-untyped-def]
        return lambda sources, targets: run(sources, targets)

    return formula


@register_jitable
def two(lines, first, step, low, high):  # type: ignore[no-untyped-def]
    """Two lines, of the values low <= i < high."""
    return lines[first, low:high], lines[first + step, low:high]


@register_jitable
def four(lines, first, step, low, high):  # type: ignore[no-untyped-def]
    return two(lines, first, step, low, high) + two(lines, first + 2 * step, step, low, high)


@register_jitable
def six(lines, first, step, low, high):  # type: ignore[no-untyped-def]
    return four(lines, first, step, low, high) + two(lines, first + 4 * step, step, low, high)


@over_tiles
def inputs_of_two(a: Any, b: Any, c: Any, d: Any) -> Numbers:
    """B^T: four inputs to four values."""
    return a - c, b + c, c - b, b - d


@over_tiles
def inputs_of_four(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Numbers:
    """B^T: six inputs to six values."""
    even, odd = e - 2.0 * c, SMALL * d - LARGE * b
    even_too, odd_too = e - 0.5 * c, LARGE * d - SMALL * b
    return a - 2.5 * c + e, even + odd, even - odd, even_too + odd_too, even_too - odd_too, b - 2.5 * d + f


@partial(over_tiles, shifted=True)
def outputs_of_two(w: Any, x: Any, y: Any, z: Any) -> Numbers:
    """A^T: four values to two outputs."""
    return w + x + y, x - y - z


@partial(over_tiles, shifted=True)
def outputs_of_four(u: Any, v: Any, w: Any, x: Any, y: Any, z: Any) -> Numbers:
    """A^T: six values to four outputs."""
    even, odd = v + w, SMALL * (v - w)
    even_too, odd_too = x + y, LARGE * (x - y)
    return u + even + even_too, odd + odd_too, 0.5 * even + 2.0 * even_too, 0.5 * odd + 2.0 * odd_too + z


@over_tiles
def errors_of_two(a: Any, b: Any) -> Numbers:
    """A: the gradients of two outputs to four values."""
    return a, a + b, a - b, -b


@over_tiles
def errors_of_four(a: Any, b: Any, c: Any, d: Any) -> Numbers:
    """A: the gradients of four outputs to six values."""
    even, odd = a + 0.5 * c, SMALL * (b + 0.5 * d)
    even_too, odd_too = a + 2.0 * c, LARGE * (b + 2.0 * d)
    return a, even + odd, even - odd, even_too + odd_too, even_too - odd_too, d


@over_lines
def gradients_of_two(before: Any, w: Any, x: Any, y: Any, z: Any, after: Any) -> Numbers:
    """B: four values, the last of the tile before and the first of the tile after to the gradients of two inputs."""
    return x - y + z - before, x + y - w + after


@over_lines
def gradients_of_four(before: Any, u: Any, v: Any, w: Any, x: Any, y: Any, z: Any, after: Any) -> Numbers:
    """B: six values, the last of the tile before and the first of the tile after to the gradients of four inputs."""
    even, odd, even_too, odd_too = v + w, v - w, x + y, x - y
    return (
        z - LARGE * odd - SMALL * odd_too + before,
        -(2.5 * u) - 2.0 * even - 0.5 * even_too,
        SMALL * odd + LARGE * odd_too - 2.5 * z,
        u + even + even_too + after,
    )


@over_tiles
def weights_of_two(a: Any, b: Any, c: Any) -> Numbers:
    """G: three weights to four values."""
    return a, 0.5 * (a + b + c), 0.5 * (a - b + c), c


@over_tiles
def weights_of_four(a: Any, b: Any, c: Any) -> Numbers:
    """G: three weights to six values."""
    even, odd = -2 / 3 * (a + 0.5 * c), -2 / 3 * SMALL * b
    even_too, odd_too = 1 / 6 * (a + 2.0 * c), LARGE / 6 * b
    return a, even + odd, even - odd, even_too + odd_too, even_too - odd_too, c


@over_tiles
def weight_gradients_of_two(w: Any, x: Any, y: Any, z: Any) -> Numbers:
    """G^T: four values to the gradients of three weights."""
    return w + 0.5 * (x + y), 0.5 * (x - y), z + 0.5 * (x + y)


@over_tiles
def weight_gradients_of_four(u: Any, v: Any, w: Any, x: Any, y: Any, z: Any) -> Numbers:
    """G^T: six values to the gradients of three weights."""
    even, odd = -2 / 3 * (v + w), -2 / 3 * (v - w)
    even_too, odd_too = 1 / 6 * (x + y), 1 / 6 * (x - y)
    return u + even + even_too, SMALL * odd + LARGE * odd_too, 0.5 * even + 2.0 * even_too + z
