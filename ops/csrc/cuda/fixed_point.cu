#include "fixed_point.cuh"
#include "launch.h"

namespace drivestack {
namespace cuda {
namespace {

constexpr int kThreads = 256;
unsigned blocks_for(int64_t n) { return unsigned(std::min<int64_t>((n + kThreads - 1) / kThreads, 4096)); }

}  // namespace

void largest_exponent(Type type, const void* x, int64_t n, int* largest, Stream stream) {
  if (n == 0) return;
  dispatch_types(type, type, [&](auto element, auto) {
    using T = decltype(element);
    launch("largest_exponent", largest_exponent_kernel<T>, dim3(blocks_for(n)), dim3(kThreads), stream,
           static_cast<const T*>(x), n, largest);
  });
}

void fixed_point_result(Type type, const ValueGradient& gradient, void* out, int64_t n, Stream stream) {
  if (n == 0) return;
  dispatch_types(type, type, [&](auto element, auto) {
    using T = decltype(element);
    launch("fixed_point_result", fixed_point_result_kernel<T>, dim3(blocks_for(n)), dim3(kThreads), stream,
           static_cast<const long long*>(gradient.sum), gradient.largest, gradient.headroom, static_cast<T*>(out), n);
  });
}

}  // namespace cuda
}  // namespace drivestack
