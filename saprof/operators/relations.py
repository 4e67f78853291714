"""The relations of SAN (Sec. 3.1 and 3.2) and the aggregation, each declared once."""

from saprof.operators.declaration import operator


@operator(
    axes="n r h w, n r h w -> n r k p",
    elementwise="n*r*k*p",
    paper="n*r*k*p",
    degree=1,
    source="SAN Sec. 3.1, summation",
)
def pairwise_summation(phi_i, psi_j):
    """δ_ij = φ_i + ψ_j"""
    return phi_i + psi_j


@operator(
    axes="n r h w, n r h w -> n r k p",
    elementwise="n*r*k*p",
    paper="n*r*k*p",
    degree=1,
    source="SAN Sec. 3.1, subtraction",
)
def pairwise_subtraction(phi_i, psi_j):
    """δ_ij = φ_i − ψ_j"""
    return phi_i - psi_j


@operator(
    axes="n r h w, n r h w -> n r k p",
    elementwise="n*r*k*p",
    paper="n*r*k*p",
    degree=2,
    source="SAN Sec. 3.1, Hadamard product",
)
def pairwise_hadamard_product(phi_i, psi_j):
    """δ_ij = φ_i ⊙ ψ_j"""
    return phi_i * psi_j


@operator(axes="n r h w, n r h w -> n 2*r k p", degree=1, source="SAN Sec. 3.1, concatenation")
def pairwise_concatenation(phi_i, psi_j):
    """δ_ij = [φ_i, ψ_j]"""
    return phi_i, psi_j


@operator(axes="n r h w, n r h w -> n 1 k p", macs="n*r*k*p", degree=2, source="SAN Sec. 3.1, dot product")
def pairwise_dot_product(phi_i, psi_j):
    """δ_ij = φ_iᵀ ψ_j"""
    return phi_i @ psi_j


@operator(axes="n r h w, n r h w -> n k 1 p", macs="n*r*k*p", degree=2, source="SAN Sec. 3.2, star-product")
def patchwise_star_product(phi_i, psi_R):
    """δ_i = [φ_iᵀ ψ_j] for all j in R(i)"""
    return psi_R @ phi_i


@operator(axes="n r h w, n r h w -> n k*k 1 p", macs="n*r*k*k*p", degree=2, source="SAN Sec. 3.2, clique-product")
def patchwise_clique_product(phi_R, psi_R):
    """δ_i = [φ_jᵀ ψ_l] for all j, l in R(i), channel j·k + l"""
    return phi_R @ psi_R.T


@operator(axes="n r h w, n r h w -> n r*(k+1) 1 p", degree=1, source="SAN Sec. 3.2, concatenation")
def patchwise_concatenation(phi_i, psi_R):
    """δ_i = [φ_i, [ψ_j] for all j in R(i)], the taps of channel c at r + c·k + j"""
    return phi_i, psi_R.T


@operator(axes="n g k p, n v h w -> n v oh ow", macs="n*v*k*p", paper="n*v*k*p", degree=2, source="SAN Eq. 2 and 4")
def aggregation(alpha_i, beta_R):
    """y_i[c] = Σ_j α_ij[c mod g] β_j[c]"""
    share = beta_R.shape[1] // alpha_i.shape[0]
    return (alpha_i.tile(share, 1) * beta_R.T).sum(1)


def softmax(inside, logits):
    """The softmax of logits g k over the taps inside the map. If there is none, all weights are equal: the values are
    0."""
    import torch

    return logits.where(inside, torch.where(inside.any(), -torch.inf, 0.0)).softmax(1)
