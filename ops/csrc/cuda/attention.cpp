// Multi-scale deformable attention, plain and fused, and spatial cross-attention as torch operators on CUDA tensors;
// see dcnv3.cpp for what is checked where.
#include "tensors.h"

namespace drivestack {
namespace cuda {
namespace {

// The tensors of one call; reference and visible are null where the operator has none.
struct Inputs {
  Tensor &value, &offsets, &logits;
  Tensor *reference = nullptr, *visible = nullptr;
};

// [B, Q, M, L, P] or [B, Q, M, L, P, 2] through one stride for (b, q); anything else is made contiguous.
int64_t view_rows(Tensor& t) {
  int64_t stride;
  if (!one_axis(t, 0, 2, stride) || !is_dense(t, 2, t.dim())) {
    t = torch::stable::contiguous(t);
    one_axis(t, 0, 2, stride);
  }
  return stride;
}

// Levels as (height, width, first token).
AttentionCall make_call(const char* op, const Inputs& in, const std::vector<int64_t>& levels, bool level_mean) {
  Tensor &value = in.value, &offsets = in.offsets, &logits = in.logits;
  const bool cameras = in.visible;
  STD_TORCH_CHECK(value.dim() == 4 + cameras && offsets.dim() == 6 && logits.dim() == 5, "drivestack::", op,
                  ": wrong number of dimensions");
  check_devices(op, value, {&offsets, &logits});
  AttentionCall call{};
  AttentionParams& p = call.params;
  call.fused = in.reference;
  call.batch = value.size(0);
  p.cameras = cameras ? extent(op, value.size(1)) : 1;
  p.tokens = value.size(1 + cameras);
  p.heads = extent(op, value.size(2 + cameras));
  p.channels = extent(op, value.size(3 + cameras));
  extent(op, int64_t(p.heads) * p.channels);
  p.queries = extent(op, logits.size(1));
  p.levels = extent(op, logits.size(3));
  p.points = extent(op, logits.size(4));
  extent(op, logits.size(2) * logits.size(3) * logits.size(4) * 2);
  p.level_mean = level_mean;
  STD_TORCH_CHECK(p.cameras <= kMaxCameras && p.levels <= kMaxLevels, "drivestack::", op, ": at most ", kMaxCameras,
                  " cameras and ", kMaxLevels, " levels on CUDA");
  bool fits = int64_t(levels.size()) == 3 * int64_t(p.levels) && logits.size(0) == call.batch &&
              logits.size(2) == p.heads && offsets.size(5) == 2;
  for (int i = 0; i < 5; ++i) fits = fits && offsets.size(i) == logits.size(i);
  for (int l = 0; l < p.levels && fits; ++l) {
    const int64_t height = levels[3 * l], width = levels[3 * l + 1], start = levels[3 * l + 2];
    STD_TORCH_CHECK(height > 0 && width > 0 && height <= INT32_MAX && width <= INT32_MAX && start >= 0 &&
                        start + height * width <= p.tokens,
                    "drivestack::", op, ": a level does not lie within the tokens of value");
    p.level[l] = {int(height), int(width), start};
  }
  STD_TORCH_CHECK(fits, "drivestack::", op, ": shapes do not fit");
  if (in.reference) {
    Tensor& r = *in.reference;
    check_tap_types(op, value, offsets, logits);
    check_devices(op, value, {&r});
    STD_TORCH_CHECK(r.scalar_type() == arithmetic(value), "drivestack::", op,
                    ": reference points must be float64 for float64 values, else float32");
    STD_TORCH_CHECK(r.dim() == 5 && r.size(4) == 2 && (r.size(3) > 0 || p.points == 0), "drivestack::", op,
                    ": reference points have a wrong shape");
    p.references = extent(op, r.size(3));
    const int64_t row = r.size(3) * 2;
    if (cameras) {  // [B, N, Q, R, 2]
      fits = r.size(0) == call.batch && r.size(1) == p.cameras && r.size(2) == p.queries;
      p.reference_query = row;
      p.reference_camera = p.queries * row;
      p.reference_batch = p.cameras * p.reference_camera;
      Tensor& v = *in.visible;
      check_devices(op, value, {&v});
      STD_TORCH_CHECK(v.scalar_type() == ScalarType::Bool && v.dim() == 3 && v.size(0) == call.batch &&
                          v.size(1) == p.cameras && v.size(2) == p.queries,
                      "drivestack::", op, ": visible must be bool [B, N, Q]");
      v = dense(v);
      call.visible = v.data_ptr();
    } else {  // [B or 1, Q, L or 1, R, 2]
      fits = (r.size(0) == call.batch || r.size(0) == 1) && r.size(1) == p.queries &&
             (r.size(2) == p.levels || r.size(2) == 1);
      p.reference_level = r.size(2) == 1 ? 0 : row;
      p.reference_query = r.size(2) * row;
      p.reference_batch = r.size(0) == 1 ? 0 : p.queries * p.reference_query;
    }
    STD_TORCH_CHECK(fits, "drivestack::", op, ": reference points do not fit value and offsets");
    r = dense(r);
    call.reference = r.data_ptr();
  } else {
    STD_TORCH_CHECK(offsets.scalar_type() == arithmetic(value) && logits.scalar_type() == arithmetic(value),
                    "drivestack::", op, ": locations and weights must be float64 for float64 values, else float32");
  }
  value = dense(value);
  p.offset_query = view_rows(offsets);
  p.logit_query = view_rows(logits);
  call.value_type = type_of(value);
  call.tap_type = type_of(offsets);
  call.value = value.data_ptr();
  call.offsets = offsets.data_ptr();
  call.logits = logits.data_ptr();
  return call;
}

Tensor forward(const char* op, const Inputs& in, const std::vector<int64_t>& levels, bool level_mean) {
  const Launching on(in.value);
  const AttentionCall call = make_call(op, in, levels, level_mean);
  const AttentionParams& p = call.params;
  Tensor out = torch::stable::new_empty(in.value, {call.batch, p.queries, int64_t(p.heads) * p.channels});
  if (out.numel()) launch_attention_forward(call, out.data_ptr(), on.stream);
  return out;
}

Gradients backward(const char* op, Tensor grad_out, const Inputs& in, const std::vector<int64_t>& levels,
                   bool level_mean, bool deterministic) {
  const Launching on(in.value);
  const AttentionCall call = make_call(op, in, levels, level_mean);
  const AttentionParams& p = call.params;
  check_devices(op, in.value, {&grad_out});
  STD_TORCH_CHECK(grad_out.scalar_type() == in.value.scalar_type() && grad_out.dim() == 3 &&
                      grad_out.size(0) == call.batch && grad_out.size(1) == p.queries &&
                      grad_out.size(2) == int64_t(p.heads) * p.channels,
                  "drivestack::", op, ": grad_out does not fit");
  if (grad_out.numel() == 0 || in.value.numel() == 0) return {zeros(in.value), zeros(in.offsets), zeros(in.logits)};
  grad_out = dense(grad_out);
  const int64_t contributions = int64_t(p.queries) * p.levels * p.points;
  ValueSum sum(in.value, grad_out, call.fused ? nullptr : &in.logits, contributions, deterministic, on.stream);
  Tensor grad_offsets = empty(in.offsets), grad_logits = empty(in.logits);
  const Tensor kept = call.fused ? room_for(grad_logits) : grad_logits;
  launch_attention_backward(call, grad_out.data_ptr(), sum.gradient, grad_offsets.data_ptr(), grad_logits.data_ptr(),
                            kept.data_ptr(), on.stream);
  return {sum.result(), grad_offsets, grad_logits};
}

// (height, width) of levels that lie one after the other, with their first tokens.
std::vector<int64_t> with_starts(const char* op, const std::vector<int64_t>& shapes, const Tensor& value) {
  std::vector<int64_t> levels;
  int64_t tokens = 0;
  for (size_t i = 0; i + 1 < shapes.size(); i += 2) {
    levels.insert(levels.end(), {shapes[i], shapes[i + 1], tokens});
    tokens += shapes[i] * shapes[i + 1];
  }
  STD_TORCH_CHECK(shapes.size() % 2 == 0 && value.dim() == 4 && value.size(1) == tokens, "drivestack::", op,
                  ": shapes do not fit");
  return levels;
}

Tensor ms_deform_attn(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  const char* op = "ms_deform_attn";
  return forward(op, {value, locations, weights}, with_starts(op, shapes, value), false);
}
Gradients ms_deform_attn_backward(Tensor grad_out, Tensor value, std::vector<int64_t> shapes, Tensor locations,
                                  Tensor weights, bool deterministic) {
  const char* op = "ms_deform_attn_backward";
  return backward(op, grad_out, {value, locations, weights}, with_starts(op, shapes, value), false, deterministic);
}

Tensor ms_deform_attn_fused(Tensor value, std::vector<int64_t> levels, Tensor reference_points, Tensor offsets,
                            Tensor logits, bool level_mean) {
  return forward("ms_deform_attn_fused", {value, offsets, logits, &reference_points}, levels, level_mean);
}
Gradients ms_deform_attn_fused_backward(Tensor grad_out, Tensor value, std::vector<int64_t> levels,
                                        Tensor reference_points, Tensor offsets, Tensor logits, bool level_mean,
                                        bool deterministic) {
  return backward("ms_deform_attn_fused_backward", grad_out, {value, offsets, logits, &reference_points}, levels,
                  level_mean, deterministic);
}

Tensor spatial_cross_attention(Tensor value, std::vector<int64_t> levels, Tensor reference_points, Tensor visible,
                               Tensor offsets, Tensor logits) {
  return forward("spatial_cross_attention", {value, offsets, logits, &reference_points, &visible}, levels, false);
}
Gradients spatial_cross_attention_backward(Tensor grad_out, Tensor value, std::vector<int64_t> levels,
                                           Tensor reference_points, Tensor visible, Tensor offsets, Tensor logits,
                                           bool deterministic) {
  return backward("spatial_cross_attention_backward", grad_out, {value, offsets, logits, &reference_points, &visible},
                  levels, false, deterministic);
}

}  // namespace
}  // namespace cuda
}  // namespace drivestack

STABLE_TORCH_LIBRARY_IMPL(DRIVESTACK_LIBRARY, DRIVESTACK_DEVICE, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&drivestack::cuda::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&drivestack::cuda::ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&drivestack::cuda::ms_deform_attn_fused));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&drivestack::cuda::ms_deform_attn_fused_backward));
  m.impl("spatial_cross_attention", TORCH_BOX(&drivestack::cuda::spatial_cross_attention));
  m.impl("spatial_cross_attention_backward", TORCH_BOX(&drivestack::cuda::spatial_cross_attention_backward));
}
