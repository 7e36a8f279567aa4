// What each instruction set's object offers for deformable attention. Every function works on a range of tasks.
#pragma once
#include <cstdint>

#include "dtype.h"
#include "out_of_memory.h"

namespace drivestack {

// A call of ms_deform_attn, ms_deform_attn_fused or spatial_cross_attention, forward or backward: plain data.
// Letters: B batch, N cameras (1 but for the last), S tokens, M heads, D channels of a head, Q queries, L levels,
// P points, R references.
struct AttentionCall {
  Dtype dtype;      // of value, out and grad_out
  Dtype tap_dtype;  // of positions, scores and their gradients; references are double for f64, else float
  int64_t batch, cameras, tokens, heads, head_channels, queries, levels, points;
  const int64_t* level_table;  // [L, 3]: height, width, first token
  bool wide;                   // an image has too many elements for 32-bit offsets

  const void* value;  // [B, N, S, M, D]
  // [B, Q, M, L, P, 2] and [B, Q, M, L, P]: locations and weights, or, with references, offsets and logits.
  const void *positions, *scores;
  int64_t position_stride, score_stride;  // elements from one (b, q) to the next

  const void* references;        // (x, y) pairs, R in a row; nullptr: positions are locations, scores are weights
  int64_t reference_count;       // R
  int64_t reference_stride[4];   // elements from one batch, camera, query and level to the next
  const unsigned char* visible;  // [B, N, Q]; nullptr: every camera sees every query
  bool level_mean;               // softmax over each level's points, and the mean of the levels

  void* out;  // [B, Q, M * D]

  const void* grad_out;
  void* grad_value;  // zeroed, float for half types
  void *grad_positions, *grad_scores;

  int64_t taps() const { return levels * points; }
  int64_t channels() const { return heads * head_channels; }
};

struct MsDeformAttnKernels {
  // Tasks: (b, q).
  void (*forward)(const AttentionCall&, int64_t begin, int64_t end);
  // Tasks: (b, block of heads). A task owns its slice of grad_value, so there are no atomics, and as every head sums in
  // the same order whatever the blocks, the result does not depend on the number of threads. `blocks` divides heads.
  void (*backward)(const AttentionCall&, int64_t blocks, int64_t begin, int64_t end);
};

namespace avx512 {
extern const MsDeformAttnKernels ms_deform_attn_kernels;
}
namespace avx2 {
extern const MsDeformAttnKernels ms_deform_attn_kernels;
}
namespace baseline {
extern const MsDeformAttnKernels ms_deform_attn_kernels;
}

}  // namespace drivestack
