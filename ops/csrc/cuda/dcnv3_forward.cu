#include "dcnv3_3x3.cuh"
#include "dcnv3_launch.h"

namespace drivestack {
namespace cuda {
namespace {

template <class T, class O, class Kernel>
void run(const char* name, Kernel kernel, int channels, const Dcnv3Call& call, void* out, Stream stream) {
  Dcnv3Params p = call.params;
  int64_t blocks;
  const dim3 block = lay_out<O>(p, call.offset, channels, blocks);
  launch_images(name, kernel, blocks, call.batch, block, stream, p, static_cast<const T*>(call.value),
                static_cast<const O*>(call.offset), static_cast<const O*>(call.mask), static_cast<T*>(out));
}

}  // namespace

void launch_dcnv3_forward(const Dcnv3Call& call, void* out, Stream stream) {
  dispatch_types(call.value_type, call.tap_type, [&](auto value, auto tap) {
    using T = decltype(value);
    using O = decltype(tap);
    constexpr int kWord = 16 / sizeof(T);
    if (!reads_whole_words<T>(call, out))
      return run<T, O>("dcnv3_forward", dcnv3_forward_kernel<T, O, 1, int64_t>, 1, call, out, stream);
    const bool launched = dispatch_3x3<T>(call.params, [&](auto lanes) {
      run<T, O>("dcnv3_3x3_forward", dcnv3_3x3_forward_kernel<T, O, lanes.value>, kWord, call, out, stream);
    });
    if (!launched) run<T, O>("dcnv3_forward", dcnv3_forward_kernel<T, O, kWord, int32_t>, kWord, call, out, stream);
  });
}

}  // namespace cuda
}  // namespace drivestack
