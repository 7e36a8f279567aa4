#include "kernels_dcnv3.h"

#if defined(__x86_64__)
#include "target_avx2.h"
#include "dcnv3.inl"
#include "target_end.h"
#endif
