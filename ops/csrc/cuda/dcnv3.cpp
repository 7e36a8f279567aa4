// DCNv3 and DCNv4 as torch operators on CUDA tensors. Schemas are in ops/dispatch/operators.py; arguments are checked in
// ops/dispatch/checks.py, here only what keeps a direct call of torch.ops.drivestack.* inside its memory.
#include "tensors.h"

namespace drivestack {
namespace cuda {
namespace {

// Reads a tensor [N, Ho, Wo, G * n] or [N, Ho, Wo, G, n] through its strides; anything else is made contiguous.
void view_taps(Tensor& t, int64_t per_group, int64_t& pixel_stride, int64_t& group_stride) {
  const bool by_group = t.dim() == 5;
  if (!one_axis(t, 0, 3, pixel_stride) || !is_dense(t, t.dim() - 1, t.dim())) {
    t = torch::stable::contiguous(t);
    one_axis(t, 0, 3, pixel_stride);
  }
  group_stride = by_group && t.size(3) > 1 ? t.stride(3) : per_group;
}

struct Window {
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
  double offset_scale;
  bool remove_center, mask_softmax;
};

Dcnv3Call make_call(const char* op, Tensor& value, Tensor& offset, Tensor& mask, const Window& w) {
  STD_TORCH_CHECK(value.dim() == 4 && w.groups > 0 && value.size(3) % w.groups == 0, "drivestack::", op,
                  ": value must be [N, H, W, groups * D]");
  STD_TORCH_CHECK(w.kernel_h > 0 && w.kernel_w > 0 && w.stride_h > 0 && w.stride_w > 0 && w.dilation_h > 0 &&
                      w.dilation_w > 0,
                  "drivestack::", op, ": kernel, stride and dilation must be positive");
  check_devices(op, value, {&offset, &mask});
  check_tap_types(op, value, offset, mask);
  Dcnv3Call call{};
  Dcnv3Params& p = call.params;
  call.batch = value.size(0);
  p.height = extent(op, value.size(1));
  p.width = extent(op, value.size(2));
  p.groups = extent(op, w.groups);
  p.channels = extent(op, value.size(3)) / p.groups;
  p.kernel_h = extent(op, w.kernel_h);
  p.kernel_w = extent(op, w.kernel_w);
  p.stride_h = extent(op, w.stride_h);
  p.stride_w = extent(op, w.stride_w);
  p.pad_h = extent(op, w.pad_h);
  p.pad_w = extent(op, w.pad_w);
  p.dilation_h = extent(op, w.dilation_h);
  p.dilation_w = extent(op, w.dilation_w);
  p.offset_scale = w.offset_scale;
  p.remove_center = w.remove_center;
  p.softmax = w.mask_softmax;
  const int64_t reach_h = w.dilation_h * (w.kernel_h - 1) + 1, reach_w = w.dilation_w * (w.kernel_w - 1) + 1;
  const int64_t room_h = value.size(1) + 2 * w.pad_h - reach_h, room_w = value.size(2) + 2 * w.pad_w - reach_w;
  const int64_t taps = w.kernel_h * w.kernel_w - w.remove_center;
  STD_TORCH_CHECK(p.height > 0 && p.width > 0 && room_h >= 0 && room_w >= 0 && taps > 0, "drivestack::", op,
                  ": the window does not fit value");
  p.out_height = extent(op, room_h / w.stride_h + 1);
  p.out_width = extent(op, room_w / w.stride_w + 1);
  p.taps = extent(op, taps);
  extent(op, std::max(w.groups * taps * 2, std::max(room_h + 2 * reach_h, room_w + 2 * reach_w) + w.pad_h + w.pad_w));
  auto fits = [&](const Tensor& t, int64_t per_group) {
    if (t.dim() < 4 || t.size(0) != call.batch || t.size(1) != p.out_height || t.size(2) != p.out_width) return false;
    return t.dim() == 4 ? t.size(3) == w.groups * per_group
                        : t.dim() == 5 && t.size(3) == w.groups && t.size(4) == per_group;
  };
  STD_TORCH_CHECK(fits(offset, 2 * taps) && fits(mask, taps), "drivestack::", op,
                  ": offset or mask does not fit value and window");
  if (!one_axis(value, 0, 3, p.value_pixel) || !is_dense(value, 3, 4)) {
    value = torch::stable::contiguous(value);
    one_axis(value, 0, 3, p.value_pixel);
  }
  view_taps(offset, 2 * taps, p.offset_pixel, p.offset_group);
  view_taps(mask, taps, p.mask_pixel, p.mask_group);
  call.value_type = type_of(value);
  call.tap_type = type_of(offset);
  call.value = value.data_ptr();
  call.offset = offset.data_ptr();
  call.mask = mask.data_ptr();
  return call;
}

Tensor dcnv3(Tensor value, Tensor offset, Tensor mask, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
             int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
             double offset_scale, bool remove_center, bool mask_softmax) {
  const Launching on(value);
  const Dcnv3Call call = make_call("dcnv3", value, offset, mask,
                                   {kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
                                    groups, offset_scale, remove_center, mask_softmax});
  Tensor out = torch::stable::new_empty(value, {call.batch, call.params.out_height, call.params.out_width,
                                                value.size(3)});
  if (out.numel()) launch_dcnv3_forward(call, out.data_ptr(), on.stream);
  return out;
}

Gradients dcnv3_backward(Tensor grad_out, Tensor value, Tensor offset, Tensor mask, int64_t kernel_h, int64_t kernel_w,
                         int64_t stride_h, int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                         int64_t dilation_w, int64_t groups, double offset_scale, bool remove_center, bool mask_softmax,
                         bool deterministic) {
  const char* op = "dcnv3_backward";
  const Launching on(value);
  const Dcnv3Call call = make_call(op, value, offset, mask,
                                   {kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
                                    groups, offset_scale, remove_center, mask_softmax});
  check_devices(op, value, {&grad_out});
  const Dcnv3Params& p = call.params;
  STD_TORCH_CHECK(grad_out.scalar_type() == value.scalar_type() && grad_out.dim() == 4 &&
                      grad_out.size(0) == call.batch && grad_out.size(1) == p.out_height &&
                      grad_out.size(2) == p.out_width && grad_out.size(3) == value.size(3),
                  "drivestack::", op, ": grad_out does not fit value and window");
  if (grad_out.numel() == 0) return {zeros(value), zeros(offset), zeros(mask)};
  grad_out = dense(grad_out);
  const int64_t pixels = int64_t(p.out_height) * p.out_width;
  ValueSum sum(value, grad_out, mask_softmax ? nullptr : &mask, pixels * p.taps, deterministic, on.stream);
  Tensor grad_offset = empty(offset), grad_mask = empty(mask);
  const Tensor kept = mask_softmax ? room_for(grad_mask) : grad_mask;
  launch_dcnv3_backward(call, grad_out.data_ptr(), sum.gradient, grad_offset.data_ptr(), grad_mask.data_ptr(),
                        kept.data_ptr(), on.stream);
  return {sum.result(), grad_offset, grad_mask};
}

}  // namespace
}  // namespace cuda
}  // namespace drivestack

STABLE_TORCH_LIBRARY_IMPL(DRIVESTACK_LIBRARY, DRIVESTACK_DEVICE, m) {
  m.impl("dcnv3", TORCH_BOX(&drivestack::cuda::dcnv3));
  m.impl("dcnv3_backward", TORCH_BOX(&drivestack::cuda::dcnv3_backward));
}
