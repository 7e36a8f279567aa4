// Launches on the host side: the choice of types, chunks of images, and the check after every launch.
#pragma once
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "device.cuh"
#include "kernels.h"

namespace drivestack {
namespace cuda {

template <class... Params, class... Arguments>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, dim3 block, Stream stream, Arguments... arguments) {
#if defined(__CUDACC__)
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(Params(arguments)...);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "drivestack: the CUDA kernel ", name, " was not launched: ",
                  cudaGetErrorString(error));
#else
  emulate(name, grid, block, [&] { kernel(Params(arguments)...); });
#endif
}

// The second axis of the grid is the image, so that no block straddles two; it holds 65535 at most.
template <class Kernel, class... Arguments>
void launch_images(const char* name, Kernel kernel, int64_t blocks_per_image, int64_t images, dim3 block, Stream stream,
                   Arguments... arguments) {
  STD_TORCH_CHECK(blocks_per_image <= INT32_MAX, "drivestack: an image is too large for the CUDA kernel ", name);
  if (blocks_per_image == 0) return;
  for (int64_t first = 0; first < images; first += limits().images) {
    const int64_t count = std::min(images - first, limits().images);
    launch(name, kernel, dim3(unsigned(blocks_per_image), unsigned(count), 1), block, stream, arguments..., first);
  }
}

// Calls f(T{}, O{}) with the value's storage type and the type of its taps: the same, or float beside half types.
template <class F>
void dispatch_types(Type value, Type tap, F f) {
  const bool float_taps = tap == Type::f32;
  switch (value) {
    case Type::f32:
      return f(float{}, float{});
    case Type::f64:
      return f(double{}, double{});
    case Type::bf16:
      return float_taps ? f(BFloat16{}, float{}) : f(BFloat16{}, BFloat16{});
    case Type::f16:
      return float_taps ? f(Half{}, float{}) : f(Half{}, Half{});
  }
}

inline bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }
inline int power_of_two_from(int64_t n, int most) {
  int p = 1;
  while (p < n && p < most) p *= 2;
  return p;
}

}  // namespace cuda
}  // namespace drivestack
