"""Products of matrices in a fixed order of sums, which no library promises: a result depends on no other row or column.

    sums[i, j] = starts[i, j] + left[i, 0] * right[0, j] + left[i, 1] * right[1, j] + ...

one fused multiply-add after the other, so that a row has the same bits whatever rows are multiplied with it, however
many there are, and on whatever thread. `event_driven` adds in the same order and leaves out what is 0.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hybridsnn.kernels.compilation import compiled
from hybridsnn.kernels.synapse.vectors import INDEX, INT, LINE, WIDTHS, Code, operands_of, vector_at, vector_of

_LANES = 16 if get_host_cpu_features().get("avx512f", False) else 8  # of a register
REGISTERS = 24 if _LANES == 16 else 12  # for sums; the others hold two factors
STRIPS = {width: min(12, REGISTERS * _LANES // width) if _LANES == 16 else 6 for width in WIDTHS}  # rows at a time


def _multiplying(height: int, width: int) -> Any:
    @intrinsic
    def multiply(
        typing: Any, sums: Any, at: Any, sum_step: Any, starts: Any, start: Any, start_step: Any,
        left: Any, left_at: Any, left_row: Any, left_step: Any, right: Any, right_at: Any, right_step: Any, count: Any,
    ) -> Code:  # fmt: skip
        """`multiply_add` of one height and width."""
        signature = types.void(
            sums, INDEX, INDEX, starts, INDEX, INDEX, left, INDEX, INDEX, INDEX, right, INDEX, INDEX, INDEX
        )

        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            operands = operands_of(context, builder, signature, arguments)
            at, sum_step, start, start_step, left_at, left_row, left_step, right_at, right_step, count = (
                operands[place] for place in (1, 2, 4, 5, 7, 8, 9, 11, 12, 13)
            )
            sums, starts, left, right = (operands[place] for place in (0, 3, 6, 10))
            index = at.type
            zero, one = ir.Constant(index, 0), ir.Constant(index, 1)
            lanes = min(_LANES, width)
            together = min(width, lanes * (REGISTERS // height))
            vector, undefined = vector_of(lanes), ir.Constant(vector_of(lanes), ir.Undefined)
            to_all = ir.Constant(ir.VectorType(INT, lanes), None)
            multiply_add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f32"
            )

            def places(first: Any, step: Any, offset: int) -> list[list[Any]]:
                """Of the vectors of each row."""
                rows = [builder.add(first, builder.mul(step, ir.Constant(index, row))) for row in range(height)]
                return [
                    [builder.add(row, ir.Constant(index, offset + lane)) for lane in range(0, together, lanes)]
                    for row in rows
                ]

            lines = [
                builder.gep(left, [builder.add(left_at, builder.mul(left_row, ir.Constant(index, row)))])
                for row in range(height)
            ]
            for offset in range(0, width, together):
                before = [
                    [builder.load(vector_at(builder, starts, place, lanes), align=4) for place in row]
                    for row in places(start, start_step, offset)
                ]
                first = builder.gep(right, [builder.add(right_at, ir.Constant(index, offset))])
                entry = builder.block
                loop, done = builder.append_basic_block("step"), builder.append_basic_block("done")
                builder.cbranch(builder.icmp_signed("<", zero, count), loop, done)

                builder.position_at_end(loop)
                k, place, row_of_right = builder.phi(index), builder.phi(index), builder.phi(first.type)
                so_far = [[builder.phi(vector) for _ in row] for row in before]
                factors = [
                    builder.load(vector_at(builder, row_of_right, ir.Constant(index, lane), lanes), align=4)
                    for lane in range(0, together, lanes)
                ]
                more = []
                for line, row in zip(lines, so_far, strict=True):
                    value = builder.insert_element(
                        undefined, builder.load(builder.gep(line, [place])), ir.Constant(INT, 0)
                    )
                    value = builder.shuffle_vector(value, undefined, to_all)
                    more.append([builder.call(multiply_add, [value, *pair]) for pair in zip(factors, row, strict=True)])
                nexts = builder.add(k, one), builder.add(place, left_step), builder.gep(row_of_right, [right_step])
                builder.cbranch(builder.icmp_signed("<", nexts[0], count), loop, done)

                builder.position_at_end(done)
                for phi, now, then in zip((k, place, row_of_right), (zero, zero, first), nexts, strict=True):
                    phi.add_incoming(now, entry)
                    phi.add_incoming(then, loop)
                results = []
                for row, row_before, row_after in zip(so_far, before, more, strict=True):
                    for phi, now, then in zip(row, row_before, row_after, strict=True):
                        results.append(builder.phi(vector))
                        for each in (phi, results[-1]):
                            each.add_incoming(now, entry)
                            each.add_incoming(then, loop)
                flat = [place for row in places(at, sum_step, offset) for place in row]
                for result, place in zip(results, flat, strict=True):
                    builder.store(result, vector_at(builder, sums, place, lanes), align=4)
            return context.get_dummy_value()

        return signature, generate

    return multiply


_strip_16, _strip_32, _strip_64 = (_multiplying(STRIPS[width], width) for width in WIDTHS)
_row_16, _row_32, _row_64 = (_multiplying(1, width) for width in WIDTHS)
HEIGHT_16, HEIGHT_32, HEIGHT_64 = (STRIPS[width] for width in WIDTHS)


@compiled(nogil=True, error_model="numpy")
def multiply_add(  # type: ignore[no-untyped-def]
    rows, width, sums, at, sum_step, starts, start, start_step,
    left, left_at, left_row, left_step, right, right_at, right_step, count,
):  # fmt: skip
    """`width` columns of a product of matrices that lie anyhow in arrays of one dimension.

        sums[at + i * sum_step + j] = starts[start + i * start_step + j]
            + sum of left[left_at + i * left_row + k * left_step] * right[right_at + k * right_step + j]

    for 0 <= i < rows, 0 <= j < width and 0 <= k < count.

    Args:
        width: one of `WIDTHS`.
    """
    i = 0
    if width == 64:
        while i + HEIGHT_64 <= rows:
            _strip_64(
                sums, at + i * sum_step, sum_step, starts, start + i * start_step, start_step,
                left, left_at + i * left_row, left_row, left_step, right, right_at, right_step, count,
            )  # fmt: skip
            i += HEIGHT_64
    elif width == 32:
        while i + HEIGHT_32 <= rows:
            _strip_32(
                sums, at + i * sum_step, sum_step, starts, start + i * start_step, start_step,
                left, left_at + i * left_row, left_row, left_step, right, right_at, right_step, count,
            )  # fmt: skip
            i += HEIGHT_32
    else:
        while i + HEIGHT_16 <= rows:
            _strip_16(
                sums, at + i * sum_step, sum_step, starts, start + i * start_step, start_step,
                left, left_at + i * left_row, left_row, left_step, right, right_at, right_step, count,
            )  # fmt: skip
            i += HEIGHT_16
    while i < rows:
        if width == 64:
            _row_64(
                sums, at + i * sum_step, sum_step, starts, start + i * start_step, start_step,
                left, left_at + i * left_row, left_row, left_step, right, right_at, right_step, count,
            )  # fmt: skip
        elif width == 32:
            _row_32(
                sums, at + i * sum_step, sum_step, starts, start + i * start_step, start_step,
                left, left_at + i * left_row, left_row, left_step, right, right_at, right_step, count,
            )  # fmt: skip
        else:
            _row_16(
                sums, at + i * sum_step, sum_step, starts, start + i * start_step, start_step,
                left, left_at + i * left_row, left_row, left_step, right, right_at, right_step, count,
            )  # fmt: skip
        i += 1


@compiled(nogil=True)
def room(size):  # type: ignore[no-untyped-def]
    """Room for so many float32, at the start of a line of the cache."""
    memory = np.empty(size + LINE, np.float32)
    first = -(memory.ctypes.data // 4) % LINE
    return memory[first : first + size]
