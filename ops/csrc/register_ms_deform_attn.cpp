// Multi-scale deformable attention on the CPU as torch operators; see register_dcnv3.cpp.
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/tensors.h"

namespace drivestack {
namespace {

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
      [&](int64_t b, int64_t e) { kernels().ms_deform_attn->forward(s, dtype, v, l, w, to, b, e); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(Tensor grad_out, Tensor value, std::vector<int64_t> shapes,
                                                           Tensor locations, Tensor weights,
                                                           bool /*deterministic*/) {
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
    kernels().ms_deform_attn->backward(s, dtype, g, v, l, w, gv, gl, gw, blocks, b, e);
  });
  return {narrowed(grad_value, value), grad_locations, grad_weights};
}

}  // namespace
}  // namespace drivestack

STABLE_TORCH_LIBRARY_IMPL(drivestack, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&drivestack::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&drivestack::ms_deform_attn_backward));
}
