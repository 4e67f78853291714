"""The operators as functions of tensors, one per declaration in `saprof.operators`.

All of them take

- `footprint`: the taps around each centre, with stride and boundary: a Footprint, a size such as 7, or text such as
  `"disk:9"` (`Footprint.parse` lists the forms);
- `backend`: `"cuda"`, `"numba"` or `"unfold"`, which runs or raises Unsupported with the reasons; `"auto"`, the
  default, takes the first of these that can run.

Inputs are float64, float32, float16 or bfloat16, on any device. The output has their dtype and device. Gradients,
`torch.func`, `torch.compile`, `torch.export` and autocast work as for torch's own functions. Fused attentions of `cuda`
and `numba` have first gradients only, and no forward-mode AD.

Axes: n images, r channels of φ and ψ, v channels of β, g weight groups or heads, d channels of a head, h × w map,
k taps of the footprint, p = oh · ow centres.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from saprof import operators
from saprof.backends import run
from saprof.operators.footprint import Footprint


def pairwise_summation(
    phi: Float[Tensor, "n r h w"],
    psi: Float[Tensor, "n r h w"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n r k p"]:
    """δ_ij = φ_i + ψ_j (SAN Sec. 3.1, summation).

    Shapes: phi and psi (n, r, h, w); output (n, r, k, p).
    The input phi is read at each centre i, psi at each tap j.

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    return run(operators.pairwise_summation, phi, psi, footprint=footprint, backend=backend)


def pairwise_subtraction(
    phi: Float[Tensor, "n r h w"],
    psi: Float[Tensor, "n r h w"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n r k p"]:
    """δ_ij = φ_i − ψ_j (SAN Sec. 3.1, subtraction).

    Shapes: phi and psi (n, r, h, w); output (n, r, k, p).
    The input phi is read at each centre i, psi at each tap j.

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    return run(operators.pairwise_subtraction, phi, psi, footprint=footprint, backend=backend)


def pairwise_hadamard_product(
    phi: Float[Tensor, "n r h w"],
    psi: Float[Tensor, "n r h w"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n r k p"]:
    """δ_ij = φ_i ⊙ ψ_j (SAN Sec. 3.1, Hadamard product).

    Shapes: phi and psi (n, r, h, w); output (n, r, k, p).
    The input phi is read at each centre i, psi at each tap j.

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    return run(operators.pairwise_hadamard_product, phi, psi, footprint=footprint, backend=backend)


def pairwise_concatenation(
    phi: Float[Tensor, "n r h w"],
    psi: Float[Tensor, "n r h w"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n 2*r k p"]:
    """δ_ij = [φ_i, ψ_j] (SAN Sec. 3.1, concatenation).

    Shapes: phi and psi (n, r, h, w); output (n, 2·r, k, p).
    The input phi is read at each centre i, psi at each tap j.

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    return run(operators.pairwise_concatenation, phi, psi, footprint=footprint, backend=backend)


def pairwise_dot_product(
    phi: Float[Tensor, "n r h w"],
    psi: Float[Tensor, "n r h w"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n 1 k p"]:
    """δ_ij = φ_iᵀ ψ_j (SAN Sec. 3.1, dot product).

    Shapes: phi and psi (n, r, h, w); output (n, 1, k, p).
    The input phi is read at each centre i, psi at each tap j.

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    return run(operators.pairwise_dot_product, phi, psi, footprint=footprint, backend=backend)


def patchwise_star_product(
    phi: Float[Tensor, "n r h w"],
    psi: Float[Tensor, "n r h w"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n k 1 p"]:
    """δ_i = [φ_iᵀ ψ_j] for all taps j in R(i) (SAN Sec. 3.2, star-product).

    Shapes: phi and psi (n, r, h, w); output (n, k, 1, p).
    The input phi is read at each centre i, psi at all taps of R(i).

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    return run(operators.patchwise_star_product, phi, psi, footprint=footprint, backend=backend)


def patchwise_clique_product(
    phi: Float[Tensor, "n r h w"],
    psi: Float[Tensor, "n r h w"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n k*k 1 p"]:
    """δ_i = [φ_jᵀ ψ_l] for all taps j, l in R(i) (SAN Sec. 3.2, clique-product).

    The product of taps j and l is channel j·k + l of the output.

    Shapes: phi and psi (n, r, h, w); output (n, k·k, 1, p).
    Both are read at all taps of R(i).

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    return run(operators.patchwise_clique_product, phi, psi, footprint=footprint, backend=backend)


def patchwise_concatenation(
    phi: Float[Tensor, "n r h w"],
    psi: Float[Tensor, "n r h w"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n r*(k+1) 1 p"]:
    """δ_i = [φ_i, [ψ_j] for all taps j in R(i)] (SAN Sec. 3.2, concatenation).

    Tap j of channel c of ψ is channel r + c·k + j of the output.

    Shapes: phi and psi (n, r, h, w); output (n, r·(k+1), 1, p).
    The input phi is read at each centre i, psi at all taps of R(i).

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    return run(operators.patchwise_concatenation, phi, psi, footprint=footprint, backend=backend)


def aggregation(
    alpha: Float[Tensor, "n g k p"],
    beta: Float[Tensor, "n v h w"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n v oh ow"]:
    """y_i[c] = Σ_j α_ij[c mod g] β_j[c] (SAN Eq. 2 and 4).

    Shapes: alpha (n, g, k, p), where g divides v; beta (n, v, h, w); output (n, v, oh, ow).

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    return run(operators.aggregation, alpha, beta, footprint=footprint, backend=backend)


def pairwise_attention(
    phi: Float[Tensor, "n r h w"],
    psi: Float[Tensor, "n r h w"],
    beta: Float[Tensor, "n v h w"],
    centre_position: Float[Tensor, "n 2 h w"],
    position: Float[Tensor, "n 2 h w"],
    scale_1: Float[Tensor, " r+2"],
    shift_1: Float[Tensor, " r+2"],
    weight_1: Float[Tensor, "e r+2"],
    scale_2: Float[Tensor, " e"],
    shift_2: Float[Tensor, " e"],
    weight_2: Float[Tensor, "g e"],
    bias: Float[Tensor, " g"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n v oh ow"]:
    """y_i = Σ_j softmax_j γ([φ_i − ψ_j, p_i − p_j]) ⊙ β_j in one operator (SAN Eq. 2 and 3).

    γ is batch norm, ReLU, linear, twice. A batch norm is given by its scale and shift: scale · x + shift. The second
    linear adds `bias`. `centre_position` is p at the centres, `position` p at the taps.

    Shapes: phi and psi (n, r, h, w); beta (n, v, h, w); positions (n, 2, h, w); scale_1 and shift_1 (r + 2); weight_1
    (e, r + 2); scale_2 and shift_2 (e); weight_2 (g, e); bias (g), where g divides v; output (n, v, oh, ow). Parameters
    and positions may have another dtype than phi.

    `saprof.run` computes the other relations, position encodings and mappings, which are in
    `saprof.operators.attention.ATTENTIONS`.

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    parameters = scale_1, shift_1, weight_1, scale_2, shift_2, weight_2, bias
    maps = phi, psi, beta, centre_position, position
    return run(operators.pairwise_attention, *maps, *parameters, footprint=footprint, backend=backend)


def patchwise_attention(
    phi: Float[Tensor, "n r h w"],
    psi: Float[Tensor, "n r h w"],
    beta: Float[Tensor, "n v h w"],
    scale_1: Float[Tensor, " r*(k+1)"],
    shift_1: Float[Tensor, " r*(k+1)"],
    weight_1: Float[Tensor, "e r*(k+1)"],
    scale_2: Float[Tensor, " e"],
    shift_2: Float[Tensor, " e"],
    weight_2: Float[Tensor, "g k e"],
    bias: Float[Tensor, "g k"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n v oh ow"]:
    """y_i = Σ_j γ([φ_i, ψ_R(i)])_j ⊙ β_j in one operator (SAN Eq. 4 and 5).

    γ is batch norm, ReLU, linear, twice. A batch norm is given by its scale and shift: scale · x + shift. The second
    linear adds `bias`.

    Shapes: phi and psi (n, r, h, w); beta (n, v, h, w); scale_1 and shift_1 (r·(k + 1)); weight_1 (e, r·(k + 1));
    scale_2 and shift_2 (e); weight_2 (g, k, e); bias (g, k), where g divides v; output (n, v, oh, ow). Parameters may
    have another dtype than phi.

    The other relations and mappings are in `saprof.operators.attention.ATTENTIONS`; `saprof.run` computes them.

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    parameters = scale_1, shift_1, weight_1, scale_2, shift_2, weight_2, bias
    return run(operators.patchwise_attention, phi, psi, beta, *parameters, footprint=footprint, backend=backend)


def stand_alone_attention(
    query: Float[Tensor, "n d g h w"],
    key: Float[Tensor, "n d g h w"],
    relative: Float[Tensor, "d g k"],
    value: Float[Tensor, "n v h w"],
    *,
    footprint: Footprint | int | str,
    backend: str = "auto",
) -> Float[Tensor, "n v oh ow"]:
    """y_i = Σ_j softmax_j(q_iᵀ k_j + q_iᵀ r_{j−i}) v_j in every head (SASA Eq. 2 and 3).

    Channel c of the values belongs to head c mod g. To scale the logits, scale the query. With the boundary `exclude`,
    the softmax is over the taps inside the map.

    Shapes: query and key (n, d, g, h, w); relative (d, g, k), of any floating-point dtype; value (n, v, h, w), where g
    divides v; output (n, v, oh, ow).

    The variants with other logits are in `saprof.operators.stand_alone.ATTENTIONS`; `saprof.run` computes them.

    Raises ValueError if shapes, dtypes or devices do not match, and Unsupported if no backend can run the operator.
    """
    return run(operators.stand_alone_attention, query, key, relative, value, footprint=footprint, backend=backend)
