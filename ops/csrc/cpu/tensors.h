// What the operators' registrations share: tensors on torch's stable ABI, work per task, accumulators.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kernels.h"

namespace drivestack {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kWorkPerTask = 1 << 15;  // corner reads below which another thread does not pay

inline Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      STD_TORCH_CHECK(false, "drivestack: float32, float64, bfloat16 or float16 expected");
  }
}
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline int64_t grain(int64_t work_per_task) {
  return std::max<int64_t>(1, kWorkPerTask / std::max<int64_t>(1, work_per_task));
}

// torch's parallel_for for the kernels of operator `op`. What a thread throws for want of memory stays in that thread,
// and the call ends with an error once all of them are done.
template <class F>
void run_tasks(const char* op, int64_t tasks, int64_t grain, const F& f) {
  std::atomic<size_t> missing{0};
  torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
    try {
      f(begin, end);
    } catch (const OutOfMemory& error) {
      missing = error.bytes;
    }
  });
  if (missing.load())
    throw std::runtime_error("drivestack::" + std::string(op) + ": out of memory: a thread asked for " +
                             std::to_string(missing.load()) + " bytes of scratch memory; use smaller inputs or fewer threads");
}

// Tasks per image of a backward pass, so that every thread has one.
inline int64_t split(int64_t images, int64_t slices) {
  const int64_t threads = torch::stable::get_num_threads();
  return std::max<int64_t>(1, std::min(slices, (threads + images - 1) / std::max<int64_t>(1, images)));
}

// Large fresh memory costs more in page faults than the kernels take to fill it. On Linux in the mode "madvise" a
// program has to ask for large pages (82 MB: 4 ms instead of 18); elsewhere this does nothing.
inline Tensor on_huge_pages(Tensor t) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 2 << 20;
  const uintptr_t first = reinterpret_cast<uintptr_t>(t.data_ptr()), begin = (first + kPage - 1) / kPage * kPage,
                  end = (first + uintptr_t(t.numel()) * uintptr_t(t.element_size())) / kPage * kPage;
  if (begin + kPage < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return t;
}

// A zeroed accumulator for the gradient to `like`: float for half types.
inline Tensor accumulator(const Tensor& like) {
  const bool half = like.scalar_type() == ScalarType::Half || like.scalar_type() == ScalarType::BFloat16;
  Tensor sum =
      on_huge_pages(torch::stable::new_empty(like, like.sizes(), half ? ScalarType::Float : like.scalar_type()));
  char* bytes = static_cast<char*>(sum.data_ptr());
  const int64_t size = sum.element_size();
  torch::stable::parallel_for(0, sum.numel(), 1 << 17,
                              [&](int64_t b, int64_t e) { std::memset(bytes + b * size, 0, (e - b) * size); });
  return sum;
}
inline Tensor narrowed(const Tensor& sum, const Tensor& like) {
  if (sum.scalar_type() == like.scalar_type()) return sum;
  Tensor out = torch::stable::empty_like(like);
  const Dtype dtype = dtype_of(like);
  const float* from = static_cast<const float*>(sum.data_ptr());
  void* to = out.data_ptr();
  torch::stable::parallel_for(0, sum.numel(), 1 << 16,
                              [&](int64_t b, int64_t e) { kernels().rows->narrow(dtype, from, to, b, e); });
  return out;
}

}  // namespace drivestack
