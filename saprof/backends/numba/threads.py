"""Numba's threads: the OpenMP threads of torch, so that both libraries share one pool.

A forked child has one thread, but GNU OpenMP in the child waits for all threads of the parent's pool. So the pool is
released before a fork, and parent and child start their own threads when they need some. A lock that another thread
holds would stay locked in the child, so a fork waits until the lock is free.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from saprof.backends.numba.installed import starting, why_not_imported

_one_by_one = threading.RLock()
"""Held while a kernel runs, if Numba's threading layer allows only one Python thread to run kernels."""


@contextmanager
def threads_set_to(count: int) -> Iterator[None]:
    """Let Numba's kernels use `count` threads inside the `with` block.

    Raises RuntimeError in a process that was forked before OpenMP's threads could be released.
    """
    with _exclusion():
        before = _set_threads(count)
        try:
            yield
        finally:
            if before != count:
                _set_threads(before)


@cache
def why_no_threads() -> str | None:
    """The reason why Numba cannot run kernels on a CPU here; None if it can. The first call starts its threads."""
    if reason := why_not_imported("numba"):
        return reason
    config = import_module("numba").config
    if config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set, so Numba compiles nothing; unset it"
    try:
        with starting:
            _start_threads()
    except (ImportError, OSError, ValueError) as error:
        what = " ".join(str(error).split())
        layer = f"NUMBA_THREADING_LAYER is {config.THREADING_LAYER!r}; expected 'omp', 'workqueue' or 'default'"
        return f"Numba's threads do not start ({what}); {layer}"
    return None


def _set_threads(count: int) -> int:
    """Set the number of threads that kernels of this Python thread use, and return the number before."""
    numba = sys.modules["numba"]
    with starting:
        before = numba.get_num_threads()
        if before != count:
            numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    return before


def _exclusion() -> AbstractContextManager[Any]:
    """The context in which a Python thread runs a kernel: a lock if kernels may not run at the same time."""
    with starting:
        layer = _start_threads()
    if layer == "omp" and _pool_of != os.getpid():
        raise RuntimeError(
            "this process was forked after a Numba kernel had started OpenMP's threads, which it does not have; "
            "expected the start method 'spawn' or 'forkserver': multiprocessing.get_context('spawn'), or "
            "multiprocessing_context='spawn' of a DataLoader"
        )
    # Two Python threads inside the layer `workqueue` end the process.
    return _one_by_one if layer == "workqueue" else nullcontext()


@cache
def _start_threads() -> str:
    """Start Numba's threads, and return the name of their layer.

    Numba's OpenMP layer finds the functions of the OpenMP library that torch has loaded, if their names are global, and
    then shares its threads. Threads of its own would compete for the cores with torch's threads, which wait for work in
    a busy loop; tests/benchmarks/test_pools.py shows it.
    """
    global _pool_of
    numba = import_module("numba")
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    _openmp()
    threads = torch.get_num_threads()
    numba.get_num_threads()  # starts the threads, and sets OpenMP, and therefore torch, to use all cores
    torch.set_num_threads(threads)
    layer = numba.threading_layer()
    if layer != "omp" and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
        warnings.warn(
            f"Numba's kernels run in threads of its layer {layer!r}, beside the OpenMP threads of torch, which keep "
            "cores busy while they wait: the kernels may be several times slower. Install OpenMP where Numba finds it "
            "(libgomp1 on Debian), or set OMP_WAIT_POLICY=passive before Python starts",
            RuntimeWarning,
            stacklevel=2,
        )
    _pool_of = os.getpid()
    return layer


@cache
def _openmp() -> ctypes.CDLL:
    """Make the names of torch's OpenMP library global, and return all global names."""
    for library in Path(torch.__file__).parent.glob("lib/lib*"):
        if library.name.startswith(("libgomp", "libiomp", "libomp")):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(None)


_pool_of = os.getpid()
"""The number of the process in which OpenMP can start threads."""
_released = False
"""Whether OpenMP's threads were released before the current fork."""
_held = ExitStack()
"""The locks that are held during a fork."""


def _before_fork() -> None:
    global _released
    compiling = getattr(sys.modules.get("numba.core.compiler_lock"), "global_compiler_lock", nullcontext())
    for lock in (_one_by_one, compiling, starting):  # in the order in which a kernel takes them
        _held.enter_context(lock)
    _released = _pool_of == os.getpid() and _release_pool()


def _release_pool() -> bool:
    """End the OpenMP threads of this Python thread, and return whether a child can start its own."""
    if hasattr(_openmp(), "__kmpc_fork_call"):  # the OpenMP of LLVM or Intel, which starts anew in a child
        return True
    pause = getattr(_openmp(), "omp_pause_resource_all", None)
    omp_pause_hard = 2
    return pause is not None and pause(omp_pause_hard) == 0


def _after_in_child() -> None:
    global _pool_of, _released
    _held.pop_all().close()
    if _released:
        _pool_of = os.getpid()
        if omp := sys.modules.get("numba.np.ufunc.omppool"):
            # a call with 0 threads only stores the number of this process in the layer
            ctypes.CFUNCTYPE(None, ctypes.c_int)(omp.launch_threads)(0)
    _released = False


os.register_at_fork(
    before=_before_fork, after_in_parent=lambda: _held.pop_all().close(), after_in_child=_after_in_child
)
