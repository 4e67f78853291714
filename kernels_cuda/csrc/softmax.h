// The softmax over taps, and part of its gradient.

#pragma once

#include <limits>

#include "frames.h"

// The softmax of one centre, chunk after chunk of its logits: the maximum so far, the sum of exp(logit − maximum), and
// the factor that scales what earlier chunks gave. The maximum is −∞ until there is a logit, and then at least the
// lowest number, so that a logit of −∞ has a weight of 0. The sum is NaN if a logit is NaN or ∞.
template <typename R>
struct Softmax {
  R *most, *total, *scale;

  __device__ void begin() const { *most = -INFINITY, *total = 0; }

  // Replace the logits of a chunk by their weights; a tap that does not count has the weight 0.
  template <typename Logit, typename Counts>
  __device__ void add(int taps, Logit logit, Counts counts) const {
    const R before = *most;
    R best = before, sum = 0;
    for (int j = 0; j < taps; ++j)
      if (counts(j)) best = max(best, max(std::numeric_limits<R>::lowest(), logit(j)));
    for (int j = 0; j < taps; ++j) {
      const R alpha = counts(j) ? exp(logit(j) - best) : R(0);
      logit(j) = alpha;
      sum += alpha;
    }
    const R factor = best > before ? exp(before - best) : R(1);
    *most = best, *scale = factor, *total = *total * factor + sum;
  }

  // The sum of weighted values, divided by the sum of the weights; 0 if no tap counts.
  __device__ R mean(R values) const { return *most == -INFINITY ? R(0) : values / *total; }

  // The logarithm of the denominator; 0 if no tap counts.
  __device__ R log_sum() const { return *most == -INFINITY ? R(0) : *most + log(*total); }
};

// softmax.cu to[n, g, i] = Σ gradient · y over the channels of the group: the softmax subtracts it from the gradient of
// each weight.
void gradient_dot_output(const Array& gradient, const Array& y, int g, void* to, cudaStream_t stream);
