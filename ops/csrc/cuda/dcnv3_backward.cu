#include "dcnv3_3x3.cuh"
#include "dcnv3_launch.h"
#include "fixed_point.cuh"

namespace drivestack {
namespace cuda {

void launch_dcnv3_backward(const Dcnv3Call& call, const void* grad_out, ValueGradient grad_value, void* grad_offset,
                           void* grad_mask, void* kept, Stream stream) {
  dispatch_types(call.value_type, call.tap_type, [&](auto value, auto tap) {
    using T = decltype(value);
    using O = decltype(tap);
    using S = Arithmetic<T>;
    constexpr int kWord = 16 / sizeof(T);
    Dcnv3Params p = call.params;
    auto run = [&](const char* name, auto kernel, int channels, auto sum, auto... more) {
      int64_t blocks;
      const dim3 block = lay_out<O>(p, call.offset, channels, blocks);
      launch_images(name, kernel, blocks, call.batch, block, stream, p, static_cast<const T*>(grad_out),
                    static_cast<const T*>(call.value), static_cast<const O*>(call.offset),
                    static_cast<const O*>(call.mask), sum, static_cast<O*>(grad_offset), static_cast<O*>(grad_mask),
                    more...);
    };
    const char* name = "dcnv3_backward";
    const auto room = static_cast<S*>(kept);
    const AtomicSum<S> sum{static_cast<S*>(grad_value.sum)};
    if (grad_value.largest) {
      const FixedPointSum<S> fixed{static_cast<unsigned long long*>(grad_value.sum), grad_value.largest,
                                   grad_value.headroom, S(0)};
      return run(name, dcnv3_backward_kernel<T, O, 1, int64_t, FixedPointSum<S>>, 1, fixed, room);
    }
    if (!reads_whole_words<T>(call, grad_out) || p.channels > 32 * kWord)
      return run(name, dcnv3_backward_kernel<T, O, 1, int64_t, AtomicSum<S>>, 1, sum, room);
    const bool launched = dispatch_3x3<T>(p, [&](auto lanes) {
      run("dcnv3_3x3_backward", dcnv3_3x3_backward_kernel<T, O, lanes.value, AtomicSum<S>>, kWord, sum);
    });
    if (!launched) run(name, dcnv3_backward_kernel<T, O, kWord, int32_t, AtomicSum<S>>, kWord, sum, room);
  });
}

}  // namespace cuda
}  // namespace drivestack
