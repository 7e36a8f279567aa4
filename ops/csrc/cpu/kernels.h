// What each instruction set's object offers. Every function works on a range of tasks, so threads live elsewhere.
#pragma once
#include <cstdint>

#include "../common/sizes.h"

namespace drivestack {

enum class Dtype { f32, f64, bf16, f16 };

struct Kernels {
  const char* name;

  // Tasks: output rows (n, ho). Offsets and masks are float where float_taps is set, else of the value's type.
  void (*dcnv3_forward)(const Dcnv3Sizes&, Dtype, bool float_taps, const void* value, const void* offset,
                        const void* mask, void* out, int64_t begin, int64_t end);
  // Tasks: (n, block of groups). A task owns its slice of grad_value, so there are no atomics, and as every group sums
  // in the same order whatever the blocks, the result does not depend on the number of threads. grad_value: zeroed,
  // float for half types (see `narrow`).
  void (*dcnv3_backward)(const Dcnv3Sizes&, Dtype, bool float_taps, const void* grad_out, const void* value,
                         const void* offset, const void* mask, void* grad_value, void* grad_offset, void* grad_mask,
                         int64_t blocks, int64_t begin, int64_t end);
  // Tasks: (b, q). Locations and weights are double for f64, else float.
  void (*ms_deform_attn_forward)(const MsDeformAttnSizes&, Dtype, const void* value, const void* locations,
                                 const void* weights, void* out, int64_t begin, int64_t end);
  // Tasks: (b, block of heads); as dcnv3_backward.
  void (*ms_deform_attn_backward)(const MsDeformAttnSizes&, Dtype, const void* grad_out, const void* value,
                                  const void* locations, const void* weights, void* grad_value, void* grad_locations,
                                  void* grad_weights, int64_t blocks, int64_t begin, int64_t end);
  // Tasks: rows of at most 64 numbers; not for f64.
  void (*softmax_forward)(int64_t length, Dtype, const void* logits, void* out, int64_t begin, int64_t end);
  void (*softmax_backward)(int64_t length, Dtype, const void* grad_out, const void* out, void* grad_logits,
                           int64_t begin, int64_t end);
  // float accumulators [begin, end) to bf16 or f16.
  void (*narrow)(Dtype, const float* from, void* to, int64_t begin, int64_t end);
};

// nullptr where the object was compiled for another processor family.
const Kernels* kernels_avx512();
const Kernels* kernels_avx2();
const Kernels* kernels_baseline();

// The best of them for this processor, or the one that DRIVESTACK_OPS_ISA names; chosen once.
const Kernels& kernels();
// Choose by name (tests, benchmarks). False if this processor cannot run it.
bool choose_kernels(const char* name);

}  // namespace drivestack
