"""The rate of multiply-adds of a GPU when nothing else limits it. Twin of kernels_numba/cpu/rates.py.

    iterate    A thread has CHAINS values in registers, and each depends only on itself. With as many threads as the
               device runs at once, these are more independent operations than its latency needs.
    unrolled   The loop is written out UNROLLED times, and counts in 32 bits: it counts once per CHAINS · UNROLLED
               FMAs. A loop that LLVM unrolled took 37 instructions per 16 FMAs.

Not yet timed on a GPU, like the other kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from kernels_numba.gpu.launch import THREADS, device

CHAINS = 4
"""A thread has this many values."""
UNROLLED = 64
"""A round of the loop has this many steps."""


def iterate(values: Any, a: float, b: float, steps: int, stream: Any) -> None:
    """x ← a · x + b, in place, `steps` times; `values` is (CHAINS, threads)."""
    blocks = -(-values.shape[1] // THREADS)
    _iterate[blocks, THREADS, stream](
        values, values.dtype.type(a), values.dtype.type(b), *map(np.int32, divmod(steps, UNROLLED))
    )


@device
def _four_steps(a, x, b):
    return cuda.fma(a, cuda.fma(a, cuda.fma(a, cuda.fma(a, x, b), b), b), b)


@device
def _sixteen_steps(a, x, b):
    return _four_steps(a, _four_steps(a, _four_steps(a, _four_steps(a, x, b), b), b), b)


@device
def _round(a, x, b):
    return _sixteen_steps(a, _sixteen_steps(a, _sixteen_steps(a, _sixteen_steps(a, x, b), b), b), b)


@cuda.jit
def _iterate(values, a, b, rounds, steps):
    thread = cuda.grid(1)
    if thread >= values.shape[1]:
        return
    x0, x1, x2, x3 = values[0, thread], values[1, thread], values[2, thread], values[3, thread]
    for _ in range(rounds):
        x0, x1, x2, x3 = _round(a, x0, b), _round(a, x1, b), _round(a, x2, b), _round(a, x3, b)
    for _ in range(steps):
        x0, x1, x2, x3 = cuda.fma(a, x0, b), cuda.fma(a, x1, b), cuda.fma(a, x2, b), cuda.fma(a, x3, b)
    values[0, thread], values[1, thread], values[2, thread], values[3, thread] = x0, x1, x2, x3
