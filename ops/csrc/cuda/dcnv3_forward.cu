#include "dcnv3_launch.h"

namespace drivestack {
namespace cuda {
namespace {

template <class T, class O, int kChannels, int K, class Index>
void run(const Dcnv3Call& call, void* out, Stream stream) {
  Dcnv3Params p = call.params;
  int64_t blocks;
  const dim3 block = lay_out<O>(p, call.offset, kChannels, blocks);
  launch_images("dcnv3_forward", dcnv3_forward_kernel<T, O, kChannels, K, Index>, blocks, call.batch, block, stream, p,
                static_cast<const T*>(call.value), static_cast<const O*>(call.offset),
                static_cast<const O*>(call.mask), static_cast<T*>(out));
}

}  // namespace

void launch_dcnv3_forward(const Dcnv3Call& call, void* out, Stream stream) {
  dispatch_types(call.value_type, call.tap_type, [&](auto value, auto tap) {
    using T = decltype(value);
    using O = decltype(tap);
    constexpr int kWord = 16 / sizeof(T);
    if (!reads_whole_words<T>(call, out))
      run<T, O, 1, 0, int64_t>(call, out, stream);
    else if (is_whole_3x3(call.params) && call.params.channels % (2 * kWord) == 0)
      run<T, O, 2 * kWord, 9, uint32_t>(call, out, stream);
    else
      run<T, O, kWord, 0, uint32_t>(call, out, stream);
  });
}

}  // namespace cuda
}  // namespace drivestack
