"""How fast a GPU multiplies and adds when nothing else holds it up: the twin of `rates`.

    iterate    A thread has CHAINS values in registers, each of which waits for nothing but itself; with as many threads
               as the device holds, that is more than its latency asks for.

Like the other kernels, not yet timed on a GPU.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from kernels_numba.gpu.relations import THREADS

CHAINS = 4
"""Values of a thread."""


def iterate(values: Any, a: float, b: float, steps: int, stream: Any) -> None:
    """x ← a · x + b, so many times, in place; `values` is (CHAINS, threads)."""
    blocks = -(-values.shape[1] // THREADS)
    _iterate[blocks, THREADS, stream](values, values.dtype.type(a), values.dtype.type(b), steps)


@cuda.jit
def _iterate(values, a, b, steps):
    thread = cuda.grid(1)
    if thread >= values.shape[1]:
        return
    x0, x1, x2, x3 = values[0, thread], values[1, thread], values[2, thread], values[3, thread]
    for _ in range(steps):
        x0, x1, x2, x3 = cuda.fma(a, x0, b), cuda.fma(a, x1, b), cuda.fma(a, x2, b), cuda.fma(a, x3, b)
    values[0, thread], values[1, thread], values[2, thread], values[3, thread] = x0, x1, x2, x3
