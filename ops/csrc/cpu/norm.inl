// Layer norm, alone or behind a depthwise convolution, with or without GELU, on channels-last tensors. Included once
// per instruction set, behind target_*.h. ATen's operators each write and read the map, and its norm spends more on the
// sums across a register than on the numbers where rows are short: here kLanes rows are summed at once.
namespace drivestack {
namespace DRIVESTACK_ISA {
namespace {

#include "simd.h"
#include "scratch.inl"

constexpr int kRows = kLanes<float>;  // rows that are normed together

template <class F>
void dispatch_single_precision(Dtype dtype, F f) {
  if (dtype == Dtype::f32)
    f(float{});
  else if (dtype == Dtype::bf16)
    f(BFloat16{});
  else
    f(Half{});
}

// x / 2 * (1 + erf(x / sqrt(2))), largest error 1.5e-6 as ATen's. erf(x / sqrt(2)) is x P(x^2) / Q(x^2) up to 2e-8 for
// |x| <= 5.6 and +-1 beyond; P and Q by reweighted least squares.
DS_INLINE Full<float> gelu(Full<float> x) {
  using F = Full<float>;
  using I = FullIndex<float>;
  const F size = bits_as<F>(bits_as<I>(x) & 0x7fffffff), edge = broadcast<float>(5.6f);
  const F t = select<float>(I(size > edge), edge, size), u = t * t;
  F p = broadcast<float>(4.429010198524494e-08f), q = broadcast<float>(1.1801988045447367e-06f);
  for (float c : {1.2712920910573647e-05f, 0.00034769810650572754f, 0.009414499246200808f, 0.06875202027194222f,
                  0.7978844431913616f})
    p = p * u + c;
  for (float c : {7.510104914633283e-05f, 0.0019129695776282478f, 0.02894002205307934f, 0.25283359251390514f, 1.f})
    q = q * u + c;
  F erf = t * p / q;
  erf = select<float>(I(erf > 1.f), broadcast<float>(1.f), erf);
  erf = bits_as<F>(bits_as<I>(erf) | (bits_as<I>(x) & I(Index<float>(0x80000000) + I{})));
  return 0.5f * x * (1.f + erf);
}

// Norms `count` <= kRows rows.
template <class From, class T>
DS_INLINE void norm_block(const LayerNorm& norm, const From* x, const T* residual, int64_t count, T* out) {
  using F = Full<float>;
  constexpr int N = kLanes<float>;
  const int64_t C = norm.channels, whole = C / N * N;
  F sums[kRows] = {}, mean, scale;
  for (int64_t r = 0; r < count; ++r) {
    F sum{};
    for (int64_t c = 0; c < whole; c += N) sum += load<N>(x + r * C + c);
    if (whole < C) sum += load_part<float>(x + r * C, whole, C);
    sums[r] = sum;
  }
  mean = sums_of<float, N>(sums) / float(C);
  for (int64_t r = 0; r < count; ++r) {
    F sum{};
    const float m = mean[r];
    for (int64_t c = 0; c < whole; c += N) {
      const F d = load<N>(x + r * C + c) - m;
      sum += d * d;
    }
    if (whole < C) {
      F d = load_part<float>(x + r * C, whole, C) - m;
      for (int64_t i = C - whole; i < N; ++i) d[i] = 0;
      sum += d * d;
    }
    sums[r] = sum;
  }
  const F variance = sums_of<float, N>(sums) / float(C) + norm.eps;
  for (int r = 0; r < kRows; ++r) scale[r] = 1.f / std::sqrt(variance[r]);
  for (int64_t r = 0; r < count; ++r) {
    const float m = mean[r], s = scale[r];
    const T* added = residual ? residual + r * C : nullptr;
    auto finish = [&](F v, F w, F b) {
      v = (v - m) * s * w + b;
      return norm.gelu ? gelu(v) : v;
    };
    for (int64_t c = 0; c < whole; c += N) {
      const F y = finish(load<N>(x + r * C + c), load<N>(norm.weight + c), load<N>(norm.bias + c));
      store<N>(out + r * C + c, added ? load<N>(added + c) + y : y);
    }
    if (whole < C) {
      const F y = finish(load_part<float>(x + r * C, whole, C), load_part<float>(norm.weight, whole, C),
                         load_part<float>(norm.bias, whole, C));
      store_part<float>(out + r * C, whole, C, added ? load_part<float>(added, whole, C) + y : y);
    }
  }
}

template <class T>
void layer_norm_rows(const LayerNorm& norm, const T* x, const T* residual, T* out, int64_t begin, int64_t end) {
  const int64_t C = norm.channels;
  for (int64_t row = begin; row < end; row += kRows)
    norm_block<T, T>(norm, x + row * C, residual ? residual + row * C : nullptr, end - row < kRows ? end - row : kRows,
                     out + row * C);
}

// One register of channels of one output pixel, taps [first_y, end_y) x [first_x, end_x) of the kernel.
template <class T, int N>
DS_INLINE Vec<float, N> convolve(const DepthwiseConvolution& conv, int64_t C, const T* corner, const float* taps,
                                 const float* bias, int64_t first_y, int64_t end_y, int64_t first_x, int64_t end_x) {
  Vec<float, N> sum = load<N>(bias);
  for (int64_t ky = first_y; ky < end_y; ++ky)
    for (int64_t kx = first_x; kx < end_x; ++kx)
      sum += load<N>(corner + (ky * conv.width + kx) * C) * load<N>(taps + (ky * conv.kernel + kx) * C);
  return sum;
}

// `count` neighbouring output pixels from (ho, wo) on, N channels from c on, into rows of C floats.
template <class T, int N>
DS_INLINE void convolve_pixels(const DepthwiseConvolution& conv, int64_t C, const T* image, int64_t ho, int64_t wo,
                               int64_t count, int64_t c, float* rows) {
  const int64_t K = conv.kernel, y = ho * conv.stride - conv.padding;
  const int64_t first_y = y < 0 ? -y : 0, end_y = y + K > conv.height ? conv.height - y : K;
  const float *taps = conv.taps + c, *bias = conv.bias + c;
  Vec<float, N> kept[9];  // the taps of a 3 x 3 kernel stay in registers
  const bool small = K == 3 && first_y == 0 && end_y == 3;
  for (int64_t k = 0; small && k < 9; ++k) kept[k] = load<N>(taps + k * C);
  const Vec<float, N> start = load<N>(bias);
  for (int64_t p = 0; p < count; ++p) {
    const int64_t x = (wo + p) * conv.stride - conv.padding;
    const int64_t first_x = x < 0 ? -x : 0, end_x = x + K > conv.width ? conv.width - x : K;
    const T* corner = image + (y * conv.width + x) * C + c;  // may lie outside: read from first_y, first_x on only
    if (small && first_x == 0 && end_x == 3) {
      Vec<float, N> sum = start;
      for (int ky = 0; ky < 3; ++ky)
        for (int kx = 0; kx < 3; ++kx) sum += load<N>(corner + (ky * conv.width + kx) * C) * kept[ky * 3 + kx];
      store<N>(rows + p * C + c, sum);
    } else {
      store<N>(rows + p * C + c, convolve<T, N>(conv, C, corner, taps, bias, first_y, end_y, first_x, end_x));
    }
  }
}

template <class T>
void depthwise_norm_rows(const DepthwiseConvolution& conv, const LayerNorm& norm, const T* x, T* out, int64_t begin,
                         int64_t end) {
  constexpr int N = kLanes<float>;
  const int64_t C = norm.channels;
  Arena arena(kRows * C * sizeof(float));
  float* const rows = arena.take<float>(kRows * C);
  for (int64_t task = begin; task < end; ++task) {
    const T* image = x + task / conv.out_height * conv.height * conv.width * C;
    const int64_t ho = task % conv.out_height;
    for (int64_t wo = 0; wo < conv.out_width; wo += kRows) {
      const int64_t count = conv.out_width - wo < kRows ? conv.out_width - wo : kRows;
      int64_t c = 0;
      for (; c + N <= C; c += N) convolve_pixels<T, N>(conv, C, image, ho, wo, count, c, rows);
      for (; c < C; ++c) convolve_pixels<T, 1>(conv, C, image, ho, wo, count, c, rows);
      norm_block<float, T>(norm, rows, nullptr, count, out + (task * conv.out_width + wo) * C);
    }
  }
}

void layer_norm(const LayerNorm& norm, Dtype dtype, const void* x, const void* residual, void* out, int64_t begin,
                int64_t end) {
  dispatch_single_precision(dtype, [&](auto type) {
    using T = decltype(type);
    layer_norm_rows(norm, static_cast<const T*>(x), static_cast<const T*>(residual), static_cast<T*>(out), begin, end);
  });
}
void depthwise_norm(const DepthwiseConvolution& conv, const LayerNorm& norm, Dtype dtype, const void* x, void* out,
                    int64_t begin, int64_t end) {
  dispatch_single_precision(dtype, [&](auto type) {
    using T = decltype(type);
    depthwise_norm_rows(conv, norm, static_cast<const T*>(x), static_cast<T*>(out), begin, end);
  });
}

}  // namespace

constexpr NormKernels norm_kernels = {layer_norm, depthwise_norm};

}  // namespace DRIVESTACK_ISA
}  // namespace drivestack
