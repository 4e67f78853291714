// The CUDA runtime, and what C++ needs in place of CUDA's extensions of the language.
//
// The kernels also compile for a CPU. There, another cuda_runtime.h comes first on the include path, which emulates the
// runtime. Only this file distinguishes the two.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#ifndef SAPROF_THREADS
#define SAPROF_THREADS 128
#endif

// Threads per block, unless a kernel needs another number: a multiple of 32.
constexpr int THREADS = SAPROF_THREADS;

// ReLU as torch computes it: NaN stays NaN. `max` of the GPU would replace NaN by 0.
template <typename R>
__device__ R rectify(R x) {
  return x < 0 ? R(0) : x;
}

// The gradient of ReLU, from x before or after it. It is passed on where x is NaN, as in torch.
template <typename R>
__device__ R rectify_gradient(R x, R gradient) {
  return x <= 0 ? R(0) : gradient;
}

// The block's shared memory; `start` sets its size.
template <typename T>
__device__ T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
#else
  return static_cast<T*>(cuda_on_host::shared_memory());
#endif
}

// Start the kernel in `stream`. Throws std::runtime_error if CUDA refuses.
template <typename... Parameters, typename... Arguments>
void start(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, cudaStream_t stream,
           Arguments&&... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX)
    throw std::invalid_argument("a kernel needs " + std::to_string(blocks) + " blocks; CUDA starts 2147483647 at most");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it, so that the next call of torch does not report it
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}
