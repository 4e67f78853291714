// What all operators are composed of, forward and backward: twins of the kernels of kernels_numba/gpu.py.

#pragma once

#include "frame.h"

enum class Combination { sum, difference, product };

// vectors.cu
void repeat(const Array& centres, const Array& taps, int64_t first, int64_t k, const Lookups& at);
void gather(const Array& map, const Array& taps, int64_t first, const Lookups& at);
void combine(Combination how, const Array& centres, const Array& map, const Array& taps, const Lookups& at);
void total(const Array& taps, int64_t first, int64_t k, const Array& centres, const Lookups& at);

// products.cu
void correlate(const Array& centres, const Array& map, const Array& taps, const Lookups& at);
void aggregate(const Array& taps, const Array& map, const Array& centres, const Lookups& at);

// spreads.cu
void scatter(const Array& taps, int64_t first, int sign, const Array& map, const Lookups& at);
void distribute(const Array& taps, const Array& centres, const Array& map, const Lookups& at);

// cliques.cu
void cliques(const Array& phi, const Array& psi, const Array& taps, const Lookups& at);
void spread_cliques(const Array& taps, int64_t step_j, int64_t step_l, const Array& other, const Array& map,
                    const Lookups& at);
