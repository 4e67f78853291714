// The operators: inputs, outputs, and lookups, composed as at the end of kernels_numba/gpu.py. A gradient that nobody
// needs has no data.

#include <map>

#include "cores.h"
#include "operators.h"
#include "primitives.h"

namespace {

// (n, -, -, p) as (n, -, p).
Array flat(const Array& taps) {
  return {taps.data, taps.type, {taps.sizes[0], taps.sizes[1] * taps.sizes[2], taps.sizes[3]}};
}

// (n, k, 1, p) as (n, 1, k, p).
Array single(const Array& taps) { return {taps.data, taps.type, {taps.sizes[0], 1, taps.sizes[1], taps.sizes[3]}}; }

void pairwise_summation(const Arrays& a, const Lookups& at) { combine(Combination::sum, a[0], a[1], a[2], at); }

void pairwise_summation_backward(const Arrays& a, const Lookups& at) {
  const auto &gradient = a[0], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) total(flat(gradient), 0, at.k, phi_gradient, at);
  if (psi_gradient.data) scatter(flat(gradient), 0, 1, psi_gradient, at);
}

void pairwise_subtraction(const Arrays& a, const Lookups& at) {
  combine(Combination::difference, a[0], a[1], a[2], at);
}

void pairwise_subtraction_backward(const Arrays& a, const Lookups& at) {
  const auto &gradient = a[0], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) total(flat(gradient), 0, at.k, phi_gradient, at);
  if (psi_gradient.data) scatter(flat(gradient), 0, -1, psi_gradient, at);
}

void pairwise_hadamard_product(const Arrays& a, const Lookups& at) {
  combine(Combination::product, a[0], a[1], a[2], at);
}

// Of the Hadamard product too, whose groups are single channels.
void pairwise_dot_product_backward(const Arrays& a, const Lookups& at) {
  const auto &gradient = a[0], &phi = a[1], &psi = a[2], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) aggregate(gradient, psi, phi_gradient, at);
  if (psi_gradient.data) distribute(gradient, phi, psi_gradient, at);
}

void pairwise_concatenation(const Arrays& a, const Lookups& at) {
  const auto &phi = a[0], &psi = a[1], &delta = a[2];
  repeat(phi, flat(delta), 0, at.k, at);
  gather(psi, flat(delta), phi.sizes[1] * at.k, at);
}

void pairwise_concatenation_backward(const Arrays& a, const Lookups& at) {
  const auto &gradient = a[0], &phi = a[1], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) total(flat(gradient), 0, at.k, phi_gradient, at);
  if (psi_gradient.data) scatter(flat(gradient), phi.sizes[1] * at.k, 1, psi_gradient, at);
}

void pairwise_dot_product(const Arrays& a, const Lookups& at) { correlate(a[0], a[1], a[2], at); }

void patchwise_star_product(const Arrays& a, const Lookups& at) { correlate(a[0], a[1], single(a[2]), at); }

void patchwise_star_product_backward(const Arrays& a, const Lookups& at) {
  pairwise_dot_product_backward({single(a[0]), a[1], a[2], a[3], a[4]}, at);
}

void patchwise_clique_product(const Arrays& a, const Lookups& at) { cliques(a[0], a[1], a[2], at); }

void patchwise_clique_product_backward(const Arrays& a, const Lookups& at) {
  const auto &gradient = a[0], &phi = a[1], &psi = a[2], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) spread_cliques(gradient, at.k, 1, psi, phi_gradient, at);
  if (psi_gradient.data) spread_cliques(gradient, 1, at.k, phi, psi_gradient, at);
}

void patchwise_concatenation(const Arrays& a, const Lookups& at) {
  const auto &phi = a[0], &psi = a[1], &delta = a[2];
  repeat(phi, flat(delta), 0, 1, at);
  gather(psi, flat(delta), phi.sizes[1], at);
}

void patchwise_concatenation_backward(const Arrays& a, const Lookups& at) {
  const auto &gradient = a[0], &phi = a[1], &phi_gradient = a[3], &psi_gradient = a[4];
  if (phi_gradient.data) total(flat(gradient), 0, 1, phi_gradient, at);
  if (psi_gradient.data) scatter(flat(gradient), phi.sizes[1], 1, psi_gradient, at);
}

void aggregation(const Arrays& a, const Lookups& at) { aggregate(a[0], a[1], a[2], at); }

void aggregation_backward(const Arrays& a, const Lookups& at) {
  const auto &gradient = a[0], &alpha = a[1], &beta = a[2], &alpha_gradient = a[3], &beta_gradient = a[4];
  if (alpha_gradient.data) correlate(gradient, beta, alpha_gradient, at);
  if (beta_gradient.data) distribute(alpha, gradient, beta_gradient, at);
}

const std::map<std::string, void (*)(const Arrays&, const Lookups&)> OPERATORS = {
    {"pairwise_summation", pairwise_summation},
    {"pairwise_summation_backward", pairwise_summation_backward},
    {"pairwise_subtraction", pairwise_subtraction},
    {"pairwise_subtraction_backward", pairwise_subtraction_backward},
    {"pairwise_hadamard_product", pairwise_hadamard_product},
    {"pairwise_hadamard_product_backward", pairwise_dot_product_backward},
    {"pairwise_concatenation", pairwise_concatenation},
    {"pairwise_concatenation_backward", pairwise_concatenation_backward},
    {"pairwise_dot_product", pairwise_dot_product},
    {"pairwise_dot_product_backward", pairwise_dot_product_backward},
    {"patchwise_star_product", patchwise_star_product},
    {"patchwise_star_product_backward", patchwise_star_product_backward},
    {"patchwise_clique_product", patchwise_clique_product},
    {"patchwise_clique_product_backward", patchwise_clique_product_backward},
    {"patchwise_concatenation", patchwise_concatenation},
    {"patchwise_concatenation_backward", patchwise_concatenation_backward},
    {"aggregation", aggregation},
    {"aggregation_backward", aggregation_backward},
};

}  // namespace

void launch(const std::string& name, const std::vector<Array>& arrays, const std::vector<Array>& tables,
            const std::vector<int64_t>& numbers, cudaStream_t stream) {
  const auto found = OPERATORS.find(name);
  if (found != OPERATORS.end()) return found->second(arrays, lookups_of(tables, numbers, stream));
  const auto told = numbers.begin() + std::min<size_t>(numbers.size(), LOOKUP_NUMBERS);
  if (!launch_core(name, arrays, lookups_of(tables, {numbers.begin(), told}, stream), {told, numbers.end()}))
    throw std::invalid_argument("there are no kernels of " + name);
}
