#include "kernels_ms_deform_attn.h"
#include "target_baseline.h"
#include "ms_deform_attn.inl"
