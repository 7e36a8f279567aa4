#include "dcnv3_launch.h"
#include "fixed_point.cuh"

namespace drivestack {
namespace cuda {
namespace {

template <class T, class O, int kChannels, int K, class Index, class Sum>
void run(const Dcnv3Call& call, const void* grad_out, Sum grad_value, void* grad_offset, void* grad_mask, void* kept,
         Stream stream) {
  Dcnv3Params p = call.params;
  int64_t blocks;
  const dim3 block = lay_out<O>(p, call.offset, kChannels, blocks);
  launch_images("dcnv3_backward", dcnv3_backward_kernel<T, O, kChannels, K, Index, Sum>, blocks, call.batch, block,
                stream, p, static_cast<const T*>(grad_out), static_cast<const T*>(call.value),
                static_cast<const O*>(call.offset), static_cast<const O*>(call.mask), grad_value,
                static_cast<O*>(grad_offset), static_cast<O*>(grad_mask), static_cast<Arithmetic<T>*>(kept));
}

}  // namespace

void launch_dcnv3_backward(const Dcnv3Call& call, const void* grad_out, ValueGradient grad_value, void* grad_offset,
                           void* grad_mask, void* kept, Stream stream) {
  dispatch_types(call.value_type, call.tap_type, [&](auto value, auto tap) {
    using T = decltype(value);
    using O = decltype(tap);
    using S = Arithmetic<T>;
    constexpr int kWord = 16 / sizeof(T), kWide = sizeof(T) == 2 ? kWord : 2 * kWord;
    const AtomicSum<S> sum{static_cast<S*>(grad_value.sum)};
    const int channels = call.params.channels;
    auto run_with = [&](auto run, auto to) { run(call, grad_out, to, grad_offset, grad_mask, kept, stream); };
    if (grad_value.largest)
      run_with(run<T, O, 1, 0, int64_t, FixedPointSum<S>>,
               FixedPointSum<S>{static_cast<unsigned long long*>(grad_value.sum), grad_value.largest,
                                grad_value.headroom, S(0)});
    else if (!reads_whole_words<T>(call, grad_out) || channels > 32 * kWord)
      run_with(run<T, O, 1, 0, int64_t, AtomicSum<S>>, sum);
    else if (is_whole_3x3(call.params) && channels % kWide == 0)
      run_with(run<T, O, kWide, 9, int32_t, AtomicSum<S>>, sum);
    else
      run_with(run<T, O, kWord, 0, int32_t, AtomicSum<S>>, sum);
  });
}

}  // namespace cuda
}  // namespace drivestack
