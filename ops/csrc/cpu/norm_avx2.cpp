#include "kernels_norm.h"

#if defined(__x86_64__)
#include "target_avx2.h"
#include "norm.inl"
#include "target_end.h"
#endif
