// What the kernels need of CUDA: storage types and 16-byte accesses, sums in global memory, the tap arithmetic of
// common/tap.h for one thread. A host compiler reads the same with tests/ops/emulation/cuda_shim.h in place of CUDA.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_shim.h"
#endif

#define DS_DEVICE __device__ __forceinline__

namespace drivestack {
namespace cuda {

#include "../common/tap.h"

using Half = __half;
using BFloat16 = __nv_bfloat16;

// Sums, coordinates and weights: double for double, else float; never the storage type.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
constexpr bool kIsHalf = sizeof(T) == 2;

DS_DEVICE float widen(float x) { return x; }
DS_DEVICE double widen(double x) { return x; }
DS_DEVICE float widen(Half x) { return __half2float(x); }
DS_DEVICE float widen(BFloat16 x) { return __bfloat162float(x); }
template <class T>
DS_DEVICE T narrow(Arithmetic<T> x) {
  if constexpr (std::is_same_v<T, Half>)
    return __float2half_rn(x);
  else if constexpr (std::is_same_v<T, BFloat16>)
    return __float2bfloat16_rn(x);
  else
    return x;
}

// N neighbouring channels; where they fill 16 bytes, in accesses of 16 bytes (the caller sees to the alignment).
template <class T, int N>
DS_DEVICE void load_channels(const T* from, Arithmetic<T> (&to)[N]) {
  if constexpr (N * sizeof(T) % 16 == 0) {
    constexpr int kPerLoad = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < N; i += kPerLoad) {
      const uint4 packed = __ldg(reinterpret_cast<const uint4*>(from + i));
      T part[kPerLoad];
      memcpy(part, &packed, 16);
#pragma unroll
      for (int j = 0; j < kPerLoad; ++j) to[i + j] = widen(part[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = widen(from[i]);
  }
}
template <class T, int N>
DS_DEVICE void store_channels(T* to, const Arithmetic<T> (&from)[N]) {
  if constexpr (N * sizeof(T) % 16 == 0) {
    constexpr int kPerStore = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < N; i += kPerStore) {
      T part[kPerStore];
#pragma unroll
      for (int j = 0; j < kPerStore; ++j) part[j] = narrow<T>(from[i + j]);
      uint4 packed;
      memcpy(&packed, part, 16);
      *reinterpret_cast<uint4*>(to + i) = packed;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = narrow<T>(from[i]);
  }
}

// An (x, y) pair; `paired` says that it lies in one aligned word.
template <class O>
DS_DEVICE void load_pair(const O* from, bool paired, Arithmetic<O>& x, Arithmetic<O>& y) {
  using Word = std::conditional_t<sizeof(O) == 2, uint32_t, std::conditional_t<sizeof(O) == 4, float2, double2>>;
  O both[2];
  if (paired) {
    const Word word = __ldg(reinterpret_cast<const Word*>(from));
    memcpy(both, &word, sizeof(word));
  } else {
    both[0] = from[0];
    both[1] = from[1];
  }
  x = widen(both[0]);
  y = widen(both[1]);
}

DS_DEVICE float exponential(float x, bool storage_is_half) { return storage_is_half ? __expf(x) : expf(x); }
DS_DEVICE double exponential(double x, bool) { return exp(x); }

// One tap per thread. The conversions between integers and floats run at a quarter of the rate of an addition, which
// also rounds: 1.5 * 2^23, rounded down, leaves the integer in the mantissa.
template <class S, class O>
struct ThreadLanes : ScalarLanes<S, O> {
  static DS_DEVICE int32_t floor(S x, S& fraction) {
#if defined(__CUDA_ARCH__)
    if constexpr (std::is_same_v<S, float>) {
      const float shifted = __fadd_rd(x, 12582912.f);
      fraction = x - (shifted - 12582912.f);
      return __float_as_int(shifted) - 0x4B400000;
    }
#endif
    return ScalarLanes<S, O>::floor(x, fraction);
  }
  static DS_DEVICE int32_t clamp(int32_t x, int32_t high) {
#if defined(__CUDA_ARCH__)
    return __vimin_s32_relu(x, high);  // one instruction from sm_90 on
#else
    return ScalarLanes<S, O>::clamp(x, high);
#endif
  }
};

DS_DEVICE void add_four(float* to, float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(a), "f"(b), "f"(c), "f"(d));
#else
  atomicAdd(to, a);
  atomicAdd(to + 1, b);
  atomicAdd(to + 2, c);
  atomicAdd(to + 3, d);
#endif
}

// Gradients to the value are summed in global memory, in whatever order the threads come. Nothing reads them in the
// same kernel, so that loads may pass the sums (no "memory" clobber).
template <class S>
struct AtomicSum {
  S* sum;
  DS_DEVICE void start() {}
  template <int N>
  DS_DEVICE void add(int64_t at, const S (&x)[N], S weight) const {
    S* to = sum + at;
    if constexpr (std::is_same_v<S, float> && N % 4 == 0) {
#pragma unroll
      for (int i = 0; i < N; i += 4)
        add_four(to + i, x[i] * weight, x[i + 1] * weight, x[i + 2] * weight, x[i + 3] * weight);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) atomicAdd(to + i, x[i] * weight);
    }
  }
};

// Sum over `lanes` neighbouring threads (a power of two), the same in each of them.
template <class S>
DS_DEVICE S sum_over_lanes(S x, int lanes) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// Each lane has a part of kLanes times 4 sums; afterwards lane s has the four sums of tap s in x[0].
template <int kHalf, int kLanes, class S>
DS_DEVICE void distribute_sums(S (&x)[kLanes][4], int lane) {
  const bool upper = lane & kHalf;
#pragma unroll
  for (int s = 0; s < kHalf; ++s) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const S give = upper ? x[s][q] : x[s + kHalf][q], keep = upper ? x[s + kHalf][q] : x[s][q];
      x[s][q] = keep + __shfl_xor_sync(~0u, give, kHalf);
    }
  }
  if constexpr (kHalf > 1) distribute_sums<kHalf / 2>(x, lane);
}

}  // namespace cuda
}  // namespace drivestack
