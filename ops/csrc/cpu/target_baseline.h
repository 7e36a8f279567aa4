// From here the file is compiled for whatever the compiler takes by default: SSE2 on x86-64, NEON on ARM.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#define DRIVESTACK_ISA baseline
#define DRIVESTACK_VECTOR_BYTES 16
