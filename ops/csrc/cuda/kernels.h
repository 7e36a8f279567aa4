// The CUDA kernels as host functions on plain pointers: what the .cpp files (torch, no CUDA headers) and the .cu files
// (CUDA, no torch) share. All functions launch on a stream of the current device and do not wait.
#pragma once
#include <cstdint>

namespace drivestack {
namespace cuda {

enum class Type { f32, f64, bf16, f16 };
using Stream = void*;  // a cudaStream_t

// Letters: N batch, H W input, Ho Wo output, G groups, K taps, D channels of a group. All strides in elements.
struct Dcnv3Params {
  int height, width, out_height, out_width, groups, channels, taps;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  double offset_scale;
  bool remove_center, softmax;
  int64_t value_pixel, offset_pixel, offset_group, mask_pixel, mask_group;
  // How the work is laid out, see dcnv3_launch.h.
  bool paired;
  int lanes, block_groups, group_blocks, tiles_x;
};
struct Dcnv3Call {
  Dcnv3Params params;
  int64_t batch;
  Type value_type, tap_type;
  const void *value, *offset, *mask;
};

// Letters: B batch, N cameras, S tokens, M heads, D channels of a head, Q queries, L levels, P points, R references.
constexpr int kMaxLevels = 64, kMaxCameras = 64;
struct Level {
  int height, width;
  int64_t start;  // first token
};
struct AttentionParams {
  int64_t tokens;
  int queries, heads, channels, levels, points, cameras, references;
  bool level_mean, paired;
  int64_t offset_query, logit_query;  // (b, q) is one axis; the inner axes are contiguous
  int64_t reference_batch, reference_camera, reference_query, reference_level;
  Level level[kMaxLevels];
};
struct AttentionCall {
  AttentionParams params;
  int64_t batch;
  Type value_type, tap_type;
  bool fused;
  const void *value, *reference, *visible, *offsets, *logits;  // plain: locations and weights, no reference, no visible
};

// Where a backward pass sums the gradient to the value: zeroed numbers of the arithmetic type, or, with `largest`, the
// zeroed integers of the deterministic mode (fixed_point.cuh), whose result fixed_point_result then makes.
struct ValueGradient {
  void* sum;
  const int* largest;
  int headroom;
};

void launch_dcnv3_forward(const Dcnv3Call& call, void* out, Stream stream);
// kept: [N, Ho, Wo, G, K] in the arithmetic type; with softmax only. May be grad_mask.
void launch_dcnv3_backward(const Dcnv3Call& call, const void* grad_out, ValueGradient grad_value, void* grad_offset,
                           void* grad_mask, void* kept, Stream stream);
void launch_attention_forward(const AttentionCall& call, void* out, Stream stream);
void launch_attention_backward(const AttentionCall& call, const void* grad_out, ValueGradient grad_value,
                               void* grad_offsets, void* grad_logits, void* kept, Stream stream);
// *largest = max(*largest, the biased exponent of the largest |x|).
void largest_exponent(Type type, const void* x, int64_t n, int* largest, Stream stream);
void fixed_point_result(Type type, const ValueGradient& gradient, void* out, int64_t n, Stream stream);

// Images in one launch, and elements of an image that 32-bit offsets may reach. Tests lower them, to walk the paths
// that otherwise take tensors of many gigabytes.
struct Limits {
  int64_t images = 65535, elements = INT32_MAX;
};
inline Limits& limits() {
  static Limits current;
  return current;
}

}  // namespace cuda
}  // namespace drivestack
