"""Numba where it is installed; without it the same functions run as plain Python, slower, with the same result.

The one place of the package that imports numba. Kernels that must give the same without it keep to integers
that do not wrap; those that hash with wrapping 64-bit arithmetic (`codec.encode`) have a plain twin instead.
"""

import functools
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

try:  # inside try: transformers demands what a checkpoint's module imports outside of one
    if os.environ.get("BEING_VL_DISABLE_NUMBA"):
        raise ImportError("BEING_VL_DISABLE_NUMBA is set")
    import numba
    from llvmlite import ir
    from numba.extending import intrinsic

    # NUMBA_DISABLE_JIT=1: decorators that do nothing
    HAS_NUMBA = not numba.config.DISABLE_JIT  # type: ignore[attr-defined]
except ImportError:
    HAS_NUMBA = False

_logger = logging.getLogger(__name__)
_notice = "compiling the image BPE kernels, once on this machine"

if HAS_NUMBA:

    def _version_of_sources() -> str:
        """Changes with any file of this room: a kernel's machine code holds those that it calls."""
        files = sorted(Path(__file__).parent.rglob("*.py"))
        stats = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
        return hashlib.sha256(repr(stats).encode()).hexdigest()

    _VERSION = _version_of_sources()
    # numba compiles entries for C and for Python with every function; leaving out those that nobody takes, and letting
    # only what Python calls have a file of its own, saves a tenth of the time to compile
    _NOT_FROM_C: dict[str, Any] = {"no_cfunc_wrapper": True}
    _ONLY_FROM_KERNELS: dict[str, Any] = {**_NOT_FROM_C, "no_cpython_wrapper": True}
    _warn_once = functools.cache(_logger.warning)

    def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile without the GIL and keep the machine code on disk."""
        try:
            compiled = numba.njit(function, nogil=True, cache=True, **_NOT_FROM_C)
        except RuntimeError:  # no folder here is writable
            global _notice
            _notice = (
                "compiling the image BPE kernels, in every process: neither the package's folder nor the user's "
                "cache is writable; set NUMBA_CACHE_DIR to a folder that is"
            )
            return numba.njit(function, nogil=True, **_NOT_FROM_C)
        cache = compiled._cache  # type: ignore[attr-defined]
        save = cache.save_overload

        def save_if_it_fits(*compilation: Any) -> None:
            try:
                save(*compilation)
            except OSError as error:
                # Such as a full disk; the compiled kernel is used all the same.
                _warn_once(f"{cache.cache_path}: compiled kernels are not kept: {error.strerror}")

        cache.save_overload = save_if_it_fits
        # numba asks for the age of the function's own file alone, and so would run stale callees
        cache._cache_file._version = f"{cache._cache_file._version} {_VERSION}"
        return compiled

    def inner(function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile for kernels to call; Python cannot."""
        return numba.njit(function, nogil=True, **_ONLY_FROM_KERNELS)

    def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile as a part of the kernels that call it: a call with a dozen arrays costs more than its work."""
        return numba.njit(function, nogil=True, forceinline=True, **_ONLY_FROM_KERNELS)

    @inlined
    def unsigned(index: Any) -> Any:
        """An index that is not negative: numba then does not look whether it counts from the end."""
        return np.uint64(index)

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

    inner = inlined = kernel

    def unsigned(index: Any) -> Any:
        return index

    def prefetch(array: Any, index: Any) -> None:  # type: ignore[misc]
        pass


@contextmanager
def explain_compilation(compiled: Any) -> Iterator[None]:
    """Say so when the first call of a kernel makes the caller wait."""
    if not HAS_NUMBA or compiled.signatures:
        yield
        return
    notice = threading.Timer(2.0, _logger.warning, [_notice])
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()
