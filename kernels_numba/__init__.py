"""Numba kernels for CPUs and CUDA GPUs: they take arrays and integers, and import nothing of saprof."""

from collections.abc import Callable
from contextlib import AbstractContextManager

NUMBA = "0.61"
"""The oldest Numba that compiles them."""

OPERATORS = (
    "pairwise_summation",
    "pairwise_subtraction",
    "pairwise_hadamard_product",
    "pairwise_concatenation",
    "pairwise_dot_product",
    "patchwise_star_product",
    "patchwise_clique_product",
    "patchwise_concatenation",
    "aggregation",
)
"""The operators with a kernel in cpu/relations.py and its twin in gpu/relations.py; each has a `_backward` as well."""

announce: Callable[[str, str, str | None], AbstractContextManager[object]] | None = None
"""A function of the name of a kernel, its dtype, and the folder where it is kept, or None. It returns the context in
which the kernel is compiled. saprof sets the function to report what is compiled."""
