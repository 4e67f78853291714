// Registers `launch` as an operator of torch, through torch's stable ABI as of 2.11.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "launch.h"

namespace {

using torch::stable::Tensor;

Type type_of(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Type::float64;
    case ScalarType::Float:
      return Type::float32;
    case ScalarType::Half:
      return Type::float16;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    case ScalarType::Int:
      return Type::int32;
    default:
      STD_TORCH_CHECK(false, "saprof_kernels: expected float64, float32, float16, bfloat16 or int32");
  }
}

std::vector<Array> arrays_of(const std::vector<Tensor>& tensors, int device) {
  std::vector<Array> arrays;
  for (const Tensor& tensor : tensors) {
    STD_TORCH_CHECK(tensor.is_contiguous(), "saprof_kernels: expected contiguous tensors");
    STD_TORCH_CHECK(tensor.get_device_index() == device, "saprof_kernels: expected all tensors on one device");
    const auto sizes = tensor.sizes();
    arrays.push_back({tensor.numel() ? tensor.data_ptr() : nullptr, type_of(tensor), {sizes.begin(), sizes.end()}});
  }
  return arrays;
}

// Runs on the device of the first table, in torch's current stream.
void launch_tensors(std::string name, std::vector<Tensor> arrays, std::vector<Tensor> tables,
                    std::vector<int64_t> numbers) {
  STD_TORCH_CHECK(!tables.empty(), "saprof_kernels: expected the lookups of a footprint");
  const int device = tables[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  launch(name, arrays_of(arrays, device), arrays_of(tables, device), numbers, static_cast<cudaStream_t>(stream));
}

}  // namespace

STABLE_TORCH_LIBRARY(saprof_kernels, library) {
  library.def("launch(str name, Tensor[] arrays, Tensor[] tables, int[] numbers) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(saprof_kernels, CUDA, library) { library.impl("launch", TORCH_BOX(&launch_tensors)); }
