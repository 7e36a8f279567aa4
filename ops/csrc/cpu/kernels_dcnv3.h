// What each instruction set's object offers for DCNv3. Every function works on a range of tasks: threads live elsewhere.
#pragma once
#include <cstdint>

#include "../common/sizes.h"
#include "dtype.h"
#include "out_of_memory.h"

namespace drivestack {

struct Dcnv3Kernels {
  // Tasks: output pixels (n, ho, wo). Offsets and masks are float where float_taps is set, else of the value's type.
  // wide: 64-bit offsets inside an image.
  void (*forward)(const Dcnv3Sizes&, Dtype, bool float_taps, bool wide, const void* value, const void* offset, const void* mask,
                  void* out, int64_t begin, int64_t end);
  // Gradients to offsets and masks. Tasks: output pixels.
  void (*backward_taps)(const Dcnv3Sizes&, Dtype, bool float_taps, bool wide, const void* grad_out, const void* value,
                        const void* offset, const void* mask, void* grad_offset, void* grad_mask, int64_t begin,
                        int64_t end);
  // Gradient to values, of their type. Tasks: (n, block of groups). A task owns its channels of grad_value, so there are
  // no atomics, and as every group sums in the same order whatever the blocks, the result does not depend on the number
  // of threads.
  void (*backward_value)(const Dcnv3Sizes&, Dtype, bool float_taps, bool wide, const void* grad_out,
                         const void* offset, const void* mask, void* grad_value, int64_t blocks, int64_t begin,
                         int64_t end);
};

struct RowKernels {
  // float accumulators [begin, end) to bf16 or f16.
  void (*narrow)(Dtype, const float* from, void* to, int64_t begin, int64_t end);
};

namespace avx512 {
extern const Dcnv3Kernels dcnv3_kernels;
extern const RowKernels row_kernels;
}
namespace avx2 {
extern const Dcnv3Kernels dcnv3_kernels;
extern const RowKernels row_kernels;
}
namespace baseline {
extern const Dcnv3Kernels dcnv3_kernels;
extern const RowKernels row_kernels;
}

}  // namespace drivestack
