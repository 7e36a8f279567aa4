// What the operators' host code shares: tensors on torch's stable ABI, device and stream, views through strides, the
// deterministic mode. Included by C++ files that know nothing of CUDA's headers.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <tuple>
#include <vector>

#include "kernels.h"

// The host builds the same under another name, to test the very kernels there: tests/ops/emulation.
#ifndef DRIVESTACK_LIBRARY
#define DRIVESTACK_LIBRARY drivestack
#define DRIVESTACK_DEVICE CUDA
#endif

namespace drivestack {
namespace cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// The tensor's device is the current one while this lives, and launches go to the caller's stream on it.
#if defined(USE_CUDA)
class Launching {
 public:
  explicit Launching(const Tensor& on) : guard_(on.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  }
  Stream stream = nullptr;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};
#else  // the kernels on the host, tests/ops/emulation
struct Launching {
  explicit Launching(const Tensor&) {}
  Stream stream = nullptr;
};
#endif

inline Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Type::f32;
    case ScalarType::Double:
      return Type::f64;
    case ScalarType::BFloat16:
      return Type::bf16;
    case ScalarType::Half:
      return Type::f16;
    default:
      STD_TORCH_CHECK(false, "drivestack: float32, float64, bfloat16 or float16 expected");
  }
}
inline bool is_half(const Tensor& t) { return type_of(t) == Type::f16 || type_of(t) == Type::bf16; }
inline ScalarType arithmetic(const Tensor& t) { return is_half(t) ? ScalarType::Float : t.scalar_type(); }
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline Tensor zeros(const Tensor& like) { return torch::stable::new_zeros(like, like.sizes()); }
inline Tensor empty(const Tensor& like) { return torch::stable::new_empty(like, like.sizes()); }

inline void check_devices(const char* op, const Tensor& value, std::initializer_list<const Tensor*> others) {
  for (const Tensor* t : others)
    STD_TORCH_CHECK(t->device() == value.device(), "drivestack::", op, ": all tensors must be on one device");
}
// Offsets and masks, or offsets and logits: of value's type, or float32 beside half types.
inline void check_tap_types(const char* op, const Tensor& value, const Tensor& offsets, const Tensor& masks) {
  const ScalarType tap = offsets.scalar_type();
  STD_TORCH_CHECK(masks.scalar_type() == tap &&
                      (tap == value.scalar_type() || (tap == ScalarType::Float && is_half(value))),
                  "drivestack::", op,
                  ": offsets and masks must have the dtype of value, or float32 beside half precision");
}
// Extents that kernels keep in 32 bits.
inline int extent(const char* op, int64_t n) {
  STD_TORCH_CHECK(n >= -INT32_MAX && n <= INT32_MAX, "drivestack::", op, ": a size of ", n, " is too large");
  return int(n);
}

// Whether the axes [begin, end) can be walked as one, and the stride of that walk (1 for a single element).
inline bool one_axis(const Tensor& t, int64_t begin, int64_t end, int64_t& stride) {
  int64_t expected = -1;
  stride = 1;
  for (int64_t i = end - 1; i >= begin; --i) {
    if (t.size(i) == 1) continue;
    if (expected < 0)
      stride = expected = t.stride(i);
    else if (t.stride(i) != expected)
      return false;
    expected *= t.size(i);
  }
  return true;
}
// The same for axes that lie densely.
inline bool is_dense(const Tensor& t, int64_t begin, int64_t end) {
  int64_t stride;
  return one_axis(t, begin, end, stride) && stride == 1;
}

// Sums gradients to `value`: an accumulator of the arithmetic type, or of integers in the deterministic mode.
class ValueSum {
 public:
  // contributions: how many a single number can get at most. weights: what grad_out is multiplied with, null for
  // probabilities.
  ValueSum(const Tensor& value, const Tensor& grad_out, const Tensor* weights, int64_t contributions,
           bool deterministic, Stream stream)
      : value_(value), stream_(stream) {
    if (!deterministic) {
      sum_ = torch::stable::new_zeros(value, value.sizes(), arithmetic(value));
      gradient = {sum_.data_ptr(), nullptr, 0};
      return;
    }
    const int64_t words = value.scalar_type() == ScalarType::Double ? 2 : 1;
    sum_ = torch::stable::new_zeros(value, {value.numel() * words}, ScalarType::Long);
    largest_ = torch::stable::new_zeros(value, {2}, ScalarType::Int);
    int* largest = static_cast<int*>(largest_.data_ptr());
    largest_exponent(type_of(grad_out), grad_out.data_ptr(), grad_out.numel(), largest, stream);
    if (weights) {
      const Tensor w = dense(*weights);
      largest_exponent(type_of(w), w.data_ptr(), w.numel(), largest + 1, stream);
    }
    int headroom = 2;
    while (headroom < 48 && contributions >> headroom) ++headroom;
    gradient = {sum_.data_ptr(), largest, headroom + 1};
  }
  Tensor result() const {
    if (!gradient.largest) return torch::stable::to(sum_, value_.scalar_type());
    Tensor out = empty(value_);
    fixed_point_result(type_of(value_), gradient, out.data_ptr(), out.numel(), stream_);
    return out;
  }

  ValueGradient gradient;

 private:
  Tensor value_, sum_, largest_;
  Stream stream_;
};

// Room for gradients to probabilities, in the arithmetic type: the result itself, where it has that type.
inline Tensor room_for(const Tensor& gradient) {
  return is_half(gradient) ? torch::stable::new_empty(gradient, gradient.sizes(), ScalarType::Float) : gradient;
}

}  // namespace cuda
}  // namespace drivestack
