// Part of the gradient of the softmax over taps.
//
//     traffic    gradient and y are read once; a value per group and centre is written.

#include "softmax.h"

namespace {

// to[n, g, i] = Σ gradient · y over the channels c with c mod g: the softmax subtracts it from the gradient of each
// weight.
template <typename T>
__global__ void gradient_dot_output_kernel(const T* __restrict__ gradient, const T* __restrict__ y, int64_t items,
                                           int v, int g, int64_t p, Real<T>* __restrict__ to) {
  const int64_t item = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= items) return;
  int64_t rest = item / p;
  const int group = digit(rest, g);
  const int64_t begin = (rest * v + group) * p + item % p;
  Real<T> sum = 0;
  for (int64_t c = 0; c < v / g; ++c) sum += Real<T>(gradient[begin + c * g * p]) * Real<T>(y[begin + c * g * p]);
  to[item] = sum;
}

}  // namespace

void gradient_dot_output(const Array& gradient, const Array& y, int g, void* to, cudaStream_t stream) {
  const int64_t n = y.sizes[0], v = y.sizes[1], p = y.sizes[2], items = n * g * p;
  with_type(y.type, [&]<typename T>() {
    start(gradient_dot_output_kernel<T>, ceil_div(items, THREADS), THREADS, 0, stream, gradient.as<const T>(),
          y.as<const T>(), items, static_cast<int>(v), g, p, static_cast<Real<T>*>(to));
  });
}
