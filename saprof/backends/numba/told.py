"""The message about a kernel that Numba compiles: the operator that needs it, its dtype, and where it is kept."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from saprof.compiling import compiling

_here = threading.local()


@contextmanager
def wanted_by(operator: str) -> Iterator[None]:
    """Kernels that this thread compiles inside the `with` block are named after the operator."""
    _here.operator = operator
    try:
        yield
    finally:
        _here.operator = None


def operator_here() -> str | None:
    """The operator that this thread compiles kernels for, if it is known."""
    return getattr(_here, "operator", None)


def tell_of(kernel: str, dtype: str, folder: str | None) -> AbstractContextManager[object]:
    """The context in which a kernel is compiled, as `kernels_numba.announce`."""
    name = operator_here() or kernel
    return compiling(f"{name} for {dtype}" if dtype else name, where_kept(folder))


def where_kept(folder: str | None) -> str:
    """The words about the folder where compiled kernels are kept, or about none."""
    if folder is None:
        return "in every process again; set NUMBA_CACHE_DIR to a folder that can be written to"
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen and Path(folder).is_relative_to(chosen):
        return f"once; kept in {chosen} (NUMBA_CACHE_DIR)"
    return f"once; kept in {folder}"
