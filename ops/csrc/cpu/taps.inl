// Bilinear taps, shared by DCNv3 and attention: coordinates of many taps at a time become corner offsets and weights.

constexpr int64_t kPrefetchBytes = 1 << 20;  // prefetching pays once the image leaves the L2 cache

inline int64_t padded(int64_t taps) { return (taps + 31) / 16 * 16; }

// Corners 0..3: top-left, top-right, bottom-left, bottom-right. Offsets are in elements from channel 0 of the image.
template <class S>
struct Taps {
  Index<S>* offset[4];
  S* weight[4];
  static size_t bytes(int64_t n) { return 8 * (padded(n) * sizeof(S) + 64); }
  Taps(Arena& arena, int64_t n) {
    for (int c = 0; c < 4; ++c) {
      offset[c] = arena.take<Index<S>>(padded(n));
      weight[c] = arena.take<S>(padded(n));
    }
  }
};
// Corner offsets and weights of a register of taps, to position t. The mask is folded into the weights of a forward
// pass; a backward pass gets it back with the axes.
template <class S>
struct MaskedAxes : TapAxes<SimdLanes<S>> {
  Full<S> mask;
};
template <class S, bool kBackward>
DS_INLINE void make_taps(Full<S> x, Full<S> y, Full<S> mask, FullIndex<S> width, FullIndex<S> height,
                         FullIndex<S> first, FullIndex<S> row, Index<S> column, const Taps<S>& taps, int64_t t,
                         MaskedAxes<S>* kept) {
  using L = SimdLanes<S>;
  TapAxes<L> axes;
  FullIndex<S> corner[4];
  Full<S> weight[4];
  tap_corners<L>(x, y, width, height, first, row, broadcast_index<S>(column), corner, axes);
  corner_weights<L>(axes, kBackward ? broadcast<S>(1) : mask, weight);
  for (int c = 0; c < 4; ++c) {
    store_raw(taps.offset[c] + t, corner[c]);
    store_raw(taps.weight[c] + t, weight[c]);
  }
  if (kBackward) {
    static_cast<TapAxes<L>&>(*kept) = axes;
    kept->mask = mask;
  }
}

// out[0 .. NV * VW) = sum over n taps from t0 on of the weighted corners.
template <class S, class T, int VW, int NV>
DS_INLINE void gather_block(const T* image, const Taps<S>& taps, int64_t t0, int64_t n, T* out) {
  Vec<S, VW> a[NV], b[NV];
  for (int d = 0; d < NV; ++d) a[d] = b[d] = Vec<S, VW>{};
  for (int64_t t = t0; t < t0 + n; ++t) {
    const T *p0 = image + taps.offset[0][t], *p1 = image + taps.offset[1][t];
    const T *p2 = image + taps.offset[2][t], *p3 = image + taps.offset[3][t];
    const S w0 = taps.weight[0][t], w1 = taps.weight[1][t], w2 = taps.weight[2][t], w3 = taps.weight[3][t];
    for (int d = 0; d < NV; ++d) {
      a[d] += load<VW>(p0 + VW * d) * w0;
      b[d] += load<VW>(p1 + VW * d) * w1;
      a[d] += load<VW>(p2 + VW * d) * w2;
      b[d] += load<VW>(p3 + VW * d) * w3;
    }
  }
  for (int d = 0; d < NV; ++d) store<VW>(out + VW * d, a[d] + b[d]);
}
// The same for taps whose four corners all lie inside: one offset each, the others at constant distances.
template <class S, class T, int VW, int NV>
DS_INLINE void gather_block_interior(const T* image, int64_t column, int64_t row, const Taps<S>& taps, int64_t t0,
                                     int64_t n, T* out) {
  Vec<S, VW> a[NV], b[NV];
  for (int d = 0; d < NV; ++d) a[d] = b[d] = Vec<S, VW>{};
  for (int64_t t = t0; t < t0 + n; ++t) {
    const T *p0 = image + taps.offset[0][t], *p2 = p0 + row;
    const S w0 = taps.weight[0][t], w1 = taps.weight[1][t], w2 = taps.weight[2][t], w3 = taps.weight[3][t];
    for (int d = 0; d < NV; ++d) {
      a[d] += load<VW>(p0 + VW * d) * w0;
      b[d] += load<VW>(p0 + column + VW * d) * w1;
      a[d] += load<VW>(p2 + VW * d) * w2;
      b[d] += load<VW>(p2 + column + VW * d) * w3;
    }
  }
  for (int d = 0; d < NV; ++d) store<VW>(out + VW * d, a[d] + b[d]);
}
// NV = 0: any number of channels that VW divides, in blocks of 4, 2 and 1 vectors.
template <class S, class T, int VW, int NV>
DS_INLINE void gather(const T* image, int64_t channels, const Taps<S>& taps, int64_t t0, int64_t n, T* out) {
  if constexpr (NV > 0) {
    gather_block<S, T, VW, NV>(image, taps, t0, n, out);
  } else {
    int64_t d = 0;
    for (; d + 4 * VW <= channels; d += 4 * VW) gather_block<S, T, VW, 4>(image + d, taps, t0, n, out + d);
    if (d + 2 * VW <= channels) {
      gather_block<S, T, VW, 2>(image + d, taps, t0, n, out + d);
      d += 2 * VW;
    }
    if (d < channels) gather_block<S, T, VW, 1>(image + d, taps, t0, n, out + d);
  }
}
template <class S, class T, int VW, int NV>
DS_INLINE void gather_interior(const T* image, int64_t channels, int64_t column, int64_t row, const Taps<S>& taps,
                               int64_t t0, int64_t n, T* out) {
  if constexpr (NV > 0) {
    gather_block_interior<S, T, VW, NV>(image, column, row, taps, t0, n, out);
  } else {
    int64_t d = 0;
    for (; d + 4 * VW <= channels; d += 4 * VW)
      gather_block_interior<S, T, VW, 4>(image + d, column, row, taps, t0, n, out + d);
    if (d + 2 * VW <= channels) {
      gather_block_interior<S, T, VW, 2>(image + d, column, row, taps, t0, n, out + d);
      d += 2 * VW;
    }
    if (d < channels) gather_block_interior<S, T, VW, 1>(image + d, column, row, taps, t0, n, out + d);
  }
}

// Backward of a batch of taps. tap[i] and slot[i] say which tap it is and which group or head it belongs to; image,
// grad_out and grad_value point at channel 0 of slot 0. Writes dots[c][tap] = <grad_out, corner c> and adds to
// grad_value. Neighbours in the walk should belong to different slots: their read-modify-writes do not wait for each
// other.
template <class S, class T, int VW, int NV>
DS_INLINE void scatter(const T* image, const T* grad_out, S* grad_value, int64_t channels, const Taps<S>& taps,
                       const S* masks, const int32_t* tap, const int32_t* slot, int64_t n, S* const* dots) {
  const int64_t vectors = NV > 0 ? NV : channels / VW;
  constexpr int kBatch = VW >= 4 ? VW / 4 : 1;  // taps whose 4 dots fill a vector
  for (int64_t i = 0; i < n; i += kBatch) {
    const int m = n - i < kBatch ? int(n - i) : kBatch;
    S sums[kBatch * 4];
    if constexpr (VW >= 4) {
      Vec<S, VW> products[VW];
      for (int k = 0; k < kBatch; ++k) {
        const int64_t t = tap[i + (k < m ? k : 0)], at = slot[i + (k < m ? k : 0)] * channels;
        for (int c = 0; c < 4; ++c) {
          const T* p = image + at + taps.offset[c][t];
          Vec<S, VW> sum = load<VW>(grad_out + at) * load<VW>(p);
          for (int64_t d = 1; d < vectors; ++d) sum += load<VW>(grad_out + at + VW * d) * load<VW>(p + VW * d);
          products[c * kBatch + k] = sum;
        }
      }
      store<VW>(sums, sums_of<S, VW>(products));
    } else {
      const int64_t t = tap[i], at = slot[i] * channels;
      for (int c = 0; c < 4; ++c) {
        const T* p = image + at + taps.offset[c][t];
        Vec<S, VW> sum{};
        for (int64_t d = 0; d < vectors; ++d) sum += load<VW>(grad_out + at + VW * d) * load<VW>(p + VW * d);
        sums[c] = sum_of<S, VW>(sum);
      }
    }
    for (int k = 0; k < m; ++k) {
      const int64_t t = tap[i + k], at = slot[i + k] * channels;
      const S mask = masks[t];
      if constexpr (NV > 0) {
        Vec<S, VW> g[NV > 0 ? NV : 1];
        for (int d = 0; d < NV; ++d) g[d] = load<VW>(grad_out + at + VW * d) * mask;
        for (int c = 0; c < 4; ++c) {
          const S w = taps.weight[c][t];
          S* p = grad_value + at + taps.offset[c][t];
          for (int d = 0; d < NV; ++d) store<VW>(p + VW * d, load<VW>(p + VW * d) + g[d] * w);
        }
      } else {
        for (int c = 0; c < 4; ++c) {
          const S w = taps.weight[c][t] * mask;
          S* p = grad_value + at + taps.offset[c][t];
          for (int64_t d = 0; d < vectors; ++d)
            store<VW>(p + VW * d, load<VW>(p + VW * d) + load<VW>(grad_out + at + VW * d) * w);
        }
      }
      for (int c = 0; c < 4; ++c) dots[c][t] = sums[c * kBatch + k];
    }
  }
}

// Gradients to the mask and the pixel coordinates of the register of taps at t, from the four dots.
template <class S>
DS_INLINE void tap_gradients_at(int64_t t, S* const* dots, const MaskedAxes<S>& axes, Full<S>& grad_mask,
                                Full<S>& grad_x, Full<S>& grad_y) {
  Full<S> dot[4];
  for (int c = 0; c < 4; ++c) dot[c] = load_full<S>(dots[c] + t);
  tap_gradients<SimdLanes<S>>(axes, axes.mask, dot, grad_mask, grad_x, grad_y);
}

// Calls f<T, VW, NV> with the widest vectors that divide the channels.
#define DS_DISPATCH_CHANNELS(S, channels, CALL)           \
  do {                                                    \
    constexpr int kFull = kLanes<S>, kHalf = kFull / 2;   \
    if (channels == kFull) {                              \
      CALL(kFull, 1);                                     \
    } else if (channels == 2 * kFull) {                   \
      CALL(kFull, 2);                                     \
    } else if (channels % kFull == 0) {                   \
      CALL(kFull, 0);                                     \
    } else if (kHalf > 4 && channels == kHalf) {          \
      CALL((kHalf > 4 ? kHalf : 1), (kHalf > 4 ? 1 : 0)); \
    } else if (kHalf > 4 && channels % kHalf == 0) {      \
      CALL((kHalf > 4 ? kHalf : 1), 0);                   \
    } else if (kFull > 4 && channels % 4 == 0) {          \
      CALL((kFull > 4 ? 4 : 1), 0);                       \
    } else {                                              \
      CALL(1, 0);                                         \
    }                                                     \
  } while (0)

// Calls f(T{}, O{}) with the value's storage type and the type of its offsets and masks.
template <class F>
void dispatch_types(Dtype dtype, bool float_taps, F f) {
  switch (dtype) {
    case Dtype::f32:
      f(float{}, float{});
      break;
    case Dtype::f64:
      f(double{}, double{});
      break;
    case Dtype::bf16:
      float_taps ? f(BFloat16{}, float{}) : f(BFloat16{}, BFloat16{});
      break;
    case Dtype::f16:
      float_taps ? f(Half{}, float{}) : f(Half{}, Half{});
      break;
  }
}
