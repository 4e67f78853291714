"""The rate of FMAs that a CPU reaches without memory accesses: a roof of a roofline.

iterate    Each thread holds CHAINS vectors in registers, and each FMA depends only on the one before in its vector. The
           number of vectors suffices for two FMAs per cycle, of four cycles each, and leaves registers for a and b. The
           compiler cannot omit x ← a · x + b, and the values converge, so that nothing overflows.
"""

from __future__ import annotations

from typing import Any

from kernels_numba.compiled import compiled
from kernels_numba.cpu.simd import BYTES, broadcast, fma, lanes, load, store

__all__ = ["BYTES", "CHAINS", "iterate"]

CHAINS = 12
"""Vectors of a thread in `iterate`."""


@compiled
def iterate(numbers: Any, values: Any, a: float, b: float, steps: int) -> None:
    """x ← a · x + b, `steps` times, in place; each thread computes a row of `values`, which has CHAINS vectors."""
    for row in numbers:
        n = lanes(values)
        at = row * values.shape[1]
        factor, offset = broadcast(values, a), broadcast(values, b)
        x0, x1, x2 = load(values, at), load(values, at + n), load(values, at + 2 * n)
        x3, x4, x5 = load(values, at + 3 * n), load(values, at + 4 * n), load(values, at + 5 * n)
        x6, x7, x8 = load(values, at + 6 * n), load(values, at + 7 * n), load(values, at + 8 * n)
        x9, x10, x11 = load(values, at + 9 * n), load(values, at + 10 * n), load(values, at + 11 * n)
        for _ in range(steps):
            x0, x1, x2 = fma(factor, x0, offset), fma(factor, x1, offset), fma(factor, x2, offset)
            x3, x4, x5 = fma(factor, x3, offset), fma(factor, x4, offset), fma(factor, x5, offset)
            x6, x7, x8 = fma(factor, x6, offset), fma(factor, x7, offset), fma(factor, x8, offset)
            x9, x10, x11 = fma(factor, x9, offset), fma(factor, x10, offset), fma(factor, x11, offset)
        store(values, at, x0), store(values, at + n, x1), store(values, at + 2 * n, x2)
        store(values, at + 3 * n, x3), store(values, at + 4 * n, x4), store(values, at + 5 * n, x5)
        store(values, at + 6 * n, x6), store(values, at + 7 * n, x7), store(values, at + 8 * n, x8)
        store(values, at + 9 * n, x9), store(values, at + 10 * n, x10), store(values, at + 11 * n, x11)
