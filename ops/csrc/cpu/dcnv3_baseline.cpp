#include "kernels_dcnv3.h"
#include "target_baseline.h"
#include "dcnv3.inl"
