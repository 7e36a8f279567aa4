// The CPU kernels as torch operators, on torch's stable ABI: one binary serves many torch and Python versions.
// Schemas, fake kernels and autograd are defined in ops/registration.py; arguments are checked in ops/checks.py, here
// only what keeps a direct call of torch.ops.drivestack.* inside its memory.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace drivestack {
namespace {

constexpr int kInterfaceVersion = 2;       // see INTERFACE_VERSION in ops/backend.py
constexpr int64_t kWorkPerTask = 1 << 15;  // corner reads below which another thread does not pay

Dtype dtype_of(const Tensor& t) {
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
Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
int64_t grain(int64_t work_per_task) {
  return std::max<int64_t>(1, kWorkPerTask / std::max<int64_t>(1, work_per_task));
}

// Tasks per image of a backward pass, so that every thread has one.
int64_t split(int64_t images, int64_t slices) {
  const int64_t threads = torch::stable::get_num_threads();
  return std::max<int64_t>(1, std::min(slices, (threads + images - 1) / std::max<int64_t>(1, images)));
}

// A zeroed accumulator for the gradient to `like`: float for half types.
Tensor accumulator(const Tensor& like) {
  const bool half = like.scalar_type() == ScalarType::Half || like.scalar_type() == ScalarType::BFloat16;
  return torch::stable::new_zeros(like, like.sizes(), half ? ScalarType::Float : like.scalar_type());
}
Tensor narrowed(const Tensor& sum, const Tensor& like) {
  if (sum.scalar_type() == like.scalar_type()) return sum;
  Tensor out = torch::stable::empty_like(like);
  const Dtype dtype = dtype_of(like);
  const float* from = static_cast<const float*>(sum.data_ptr());
  void* to = out.data_ptr();
  torch::stable::parallel_for(0, sum.numel(), 1 << 16,
                              [&](int64_t b, int64_t e) { kernels().narrow(dtype, from, to, b, e); });
  return out;
}

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
      [&](int64_t b, int64_t e) { kernels().dcnv3_forward(s, dtype, float_taps, v, o, m, to, b, e); });
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
    kernels().dcnv3_backward(s, dtype, float_taps, g, v, o, m, gv, go, gm, blocks, b, e);
  });
  return {narrowed(grad_value, value), grad_offset, grad_mask};
}

MsDeformAttnSizes msda_sizes(const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& locations,
                             const Tensor& weights) {
  STD_TORCH_CHECK(value.dim() == 4 && locations.dim() == 6 && weights.dim() == 5,
                  "drivestack::ms_deform_attn: wrong number of dimensions");
  MsDeformAttnSizes s{};
  s.batch = value.size(0);
  s.tokens = value.size(1);
  s.heads = value.size(2);
  s.head_channels = value.size(3);
  s.queries = locations.size(1);
  s.levels = locations.size(3);
  s.points = locations.size(4);
  s.spatial_shapes = shapes.data();
  int64_t tokens = 0;
  for (size_t i = 0; i + 1 < shapes.size(); i += 2) {
    STD_TORCH_CHECK(shapes[i] > 0 && shapes[i + 1] > 0, "drivestack::ms_deform_attn: empty level");
    tokens += shapes[i] * shapes[i + 1];
  }
  const int64_t taps = s.batch * s.queries * s.heads * s.levels * s.points;
  STD_TORCH_CHECK(int64_t(shapes.size()) == 2 * s.levels && tokens == s.tokens && weights.numel() == taps &&
                      locations.numel() == 2 * taps,
                  "drivestack::ms_deform_attn: shapes do not fit");
  STD_TORCH_CHECK(
      s.tokens * s.heads * s.head_channels <= std::numeric_limits<int32_t>::max() ||
          value.scalar_type() == ScalarType::Double,
      "drivestack::ms_deform_attn: a value of more than 2^31 elements per sample needs float64 or backend='reference'");
  const ScalarType arithmetic = value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(locations.scalar_type() == arithmetic && weights.scalar_type() == arithmetic,
                  "drivestack::ms_deform_attn: locations and weights must be float64 for float64 values, else float32");
  return s;
}

Tensor ms_deform_attn(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  const MsDeformAttnSizes s = msda_sizes(value, shapes, locations, weights);
  value = dense(value);
  locations = dense(locations);
  weights = dense(weights);
  Tensor out = torch::stable::new_empty(value, {s.batch, s.queries, s.heads * s.head_channels});
  const Dtype dtype = dtype_of(value);
  const void *v = value.data_ptr(), *l = locations.data_ptr(), *w = weights.data_ptr();
  void* to = out.data_ptr();
  torch::stable::parallel_for(
      0, s.batch * s.queries, grain(s.heads * s.head_channels * s.levels * s.points),
      [&](int64_t b, int64_t e) { kernels().ms_deform_attn_forward(s, dtype, v, l, w, to, b, e); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(Tensor grad_out, Tensor value, std::vector<int64_t> shapes,
                                                           Tensor locations, Tensor weights) {
  const MsDeformAttnSizes s = msda_sizes(value, shapes, locations, weights);
  STD_TORCH_CHECK(grad_out.numel() == s.batch * s.queries * s.heads * s.head_channels &&
                      grad_out.scalar_type() == value.scalar_type(),
                  "drivestack::ms_deform_attn_backward: grad_out does not fit");
  grad_out = dense(grad_out);
  value = dense(value);
  locations = dense(locations);
  weights = dense(weights);
  Tensor grad_value = accumulator(value), grad_locations = torch::stable::empty_like(locations),
         grad_weights = torch::stable::empty_like(weights);
  const Dtype dtype = dtype_of(value);
  const void *g = grad_out.data_ptr(), *v = value.data_ptr(), *l = locations.data_ptr(), *w = weights.data_ptr();
  void *gv = grad_value.data_ptr(), *gl = grad_locations.data_ptr(), *gw = grad_weights.data_ptr();
  int64_t blocks = split(s.batch, s.heads);
  while (s.heads % blocks) ++blocks;  // equal blocks of heads
  torch::stable::parallel_for(0, s.batch * blocks, 1, [&](int64_t b, int64_t e) {
    kernels().ms_deform_attn_backward(s, dtype, g, v, l, w, gv, gl, gw, blocks, b, e);
  });
  return {narrowed(grad_value, value), grad_locations, grad_weights};
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
                              [&](int64_t b, int64_t e) { kernels().softmax_forward(length, dtype, from, to, b, e); });
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
                              [&](int64_t b, int64_t e) { kernels().softmax_backward(length, dtype, g, y, to, b, e); });
  return grad_logits;
}

}  // namespace
}  // namespace drivestack

STABLE_TORCH_LIBRARY_IMPL(drivestack, CPU, m) {
  m.impl("dcnv3", TORCH_BOX(&drivestack::dcnv3));
  m.impl("dcnv3_backward", TORCH_BOX(&drivestack::dcnv3_backward));
  m.impl("ms_deform_attn", TORCH_BOX(&drivestack::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&drivestack::ms_deform_attn_backward));
  m.impl("softmax_rows", TORCH_BOX(&drivestack::softmax_rows));
  m.impl("softmax_rows_backward", TORCH_BOX(&drivestack::softmax_rows_backward));
}

#if defined(_WIN32)
#define DRIVESTACK_EXPORT extern "C" __declspec(dllexport)
#else
#define DRIVESTACK_EXPORT extern "C" __attribute__((visibility("default")))
#endif

DRIVESTACK_EXPORT int drivestack_interface_version() { return drivestack::kInterfaceVersion; }
DRIVESTACK_EXPORT const char* drivestack_instruction_set() { return drivestack::kernels().name; }
DRIVESTACK_EXPORT int drivestack_choose_instruction_set(const char* name) { return drivestack::choose_kernels(name); }

static PyModuleDef module_definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module_definition); }
