// The relations and the aggregation, and the functions that they are made of, forward and backward: twins of
// kernels_numba/gpu/relations.py. nvcc compiles the functions in several files at a time.

#pragma once

#include "frames.h"

enum class Combination { sum, difference, product };

// relations_vectors.cu
void repeat(const Array& centres, const Array& taps, int64_t first, int64_t k, const Lookups& lookups);
void gather(const Array& map, const Array& taps, int64_t first, const Lookups& lookups);
void combine(Combination combination, const Array& centres, const Array& map, const Array& taps,
             const Lookups& lookups);
void sum_taps(const Array& taps, int64_t first, int64_t k, const Array& centres, const Lookups& lookups);

// relations_products.cu
void correlate(const Array& centres, const Array& map, const Array& taps, const Lookups& lookups);
void aggregate(const Array& taps, const Array& map, const Array& centres, const Lookups& lookups);

// relations_map_gradient.cu
void scatter(const Array& taps, int64_t first, int sign, const Array& map, const Lookups& lookups);
void distribute(const Array& taps, const Array& centres, const Array& map, const Lookups& lookups);

// relations_cliques.cu
void cliques(const Array& phi, const Array& psi, const Array& taps, const Lookups& lookups);
void spread_cliques(const Array& taps, int64_t step_j, int64_t step_l, const Array& other, const Array& map,
                    const Lookups& lookups);

// relations.cu. The arrays are the inputs, then the output; of a backward, the gradient, the inputs, then their
// gradients.
void pairwise_summation(const Arrays& a, const Lookups& lookups);
void pairwise_summation_backward(const Arrays& a, const Lookups& lookups);
void pairwise_subtraction(const Arrays& a, const Lookups& lookups);
void pairwise_subtraction_backward(const Arrays& a, const Lookups& lookups);
void pairwise_hadamard_product(const Arrays& a, const Lookups& lookups);
void pairwise_dot_product_backward(const Arrays& a, const Lookups& lookups);
void pairwise_concatenation(const Arrays& a, const Lookups& lookups);
void pairwise_concatenation_backward(const Arrays& a, const Lookups& lookups);
void pairwise_dot_product(const Arrays& a, const Lookups& lookups);
void patchwise_star_product(const Arrays& a, const Lookups& lookups);
void patchwise_star_product_backward(const Arrays& a, const Lookups& lookups);
void patchwise_clique_product(const Arrays& a, const Lookups& lookups);
void patchwise_clique_product_backward(const Arrays& a, const Lookups& lookups);
void patchwise_concatenation(const Arrays& a, const Lookups& lookups);
void patchwise_concatenation_backward(const Arrays& a, const Lookups& lookups);
void aggregation(const Arrays& a, const Lookups& lookups);
void aggregation_backward(const Arrays& a, const Lookups& lookups);
