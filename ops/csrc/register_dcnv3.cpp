// DCNv3 on the CPU as torch operators. Schemas, fake kernels and autograd are defined in ops/registration.py; arguments
// are checked in ops/checks.py, here only what keeps a direct call of torch.ops.drivestack.* inside its memory.
#include <limits>
#include <tuple>

#include "cpu/tensors.h"

namespace drivestack {
namespace {

Dcnv3Sizes dcnv3_sizes(const Tensor& value, const Tensor& offset, const Tensor& mask, int64_t kernel_h,
                       int64_t kernel_w, int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w,
                       int64_t dilation_h, int64_t dilation_w, int64_t groups, double offset_scale,
                       bool remove_center) {
  STD_TORCH_CHECK(value.dim() == 4 && groups > 0 && value.size(3) % groups == 0,
                  "drivestack::dcnv3: value must be [N, H, W, groups * D]");
  Dcnv3Sizes s{};
  s.batch = value.size(0);
  s.height = value.size(1);
  s.width = value.size(2);
  s.groups = groups;
  s.group_channels = value.size(3) / groups;
  s.kernel_h = kernel_h;
  s.kernel_w = kernel_w;
  s.stride_h = stride_h;
  s.stride_w = stride_w;
  s.pad_h = pad_h;
  s.pad_w = pad_w;
  s.dilation_h = dilation_h;
  s.dilation_w = dilation_w;
  s.offset_scale = offset_scale;
  s.remove_center = remove_center;
  s.out_height = (s.height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1;
  s.out_width = (s.width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1;
  const int64_t taps = s.batch * s.out_height * s.out_width * groups * s.taps();
  STD_TORCH_CHECK(s.height > 0 && s.width > 0 && mask.numel() == taps && offset.numel() == 2 * taps,
                  "drivestack::dcnv3: offset or mask does not fit value and window");
  STD_TORCH_CHECK(s.height * s.width * s.channels() <= std::numeric_limits<int32_t>::max() ||
                      value.scalar_type() == ScalarType::Double,
                  "drivestack::dcnv3: an image of more than 2^31 elements needs float64 or backend='reference'");
  const ScalarType tap_type = offset.scalar_type();
  STD_TORCH_CHECK(
      mask.scalar_type() == tap_type && (tap_type == value.scalar_type() ||
                                         (tap_type == ScalarType::Float && value.scalar_type() != ScalarType::Double)),
      "drivestack::dcnv3: offset and mask must have the dtype of value, or float32 beside half precision");
  return s;
}

Tensor dcnv3(Tensor value, Tensor offset, Tensor mask, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
             int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
             double offset_scale, bool remove_center) {
  const Dcnv3Sizes s = dcnv3_sizes(value, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
                                   dilation_h, dilation_w, groups, offset_scale, remove_center);
  value = dense(value);
  offset = dense(offset);
  mask = dense(mask);
  Tensor out = torch::stable::new_empty(value, {s.batch, s.out_height, s.out_width, s.channels()});
  const Dtype dtype = dtype_of(value);
  const bool float_taps = offset.scalar_type() == ScalarType::Float;
  const void *v = value.data_ptr(), *o = offset.data_ptr(), *m = mask.data_ptr();
  void* to = out.data_ptr();
  torch::stable::parallel_for(
      0, s.batch * s.out_height, grain(s.out_width * s.channels() * s.taps()),
      [&](int64_t b, int64_t e) { kernels().dcnv3->forward(s, dtype, float_taps, v, o, m, to, b, e); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward(Tensor grad_out, Tensor value, Tensor offset, Tensor mask,
                                                  int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                                                  int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                                                  int64_t dilation_w, int64_t groups, double offset_scale,
                                                  bool remove_center) {
  const Dcnv3Sizes s = dcnv3_sizes(value, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
                                   dilation_h, dilation_w, groups, offset_scale, remove_center);
  STD_TORCH_CHECK(grad_out.numel() == s.batch * s.out_height * s.out_width * s.channels() &&
                      grad_out.scalar_type() == value.scalar_type(),
                  "drivestack::dcnv3_backward: grad_out does not fit value and window");
  grad_out = dense(grad_out);
  value = dense(value);
  offset = dense(offset);
  mask = dense(mask);
  Tensor grad_value = accumulator(value), grad_offset = torch::stable::empty_like(offset),
         grad_mask = torch::stable::empty_like(mask);
  const Dtype dtype = dtype_of(value);
  const bool float_taps = offset.scalar_type() == ScalarType::Float;
  const void *g = grad_out.data_ptr(), *v = value.data_ptr(), *o = offset.data_ptr(), *m = mask.data_ptr();
  void *gv = grad_value.data_ptr(), *go = grad_offset.data_ptr(), *gm = grad_mask.data_ptr();
  const int64_t blocks = split(s.batch, s.groups);
  torch::stable::parallel_for(0, s.batch * blocks, 1, [&](int64_t b, int64_t e) {
    kernels().dcnv3->backward(s, dtype, float_taps, g, v, o, m, gv, go, gm, blocks, b, e);
  });
  return {narrowed(grad_value, value), grad_offset, grad_mask};
}

void check_rows(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() > 0 && t.size(t.dim() - 1) <= 64 && t.scalar_type() != ScalarType::Double,
                  "drivestack::softmax_rows: rows of at most 64 numbers, not float64");
}
int64_t row_count(const Tensor& t) { return t.numel() / std::max<int64_t>(1, t.size(t.dim() - 1)); }

Tensor softmax_rows(Tensor logits) {
  check_rows(logits);
  logits = dense(logits);
  Tensor out = torch::stable::empty_like(logits);
  const int64_t length = logits.size(logits.dim() - 1);
  const Dtype dtype = dtype_of(logits);
  const void* from = logits.data_ptr();
  void* to = out.data_ptr();
  torch::stable::parallel_for(0, row_count(logits), grain(length),
                              [&](int64_t b, int64_t e) { kernels().rows->softmax_forward(length, dtype, from, to, b, e); });
  return out;
}

Tensor softmax_rows_backward(Tensor grad_out, Tensor out) {
  check_rows(out);
  STD_TORCH_CHECK(grad_out.numel() == out.numel() && grad_out.scalar_type() == out.scalar_type(),
                  "drivestack::softmax_rows_backward: grad_out does not fit out");
  grad_out = dense(grad_out);
  out = dense(out);
  Tensor grad_logits = torch::stable::empty_like(out);
  const int64_t length = out.size(out.dim() - 1);
  const Dtype dtype = dtype_of(out);
  const void *g = grad_out.data_ptr(), *y = out.data_ptr();
  void* to = grad_logits.data_ptr();
  torch::stable::parallel_for(0, row_count(out), grain(length),
                              [&](int64_t b, int64_t e) { kernels().rows->softmax_backward(length, dtype, g, y, to, b, e); });
  return grad_logits;
}

}  // namespace
}  // namespace drivestack

STABLE_TORCH_LIBRARY_IMPL(drivestack, CPU, m) {
  m.impl("dcnv3", TORCH_BOX(&drivestack::dcnv3));
  m.impl("dcnv3_backward", TORCH_BOX(&drivestack::dcnv3_backward));
  m.impl("softmax_rows", TORCH_BOX(&drivestack::softmax_rows));
  m.impl("softmax_rows_backward", TORCH_BOX(&drivestack::softmax_rows_backward));
}
