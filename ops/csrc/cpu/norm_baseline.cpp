#include "kernels_norm.h"
#include "target_baseline.h"
#include "norm.inl"
