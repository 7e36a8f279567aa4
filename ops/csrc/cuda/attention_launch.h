// How the work of the attention operators is laid out in blocks, forward and backward.
#pragma once
#include "attention.cuh"
#include "launch.h"

namespace drivestack {
namespace cuda {

// A vector thread has 8 channels, 4 of double.
template <class T>
constexpr int kVectorChannels = sizeof(T) == 8 ? 4 : 8;

// Lanes of the vector kernels that can run the call: 4, 8, or 0 where the scalar kernel must.
template <class T>
int vector_lanes(const AttentionCall& call, const void* contiguous) {
  const AttentionParams& p = call.params;
  if (!aligned(call.value, 16) || !aligned(contiguous, 16) || p.channels % kVectorChannels<T> ||
      p.channels > 8 * kVectorChannels<T> || p.tokens * p.heads * p.channels > limits().elements)
    return 0;
  return sizeof(T) < 8 && p.channels <= 4 * kVectorChannels<T> ? 4 : 8;
}
template <class O>
bool offsets_are_paired(const AttentionCall& call) {
  return aligned(call.offsets, 2 * sizeof(O)) && call.params.offset_query % 2 == 0;
}
inline int64_t attention_blocks(const AttentionParams& p, int lanes) {
  const int rows = kAttentionThreads / lanes;
  return (int64_t(p.queries) + rows - 1) / rows * p.heads;
}

// Plain attention has locations and weights of the arithmetic type.
template <class F>
void dispatch_attention(const AttentionCall& call, F f) {
  if (call.fused)
    dispatch_types(call.value_type, call.tap_type, [&](auto value, auto tap) { f(value, tap, std::true_type{}); });
  else
    dispatch_types(call.value_type, call.tap_type, [&](auto value, auto) {
      f(value, Arithmetic<decltype(value)>{}, std::false_type{});
    });
}

}  // namespace cuda
}  // namespace drivestack
