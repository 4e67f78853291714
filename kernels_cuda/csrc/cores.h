// The cores of the fused attentions. Their arrays are the inputs, the outputs and scratch memory, in the order of
// saprof/backends/cores.py. An input that is absent, or an output that is not needed, has no data.

#pragma once

#include "mapping.h"

// The arguments of a core besides its arrays and the footprint.
struct Core {
  // The widths of the mapping's layers; for stand-alone attention, the channels of a head and the number of heads.
  Widths widths;
  // For pairwise attention, whether rows are rectified; for patchwise attention, the relation (Kind).
  int variant;
  // Whether the softmax skips taps outside the map.
  bool excludes;
  // At most this many blocks have their own sums in scratch memory.
  int workers;
};

// pairwise.cu
void pairwise_attention(const Arrays& a, const Lookups& lookups, const Core& core);
void pairwise_attention_backward(const Arrays& a, const Lookups& lookups, const Core& core);
void pairwise_statistics(const Arrays& a, const Lookups& lookups, const Core& core);
void pairwise_statistics_backward(const Arrays& a, const Lookups& lookups, const Core& core);

// stand_alone.cu
void stand_alone_attention(const Arrays& a, const Lookups& lookups, const Core& core);
void stand_alone_attention_backward(const Arrays& a, const Lookups& lookups, const Core& core);

// patchwise.cu
void patchwise_attention(const Arrays& a, const Lookups& lookups, const Core& core);
void patchwise_attention_backward(const Arrays& a, const Lookups& lookups, const Core& core);
void patchwise_statistics(const Arrays& a, const Lookups& lookups, const Core& core);
void patchwise_statistics_backward(const Arrays& a, const Lookups& lookups, const Core& core);
