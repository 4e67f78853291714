"""Compilation for the CPU, kept on disk: a second process finds the machine code of the first."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

# Numba recompiles a function when the file it is in changes. Kernels inline functions of other files of this folder, so
# the stamp that it compares covers them all.
SOURCE_STAMP = hashlib.sha256(
    b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py")))
).hexdigest()


part = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Compiles a function that only kernels call: without wrappers for Python, which are most of what LLVM would be given.
It is kept as part of its callers."""


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a kernel that shares the iterations of `prange` among threads, and keep it on disk."""
    dispatcher: Any = njit(cache=True, nogil=True, error_model="numpy", parallel=True)(function)
    dispatcher._cache._cache_file._source_stamp = SOURCE_STAMP
    dispatcher._cache.load_overload = _mending(dispatcher._cache)
    return dispatcher


def _mending(cache: Any) -> Callable[..., Any]:
    """The cache's `load_overload`, for which a damaged file is one that is not there."""
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
