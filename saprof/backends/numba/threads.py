"""Numba's threads: the OpenMP threads of torch, so that both libraries share one pool."""

from __future__ import annotations

import ctypes
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch


@contextmanager
def threads_set_to(count: int) -> Iterator[None]:
    """Let Numba's kernels use `count` threads inside the `with` block."""
    numba = _numba()
    with _exclusion():
        before = numba.get_num_threads()
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
        try:
            yield
        finally:
            numba.set_num_threads(before)


@cache
def _numba() -> Any:
    return import_module("numba")


_starting = threading.Lock()


def _exclusion() -> AbstractContextManager[Any]:
    """The context in which a Python thread runs a kernel: a lock if kernels may not run at the same time."""
    with _starting:
        return _start_threads()


@cache
def _start_threads() -> AbstractContextManager[Any]:
    """Start Numba's threads, and return the context in which kernels run.

    Numba's OpenMP layer finds the functions of the OpenMP library that torch has loaded, if their names are global, and
    then shares its threads. Threads of its own would compete for the cores with torch's threads, which wait for work in
    a busy loop; tests/benchmarks/test_pools.py shows it.
    """
    numba = _numba()
    if numba.config.THREADING_LAYER == "default":
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    for library in Path(torch.__file__).parent.glob("lib/lib*"):
        if library.name.startswith(("libgomp", "libiomp", "libomp")):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
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
    # Two Python threads inside the layer `workqueue` end the process.
    return threading.Lock() if layer == "workqueue" else nullcontext()
