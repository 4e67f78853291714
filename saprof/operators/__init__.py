"""Operators: each one is declared once, with its equation and its cost. Also footprints, workloads, and the literal
float64 reference.

The backends (`saprof.backends`) compute the operators. Here only `reference` imports torch.
"""

from saprof.operators.attention import pairwise_attention, patchwise_attention
from saprof.operators.declaration import (
    BACKENDS,
    DECLARED,
    DEVICES,
    FAMILIES,
    OPERATORS,
    RELATIONS,
    Operator,
    declare,
    describe,
    for_every_operator,
    no_kernels,
    operator,
)
from saprof.operators.relations import (
    aggregation,
    pairwise_concatenation,
    pairwise_dot_product,
    pairwise_hadamard_product,
    pairwise_subtraction,
    pairwise_summation,
    patchwise_clique_product,
    patchwise_concatenation,
    patchwise_star_product,
)
from saprof.operators.stand_alone import stand_alone_attention

__all__ = [
    "BACKENDS",
    "DECLARED",
    "DEVICES",
    "FAMILIES",
    "OPERATORS",
    "RELATIONS",
    "Operator",
    "aggregation",
    "declare",
    "describe",
    "for_every_operator",
    "no_kernels",
    "operator",
    "pairwise_attention",
    "pairwise_concatenation",
    "pairwise_dot_product",
    "pairwise_hadamard_product",
    "pairwise_subtraction",
    "pairwise_summation",
    "patchwise_attention",
    "patchwise_clique_product",
    "patchwise_concatenation",
    "patchwise_star_product",
    "stand_alone_attention",
]
