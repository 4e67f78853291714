"""Compilation for the CPU. Compiled kernels are kept on disk, and a second process loads them.

If a kernel cannot be read or written there, the process compiles it for itself, and warns once.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core.types import unliteral

import kernels_numba
from kernels_numba.threaded import threaded
from kernels_numba.whole import as_a_whole, is_known

SOURCE_STAMP = hashlib.sha256(
    b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py")))
).hexdigest()
"""A hash of all files in this folder.

Numba compiles a function again when the file that defines it has changed. Kernels inline functions of other files, so
Numba compares this hash instead.
"""


def part(function: Callable[..., Any]) -> Any:
    """Compile a function that only kernels call.

    It has no wrappers for Python, which would be most of LLVM's input, and is not compiled again for an argument that
    is a constant. The cache on disk holds it as a part of its callers.
    """
    dispatcher = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    template = dispatcher.get_call_template
    dispatcher.get_call_template = lambda types, named: template(
        tuple(map(unliteral, types)), {name: unliteral(kind) for name, kind in named.items()}
    )
    return dispatcher


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a kernel, and keep it on disk. Threads run it, each for a part of the numbers below its first argument,
    which `function` takes as a range."""
    pool = is_known()
    kernel = threaded(function, part, pool=pool)
    return announced(
        kept_on_disk(njit(nogil=True, error_model="numpy", no_cfunc_wrapper=pool, parallel=not pool)(kernel))
    )


def announced(dispatcher: Any) -> Any:
    """The same dispatcher. From now on it compiles in the contexts `kernels_numba.announce` and `as_a_whole`.

    A kernel that is in memory or on disk is not announced. Numba looks on disk inside `compile`, so the contexts begin
    only after Numba has found nothing there.
    """
    compile_, load, here = dispatcher.compile, dispatcher._cache.load_overload, threading.local()

    def compile(signature: Any) -> Any:
        with ExitStack() as here.stack:
            return compile_(signature)

    def load_overload(signature: Any, *arguments: Any) -> Any:
        found = load(signature, *arguments)
        if found is None and kernels_numba.announce:
            here.stack.enter_context(kernels_numba.announce(*_described(dispatcher, signature)))
        if found is None:
            here.stack.enter_context(as_a_whole(dispatcher.py_func.__qualname__))
        return found

    dispatcher.compile, dispatcher._cache.load_overload = compile, load_overload
    return dispatcher


def _described(dispatcher: Any, signature: Any) -> tuple[str, str, str | None]:
    """The name of a kernel with its family, the dtype of its numbers, and the folder where it is kept."""
    function, dtype = dispatcher.py_func, re.search(r"array\((float\d+)", str(signature))
    family = function.__module__.rpartition(".")[2] if function.__name__.startswith("_") else ""
    folder = dispatcher._cache.cache_path
    return f"{family}{function.__name__}", dtype[1] if dtype else "", folder and str(folder)


def kept_on_disk(dispatcher: Any) -> Any:
    """The same dispatcher. From now on it stores compiled kernels on disk, if a folder can be written to."""
    try:
        dispatcher.enable_caching()
    except RuntimeError as error:
        folder = Path(dispatcher.py_func.__code__.co_filename).parent / "__pycache__"
        _warn_once(
            "find",
            f"compiled kernels are not kept on disk ({error}), and every process compiles them again; make {folder} "
            "writable, or set NUMBA_CACHE_DIR to a folder that can be written to",
        )
        return dispatcher
    cache, chosen = dispatcher._cache, numba.config.CACHE_DIR
    if chosen and not Path(cache.cache_path).is_relative_to(chosen):
        _warn_once(
            "choose",
            f"NUMBA_CACHE_DIR is {chosen}, which cannot be written to; compiled kernels are kept in {cache.cache_path}",
        )
    cache._cache_file._source_stamp = SOURCE_STAMP
    cache._cache_file = _Sealed(cache._cache_file)
    cache.load_overload = _load_or_warn(cache)
    cache.save_overload = _save_or_warn(cache)
    return dispatcher


def or_empty(array: Any, axes: int, work: Any) -> Any:
    """The array, or an empty one with as many axes in place of None, so that a kernel has one signature."""
    return work.nothing(axes) if array is None else array


class _Sealed:
    """A cache of Numba in which each entry has a checksum of its code and of what it was compiled from and for.

    Numba writes the index of a cache before the code. If the disk is full, or two processes write at the same time, the
    index may refer to code of another signature, processor or version.
    """

    def __init__(self, entries: Any) -> None:
        self.entries = entries

    def load(self, key: Any) -> Any:
        found = self.entries.load(key)
        if found is None:
            return None
        checksum, code = found
        if checksum != _checksum(key, code):
            raise ValueError("its checksum is wrong")
        return pickle.loads(code)

    def save(self, key: Any, data: Any) -> None:
        code = self.entries._dump(data)
        self.entries.save(key, (_checksum(key, code), code))

    def flush(self) -> None:
        self.entries.flush()


def _checksum(key: Any, code: bytes) -> str:
    return hashlib.sha256(repr((numba.__version__, SOURCE_STAMP, key)).encode() + code).hexdigest()


def _load_or_warn(cache: Any) -> Callable[..., Any]:
    """The cache's `load_overload`; for a damaged file it warns, and returns None as for a missing file."""
    load = cache.load_overload

    def load_overload(*arguments: Any) -> Any:
        try:
            return load(*arguments)
        except Exception as error:  # pickle can raise any exception for damaged bytes
            where = f"a compiled kernel in {cache.cache_path}"
            _warn_once("load", f"{where} is damaged or cannot be read ({error}); it is compiled again")
            with suppress(OSError):
                cache.flush()  # a damaged index takes no further entry
            return None

    return load_overload


def _save_or_warn(cache: Any) -> Callable[..., None]:
    """The cache's `save_overload`; it warns if it cannot write a file, for example because the disk is full."""
    save = cache.save_overload

    def save_overload(*arguments: Any) -> None:
        try:
            save(*arguments)
        except Exception as error:  # the kernel is compiled, and runs
            _warn_once(
                "save",
                f"compiled kernels cannot be written to {cache.cache_path} ({error}), and every process compiles them "
                "again; set NUMBA_CACHE_DIR to a folder that can be written to and has room",
            )

    return save_overload


_warned: set[str] = set()


def _warn_once(what: str, message: str) -> None:
    """Warn, unless this process has already warned about `what`: one problem affects every kernel."""
    if what not in _warned:
        _warned.add(what)
        warnings.warn(message, RuntimeWarning, stacklevel=4)
