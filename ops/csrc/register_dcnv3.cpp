// DCNv3 on the CPU as torch operators. Schemas are in ops/dispatch/operators.py; arguments are checked in
// ops/dispatch/checks.py, here only what keeps a direct call of torch.ops.drivestack.* inside its memory.
#include <tuple>

#include "cpu/tensors.h"

namespace drivestack {
namespace {

// Offsets or masks as the kernels read them: a pixel is an element of (n, ho, wo), `each` numbers per group lie together.
struct TapTensor {
  Tensor tensor;
  int64_t pixel, group;  // strides
};
TapTensor tap_tensor(const Tensor& t, const Dcnv3Sizes& s, int64_t each) {
  const auto size = t.sizes(), stride = t.strides();
  const bool by_group = size.size() == 5;
  STD_TORCH_CHECK((by_group || size.size() == 4) && size[0] == s.batch && size[1] == s.out_height &&
                      size[2] == s.out_width && size[3] == (by_group ? s.groups : s.groups * each) &&
                      (!by_group || size[4] == each),
                  "drivestack::dcnv3: offset or mask does not fit value and window");
  const int64_t pixel = size[2] > 1 ? stride[2] : size[1] > 1 ? stride[1] : stride[0];
  const bool one_stride = (size[1] == 1 || stride[1] == pixel * size[2]) &&
                          (size[0] == 1 || stride[0] == pixel * size[1] * size[2]);
  const int64_t last = by_group ? 4 : 3;
  if (one_stride && (stride[last] == 1 || size[last] == 1)) return {t, pixel, by_group ? stride[3] : each};
  return {dense(t), s.groups * each, each};
}

Dcnv3Sizes dcnv3_sizes(const Tensor& value, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                       int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
                       double offset_scale, bool remove_center, bool mask_softmax) {
  const auto size = value.sizes();
  STD_TORCH_CHECK(size.size() == 4 && groups > 0 && size[3] % groups == 0 && size[1] > 0 && size[2] > 0,
                  "drivestack::dcnv3: value must be [N, H, W, groups * D]");
  STD_TORCH_CHECK(kernel_h > 0 && kernel_w > 0 && stride_h > 0 && stride_w > 0 && dilation_h > 0 && dilation_w > 0,
                  "drivestack::dcnv3: kernel, stride and dilation must be positive");
  Dcnv3Sizes s{};
  s.batch = size[0];
  s.height = size[1];
  s.width = size[2];
  s.groups = groups;
  s.group_channels = size[3] / groups;
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
  s.mask_softmax = mask_softmax;
  s.out_height = (s.height + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) / stride_h + 1;
  s.out_width = (s.width + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) / stride_w + 1;
  STD_TORCH_CHECK(s.out_height > 0 && s.out_width > 0 && s.taps() > 0, "drivestack::dcnv3: empty output");
  return s;
}

// Everything the kernels need; the tensors keep the memory alive.
struct Dcnv3Call {
  Dcnv3Sizes sizes;
  Tensor value;
  TapTensor offset, mask;
  Dtype dtype;
  bool float_taps, wide;

  Dcnv3Call(const Dcnv3Sizes& s, const Tensor& value_, const Tensor& offset_, const Tensor& mask_)
      : sizes(s), value(dense(value_)), offset(tap_tensor(offset_, s, 2 * s.taps())),
        mask(tap_tensor(mask_, s, s.taps())), dtype(dtype_of(value_)) {
    const ScalarType type = value_.scalar_type(), tap_type = offset_.scalar_type();
    STD_TORCH_CHECK(mask_.scalar_type() == tap_type &&
                        (tap_type == type || (tap_type == ScalarType::Float && type != ScalarType::Double)),
                    "drivestack::dcnv3: offset and mask must have the dtype of value, or float32 beside half precision");
    float_taps = tap_type == ScalarType::Float;
    sizes.offset_pixel = offset.pixel;
    sizes.offset_group = offset.group;
    sizes.mask_pixel = mask.pixel;
    sizes.mask_group = mask.group;
    const int64_t pixels = s.height * s.width;  // float32 counts to 2^24
    wide = pixels > (1 << 24) || pixels * s.channels() > largest_narrow_image();
  }
};

Tensor dcnv3(Tensor value, Tensor offset, Tensor mask, int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
             int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, int64_t groups,
             double offset_scale, bool remove_center, bool mask_softmax) {
  const Dcnv3Call call(dcnv3_sizes(value, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
                                   groups, offset_scale, remove_center, mask_softmax),
                       value, offset, mask);
  const Dcnv3Sizes& s = call.sizes;
  Tensor out = torch::stable::new_empty(call.value, {s.batch, s.out_height, s.out_width, s.channels()});
  if (s.batch * s.channels() == 0) return out;
  const void *v = call.value.data_ptr(), *o = call.offset.tensor.data_ptr(), *m = call.mask.tensor.data_ptr();
  void* to = out.data_ptr();
  const int64_t pixels = s.batch * s.out_height * s.out_width;
  run_tasks("dcnv3", pixels, grain(s.channels() * s.taps()), [&](int64_t begin, int64_t end) {
    kernels().dcnv3->forward(s, call.dtype, call.float_taps, call.wide, v, o, m, to, begin, end);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward(Tensor grad_out, Tensor value, Tensor offset, Tensor mask,
                                                  int64_t kernel_h, int64_t kernel_w, int64_t stride_h,
                                                  int64_t stride_w, int64_t pad_h, int64_t pad_w, int64_t dilation_h,
                                                  int64_t dilation_w, int64_t groups, double offset_scale,
                                                  bool remove_center, bool mask_softmax, bool /*deterministic*/) {
  const Dcnv3Call call(dcnv3_sizes(value, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
                                   groups, offset_scale, remove_center, mask_softmax),
                       value, offset, mask);
  const Dcnv3Sizes& s = call.sizes;
  STD_TORCH_CHECK(grad_out.numel() == s.batch * s.out_height * s.out_width * s.channels() &&
                      grad_out.scalar_type() == value.scalar_type(),
                  "drivestack::dcnv3_backward: grad_out does not fit value and window");
  if (s.batch * s.channels() == 0)
    return {torch::stable::new_zeros(value, value.sizes()), torch::stable::new_zeros(offset, offset.sizes()),
            torch::stable::new_zeros(mask, mask.sizes())};
  grad_out = dense(grad_out);
  Tensor grad_value = torch::stable::new_empty(value, value.sizes()), grad_offset = torch::stable::new_empty(offset, offset.sizes()),
         grad_mask = torch::stable::new_empty(mask, mask.sizes());
  const void *g = grad_out.data_ptr(), *v = call.value.data_ptr(), *o = call.offset.tensor.data_ptr(),
             *m = call.mask.tensor.data_ptr();
  void *gv = grad_value.data_ptr(), *go = grad_offset.data_ptr(), *gm = grad_mask.data_ptr();
  const int64_t pixels = s.batch * s.out_height * s.out_width;
  run_tasks("dcnv3_backward", pixels, grain(s.channels() * s.taps()), [&](int64_t begin, int64_t end) {
    kernels().dcnv3->backward_taps(s, call.dtype, call.float_taps, call.wide, g, v, o, m, go, gm, begin, end);
  });
  const int64_t blocks = split(s.batch, s.groups);
  run_tasks("dcnv3_backward", s.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    kernels().dcnv3->backward_value(s, call.dtype, call.float_taps, call.wide, g, o, m, gv, blocks, begin, end);
  });
  return {grad_value, grad_offset, grad_mask};
}

}  // namespace
}  // namespace drivestack

STABLE_TORCH_LIBRARY_IMPL(drivestack, CPU, m) {
  m.impl("dcnv3", TORCH_BOX(&drivestack::dcnv3));
  m.impl("dcnv3_backward", TORCH_BOX(&drivestack::dcnv3_backward));
}
