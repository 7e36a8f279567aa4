// Deformable attention on the CPU as torch operators; see register_dcnv3.cpp. Shapes and dtypes are checked in
// ops/dispatch/checks.py with better messages; here only what keeps a direct call inside its memory.
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/tensors.h"

namespace drivestack {
namespace {

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

// A call and the tensors that its pointers point into.
struct Call : AttentionCall {
  std::vector<int64_t> levels_given;
  std::vector<Tensor> kept;
  std::vector<int64_t> out_shape() const { return {batch, queries, channels()}; }

  const void* keep(const Tensor& t) {
    kept.push_back(t);
    return t.data_ptr();
  }
};

// Rows (b, q) of `row` elements each, at one stride; anything else is copied.
const void* keep_rows(Call& call, Tensor t, int64_t row, int64_t& stride) {
  int64_t inner = 1;
  bool regular = t.numel() > 0;
  for (int64_t d = t.dim() - 1; d >= 2; --d) {
    regular = regular && (t.size(d) == 1 || t.stride(d) == inner);
    inner *= t.size(d);
  }
  stride = t.stride(t.size(1) == 1 ? 0 : 1);
  if (t.size(0) > 1 && t.size(1) > 1) regular = regular && t.stride(0) == t.size(1) * stride;
  if (regular) return call.keep(t);
  stride = row;
  return call.keep(dense(t));
}

// What all operators check and fill in. value [B, (N,) S, M, D], positions [B, Q, M, L, P, 2], scores [B, Q, M, L, P].
void prepare(Call& call, const Tensor& value, std::vector<int64_t> level_table, const Tensor& positions,
             const Tensor& scores) {
  const int64_t last = value.dim() - 1;
  STD_TORCH_CHECK(positions.dim() == 6 && scores.dim() == 5, "drivestack: wrong number of dimensions");
  call.batch = value.size(0);
  call.cameras = last == 4 ? value.size(1) : 1;
  call.tokens = value.size(last - 2);
  call.heads = value.size(last - 1);
  call.head_channels = value.size(last);
  call.queries = scores.size(1);
  call.levels = scores.size(3);
  call.points = scores.size(4);
  const int64_t row = call.heads * call.taps();
  STD_TORCH_CHECK(call.head_channels > 0 && call.heads > 0 && scores.size(0) == call.batch &&
                      scores.size(2) == call.heads && scores.numel() == call.batch * call.queries * row &&
                      positions.size(0) == call.batch && positions.size(1) == call.queries &&
                      positions.numel() == 2 * scores.numel() && int64_t(level_table.size()) == 3 * call.levels,
                  "drivestack: shapes do not fit");
  const int64_t image = call.tokens * call.channels();
  call.wide = image > largest_narrow_image() && value.scalar_type() != ScalarType::Double;
  STD_TORCH_CHECK(call.tokens <= std::numeric_limits<int32_t>::max(), "drivestack: more than 2^31 tokens");
  for (size_t i = 0; i < level_table.size(); i += 3) {
    const int64_t height = level_table[i], width = level_table[i + 1], start = level_table[i + 2];
    STD_TORCH_CHECK(height > 0 && width > 0 && start >= 0 && height <= call.tokens && width <= call.tokens &&
                        height * width <= call.tokens - start,
                    "drivestack: a level is empty or leaves the tokens of value");
  }
  const ScalarType type = value.scalar_type(), taps = scores.scalar_type();
  STD_TORCH_CHECK(
      positions.scalar_type() == taps && (taps == type || (taps == ScalarType::Float && type != ScalarType::Double)),
      "drivestack: dtypes do not fit");
  call.dtype = dtype_of(value);
  call.tap_dtype = dtype_of(scores);
  call.levels_given = std::move(level_table);
  call.level_table = call.levels_given.data();
  call.value = call.keep(dense(value));
  call.positions = keep_rows(call, positions, 2 * row, call.position_stride);
  call.scores = keep_rows(call, scores, row, call.score_stride);
}

// references [B or 1, (N,) Q, (L or 1,) R, 2]
void prepare_references(Call& call, Tensor references, bool of_cameras) {
  STD_TORCH_CHECK(references.dim() == 5 && references.size(4) == 2 && references.size(3) > 0 &&
                      (references.size(0) == call.batch || references.size(0) == 1),
                  "drivestack: reference_points do not fit");
  const int64_t query = of_cameras ? 2 : 1, other = of_cameras ? 1 : 2;
  STD_TORCH_CHECK(references.size(query) == call.queries &&
                      (of_cameras ? references.size(1) == call.cameras
                                  : references.size(2) == call.levels || references.size(2) == 1),
                  "drivestack: reference_points do not fit");
  const ScalarType real = call.dtype == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(references.scalar_type() == real,
                  "drivestack: reference_points must be float32, or float64 with float64");
  if (references.stride(4) != 1 || references.stride(3) != 2) references = dense(references);
  call.references = call.keep(references);
  call.reference_count = references.size(3);
  const int64_t other_stride = references.size(other) == 1 ? 0 : references.stride(other);
  call.reference_stride[0] = references.size(0) == 1 ? 0 : references.stride(0);
  call.reference_stride[1] = of_cameras ? other_stride : 0;
  call.reference_stride[2] = references.stride(query);
  call.reference_stride[3] = of_cameras ? 0 : other_stride;
}

void prepare_plain(Call& call, const Tensor& value, const std::vector<int64_t>& shapes, const Tensor& locations,
                   const Tensor& weights) {
  STD_TORCH_CHECK(value.dim() == 4 && shapes.size() % 2 == 0, "drivestack::ms_deform_attn: wrong number of dimensions");
  const ScalarType real = value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(weights.scalar_type() == real && locations.scalar_type() == real,
                  "drivestack::ms_deform_attn: locations and weights must be float64 for float64 values, else float32");
  std::vector<int64_t> table;
  int64_t start = 0;
  for (size_t i = 0; i < shapes.size(); i += 2) {
    table.insert(table.end(), {shapes[i], shapes[i + 1], start});
    start += shapes[i] * shapes[i + 1];
  }
  prepare(call, value, std::move(table), locations, weights);
}
void prepare_fused(Call& call, const Tensor& value, std::vector<int64_t> levels, const Tensor& references,
                   const Tensor& offsets, const Tensor& logits, bool level_mean) {
  STD_TORCH_CHECK(value.dim() == 4, "drivestack::ms_deform_attn_fused: value must be [B, S, M, D]");
  prepare(call, value, std::move(levels), offsets, logits);
  prepare_references(call, references, false);
  call.level_mean = level_mean;
}
void prepare_cameras(Call& call, const Tensor& value, std::vector<int64_t> levels, const Tensor& references,
                     const Tensor& visible, const Tensor& offsets, const Tensor& logits) {
  STD_TORCH_CHECK(value.dim() == 5, "drivestack::spatial_cross_attention: value must be [B, N, S, M, D]");
  prepare(call, value, std::move(levels), offsets, logits);
  prepare_references(call, references, true);
  STD_TORCH_CHECK(visible.dim() == 3 && visible.size(0) == call.batch && visible.size(1) == call.cameras &&
                      visible.size(2) == call.queries && visible.scalar_type() == ScalarType::Bool,
                  "drivestack::spatial_cross_attention: visible must be bool [B, N, Q]");
  call.visible = static_cast<const unsigned char*>(call.keep(dense(visible)));
}

Tensor forward(const char* op, Call& call, const Tensor& value) {
  Tensor out = on_huge_pages(torch::stable::new_empty(value, call.out_shape()));
  call.out = out.data_ptr();
  run_tasks(op, call.batch * call.queries, grain(call.channels() * call.taps()),
            [&](int64_t b, int64_t e) { kernels().ms_deform_attn->forward(call, b, e); });
  return out;
}

// Blocks of heads that a sample is split into, so that the threads have about the same to do.
int64_t head_blocks(int64_t batch, int64_t heads) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t blocks = 1;
  while (blocks < heads && (heads % blocks || (batch * blocks % threads && batch * blocks < 4 * threads))) ++blocks;
  return blocks;
}

Gradients backward(const char* op, Call& call, const Tensor& grad_out, const Tensor& value, const Tensor& positions,
                   const Tensor& scores) {
  STD_TORCH_CHECK(
      grad_out.numel() == call.batch * call.queries * call.channels() && grad_out.scalar_type() == value.scalar_type(),
      "drivestack: grad_out does not fit");
  const auto gradient_like = [](const Tensor& t) { return on_huge_pages(torch::stable::new_empty(t, t.sizes())); };
  Tensor grad_value = accumulator(value), grad_positions = gradient_like(positions),
         grad_scores = gradient_like(scores);
  call.grad_out = call.keep(dense(grad_out));
  call.grad_value = grad_value.data_ptr();
  call.grad_positions = grad_positions.data_ptr();
  call.grad_scores = grad_scores.data_ptr();
  const int64_t blocks = head_blocks(call.batch, call.heads);
  run_tasks(op, call.batch * blocks, 1,
            [&](int64_t b, int64_t e) { kernels().ms_deform_attn->backward(call, blocks, b, e); });
  return {narrowed(grad_value, value), grad_positions, grad_scores};
}

Tensor ms_deform_attn(Tensor value, std::vector<int64_t> shapes, Tensor locations, Tensor weights) {
  Call call{};
  prepare_plain(call, value, shapes, locations, weights);
  return forward("ms_deform_attn", call, value);
}
Gradients ms_deform_attn_backward(Tensor grad_out, Tensor value, std::vector<int64_t> shapes, Tensor locations,
                                  Tensor weights, bool /*deterministic: always*/) {
  Call call{};
  prepare_plain(call, value, shapes, locations, weights);
  return backward("ms_deform_attn_backward", call, grad_out, value, locations, weights);
}

Tensor ms_deform_attn_fused(Tensor value, std::vector<int64_t> levels, Tensor references, Tensor offsets, Tensor logits,
                            bool level_mean) {
  Call call{};
  prepare_fused(call, value, levels, references, offsets, logits, level_mean);
  return forward("ms_deform_attn_fused", call, value);
}
Gradients ms_deform_attn_fused_backward(Tensor grad_out, Tensor value, std::vector<int64_t> levels, Tensor references,
                                        Tensor offsets, Tensor logits, bool level_mean,
                                        bool /*deterministic: always*/) {
  Call call{};
  prepare_fused(call, value, levels, references, offsets, logits, level_mean);
  return backward("ms_deform_attn_fused_backward", call, grad_out, value, offsets, logits);
}

Tensor spatial_cross_attention(Tensor value, std::vector<int64_t> levels, Tensor references, Tensor visible,
                               Tensor offsets, Tensor logits) {
  Call call{};
  prepare_cameras(call, value, levels, references, visible, offsets, logits);
  return forward("spatial_cross_attention", call, value);
}
Gradients spatial_cross_attention_backward(Tensor grad_out, Tensor value, std::vector<int64_t> levels,
                                           Tensor references, Tensor visible, Tensor offsets, Tensor logits,
                                           bool /*deterministic: always*/) {
  Call call{};
  prepare_cameras(call, value, levels, references, visible, offsets, logits);
  return backward("spatial_cross_attention_backward", call, grad_out, value, offsets, logits);
}

}  // namespace
}  // namespace drivestack

STABLE_TORCH_LIBRARY_IMPL(drivestack, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&drivestack::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&drivestack::ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&drivestack::ms_deform_attn_fused));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&drivestack::ms_deform_attn_fused_backward));
  m.impl("spatial_cross_attention", TORCH_BOX(&drivestack::spatial_cross_attention));
  m.impl("spatial_cross_attention_backward", TORCH_BOX(&drivestack::spatial_cross_attention_backward));
}
