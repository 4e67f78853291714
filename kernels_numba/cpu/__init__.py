"""CPU kernels. `relations` has every relation and the aggregation; `pairwise`, `patchwise` and `stand_alone` have the
fused attentions. `frames`, `mapping`, `softmax` and `simd` are their parts, and `rates` measures the FMA rate of a CPU.

An entry point takes arrays, options and the work: facts, look-up tables and memory.
"""
