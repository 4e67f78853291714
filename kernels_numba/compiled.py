"""Compilation for the CPU. Compiled kernels are kept on disk, and a second process loads them."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

SOURCE_STAMP = hashlib.sha256(
    b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py")))
).hexdigest()
"""A hash of all files in this folder.

Numba compiles a function again when the file that defines it has changed. Kernels inline functions of other files, so
Numba compares this hash instead.
"""


part = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Compiles a function that only kernels call.

It has no wrappers for Python, which would be most of LLVM's input. The cache on disk holds it as a part of its callers.
"""


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a kernel whose threads share the iterations of `prange`, and keep it on disk."""
    dispatcher: Any = njit(cache=True, nogil=True, error_model="numpy", parallel=True)(function)
    dispatcher._cache._cache_file._source_stamp = SOURCE_STAMP
    dispatcher._cache.load_overload = _load_or_warn(dispatcher._cache)
    return dispatcher


def or_empty(array: Any, axes: int, work: Any) -> Any:
    """The array, or an empty one with as many axes in place of None, so that a kernel has one signature."""
    return work.empty(*[0] * axes) if array is None else array


def _load_or_warn(cache: Any) -> Callable[..., Any]:
    """The cache's `load_overload`; for a damaged file it warns, and returns None as for a missing file."""
    load = cache.load_overload

    def load_overload(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except (pickle.UnpicklingError, EOFError) as error:
            message = f"a compiled kernel in {cache.cache_path} is damaged ({error}), and compiled again"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
            cache.flush()
            return None

    return load_overload
