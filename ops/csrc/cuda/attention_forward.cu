#include "attention_launch.h"

namespace drivestack {
namespace cuda {
namespace {

template <class T, class O, int kChannels, int kLanes, class Index, bool kFused>
void run(const AttentionCall& call, void* out, Stream stream) {
  AttentionParams p = call.params;
  p.paired = offsets_are_paired<O>(call);
  launch_images("attention_forward", attention_forward_kernel<T, O, kChannels, kLanes, Index, kFused>,
                attention_blocks(p, kLanes), call.batch, dim3(kAttentionThreads), stream, p,
                static_cast<const T*>(call.value), static_cast<const Arithmetic<T>*>(call.reference),
                static_cast<const bool*>(call.visible), static_cast<const O*>(call.offsets),
                static_cast<const O*>(call.logits), static_cast<T*>(out));
}

}  // namespace

void launch_attention_forward(const AttentionCall& call, void* out, Stream stream) {
  dispatch_attention(call, [&](auto value, auto tap, auto fused) {
    using T = decltype(value);
    using O = decltype(tap);
    constexpr int kVector = kVectorChannels<T>;
    const int lanes = vector_lanes<T>(call, out);
    if (lanes == 0) return run<T, O, 1, 8, int64_t, fused.value>(call, out, stream);
    if constexpr (sizeof(T) < 8)
      if (lanes == 4) return run<T, O, kVector, 4, int32_t, fused.value>(call, out, stream);
    run<T, O, kVector, 8, int32_t, fused.value>(call, out, stream);
  });
}

}  // namespace cuda
}  // namespace drivestack
