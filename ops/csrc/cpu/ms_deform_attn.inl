// Multi-scale deformable attention, forward and backward; Deformable DETR, arXiv 2010.04159. See ops/ms_deform_attn.py.
// Included once per instruction set, behind target_*.h.
namespace drivestack {
namespace DRIVESTACK_ISA {
namespace {

#include "../common/tap.h"
#include "simd.h"
#include "taps.inl"

// Sizes and offsets of the level of every tap (h, l, p) of one query, for n_heads heads.
template <class S>
struct LevelOfTap {
  S *width_f, *height_f;
  Index<S>*width, *height, *row, *first;
  static size_t bytes(int64_t n) { return 6 * (padded(n) * sizeof(S) + 64); }
  LevelOfTap(Arena& arena, const MsDeformAttnSizes& s, int64_t n_heads) {
    const int64_t n = n_heads * s.levels * s.points, stride = s.heads * s.head_channels;
    width_f = arena.take<S>(padded(n));
    height_f = arena.take<S>(padded(n));
    width = arena.take<Index<S>>(padded(n));
    height = arena.take<Index<S>>(padded(n));
    row = arena.take<Index<S>>(padded(n));
    first = arena.take<Index<S>>(padded(n));
    int64_t t = 0;
    for (int64_t h = 0; h < n_heads; ++h)
      for (int64_t l = 0, start = 0; l < s.levels; start += s.spatial_shapes[2 * l] * s.spatial_shapes[2 * l + 1], ++l)
        for (int64_t p = 0; p < s.points; ++p, ++t) {
          height[t] = Index<S>(s.spatial_shapes[2 * l]);
          width[t] = Index<S>(s.spatial_shapes[2 * l + 1]);
          height_f[t] = S(height[t]);
          width_f[t] = S(width[t]);
          row[t] = Index<S>(width[t] * stride);
          first[t] = Index<S>(start * stride);
        }
    for (; t < padded(n); ++t) {
      width[t] = height[t] = 1;
      width_f[t] = height_f[t] = 1;
    }
  }
};

template <class S, bool kBackward>
DS_INLINE void make_query_taps(const S* locations, const S* weights, int64_t n, const LevelOfTap<S>& level,
                               Index<S> stride, const Taps<S>& taps, MaskedAxes<S>* axes, S* weights_copy) {
  constexpr int N = kLanes<S>;
  for (int64_t t = 0; t < n; t += N) {
    Full<S> x, y;
    load_pairs<S>(locations, t, n, x, y);
    const Full<S> w = load_part<S>(weights, t, n);
    if (kBackward) store_raw(weights_copy + t, w);
    make_taps<S, kBackward>(x * load_full<S>(level.width_f + t) - S(0.5), y * load_full<S>(level.height_f + t) - S(0.5),
                            w, load_raw<FullIndex<S>>(level.width + t), load_raw<FullIndex<S>>(level.height + t),
                            load_raw<FullIndex<S>>(level.first + t), load_raw<FullIndex<S>>(level.row + t), stride,
                            taps, t, kBackward ? axes + t / N : nullptr);
  }
}

// The taps of a query are made one query ahead, so that the corner rows can be prefetched.
template <class T, int VW, int NV>
void ms_deform_attn_forward_queries(const MsDeformAttnSizes& s, const T* value, const Arithmetic<T>* locations,
                                    const Arithmetic<T>* weights, T* out, int64_t begin, int64_t end) {
  using S = Arithmetic<T>;
  const int64_t D = s.head_channels, stride = s.heads * D, n = s.levels * s.points, all = s.heads * n;
  if (begin >= end) return;
  Arena arena(2 * Taps<S>::bytes(all) + LevelOfTap<S>::bytes(all));
  const Taps<S> buffers[2] = {Taps<S>(arena, all), Taps<S>(arena, all)};
  const LevelOfTap<S> level(arena, s, s.heads);
  const bool prefetch = s.tokens * stride * int64_t(sizeof(T)) > kPrefetchBytes;
  auto prepare = [&](int64_t q) {
    const Taps<S>& taps = buffers[q & 1];
    make_query_taps<S, false>(locations + q * all * 2, weights + q * all, all, level, Index<S>(stride), taps, nullptr,
                              nullptr);
    if (!prefetch) return;
    const T* image = value + q / s.queries * s.tokens * stride;
    for (int64_t h = 0, t = 0; h < s.heads; ++h)
      for (int64_t k = 0; k < n; ++k, ++t)
        for (int c = 0; c < 4; ++c) {
          const char* p = reinterpret_cast<const char*>(image + taps.offset[c][t] + h * D);
          for (int64_t i = 0; i < D * int64_t(sizeof(T)); i += 64) __builtin_prefetch(p + i, 0, 3);
        }
  };
  prepare(begin);
  for (int64_t q = begin; q < end; ++q) {
    if (q + 1 < end) prepare(q + 1);
    const Taps<S>& taps = buffers[q & 1];
    const T* image = value + q / s.queries * s.tokens * stride;
    for (int64_t h = 0; h < s.heads; ++h)
      gather<S, T, VW, NV>(image + h * D, D, taps, h * n, n, out + q * stride + h * D);
  }
}

template <class T, int VW, int NV>
void ms_deform_attn_backward_tasks(const MsDeformAttnSizes& s, const T* grad_out, const T* value,
                                   const Arithmetic<T>* locations, const Arithmetic<T>* weights,
                                   Arithmetic<T>* grad_value, Arithmetic<T>* grad_locations,
                                   Arithmetic<T>* grad_weights, int64_t blocks, int64_t begin, int64_t end) {
  using S = Arithmetic<T>;
  constexpr int N = kLanes<S>;
  const int64_t D = s.head_channels, stride = s.heads * D, n = s.levels * s.points, n_heads = s.heads / blocks,
                all = n_heads * n;
  Arena arena(Taps<S>::bytes(all) + LevelOfTap<S>::bytes(all) + 7 * (padded(all) * sizeof(S) + 64) +
              (padded(all) / N) * sizeof(MaskedAxes<S>) + 64);
  const Taps<S> taps(arena, all);
  const LevelOfTap<S> level(arena, s, n_heads);
  S* dots[4];
  for (S*& d : dots) d = arena.take<S>(padded(all));
  S* masks = arena.take<S>(padded(all));
  int32_t *order = arena.take<int32_t>(padded(all)), *head = arena.take<int32_t>(padded(all));
  MaskedAxes<S>* axes = arena.take<MaskedAxes<S>>(padded(all) / N);
  for (int64_t k = 0, i = 0; k < n; ++k)
    for (int64_t h = 0; h < n_heads; ++h, ++i) {
      order[i] = int32_t(h * n + k);
      head[i] = int32_t(h);
    }
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks, h0 = task % blocks * n_heads;
    const T* image = value + b * s.tokens * stride + h0 * D;
    S* grad_image = grad_value + b * s.tokens * stride + h0 * D;
    for (int64_t q = b * s.queries; q < (b + 1) * s.queries; ++q) {
      const int64_t first = (q * s.heads + h0) * n;
      make_query_taps<S, true>(locations + 2 * first, weights + first, all, level, Index<S>(stride), taps, axes, masks);
      scatter<S, T, VW, NV>(image, grad_out + q * stride + h0 * D, grad_image, D, taps, masks, order, head, all, dots);
      for (int64_t t = 0; t < all; t += N) {
        Full<S> gw, gx, gy;
        tap_gradients_at<S>(t, dots, axes[t / N], gw, gx, gy);
        store_pairs<S>(grad_locations + 2 * first, t, all, gx * load_full<S>(level.width_f + t),
                       gy * load_full<S>(level.height_f + t));
        store_part<S>(grad_weights + first, t, all, gw);
      }
    }
  }
}

void ms_deform_attn_forward(const MsDeformAttnSizes& s, Dtype dtype, const void* value, const void* locations,
                            const void* weights, void* out, int64_t begin, int64_t end) {
  dispatch_types(dtype, true, [&](auto value_type, auto) {
    using T = decltype(value_type);
    using S = Arithmetic<T>;
    const int64_t channels = s.head_channels;
#define DS_CALL(VW, NV)                                                                                        \
  ms_deform_attn_forward_queries<T, VW, NV>(s, static_cast<const T*>(value), static_cast<const S*>(locations), \
                                            static_cast<const S*>(weights), static_cast<T*>(out), begin, end)
    DS_DISPATCH_CHANNELS(S, channels, DS_CALL);
#undef DS_CALL
  });
}

void ms_deform_attn_backward(const MsDeformAttnSizes& s, Dtype dtype, const void* grad_out, const void* value,
                             const void* locations, const void* weights, void* grad_value, void* grad_locations,
                             void* grad_weights, int64_t blocks, int64_t begin, int64_t end) {
  dispatch_types(dtype, true, [&](auto value_type, auto) {
    using T = decltype(value_type);
    using S = Arithmetic<T>;
    const int64_t channels = s.head_channels;
#define DS_CALL(VW, NV)                                                                                      \
  ms_deform_attn_backward_tasks<T, VW, NV>(s, static_cast<const T*>(grad_out), static_cast<const T*>(value), \
                                           static_cast<const S*>(locations), static_cast<const S*>(weights), \
                                           static_cast<S*>(grad_value), static_cast<S*>(grad_locations),     \
                                           static_cast<S*>(grad_weights), blocks, begin, end)
    DS_DISPATCH_CHANNELS(S, channels, DS_CALL);
#undef DS_CALL
  });
}

}  // namespace

constexpr MsDeformAttnKernels ms_deform_attn_kernels = {ms_deform_attn_forward, ms_deform_attn_backward};

}  // namespace DRIVESTACK_ISA
}  // namespace drivestack
