#include "kernels_ms_deform_attn.h"

#if defined(__x86_64__)
#include "target_avx512.h"
#include "ms_deform_attn.inl"
#include "target_end.h"
#endif
