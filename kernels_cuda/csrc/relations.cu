// The relations and the aggregation, each made of the functions of relations.h, as at the end of
// kernels_numba/gpu/relations.py. A gradient that is not needed has no data.

#include "relations.h"

namespace {

// (n, -, -, p) as (n, -, p).
Array flat(const Array& taps) {
  return {taps.data, taps.type, {taps.sizes[0], taps.sizes[1] * taps.sizes[2], taps.sizes[3]}};
}

// (n, k, 1, p) as (n, 1, k, p).
Array single(const Array& taps) { return {taps.data, taps.type, {taps.sizes[0], 1, taps.sizes[1], taps.sizes[3]}}; }

}  // namespace

void pairwise_summation(const Arrays& a, const Lookups& lookups) {
  combine(Combination::sum, a[0], a[1], a[2], lookups);
}

void pairwise_summation_backward(const Arrays& a, const Lookups& lookups) {
  const auto &gradient = a[0], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) sum_taps(flat(gradient), 0, lookups.k, phi_gradient, lookups);
  if (psi_gradient.data) scatter(flat(gradient), 0, 1, psi_gradient, lookups);
}

void pairwise_subtraction(const Arrays& a, const Lookups& lookups) {
  combine(Combination::difference, a[0], a[1], a[2], lookups);
}

void pairwise_subtraction_backward(const Arrays& a, const Lookups& lookups) {
  const auto &gradient = a[0], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) sum_taps(flat(gradient), 0, lookups.k, phi_gradient, lookups);
  if (psi_gradient.data) scatter(flat(gradient), 0, -1, psi_gradient, lookups);
}

void pairwise_hadamard_product(const Arrays& a, const Lookups& lookups) {
  combine(Combination::product, a[0], a[1], a[2], lookups);
}

// The Hadamard product has the same backward: each of its groups is a single channel.
void pairwise_dot_product_backward(const Arrays& a, const Lookups& lookups) {
  const auto &gradient = a[0], &phi = a[1], &psi = a[2], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) aggregate(gradient, psi, phi_gradient, lookups);
  if (psi_gradient.data) distribute(gradient, phi, psi_gradient, lookups);
}

void pairwise_concatenation(const Arrays& a, const Lookups& lookups) {
  const auto &phi = a[0], &psi = a[1], &delta = a[2];
  repeat(phi, flat(delta), 0, lookups.k, lookups);
  gather(psi, flat(delta), phi.sizes[1] * lookups.k, lookups);
}

void pairwise_concatenation_backward(const Arrays& a, const Lookups& lookups) {
  const auto &gradient = a[0], &phi = a[1], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) sum_taps(flat(gradient), 0, lookups.k, phi_gradient, lookups);
  if (psi_gradient.data) scatter(flat(gradient), phi.sizes[1] * lookups.k, 1, psi_gradient, lookups);
}

void pairwise_dot_product(const Arrays& a, const Lookups& lookups) { correlate(a[0], a[1], a[2], lookups); }

void patchwise_star_product(const Arrays& a, const Lookups& lookups) { correlate(a[0], a[1], single(a[2]), lookups); }

void patchwise_star_product_backward(const Arrays& a, const Lookups& lookups) {
  pairwise_dot_product_backward({single(a[0]), a[1], a[2], a[3], a[4]}, lookups);
}

void patchwise_clique_product(const Arrays& a, const Lookups& lookups) { cliques(a[0], a[1], a[2], lookups); }

void patchwise_clique_product_backward(const Arrays& a, const Lookups& lookups) {
  const auto &gradient = a[0], &phi = a[1], &psi = a[2], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) spread_cliques(gradient, lookups.k, 1, psi, phi_gradient, lookups);
  if (psi_gradient.data) spread_cliques(gradient, 1, lookups.k, phi, psi_gradient, lookups);
}

void patchwise_concatenation(const Arrays& a, const Lookups& lookups) {
  const auto &phi = a[0], &psi = a[1], &delta = a[2];
  repeat(phi, flat(delta), 0, 1, lookups);
  gather(psi, flat(delta), phi.sizes[1], lookups);
}

void patchwise_concatenation_backward(const Arrays& a, const Lookups& lookups) {
  const auto &gradient = a[0], &phi = a[1], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) sum_taps(flat(gradient), 0, 1, phi_gradient, lookups);
  if (psi_gradient.data) scatter(flat(gradient), phi.sizes[1], 1, psi_gradient, lookups);
}

void aggregation(const Arrays& a, const Lookups& lookups) { aggregate(a[0], a[1], a[2], lookups); }

void aggregation_backward(const Arrays& a, const Lookups& lookups) {
  const auto &gradient = a[0], &alpha = a[1], &beta = a[2], &alpha_gradient = a[3], &beta_gradient = a[4];
  if (alpha_gradient.data) correlate(gradient, beta, alpha_gradient, lookups);
  if (beta_gradient.data) distribute(alpha, gradient, beta_gradient, lookups);
}
