"""Numba where it is installed; without it the kernels run as plain Python, slower, with the same result.

The kernels are written so that both give the same integers: no wrap-around, no unsigned arithmetic.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

try:
    if os.environ.get("BEING_VL_DISABLE_NUMBA"):
        raise ImportError("BEING_VL_DISABLE_NUMBA is set")
    import numba
    from llvmlite import ir
    from numba.extending import intrinsic

    HAS_NUMBA = True
except ImportError:
    HAS_NUMBA = False

if HAS_NUMBA:

    def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile without the GIL and keep the machine code on disk."""
        return numba.njit(function, nogil=True, cache=True)

    @intrinsic
    def prefetch(typing_context: Any, array: Any, index: Any) -> Any:
        """Ask for the cache line of array[index] (one-dimensional, contiguous); wrong indices are harmless."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
            pointer = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
            kind = ir.IntType(32)
            function_type = ir.FunctionType(ir.VoidType(), [pointer.type, kind, kind, kind])
            function = builder.module.declare_intrinsic(
                "llvm.prefetch", [pointer.type], function_type
            )
            builder.call(function, [pointer, kind(0), kind(3), kind(1)])
            return context.get_dummy_value()

        return numba.void(array, numba.int64), generate

else:

    def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def prefetch(array: Any, index: Any) -> None:
        pass
