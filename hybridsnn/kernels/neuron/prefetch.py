"""A hint to the processor: memory that will be needed soon."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hybridsnn.kernels.compilation import compiled

LINE = 64  # bytes that come together


@intrinsic
def _prefetch(typing: Any, values: Any, place: Any) -> tuple[Any, Callable[..., Any]]:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
        pointer = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch")
        builder.call(function, [pointer, ir.Constant(number, 0), ir.Constant(number, 2), ir.Constant(number, 1)])
        return context.get_dummy_value()

    return types.void(values, types.intp), generate


@compiled(nogil=True)
def prefetch(row):  # type: ignore[no-untyped-def]
    """Have a row brought to the cache."""
    for place in range(0, row.size, LINE // row.itemsize):
        _prefetch(row, place)
