// Layer norms and the depthwise convolution in front of offsets and masks, on the CPU. Schemas and reference
// implementations are in ops/norm.py; arguments are checked there, here only what keeps a direct call inside its memory.
#include <optional>

#include "cpu/tensors.h"

namespace drivestack {
namespace {

Tensor floats(const Tensor& t, int64_t expected) {
  STD_TORCH_CHECK(t.numel() == expected, "drivestack: a parameter does not fit the channels");
  return dense(t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float));
}
const float* data(const Tensor& t) { return static_cast<const float*>(t.data_ptr()); }

void check_map(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() > 0 && x.scalar_type() != ScalarType::Double, "drivestack: rows expected, not of float64");
}

Tensor layer_norm(Tensor x, Tensor weight, Tensor bias, double eps, bool gelu, std::optional<Tensor> residual) {
  check_map(x);
  STD_TORCH_CHECK(!residual || (residual->numel() == x.numel() && residual->scalar_type() == x.scalar_type()),
                  "drivestack::layer_norm: the residual must be like x");
  const int64_t channels = x.size(x.dim() - 1), rows = channels ? x.numel() / channels : 0;
  x = dense(x);
  weight = floats(weight, channels);
  bias = floats(bias, channels);
  Tensor out = torch::stable::empty_like(x);
  const LayerNorm norm{channels, data(weight), data(bias), float(eps), gelu};
  const Dtype dtype = dtype_of(x);
  if (residual) residual = dense(*residual);
  const void *from = x.data_ptr(), *added = residual ? residual->data_ptr() : nullptr;
  void* to = out.data_ptr();
  run_tasks("layer_norm", rows, grain(4 * channels), [&](int64_t b, int64_t e) {
    kernels().norm->layer_norm(norm, dtype, from, added, to, b, e);
  });
  return out;
}

Tensor depthwise_norm(Tensor x, Tensor kernel, Tensor kernel_bias, Tensor weight, Tensor bias, double eps, bool gelu,
                      int64_t stride, int64_t padding) {
  check_map(x);
  STD_TORCH_CHECK(x.dim() == 4 && kernel.dim() == 4 && kernel.size(2) == kernel.size(3) && stride > 0 && padding >= 0,
                  "drivestack::depthwise_norm: x must be [N, H, W, C], kernel [C, 1, K, K]");
  const int64_t channels = x.size(3), side = kernel.size(2);
  x = dense(x);
  kernel = floats(kernel, side * side * channels);
  Tensor taps = torch::stable::new_empty(kernel, {side * side, channels});  // a register of channels per load
  const float* by_channel = data(kernel);
  float* by_tap = static_cast<float*>(taps.data_ptr());
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t k = 0; k < side * side; ++k) by_tap[k * channels + c] = *by_channel++;
  kernel_bias = floats(kernel_bias, channels);
  weight = floats(weight, channels);
  bias = floats(bias, channels);
  DepthwiseConvolution conv{x.size(1), x.size(2), 0, 0, side, stride, padding, data(taps), data(kernel_bias)};
  conv.out_height = (conv.height + 2 * padding - side) / stride + 1;
  conv.out_width = (conv.width + 2 * padding - side) / stride + 1;
  STD_TORCH_CHECK(conv.height + 2 * padding >= side && conv.width + 2 * padding >= side && padding < side,
                  "drivestack::depthwise_norm: the kernel does not fit the map");
  Tensor out = torch::stable::new_empty(x, {x.size(0), conv.out_height, conv.out_width, channels});
  const LayerNorm norm{channels, data(weight), data(bias), float(eps), gelu};
  const Dtype dtype = dtype_of(x);
  const void* from = x.data_ptr();
  void* to = out.data_ptr();
  run_tasks("depthwise_norm", x.size(0) * conv.out_height, grain(conv.out_width * channels * side),
            [&](int64_t b, int64_t e) { kernels().norm->depthwise_norm(conv, norm, dtype, from, to, b, e); });
  return out;
}

}  // namespace
}  // namespace drivestack

STABLE_TORCH_LIBRARY_IMPL(drivestack, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&drivestack::layer_norm));
  m.impl("depthwise_norm", TORCH_BOX(&drivestack::depthwise_norm));
}
