// Part of the gradient of a softmax over taps that both attentions with a softmax need.

#pragma once

#include "frames.h"

// softmax.cu to[n, g, i] = Σ gradient · y over the channels of the group: the softmax subtracts it from the gradient of
// each weight.
void gradient_dot_output(const Array& gradient, const Array& y, int g, void* to, cudaStream_t stream);
