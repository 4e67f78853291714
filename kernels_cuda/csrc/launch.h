// The arrays that kernels take, and the one function that starts kernels.

#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <vector>

enum class Type { float64, float32, float16, bfloat16, int32 };

// A contiguous array in the memory of the GPU. An optional input that is absent, or an output that is not needed, has
// no data.
struct Array {
  void* data = nullptr;
  Type type = Type::float32;
  std::vector<int64_t> sizes;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

using Arrays = std::vector<Array>;

// Start the kernels of `name`, such as `aggregation` or `aggregation_backward`. `arrays` holds its inputs, then its
// outputs. `lookups_of` (frames.h) makes Lookups of `tables` and of the first numbers; a core takes further numbers,
// see launch.cu. Throws std::invalid_argument if no kernel has the name, and std::runtime_error if CUDA refuses.
void launch(const std::string& name, const Arrays& arrays, const Arrays& tables, const std::vector<int64_t>& numbers,
            cudaStream_t stream);
