// The kernels compiled for whatever the compiler takes by default: SSE2 on x86-64, NEON on ARM.
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#define DRIVESTACK_ISA baseline
#define DRIVESTACK_VECTOR_BYTES 16
#include "kernels.inl"
const drivestack::Kernels* drivestack::kernels_baseline() { return &drivestack::baseline::table; }
