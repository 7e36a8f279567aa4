#include "kernels_norm.h"

#if defined(__x86_64__)
#include "target_avx512.h"
#include "norm.inl"
#include "target_end.h"
#endif
