"""Compilation of a kernel as a whole: only the whole is optimised and translated for the processor.

By itself, Numba optimises and translates every part of a kernel, although the kernel holds them all. The results of a
kernel are the same in every bit. Translating each part as well took a third of the time, and optimising it a quarter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target

KNOWN = ((0, 68),)
"""The versions of Numba whose internals are as this package assumes. Others compile in their own way."""


def is_known() -> bool:
    """Whether this Numba is one of them."""
    return numba.version_info.short in KNOWN


@contextmanager
def as_a_whole(kernel: str) -> Iterator[None]:
    """Compile the kernel of this name, and all that it calls, as a whole. The caller holds Numba's lock."""
    if not is_known():
        yield
        return
    codegen = cpu_target.target_context.codegen()
    set_env, waiting = codegen.set_env, []

    def library(codegen: Any, name: str) -> JITCodeLibrary:
        return (JITCodeLibrary if name == kernel else _Draft)(codegen, name)

    library._unserialize = JITCodeLibrary._unserialize
    codegen._library_class = library
    codegen.set_env = lambda *name_and_environment: waiting.append(name_and_environment)
    try:
        yield
    finally:
        del codegen._library_class, codegen.set_env
        for name, environment in waiting:
            if codegen._engine.is_symbol_defined(name):
                set_env(name, environment)


class _Draft(JITCodeLibrary):
    """The code of a function for its callers. It is not optimised or translated, so the function has no address."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True
