// The CUDA runtime, and the little of the language that C++ has no word for.
//
// No file here asks whether it is compiled for a GPU, but this one: on a CPU, a header of that name that emulates the
// runtime comes first on the include path.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

#ifndef SAPROF_THREADS
#define SAPROF_THREADS 128
#endif

// Threads per block, where the work does not ask for another number: a multiple of 32.
constexpr int THREADS = SAPROF_THREADS;

// The block's shared memory, as many bytes as it was launched with.
template <typename T>
__device__ T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
#else
  return static_cast<T*>(cuda_on_host::shared_memory());
#endif
}

// Start the kernel in `stream`; std::runtime_error if CUDA refuses.
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
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}
