// Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159) and the spatial cross-attention made of it
// (BEVFormer, arXiv 2203.17270), forward and backward. See ops/ms_deform_attn.py and ops/spatial_cross_attention.py.
// Included once per instruction set, behind target_*.h.
namespace drivestack {
namespace DRIVESTACK_ISA {
namespace {

#include "../common/tap.h"
#include "simd.h"
#include "scratch.inl"
#include "taps.inl"
#include "attention_taps.inl"

// Offsets count elements, or tokens of `unit` elements where 32 bits would not hold the elements.
template <bool kWide, class T, class I>
DS_INLINE T* at(T* image, I offset, int64_t unit) {
  return image + (kWide ? int64_t(offset) * unit : int64_t(offset));
}

// ---- forward

// sum[0 .. NV * VW) (+)= the weighted corners of n taps from t0 on.
template <class S, class T, int VW, int NV, bool kWide>
DS_INLINE void gather_corners(const T* image, int64_t unit, const TapBlock<S>* blocks, int64_t t0, int64_t n, bool add,
                              S* sum) {
  constexpr int kSums = NV <= 2 ? 4 : 2;  // chains of additions: enough to hide their latency, few enough for registers
  Vec<S, VW> sums[kSums][NV];
  for (int i = 0; i < kSums; ++i)
    for (int d = 0; d < NV; ++d) sums[i][d] = i == 0 && add ? load<VW>(sum + VW * d) : Vec<S, VW>{};
  for_taps<S>(blocks, t0, n, [&](const TapBlock<S>& block, int64_t i) {
    const T *p0 = at<kWide>(image, block.offset[0][i], unit), *p1 = at<kWide>(image, block.offset[1][i], unit);
    const T *p2 = at<kWide>(image, block.offset[2][i], unit), *p3 = at<kWide>(image, block.offset[3][i], unit);
    const S w0 = block.weight[0][i], w1 = block.weight[1][i], w2 = block.weight[2][i], w3 = block.weight[3][i];
    for (int d = 0; d < NV; ++d) {
      sums[0][d] += load<VW>(p0 + VW * d) * w0;
      sums[1][d] += load<VW>(p1 + VW * d) * w1;
      sums[kSums - 2][d] += load<VW>(p2 + VW * d) * w2;
      sums[kSums - 1][d] += load<VW>(p3 + VW * d) * w3;
    }
  });
  for (int d = 0; d < NV; ++d) {
    Vec<S, VW> total = sums[0][d] + sums[1][d];
    if constexpr (kSums == 4) total += sums[2][d] + sums[3][d];
    store<VW>(sum + VW * d, total);
  }
}
// NV = 0: any number of channels that VW divides, in blocks of 4, 2 and 1 vectors.
template <class S, class T, int VW, int NV, bool kWide>
DS_INLINE void gather_head(const T* image, int64_t channels, int64_t unit, const TapBlock<S>* blocks, int64_t t0,
                           int64_t n, bool add, S* sum) {
  if constexpr (NV > 0) {
    gather_corners<S, T, VW, NV, kWide>(image, unit, blocks, t0, n, add, sum);
  } else {
    int64_t d = 0;
    for (; d + 4 * VW <= channels; d += 4 * VW)
      gather_corners<S, T, VW, 4, kWide>(image + d, unit, blocks, t0, n, add, sum + d);
    if (d + 2 * VW <= channels) {
      gather_corners<S, T, VW, 2, kWide>(image + d, unit, blocks, t0, n, add, sum + d);
      d += 2 * VW;
    }
    if (d < channels) gather_corners<S, T, VW, 1, kWide>(image + d, unit, blocks, t0, n, add, sum + d);
  }
}

// Where a map has few taps for its size, its rows mostly come from memory and waiting for them dominates. Elsewhere
// they come from a cache, and prefetching only costs instructions.
constexpr int64_t kTapsPerToken = 8;
template <class T>
DS_INLINE bool worth_prefetching(const AttentionCall& call) {
  return call.tokens * call.channels() * int64_t(sizeof(T)) > kPrefetchBytes &&
         call.queries * call.taps() <= kTapsPerToken * call.tokens;
}
template <bool kWide, class T, class S>
DS_INLINE void prefetch_heads(const T* image, int64_t heads, int64_t channels, int64_t unit, const TapBlock<S>* blocks,
                              int64_t n) {
  for (int64_t h = 0; h < heads; ++h)
    for_taps<S>(blocks, h * n, n, [&](const TapBlock<S>& block, int64_t lane) {
      for (int c = 0; c < 4; ++c) {
        const char* p = reinterpret_cast<const char*>(at<kWide>(image + h * channels, block.offset[c][lane], unit));
        for (int64_t i = 0; i < channels * int64_t(sizeof(T)); i += 64) __builtin_prefetch(p + i, 0, 3);
      }
    });
}

template <class T, int VW, int NV, bool kWide>
void forward_queries(const AttentionCall& call, int64_t begin, int64_t end) {
  using S = Arithmetic<T>;
  constexpr bool kNarrow = !std::is_same_v<S, T>;  // sums are wider than what is stored
  constexpr int N = kLanes<S>;
  const int64_t M = call.heads, D = call.head_channels, C = call.channels(), n = call.taps(), all = M * n;
  Arena arena(2 * (padded(all) / N) * sizeof(TapBlock<S>) + TapMaker<S>::bytes(call, M) + C * sizeof(S) + 256);
  TapBlock<S>* const buffers[2] = {arena.take<TapBlock<S>>(padded(all) / N), arena.take<TapBlock<S>>(padded(all) / N)};
  TapMaker<S> maker(arena, call, M);
  S* sums = arena.take<S>(C + N);
  T* out = static_cast<T*>(call.out);
  const bool prefetch = worth_prefetching<T>(call);

  struct Step {
    int64_t query;
    bool first, last;
    const T* image;
  } steps[2];
  Pairs pairs(call, begin, end);
  const auto prepare = [&](int turn) {  // the taps of the next pair; false behind the last one
    if (!pairs.next([&](int64_t query) { std::memset(out + query * C, 0, C * sizeof(T)); })) return false;
    if (pairs.first()) maker.start_query(pairs.query, 0, pairs.count);
    maker.template make<false>(pairs.query, pairs.camera, buffers[turn], nullptr);
    const int64_t image = pairs.query / call.queries * call.cameras + pairs.camera;
    steps[turn] = {pairs.query, pairs.first(), pairs.last(),
                   static_cast<const T*>(call.value) + image * call.tokens * C};
    if (prefetch) prefetch_heads<kWide>(steps[turn].image, M, D, C, buffers[turn], n);
    return true;
  };

  int turn = 0;
  for (bool more = prepare(0); more; turn ^= 1) {
    more = prepare(turn ^ 1);
    const Step& step = steps[turn];
    S* to = sums;
    if constexpr (!kNarrow) to = out + step.query * C;
    for (int64_t h = 0; h < M; ++h)
      gather_head<S, T, VW, NV, kWide>(step.image + h * D, D, C, buffers[turn], h * n, n, !step.first, to + h * D);
    if constexpr (kNarrow) {
      if (step.last)
        for (int64_t i = 0; i < C; i += N) store_part<S>(out + step.query * C, i, C, load_full<S>(sums + i));
    }
  }
}

// ---- backward

// For one head: dots[c][t] = <grad_out, corner c of tap t> and grad_value += weight * grad_out at the corners, for up
// to kBatch taps from t0 on: as many as have their dots in one register.
template <int VW>
constexpr int kBatch = VW >= 4 ? VW / 4 : 1;

template <class S, class T, int VW, int NV, bool kWide>
DS_INLINE void scatter_corners(const T* image, S* grad_image, const T* grad_out, int64_t channels, int64_t unit,
                               const TapBlock<S>* blocks, uint64_t t0, int n, S* const* dots) {
  constexpr uint64_t N = kLanes<S>;
  const int64_t vectors = NV > 0 ? NV : channels / VW;
  Vec<S, VW> g[NV > 0 ? NV : 1];
  for (int d = 0; d < NV; ++d) g[d] = load<VW>(grad_out + VW * d);
  const auto dot = [&](int k, int c) {
    const T* p = at<kWide>(image, blocks[(t0 + k) / N].offset[c][(t0 + k) % N], unit);
    Vec<S, VW> sum{};
    if constexpr (NV > 0)
      for (int d = 0; d < NV; ++d) sum += g[d] * load<VW>(p + VW * d);
    else
      for (int64_t d = 0; d < vectors; ++d) sum += load<VW>(grad_out + VW * d) * load<VW>(p + VW * d);
    return sum;
  };
  const auto add = [&](int k, int c) {
    const S w = blocks[(t0 + k) / N].weight[c][(t0 + k) % N];
    S* p = at<kWide>(grad_image, blocks[(t0 + k) / N].offset[c][(t0 + k) % N], unit);
    if constexpr (NV > 0)
      for (int d = 0; d < NV; ++d) store<VW>(p + VW * d, load<VW>(p + VW * d) + g[d] * w);
    else
      for (int64_t d = 0; d < vectors; ++d)
        store<VW>(p + VW * d, load<VW>(p + VW * d) + load<VW>(grad_out + VW * d) * w);
  };
  constexpr int kTaps = kBatch<VW>;
  if constexpr (VW < 4) {
    for (int c = 0; c < 4; ++c) dots[c][t0] = sum_of<S, VW>(dot(0, c));
  } else {
    Vec<S, VW> products[VW];
    for (int k = 0; k < kTaps; ++k)
      for (int c = 0; c < 4; ++c) products[c * kTaps + k] = dot(k < n ? k : 0, c);
    const Vec<S, VW> sums = sums_of<S, VW>(products);
    for (int c = 0; c < 4; ++c)
      for (int k = 0; k < kTaps && k < n; ++k) dots[c][t0 + k] = sums[c * kTaps + k];
  }
  for (int k = 0; k < kTaps && k < n; ++k)
    for (int c = 0; c < 4; ++c) add(k, c);
}

// Gradients to the positions and scores of a query's taps, summed over its cameras.
template <class S>
struct TapGradients {
  S *dots[4], *x, *y, *score;
  MaskedAxes<S>* axes;
  static size_t bytes(int64_t all) {
    return 7 * (padded(all) * sizeof(S) + 64) + padded(all) / kLanes<S> * sizeof(MaskedAxes<S>) + 64;
  }
  TapGradients(Arena& arena, int64_t all) {
    for (S** p : {&dots[0], &dots[1], &dots[2], &dots[3], &x, &y, &score}) *p = arena.take<S>(padded(all));
    axes = arena.take<MaskedAxes<S>>(padded(all) / kLanes<S>);
  }
  DS_INLINE void add(const TapMaker<S>& maker, bool first) {
    const bool located = !maker.call.references;  // locations count in maps, offsets in pixels
    for (int64_t t = 0, u = 0; t < maker.all; t += kLanes<S>) {
      Full<S> gw, gx, gy;
      tap_gradients_at<S>(t, dots, axes[t / kLanes<S>], gw, gx, gy);
      if (located) {
        gx *= load_full<S>(maker.width_f + u);
        gy *= load_full<S>(maker.height_f + u);
      }
      store_raw(x + t, first ? gx : load_full<S>(x + t) + gx);
      store_raw(y + t, first ? gy : load_full<S>(y + t) + gy);
      store_raw(score + t, first ? gw : load_full<S>(score + t) + gw);
      u = u + kLanes<S> == maker.period ? 0 : u + kLanes<S>;
    }
  }
  // From weights to logits. The weights are probabilities / divisor.
  DS_INLINE void through_softmax(const TapMaker<S>& maker, S divisor) {
    const int64_t length = maker.softmax_length();
    for (int64_t row = 0; row < maker.all; row += length) {
      S inner = 0;
      for (int64_t t = row; t < row + length; ++t) inner += maker.score[t] * score[t];
      inner *= divisor;
      for (int64_t t = row; t < row + length; ++t)
        score[t] = softmax_gradient<ScalarLanes<S>>(maker.score[t], score[t], inner);
    }
  }
};

template <class T, int VW, int NV, bool kWide>
void backward_tasks(const AttentionCall& call, int64_t blocks, int64_t begin, int64_t end) {
  using S = Arithmetic<T>;
  const int64_t D = call.head_channels, C = call.channels(), n = call.taps(), M = call.heads / blocks, all = M * n;
  Arena arena(padded(all) / kLanes<S> * sizeof(TapBlock<S>) + TapMaker<S>::bytes(call, M) +
              TapGradients<S>::bytes(all));
  TapBlock<S>* const taps = arena.take<TapBlock<S>>(padded(all) / kLanes<S>);
  TapMaker<S> maker(arena, call, M);
  TapGradients<S> gradients(arena, all);
  auto write = write_gradients<S, S>;
  if constexpr (sizeof(S) == 4) {
    if (call.tap_dtype == Dtype::bf16) write = write_gradients<S, BFloat16>;
    if (call.tap_dtype == Dtype::f16) write = write_gradients<S, Half>;
  }
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks, h0 = task % blocks * M;
    const auto finish = [&](int64_t query) {
      const int64_t tap = (query * call.heads + h0) * n;
      write(gradients.x, gradients.y, gradients.score, all,
            static_cast<char*>(call.grad_positions) + 2 * tap * maker.tap_bytes,
            static_cast<char*>(call.grad_scores) + tap * maker.tap_bytes);
    };
    Pairs pairs(call, b * call.queries, (b + 1) * call.queries);
    while (pairs.next([&](int64_t query) {
      for (S* p : {gradients.x, gradients.y, gradients.score}) std::memset(p, 0, all * sizeof(S));
      finish(query);
    })) {
      if (pairs.first()) maker.start_query(pairs.query, h0, pairs.count);
      maker.template make<true>(pairs.query, pairs.camera, taps, gradients.axes);
      const int64_t first = (b * call.cameras + pairs.camera) * call.tokens * C + h0 * D;
      const T *image = static_cast<const T*>(call.value) + first,
              *grad_out = static_cast<const T*>(call.grad_out) + pairs.query * C + h0 * D;
      S* grad_image = static_cast<S*>(call.grad_value) + first;
      // A head's taps often share pixels, so that each must wait for the one before: another head's come in between.
      constexpr int kTaps = kBatch<VW>;
      int64_t k = 0;
      for (; k + kTaps <= n; k += kTaps)
        for (int64_t h = 0; h < M; ++h)
          scatter_corners<S, T, VW, NV, kWide>(image + h * D, grad_image + h * D, grad_out + h * D, D, C, taps,
                                               h * n + k, kTaps, gradients.dots);
      if (k < n)
        for (int64_t h = 0; h < M; ++h)
          scatter_corners<S, T, VW, NV, kWide>(image + h * D, grad_image + h * D, grad_out + h * D, D, C, taps,
                                               h * n + k, int(n - k), gradients.dots);
      gradients.add(maker, pairs.first());
      if (!pairs.last()) continue;
      if (call.references) gradients.through_softmax(maker, S(pairs.count * (call.level_mean ? call.levels : 1)));
      finish(pairs.query);
    }
  }
}

// Calls f(T{}) with the value's storage type.
template <class F>
void dispatch_storage(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f32:
      return f(float{});
    case Dtype::f64:
      return f(double{});
    case Dtype::bf16:
      return f(BFloat16{});
    case Dtype::f16:
      return f(Half{});
  }
}

void forward(const AttentionCall& call, int64_t begin, int64_t end) {
  if (begin >= end) return;
  dispatch_storage(call.dtype, [&](auto value_type) {
    using T = decltype(value_type);
    if (call.wide) return forward_queries<T, 1, 0, true>(call, begin, end);
#define DS_CALL(VW, NV) forward_queries<T, VW, NV, false>(call, begin, end)
    DS_DISPATCH_CHANNELS(Arithmetic<T>, call.head_channels, DS_CALL);
#undef DS_CALL
  });
}

void backward(const AttentionCall& call, int64_t blocks, int64_t begin, int64_t end) {
  if (begin >= end) return;
  dispatch_storage(call.dtype, [&](auto value_type) {
    using T = decltype(value_type);
    if (call.wide) return backward_tasks<T, 1, 0, true>(call, blocks, begin, end);
#define DS_CALL(VW, NV) backward_tasks<T, VW, NV, false>(call, blocks, begin, end)
    DS_DISPATCH_CHANNELS(Arithmetic<T>, call.head_channels, DS_CALL);
#undef DS_CALL
  });
}

}  // namespace
constexpr MsDeformAttnKernels ms_deform_attn_kernels = {forward, backward};
}  // namespace DRIVESTACK_ISA
}  // namespace drivestack
