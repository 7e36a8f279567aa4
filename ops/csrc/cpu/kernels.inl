// All kernels, for the instruction set that the including file has set: DRIVESTACK_ISA, DRIVESTACK_VECTOR_BYTES.
namespace drivestack {
namespace DRIVESTACK_ISA {
namespace {

#include "simd.h"
#include "taps.inl"
#include "dcnv3.inl"
#include "ms_deform_attn.inl"
#include "softmax.inl"

template <class T>
void narrow_to(const float* from, T* to, int64_t begin, int64_t end) {
  constexpr int N = kLanes<float>;
  int64_t i = begin;
  for (; i + N <= end; i += N) store<N>(to + i, load<N>(from + i));
  for (; i < end; ++i) store<1>(to + i, from[i]);
}
void narrow(Dtype dtype, const float* from, void* to, int64_t begin, int64_t end) {
  if (dtype == Dtype::bf16)
    narrow_to(from, static_cast<BFloat16*>(to), begin, end);
  else
    narrow_to(from, static_cast<Half*>(to), begin, end);
}

#define DS_STRING_OF(x) #x
#define DS_STRING(x) DS_STRING_OF(x)
constexpr Kernels table = {DS_STRING(DRIVESTACK_ISA), dcnv3_forward,   dcnv3_backward,   ms_deform_attn_forward,
                           ms_deform_attn_backward,   softmax_forward, softmax_backward, narrow};

}  // namespace
}  // namespace DRIVESTACK_ISA
}  // namespace drivestack
