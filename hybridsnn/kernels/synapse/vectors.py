"""Loops over vectors that a compiler does not find by itself, to be called from numba's compiled functions.

Arrays are one-dimensional, contiguous and float32 unless it is said otherwise; nothing checks their bounds.
Vectors are as wide as the work; the compiler cuts them into the registers of its CPU.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hybridsnn.kernels.compilation import compiled

WIDTHS = (16, 32, 64)  # sums at a time; with 64 the addition of a row need not wait for that of the last one
LINE = 16  # float32 in a line of the cache: a vector that crosses its edge takes twice as long
MASK = 64  # values that `active` looks at
TILE = 8  # rows and columns that `_transpose_tile` swaps

Code = tuple[Any, Callable[..., Any]]  # a signature, and what writes the instructions
INDEX = types.intp
FLOAT, INT, BIT = ir.FloatType(), ir.IntType(32), ir.IntType(1)


def vector_of(width: int) -> ir.VectorType:
    return ir.VectorType(FLOAT, width)


def operands_of(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> list[Any]:
    """The arguments, arrays as pointers to their first value."""
    return [
        context.make_array(kind)(context, builder, value=each).data if isinstance(kind, types.Array) else each
        for kind, each in zip(signature.args, arguments, strict=True)
    ]


def vector_at(builder: ir.IRBuilder, values: Any, place: Any, width: int) -> Any:
    """A pointer to `width` values from a place on."""
    return builder.bitcast(builder.gep(values, [place]), vector_of(width).as_pointer())


def _adding(width: int) -> Any:
    @intrinsic
    def add(
        typing: Any, sums: Any, at: Any, starts: Any, start: Any, rows: Any, origin: Any, step: Any, places: Any,
        values: Any, bounds: Any, first: Any, last: Any, stride: Any, lists: Any,
    ) -> Code:  # fmt: skip
        """`add_rows` of one width."""
        signature = types.void(
            sums, INDEX, starts, INDEX, rows, INDEX, INDEX, places, values, bounds, INDEX, INDEX, INDEX, INDEX
        )

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            operands = operands_of(context, builder, signature, arguments)
            sums, at, starts, start, rows, origin, step, places, values, bounds, first, last, stride, lists = operands
            vector, index = vector_of(width), at.type
            zero, one, undefined = ir.Constant(index, 0), ir.Constant(index, 1), ir.Constant(vector, ir.Undefined)
            to_all = ir.Constant(ir.VectorType(INT, width), None)
            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{width}f32"
            )
            rows = builder.bitcast(rows, vector.as_pointer())
            before = builder.load(vector_at(builder, starts, start, width), align=4)

            entry = builder.block
            outer, inner, after, done = (builder.append_basic_block(name) for name in ("list", "row", "after", "done"))
            builder.cbranch(builder.icmp_signed("<", zero, lists), outer, done)

            builder.position_at_end(outer)
            count, low, high, base = (builder.phi(index) for _ in range(4))
            of_lists = builder.phi(vector)
            begin, end = (builder.load(builder.gep(bounds, [each])) for each in (low, high))
            based = builder.gep(rows, [base])
            builder.cbranch(builder.icmp_signed("<", begin, end), inner, after)

            builder.position_at_end(inner)
            k, of_rows = builder.phi(index), builder.phi(vector)
            place = builder.sext(builder.load(builder.gep(places, [k])), index)
            value = builder.insert_element(undefined, builder.load(builder.gep(values, [k])), ir.Constant(INT, 0))
            more = builder.call(
                multiply_add,
                [
                    builder.load(builder.gep(based, [place]), align=4),
                    builder.shuffle_vector(value, undefined, to_all),
                    of_rows,
                ],
            )
            next_k = builder.add(k, one)
            builder.cbranch(builder.icmp_signed("<", next_k, end), inner, after)

            builder.position_at_end(after)
            so_far = builder.phi(vector)
            next_count = builder.add(count, one)
            nexts = next_count, builder.add(low, stride), builder.add(high, stride), builder.add(base, step)
            builder.cbranch(builder.icmp_signed("<", next_count, lists), outer, done)

            builder.position_at_end(done)
            result = builder.phi(vector)
            builder.store(result, vector_at(builder, sums, at, width), align=4)

            for phi, now, then in zip((count, low, high, base), (zero, first, last, origin), nexts, strict=True):
                phi.add_incoming(now, entry)
                phi.add_incoming(then, after)
            of_lists.add_incoming(before, entry)
            of_lists.add_incoming(so_far, after)
            k.add_incoming(begin, outer)
            k.add_incoming(next_k, inner)
            of_rows.add_incoming(of_lists, outer)
            of_rows.add_incoming(more, inner)
            so_far.add_incoming(of_lists, outer)
            so_far.add_incoming(more, inner)
            result.add_incoming(before, entry)
            result.add_incoming(so_far, after)
            return context.get_dummy_value()

        return signature, generate

    return add


_add_16, _add_32, _add_64 = (_adding(width) for width in WIDTHS)


@numba.njit(inline="always")
def add_rows(  # type: ignore[no-untyped-def]
    width, sums, at, starts, start, rows, origin, step, places, values, bounds, first, last, stride, lists
):
    """`width` sums of the rows that a few lists name, each times a value, one after the other; they stay in registers.

    List l, 0 <= l < lists, has the entries k from bounds[first + l * stride] to, excluded, bounds[last + l * stride].

        sums[at + i] = starts[start + i] + sum of values[k] * rows[(origin + l * step + places[k]) * width + i]

    Args:
        width: one of `WIDTHS`.
        sums, starts, rows, values: float32; `at` and `start` count values.
        places: int32.
        bounds: int64.
    """
    if width == 64:
        _add_64(sums, at, starts, start, rows, origin, step, places, values, bounds, first, last, stride, lists)
    elif width == 32:
        _add_32(sums, at, starts, start, rows, origin, step, places, values, bounds, first, last, stride, lists)
    else:
        _add_16(sums, at, starts, start, rows, origin, step, places, values, bounds, first, last, stride, lists)


def for_vectors(builder: ir.IRBuilder, count: Any, body: Callable[[Any, int], None]) -> None:
    """Write a loop over `count` places, `LINE` at a time, and one over those that are left."""
    zero, whole = ir.Constant(count.type, 0), builder.and_(count, ir.Constant(count.type, -LINE))
    for low, high, width in ((zero, whole, LINE), (whole, count, 1)):
        with cgutils.for_range_slice(builder, low, high, ir.Constant(count.type, width)) as (i, _):
            body(i, width)


@intrinsic
def copy(typing: Any, source: Any, at: Any, target: Any, to: Any, count: Any) -> Code:
    """target[to + i] = source[at + i] for 0 <= i < count; the two do not overlap."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        source, at, target, to, count = operands_of(context, builder, signature, arguments)

        def body(i: Any, width: int) -> None:
            values = builder.load(vector_at(builder, source, builder.add(at, i), width), align=4)
            builder.store(values, vector_at(builder, target, builder.add(to, i), width), align=4)

        for_vectors(builder, count, body)
        return context.get_dummy_value()

    return types.void(source, INDEX, target, INDEX, INDEX), generate


@intrinsic
def clear(typing: Any, target: Any, to: Any, count: Any) -> Code:
    """target[to + i] = 0 for 0 <= i < count."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        target, to, count = operands_of(context, builder, signature, arguments)

        def body(i: Any, width: int) -> None:
            zeros = ir.Constant(vector_of(width), None)
            builder.store(zeros, vector_at(builder, target, builder.add(to, i), width), align=4)

        for_vectors(builder, count, body)
        return context.get_dummy_value()

    return types.void(target, INDEX, INDEX), generate


@intrinsic
def active(typing: Any, values: Any, at: Any) -> Code:
    """Which of the `MASK` values from `at` on are not 0, as the bits of an unsigned integer, the first one lowest."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        values, at = operands_of(context, builder, signature, arguments)
        vector = builder.load(vector_at(builder, values, at, MASK), align=4)
        flags = builder.fcmp_unordered("!=", vector, ir.Constant(vector_of(MASK), None))
        return builder.bitcast(flags, ir.IntType(MASK))

    return types.uint64(values, INDEX), generate


@intrinsic
def lowest(typing: Any, mask: Any) -> Code:
    """The place of the lowest bit of a mask that is not 0."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(BIT, 1))

    return types.intp(types.uint64), generate


@intrinsic
def bits(typing: Any, mask: Any) -> Code:
    """How many bits of a mask are set."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.intp(types.uint64), generate


@intrinsic
def _transpose_tile(typing: Any, source: Any, at: Any, stride: Any, target: Any, to: Any, to_stride: Any) -> Code:
    """`transpose` of `TILE` rows and columns."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        source, at, stride, target, to, to_stride = operands_of(context, builder, signature, arguments)
        index = at.type

        def line(values: Any, start: Any, step: Any, number: int) -> Any:
            place = builder.add(start, builder.mul(step, ir.Constant(index, number)))
            return vector_at(builder, values, place, TILE)

        lines = [builder.load(line(source, at, stride, number), align=4) for number in range(TILE)]
        half = TILE // 2
        # Interleaving the first half of all values with the second turns the bits of a value's place (3 for the row,
        # 3 for the column) round by one; after three times rows are columns.
        for _ in range(TILE.bit_length() - 1):
            lines = [
                builder.shuffle_vector(
                    lines[number // 2],
                    lines[number // 2 + half],
                    ir.Constant(
                        ir.VectorType(INT, TILE),
                        [number % 2 * half + place // 2 + place % 2 * TILE for place in range(TILE)],
                    ),
                )
                for number in range(TILE)
            ]
        for number, each in enumerate(lines):
            builder.store(each, line(target, to, to_stride, number), align=4)
        return context.get_dummy_value()

    return types.void(source, INDEX, INDEX, target, INDEX, INDEX), generate


@compiled(nogil=True, error_model="numpy")
def transpose(source, at, stride, target, to, to_stride, rows, columns):  # type: ignore[no-untyped-def]
    """target[to + i * to_stride + j] = source[at + j * stride + i] for 0 <= i < rows and 0 <= j < columns."""
    whole_rows, whole_columns = rows // TILE * TILE, columns // TILE * TILE
    for j in range(0, whole_columns, TILE):  # along the lines of the source, which memory is faster with
        for i in range(0, whole_rows, TILE):
            _transpose_tile(source, at + j * stride + i, stride, target, to + i * to_stride + j, to_stride)
    for i in range(rows):
        for j in range(whole_columns if i < whole_rows else 0, columns):
            target[to + i * to_stride + j] = source[at + j * stride + i]
