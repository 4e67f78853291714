// The cores of the fused attentions: inputs, outputs and scratch memory, in the order of saprof/backends/cores.py. What
// nobody needs, or has, has no data.

#pragma once

#include "mapping.h"

using Arrays = std::vector<Array>;

// pairwise.cu
void pairwise_attention(const Arrays& a, const Lookups& at, const Core& core);
void pairwise_attention_backward(const Arrays& a, const Lookups& at, const Core& core);
void pairwise_statistics(const Arrays& a, const Lookups& at, const Core& core);
void pairwise_statistics_backward(const Arrays& a, const Lookups& at, const Core& core);

// stand_alone.cu
void stand_alone_attention(const Arrays& a, const Lookups& at, const Core& core);
void stand_alone_attention_backward(const Arrays& a, const Lookups& at, const Core& core);

// patchwise.cu
void patchwise_attention(const Arrays& a, const Lookups& at, const Core& core);
void patchwise_attention_backward(const Arrays& a, const Lookups& at, const Core& core);
void patchwise_statistics(const Arrays& a, const Lookups& at, const Core& core);
void patchwise_statistics_backward(const Arrays& a, const Lookups& at, const Core& core);

// Start the core of that name; is there one? The numbers are the core's flag, whether the softmax skips taps outside, how
// many workers scratch memory is for, and the widths.
bool launch_core(const std::string& name, const Arrays& arrays, const Lookups& at, const std::vector<int64_t>& numbers);
