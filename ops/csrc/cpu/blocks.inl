// Taps as blocks of two by two pixels (see BlockLimits in common/tap.h): one offset and four weights per tap.

// The four corners of a block, from its offset: the same distances for all taps of an image.
struct BlockSteps {
  int64_t column, row;
};

// out[0 .. D) of every group of a pixel = scale * the sum over its K taps of the weighted corners. Offsets include the
// group's first channel.
template <class S, class T, class Offset, int VW, int NV>
DS_INLINE void gather_group(const T* image, BlockSteps step, const Offset* corner, const S* const (&weight)[4],
                            int64_t taps, S scale, T* out) {
  const T *i1 = image + step.column, *i2 = image + step.row, *i3 = i2 + step.column;
  Vec<S, VW> a[NV], b[NV];
  for (int d = 0; d < NV; ++d) a[d] = b[d] = Vec<S, VW>{};
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t at = corner[t];
    const S w0 = weight[0][t], w1 = weight[1][t], w2 = weight[2][t], w3 = weight[3][t];
    for (int d = 0; d < NV; ++d) {
      a[d] += load<VW>(image + at + VW * d) * w0;
      b[d] += load<VW>(i1 + at + VW * d) * w1;
      a[d] += load<VW>(i2 + at + VW * d) * w2;
      b[d] += load<VW>(i3 + at + VW * d) * w3;
    }
  }
  for (int d = 0; d < NV; ++d) store<VW>(out + VW * d, (a[d] + b[d]) * scale);
}
// The same with the weights in registers: half of the loads above are those of the weights.
template <class S, class T, class Offset, int VW, int NV, int... K>
DS_INLINE void gather_group_unrolled(const T* image, BlockSteps step, const Offset* corner,
                                     const S* const (&weight)[4], S scale, T* out,
                                     std::integer_sequence<int, K...>) {
  const T* const images[4] = {image, image + step.column, image + step.row, image + step.row + step.column};
  Vec<S, VW> w[4], sum[4][NV];  // a sum for each corner: chains of additions as short as can be
  for (int c = 0; c < 4; ++c) w[c] = load<VW>(weight[c]);
  auto add = [&](auto tap) __attribute__((always_inline)) {
    constexpr int k = decltype(tap)::value;
    const int64_t at = corner[k];
    for (int c = 0; c < 4; ++c)
      for (int d = 0; d < NV; ++d) {
        const Vec<S, VW> product = load<VW>(images[c] + at + VW * d) * lane<k, S, VW>(w[c]);
        sum[c][d] = k == 0 ? product : sum[c][d] + product;
      }
  };
  (add(std::integral_constant<int, K>{}), ...);
  for (int d = 0; d < NV; ++d)
    store<VW>(out + VW * d, ((sum[0][d] + sum[1][d]) + (sum[2][d] + sum[3][d])) * scale);
}

// K = 0: any number of taps. NV = 0: any number of channels that VW divides.
template <class S, class T, class Offset, int VW, int NV, int K>
DS_INLINE void gather_pixel(const T* image, BlockSteps step, const Offset* corner, const S* const (&weights)[4],
                            const S* scale, int64_t groups, int64_t taps, int64_t channels, T* out) {
  for (int64_t g = 0; g < groups; ++g, out += channels) {
    const int64_t t = g * taps;
    const S* const weight[4] = {weights[0] + t, weights[1] + t, weights[2] + t, weights[3] + t};
    if constexpr (K > 0) {
      gather_group_unrolled<S, T, Offset, VW, NV>(image, step, corner + t, weight, scale[g], out,
                                                  std::make_integer_sequence<int, K>{});
    } else if constexpr (NV > 0) {
      gather_group<S, T, Offset, VW, NV>(image, step, corner + t, weight, taps, scale[g], out);
    } else {
      int64_t d = 0;
      for (; d + 4 * VW <= channels; d += 4 * VW)
        gather_group<S, T, Offset, VW, 4>(image + d, step, corner + t, weight, taps, scale[g], out + d);
      for (; d < channels; d += VW)
        gather_group<S, T, Offset, VW, 1>(image + d, step, corner + t, weight, taps, scale[g], out + d);
    }
  }
}

// Backward, first half: dots[c][t] = <grad_out, corner c of tap t>. `channel` is the first channel of the tap's group.
// Up to VW / 4 - 1 taps behind the last are read and written: the arrays are padded, with offset 0.
template <class S, class T, class Offset, int VW, int NV>
DS_INLINE void corner_dots(const T* image, BlockSteps step, const Offset* corner, const Index<S>* channel,
                           const T* grad_out, int64_t taps, int64_t channels, S* const (&dots)[4]) {
  const int64_t vectors = NV > 0 ? NV : channels / VW;
  const T* const images[4] = {image, image + step.column, image + step.row, image + step.row + step.column};
  constexpr int kBatch = VW >= 4 ? VW / 4 : 1;  // taps whose four dots fill a vector
  for (int64_t t = 0; t < taps; t += kBatch) {
    Vec<S, VW> products[4 * kBatch];
    for (int k = 0; k < kBatch; ++k) {
      const T* g = grad_out + channel[t + k];
      const int64_t at = corner[t + k];
      for (int c = 0; c < 4; ++c) products[c * kBatch + k] = load<VW>(g) * load<VW>(images[c] + at);
      for (int64_t d = 1; d < vectors; ++d)
        for (int c = 0; c < 4; ++c)
          products[c * kBatch + k] += load<VW>(g + VW * d) * load<VW>(images[c] + at + VW * d);
    }
    if constexpr (VW >= 4) {
      S sums[VW];
      store<VW>(sums, sums_of<S, VW>(products));
      for (int c = 0; c < 4; ++c) std::memcpy(dots[c] + t, sums + c * kBatch, sizeof(S) * kBatch);
    } else {
      for (int c = 0; c < 4; ++c) dots[c][t] = sum_of<S, VW>(products[c]);
    }
  }
}

// Backward, second half: adds weight * grad_out to the corners of grad_value. The groups take turns: a load from where a
// tap of the same group has just stored would wait for it.
template <class S, class T, class Offset, int VW, int NV>
DS_INLINE void scatter_pixel(S* grad_image, BlockSteps step, const Offset* corner, const S* const (&weight)[4],
                             const T* grad_out, int64_t groups, int64_t taps, int64_t channels) {
  S* const images[4] = {grad_image, grad_image + step.column, grad_image + step.row,
                        grad_image + step.row + step.column};
  const int64_t vectors = NV > 0 ? NV : channels / VW;
  for (int64_t k = 0; k < taps; ++k)
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t t = g * taps + k, at = corner[t];
      const T* from = grad_out + g * channels;
      const S w[4] = {weight[0][t], weight[1][t], weight[2][t], weight[3][t]};
      for (int64_t d = 0; d < vectors; ++d) {
        const Vec<S, VW> v = load<VW>(from + VW * d);
        for (int c = 0; c < 4; ++c) {
          S* p = images[c] + at + VW * d;
          store<VW>(p, load<VW>(p) + v * w[c]);
        }
      }
    }
}

template <int V>
using Constant = std::integral_constant<int, V>;
// Calls f(VW, NV) with the widest vectors that divide the channels; NV = 0 stands for any number of them. Not `quick`:
// fewer cases to compile.
template <class S, bool quick, class F>
void dispatch_channels(int64_t channels, F f) {
  constexpr int kFull = kLanes<S>, kHalf = kFull / 2;
  if constexpr (quick) {
    if (channels == kFull) return f(Constant<kFull>{}, Constant<1>{});
    if (channels == 2 * kFull) return f(Constant<kFull>{}, Constant<2>{});
    if constexpr (kHalf >= 4)
      if (channels == kHalf) return f(Constant<kHalf>{}, Constant<1>{});
  }
  if (channels % kFull == 0) return f(Constant<kFull>{}, Constant<0>{});
  if constexpr (kHalf > 4)
    if (channels % kHalf == 0) return f(Constant<kHalf>{}, Constant<0>{});
  if constexpr (kFull > 4)
    if (channels % 4 == 0) return f(Constant<4>{}, Constant<0>{});
  f(Constant<1>{}, Constant<0>{});
}
