// What the kernels are given, and the one function through which they are called.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <vector>

enum class Type { float64, float32, float16, bfloat16, int32 };

// A contiguous array in the memory of the GPU; without data, nobody asked for it.
struct Array {
  void* data = nullptr;
  Type type = Type::float32;
  std::vector<int64_t> sizes;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// Start the kernels of `name`, such as `aggregation` or `aggregation_backward`, on its inputs and outputs, in this
// order. `tables` and `numbers` are what `lookups_of` (frame.h) makes Lookups of, and of a core, what `launch_core`
// (cores.h) is told. Throws std::invalid_argument for a
// name that there is none of, and std::runtime_error if CUDA refuses.
void launch(const std::string& name, const std::vector<Array>& arrays, const std::vector<Array>& tables,
            const std::vector<int64_t>& numbers, cudaStream_t stream);
