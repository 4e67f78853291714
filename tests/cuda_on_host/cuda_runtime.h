// The part of the CUDA runtime that kernels_cuda uses, on a CPU: the compiler finds this header first.
//
// A CUDA thread is a fiber with its own stack. It runs until __syncthreads() or until its end, and then the next fiber
// runs. Blocks run from the last to the first. Results are therefore deterministic, and wrong if a kernel depends on
// the order of blocks or on warps.
//
// ThreadSanitizer treats each fiber as a thread. Only __syncthreads() and the launch order fibers, so it reports a race
// whatever the order of execution was. (With std::thread and std::barrier it would not: a thread that leaves a barrier
// late is ordered after all threads that have arrived at the next one.)
//
// Shared memory is exactly as large as requested, so AddressSanitizer reports accesses beyond it. All of its bits are
// set before a block begins, so a float that was never written is NaN. A barrier that only some threads of a block pass
// ends the process.
//
// The emulation does not find: some races between blocks of the same parity, which share their fibers; barriers in
// different places that all threads pass equally often; mistakes with warps, with the order of kernels in a stream (a
// launch returns when the kernel has ended), or with host memory used on the GPU or the reverse; limits on registers;
// differences by contraction to FMA or by the GPU's functions. It supports one dimension, and no __shared__ variables.

#pragma once

#include <cxxabi.h>
#include <dlfcn.h>
#include <ucontext.h>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

// A GPU's max and min return the other number if one is NaN.
template <typename T>
T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return std::fmax(a, b);
  else
    return std::max(a, b);
}

template <typename T>
T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return std::fmin(a, b);
  else
    return std::min(a, b);
}

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
  }
  return "unrecognized error code";
}

// The error of the last launch that was refused. As on a GPU, it stays until somebody reads it.
inline cudaError_t last_error = cudaSuccess;

inline cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

inline dim3 blockDim, gridDim;

namespace cuda_on_host {

constexpr unsigned MOST_THREADS = 1024;
constexpr size_t MOST_SHARED_BYTES = 48 << 10;  // unless a kernel's attribute asks for more
constexpr size_t STACK_BYTES = 256 << 10;

// What precedes `release` of an address happens before what follows `acquire` of the same address.
#ifdef __SANITIZE_THREAD__
inline void release(const void* address) { __tsan_release(const_cast<void*>(address)); }
inline void acquire(const void* address) { __tsan_acquire(const_cast<void*>(address)); }
#else
inline void release(const void*) {}
inline void acquire(const void*) {}
#endif

// A block. It is kept until the launch ends, since nothing orders its threads before those of the next block.
struct Block {
  const dim3 index;
  const std::function<void()>& kernel;
  std::unique_ptr<unsigned char[]> shared;
  // Addresses to release and acquire. Barriers alternate between the two.
  const int64_t begin = 0, barriers[2] = {}, end = 0;

  Block(unsigned x, size_t shared_bytes, const std::function<void()>& kernel) : index(x, 0, 0), kernel(kernel) {
    if (shared_bytes) {
      shared = std::make_unique_for_overwrite<unsigned char[]>(shared_bytes);
      std::memset(shared.get(), 0xFF, shared_bytes);
    }
    release(&begin);
  }
};

// A fiber, which runs one thread of a block after the other. Data that unordered fibers share is atomic.
class Thread {
 public:
  dim3 index{0, 0, 0};
  Block* block = nullptr;

  Thread() {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = STACK_BYTES;
    makecontext(&context_, live, 0);
    context_.uc_stack.ss_size = 0;  // otherwise AddressSanitizer loses the state of the stack at each switch
    release(this);
  }

  static Thread& current() { return *current_.load(std::memory_order_relaxed); }

  // Run the thread until it waits at a barrier or ends. Returns whether it waits.
  bool run(Block& block, unsigned index) {
    next_block_.store(&block, std::memory_order_relaxed);
    next_index_.store(index, std::memory_order_relaxed);
    current_.store(this, std::memory_order_relaxed);
    change(fiber_, &launcher, &context_);
    return waits_.load(std::memory_order_relaxed);
  }

  void synchronize() {
    const int64_t& barrier = block->barriers[passed_++ % 2];
    release(&barrier);
    pause(true);
    acquire(&barrier);
  }

 private:
  static void live() {
    Thread& self = current();
    acquire(&self);
    for (;;) {
      self.block = self.next_block_.load(std::memory_order_relaxed);
      self.index.x = self.next_index_.load(std::memory_order_relaxed);
      self.passed_ = 0;
      acquire(&self.block->begin);
      self.block->kernel();
      release(&self.block->end);
      self.pause(false);
    }
  }

  void pause(bool waits) {
    waits_.store(waits, std::memory_order_relaxed);
    change(launcher_fiber_, &context_, &launcher);
  }

  static void change([[maybe_unused]] void* fiber, ucontext_t* from, const ucontext_t* to) {
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(fiber, __tsan_switch_to_fiber_no_sync);
#endif
    swapcontext(from, to);
  }

#ifdef __SANITIZE_THREAD__
  void* const launcher_fiber_ = __tsan_get_current_fiber();
  void* const fiber_ = __tsan_create_fiber(0);
#else
  static constexpr void *launcher_fiber_ = nullptr, *fiber_ = nullptr;
#endif
  static inline ucontext_t launcher;
  static inline std::atomic<Thread*> current_ = nullptr;
  const std::unique_ptr<unsigned char[]> stack_ = std::make_unique_for_overwrite<unsigned char[]>(STACK_BYTES);
  ucontext_t context_ = {};
  unsigned passed_ = 0;
  std::atomic<Block*> next_block_ = nullptr;
  std::atomic<unsigned> next_index_ = 0;
  std::atomic<bool> waits_ = false;
};

inline void* shared_memory() { return Thread::current().block->shared.get(); }

[[noreturn]] inline void abort_divergent(const void* kernel, int passed) {
  Dl_info info = {};
  const char* name = dladdr(kernel, &info) && info.dli_sname ? info.dli_sname : "without an external name";
  char* demangled = abi::__cxa_demangle(name, nullptr, nullptr, nullptr);
  std::fprintf(stderr, "kernel %s: threads of a block passed %d and %d barriers\n", demangled ? demangled : name,
               passed, passed + 1);
  std::abort();
}

inline cudaError_t launch(const cudaLaunchConfig_t& config, const void* address, const std::function<void()>& kernel) {
  const dim3 grid = config.gridDim, size = config.blockDim;
  if (!grid.x || grid.y != 1 || grid.z != 1 || !size.x || size.x > MOST_THREADS || size.y != 1 || size.z != 1)
    return cudaErrorInvalidConfiguration;
  if (config.dynamicSmemBytes > MOST_SHARED_BYTES) return cudaErrorInvalidValue;
  gridDim = grid, blockDim = size;
  static std::vector<Thread*> fibers[2];  // never deleted: they wait for the next launch
  std::vector<std::unique_ptr<Block>> blocks;
  for (unsigned index = grid.x; index-- > 0;) {
    Block& block = *blocks.emplace_back(std::make_unique<Block>(index, config.dynamicSmemBytes, kernel));
    auto& threads = fibers[index % 2];
    while (threads.size() < size.x) threads.push_back(new Thread);
    unsigned waiting = size.x;
    for (int passed = 0; waiting; ++passed) {
      waiting = 0;
      for (unsigned i = 0; i < size.x; ++i) waiting += threads[i]->run(block, i);
      if (waiting && waiting < size.x) abort_divergent(address, passed);
    }
  }
  for (const auto& block : blocks) acquire(&block->end);
  return cudaSuccess;
}

}  // namespace cuda_on_host

#define threadIdx (cuda_on_host::Thread::current().index)
#define blockIdx (cuda_on_host::Thread::current().block->index)

inline void __syncthreads() { cuda_on_host::Thread::current().synchronize(); }

// Every thread has its own copy of the arguments.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "arguments are copied to the GPU as bytes");
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a kernel takes at most 4 KB of arguments");
  const std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  const void* address = reinterpret_cast<const void*>(kernel);
  const cudaError_t error = cuda_on_host::launch(*config, address, [&] { std::apply(kernel, copies); });
  if (error != cudaSuccess) last_error = error;
  return error;
}
