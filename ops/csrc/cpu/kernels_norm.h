// What each instruction set's object offers around the operators: layer norms, and the depthwise convolution in front
// of offsets and masks. Every function works on a range of tasks: threads live elsewhere. Parameters are float.
#pragma once
#include <cstdint>

#include "dtype.h"
#include "out_of_memory.h"

namespace drivestack {

struct LayerNorm {
  int64_t channels;
  const float *weight, *bias;
  float eps;
  bool gelu;
};
struct DepthwiseConvolution {  // stride, padding and kernel the same along both axes
  int64_t height, width, out_height, out_width, kernel, stride, padding;
  const float *taps, *bias;  // [kernel * kernel, channels], [channels]
};

struct NormKernels {
  // Tasks: rows of `channels` numbers. Not for f64. residual: what is added to the result, or null.
  void (*layer_norm)(const LayerNorm&, Dtype, const void* x, const void* residual, void* out, int64_t begin,
                     int64_t end);
  // The same of a convolution of channels-last images. Tasks: output rows (n, ho).
  void (*depthwise_norm)(const DepthwiseConvolution&, const LayerNorm&, Dtype, const void* x, void* out, int64_t begin,
                         int64_t end);
};

namespace avx512 {
extern const NormKernels norm_kernels;
}
namespace avx2 {
extern const NormKernels norm_kernels;
}
namespace baseline {
extern const NormKernels norm_kernels;
}

}  // namespace drivestack
