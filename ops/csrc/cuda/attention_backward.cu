#include "attention_launch.h"
#include "fixed_point.cuh"

namespace drivestack {
namespace cuda {
namespace {

template <class T, class O, int kChannels, int kLanes, class Index, bool kFused, class Sum>
void run(const AttentionCall& call, const void* grad_out, Sum grad_value, void* grad_offsets, void* grad_logits,
         void* kept, Stream stream) {
  AttentionParams p = call.params;
  p.paired = offsets_are_paired<O>(call);
  launch_images("attention_backward", attention_backward_kernel<T, O, kChannels, kLanes, Index, kFused, Sum>,
                attention_blocks(p, kLanes), call.batch, dim3(kAttentionThreads), stream, p,
                static_cast<const T*>(grad_out), static_cast<const T*>(call.value),
                static_cast<const Arithmetic<T>*>(call.reference), static_cast<const bool*>(call.visible),
                static_cast<const O*>(call.offsets), static_cast<const O*>(call.logits), grad_value,
                static_cast<O*>(grad_offsets), static_cast<O*>(grad_logits), static_cast<Arithmetic<T>*>(kept));
}

}  // namespace

void launch_attention_backward(const AttentionCall& call, const void* grad_out, ValueGradient grad_value,
                               void* grad_offsets, void* grad_logits, void* kept, Stream stream) {
  dispatch_attention(call, [&](auto value, auto tap, auto fused) {
    using T = decltype(value);
    using O = decltype(tap);
    using S = Arithmetic<T>;
    constexpr int kVector = kVectorChannels<T>;
    const AtomicSum<S> sum{static_cast<S*>(grad_value.sum)};
    const int lanes = vector_lanes<T>(call, grad_out);
    auto run_with = [&](auto run, auto to) { run(call, grad_out, to, grad_offsets, grad_logits, kept, stream); };
    if (grad_value.largest)
      return run_with(run<T, O, 1, 8, int64_t, fused.value, FixedPointSum<S>>,
                      FixedPointSum<S>{static_cast<unsigned long long*>(grad_value.sum), grad_value.largest,
                                       grad_value.headroom, S(0)});
    if (lanes == 0) return run_with(run<T, O, 1, 8, int64_t, fused.value, AtomicSum<S>>, sum);
    if constexpr (sizeof(T) < 8)
      if (lanes == 4) return run_with(run<T, O, kVector, 4, int32_t, fused.value, AtomicSum<S>>, sum);
    run_with(run<T, O, kVector, 8, int32_t, fused.value, AtomicSum<S>>, sum);
  });
}

}  // namespace cuda
}  // namespace drivestack
