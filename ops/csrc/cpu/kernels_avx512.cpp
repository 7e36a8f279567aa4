// The kernels compiled for AVX512. Standard headers stay above the target, so that nothing of theirs that the linker
// may share with the other objects is compiled for it.
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2")
#endif
#define DRIVESTACK_ISA avx512
#define DRIVESTACK_VECTOR_BYTES 64
#include "kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#endif
const drivestack::Kernels* drivestack::kernels_avx512() { return &drivestack::avx512::table; }
#else
const drivestack::Kernels* drivestack::kernels_avx512() { return nullptr; }
#endif
