// From here to target_end.h the file is compiled for AVX512. Standard headers stay above, so that nothing of theirs that
// the linker may share with the other objects is compiled for it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")
#endif
#define DRIVESTACK_ISA avx512
#define DRIVESTACK_VECTOR_BYTES 64
