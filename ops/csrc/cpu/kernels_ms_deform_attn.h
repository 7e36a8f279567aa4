// What each instruction set's object offers for deformable attention. Every function works on a range of tasks.
#pragma once
#include <cstdint>

#include "../common/sizes.h"
#include "dtype.h"

namespace drivestack {

struct MsDeformAttnKernels {
  // Tasks: (b, q). Locations and weights are double for f64, else float.
  void (*forward)(const MsDeformAttnSizes&, Dtype, const void* value, const void* locations, const void* weights,
                  void* out, int64_t begin, int64_t end);
  // Tasks: (b, block of heads); as Dcnv3Kernels::backward.
  void (*backward)(const MsDeformAttnSizes&, Dtype, const void* grad_out, const void* value, const void* locations,
                   const void* weights, void* grad_value, void* grad_locations, void* grad_weights, int64_t blocks,
                   int64_t begin, int64_t end);
};

namespace avx512 {
extern const MsDeformAttnKernels ms_deform_attn_kernels;
}
namespace avx2 {
extern const MsDeformAttnKernels ms_deform_attn_kernels;
}
namespace baseline {
extern const MsDeformAttnKernels ms_deform_attn_kernels;
}

}  // namespace drivestack
