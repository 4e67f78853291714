"""Whether Numba works here, as far as an import shows."""

from __future__ import annotations

import re
import threading
from functools import cache
from importlib import import_module, metadata

import kernels_numba

starting = threading.RLock()
"""Held while Numba or kernels are imported, while its threads start, and while their number is read or set."""


@cache
def why_not_imported(module: str) -> str | None:
    """The reason why this module of Numba cannot be used; None if it can."""
    wanted = f"expected Numba {kernels_numba.NUMBA} or later"
    try:
        with starting:
            import_module(module)
        found = import_module("numba").__version__
    except Exception as error:  # an installation that is damaged, or does not fit NumPy, raises anything
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{module} {_installed()}cannot be imported ({what}); {wanted}, with the packages that it needs"
    return f"Numba is {found}; {wanted}" if _numbers(found) < _numbers(kernels_numba.NUMBA) else None


def _installed() -> str:
    """The version that is installed, if any."""
    try:
        return f"{metadata.version('numba')} "
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
