"""The attention of stand-alone self-attention (SASA, Ramachandran et al. 2019): heads of dot products over a footprint.

Its queries, keys and embeddings are matrices of channels and heads. Channel c of the values belongs to head c mod g, in
the order of the channels that share a weight in SAN. The logits have a content term, a position term, or both (SASA
Table 6). To scale the logits, scale the query.
"""

from __future__ import annotations

from typing import Any

from saprof.operators.declaration import DECLARED, Operator, operator
from saprof.operators.relations import aggregation, softmax

LOGITS = ("both", "content", "position")
"""The terms of the logits."""
HEADS = 8
"""The number of heads of every attention in the paper's networks."""

_facts: Any = {
    "paper": "n*v*k*p",
    "implied": {"d": "v//g"},
    "heads": HEADS,
    "source": "SASA Eq. 2 and 3",
}


@operator(
    axes="n d g h w, n d g h w, d g k, n v h w -> n v oh ow",
    macs="n*p*k*(2*d*g+v)",
    elementwise="6*n*p*k*g",  # the sum of the logits, and 5 of the softmax
    **_facts,
)
def stand_alone_attention(inside, query_i, key_R, relative, value_R):
    """y_i = Σ_j softmax_j(q_iᵀ k_j + q_iᵀ r_{j−i}) v_j"""
    return _average(inside, _content(query_i, key_R) + _position(inside, query_i, relative), value_R)


@operator(
    axes="n d g h w, n d g h w, n v h w -> n v oh ow",
    macs="n*p*k*(d*g+v)",
    elementwise="5*n*p*k*g",
    variant=True,
    **_facts,
)
def stand_alone_attention_content(inside, query_i, key_R, value_R):
    """y_i = Σ_j softmax_j(q_iᵀ k_j) v_j"""
    return _average(inside, _content(query_i, key_R), value_R)


@operator(
    axes="n d g h w, d g k, n v h w -> n v oh ow",
    macs="n*p*k*(d*g+v)",
    elementwise="5*n*p*k*g",
    variant=True,
    **_facts,
)
def stand_alone_attention_position(inside, query_i, relative, value_R):
    """y_i = Σ_j softmax_j(q_iᵀ r_{j−i}) v_j"""
    return _average(inside, _position(inside, query_i, relative), value_R)


def _content(query, key_R):
    return (query * key_R).sum(1).T  # g k


def _position(inside, query, relative):
    return (query[..., None] * relative.where(inside, 0)).sum(0)


def _average(inside, logits, value_R):
    return aggregation.body(softmax(inside, logits), value_R)


ATTENTIONS: dict[str, Operator] = {
    logits: DECLARED["stand_alone_attention" + ("" if logits == "both" else f"_{logits}")] for logits in LOGITS
}
"""The attentions, by the terms of their logits."""
