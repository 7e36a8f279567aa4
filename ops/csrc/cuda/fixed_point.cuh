// The deterministic mode: gradients to the value are summed as integers, so that the order of the threads does not
// matter. All contributions are scaled by one power of two, chosen from the largest factors so that no sum overflows.
#pragma once
#include "device.cuh"

namespace drivestack {
namespace cuda {

// The largest |x| of an array as a biased exponent e: |x| < 2^(e - kExponentBias). Zero for zeros.
constexpr int kExponentBias = 2000, kNotFinite = 1 << 20;

template <class S>
DS_DEVICE int biased_exponent(S x) {
  if (!(x - x == S(0))) return kNotFinite;
  if (x == S(0)) return 0;
  int exponent;
  frexp(x, &exponent);
  return exponent + kExponentBias;
}

template <class T>
__global__ void __launch_bounds__(256) largest_exponent_kernel(const T* x, int64_t n, int* largest) {
  int found = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    const int e = biased_exponent(widen(x[i]));
    found = e > found ? e : found;
  }
  for (int step = 16; step > 0; step /= 2) {
    const int other = __shfl_xor_sync(~0u, found, step);
    found = other > found ? other : found;
  }
  if (threadIdx.x % 32 == 0) atomicMax(largest, found);
}

// The power of two that contributions are multiplied with, or NaN where they are not finite. `headroom`: bits for the
// number of contributions. largest[0]: of the incoming gradient; largest[1]: of the weights, zero for probabilities.
template <class S>
DS_DEVICE S fixed_point_scale(const int* largest, int headroom) {
  constexpr int kRange = std::is_same_v<S, float> ? 120 : 1000;
  if (largest[0] >= kNotFinite || largest[1] >= kNotFinite) return S(NAN);
  const int bound = largest[0] - kExponentBias + (largest[1] > 0 ? largest[1] - kExponentBias : 1);
  const int exponent = 62 - headroom - bound;
  if (exponent < -kRange) return S(NAN);  // the products overflow in any mode
  return ldexp(S(1), exponent > kRange ? kRange : exponent);
}

// Float contributions fill one integer; double ones two, the second for what the first rounds away.
template <class S>
constexpr int kFixedWords = std::is_same_v<S, double> ? 2 : 1;

template <class S>
struct FixedPointSum {
  unsigned long long* sum;
  const int* largest;
  int headroom;
  S scale;

  DS_DEVICE void start() { scale = fixed_point_scale<S>(largest, headroom); }
  template <int N>
  DS_DEVICE void add(int64_t at, const S (&x)[N], S weight) const {
    if (scale != scale) return;  // the result will be NaN
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const S scaled = x[i] * weight * scale;
      unsigned long long* to = sum + (at + i) * kFixedWords<S>;
      const long long high = llrint(scaled);
      atomicAdd(to, static_cast<unsigned long long>(high));
      if constexpr (kFixedWords<S> == 2)
        atomicAdd(to + 1, static_cast<unsigned long long>(llrint(ldexp(scaled - S(high), 61 - headroom))));
    }
  }
};

template <class T>
__global__ void __launch_bounds__(256)
    fixed_point_result_kernel(const long long* sum, const int* largest, int headroom, T* out, int64_t n) {
  using S = Arithmetic<T>;
  const double unit = 1 / double(fixed_point_scale<S>(largest, headroom));
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    double total = double(sum[i * kFixedWords<S>]);
    if constexpr (kFixedWords<S> == 2) total += ldexp(double(sum[2 * i + 1]), headroom - 61);
    out[i] = narrow<T>(S(total * unit));
  }
}

}  // namespace cuda
}  // namespace drivestack
