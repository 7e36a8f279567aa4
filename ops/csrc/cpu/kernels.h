// The kernels of the instruction set chosen for this processor.
#pragma once
#include <cstdint>

#include "kernels_dcnv3.h"
#include "kernels_ms_deform_attn.h"
#include "kernels_norm.h"

namespace drivestack {

struct Kernels {
  const char* name;
  const Dcnv3Kernels* dcnv3;
  const MsDeformAttnKernels* ms_deform_attn;
  const RowKernels* rows;
  const NormKernels* norm;
};

// The best of them for this processor, or the one that DRIVESTACK_OPS_ISA names; chosen once.
const Kernels& kernels();
// Elements of an image up to which offsets inside it are 32 bits wide: 2^31 - 1, unless a test has lowered it with
// DRIVESTACK_OPS_NARROW_ELEMENTS before the first call.
int64_t largest_narrow_image();

}  // namespace drivestack
