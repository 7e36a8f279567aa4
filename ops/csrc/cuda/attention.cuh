// Multi-scale deformable attention, Deformable DETR (arXiv 2010.04159), and BEVFormer's spatial cross-attention (arXiv
// 2203.17270): kernels for locations and weights, and for reference points, offsets and logits, where the same query
// looks at one image or at those of several cameras, and the softmax happens inside. See ops/ms_deform_attn.py.
//
// A block is a run of neighbouring queries times one head: their corners meet in the L1 cache. kLanes neighbouring
// threads share a query and head. Each makes one tap of a round of kLanes taps and leaves it in shared memory; then
// each reads all of them for its own channels.
#pragma once
#include "device.cuh"
#include "kernels.h"

namespace drivestack {
namespace cuda {

constexpr int kAttentionThreads = 256;

struct AttentionPlace {
  int lane, head, query;
  int64_t batch, query_row, tap_row;  // rows (b, q) and (b, q, m)
  bool inside;

  template <int kLanes>
  static DS_DEVICE AttentionPlace make(const AttentionParams& p, int64_t first_batch) {
    AttentionPlace at;
    at.lane = threadIdx.x % kLanes;
    at.head = blockIdx.x % p.heads;
    at.query = blockIdx.x / p.heads * (kAttentionThreads / kLanes) + threadIdx.x / kLanes;
    at.inside = at.query < p.queries;
    if (!at.inside) at.query = 0;  // any place will do; nothing of it is written
    at.batch = first_batch + blockIdx.y;
    at.query_row = at.batch * p.queries + at.query;
    at.tap_row = at.query_row * p.heads + at.head;
    return at;
  }
};

// The taps of one round of a warp. Sixteen-byte words, swizzled so that neither writes nor reads of a warp conflict.
template <class S, class Index, int kLanes>
struct SharedTaps {
  struct alignas(16) Corners {
    Index at[4];
  };
  struct alignas(16) Weights {
    S of[4];
  };
  Corners corners[kAttentionThreads];
  Weights weights[kAttentionThreads];

  static DS_DEVICE int slot(int lane) {
    constexpr int kSlots = 32 / kLanes;
    const int row = threadIdx.x % 32 / kLanes;
    return threadIdx.x / 32 * 32 + lane * kSlots + (row ^ ((lane * (8 / kLanes)) & (kSlots - 1)));
  }
};

// Softmax over `taps` logits that kLanes threads share.
template <class S, int kLanes, class O>
DS_DEVICE void softmax_of_lanes(const O* logits, int taps, int lane, S& largest, S& inverse_sum) {
  largest = -S(INFINITY);
  for (int t = lane; t < taps; t += kLanes) {
    const S logit = widen(logits[t]);
    largest = logit > largest || logit != logit ? logit : largest;
  }
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const S other = __shfl_xor_sync(~0u, largest, step);
    largest = other > largest || other != other ? other : largest;
  }
  S sum = 0;
  for (int t = lane; t < taps; t += kLanes) sum += exponential(S(widen(logits[t])) - largest, kIsHalf<O>);
  inverse_sum = S(1) / sum_over_lanes(sum, kLanes);
}

// Which cameras see the query: its own bits, and those that any query of the warp has.
struct Visibility {
  uint64_t own, any;

  DS_DEVICE Visibility(const AttentionParams& p, const AttentionPlace& at, const bool* visible) : own(0), any(0) {
    for (int n = 0; n < p.cameras; ++n) {
      const bool seen = at.inside && (!visible || visible[(at.batch * p.cameras + n) * p.queries + at.query]);
      own |= uint64_t(seen) << n;
      any |= uint64_t(__any_sync(~0u, seen) != 0) << n;
    }
  }
  DS_DEVICE bool sees(int n) const { return own >> n & 1; }
  DS_DEVICE bool needs(int n) const { return any >> n & 1; }
  DS_DEVICE int count() const {
    int c = 0;
    for (uint64_t bits = own; bits; bits &= bits - 1) ++c;
    return c;
  }
};

// A thread's own tap: point `point` of level l. Plain attention: x, y are the location and `weight` the weight. Fused:
// x, y are the offset and `weight` the probability; the reference point depends on the camera.
template <class S>
struct OwnTap {
  S x, y, weight;
};

template <class S, bool kFused>
DS_DEVICE void place_tap(const AttentionParams& p, const AttentionPlace& at, const S* reference, int camera, int l,
                         int point, const OwnTap<S>& tap, S& x, S& y) {
  const S width = S(p.level[l].width), height = S(p.level[l].height);
  if constexpr (kFused) {
    const S* r = reference + at.batch * p.reference_batch + camera * p.reference_camera +
                 at.query * p.reference_query + l * p.reference_level + point % p.references * 2;
    x = referred_coordinate(r[0], width, tap.x);
    y = referred_coordinate(r[1], height, tap.y);
  } else {
    x = located_coordinate(tap.x, width);
    y = located_coordinate(tap.y, height);
  }
}

// offsets: [.., M, L, P, 2], or locations; logits: [.., M, L, P], or weights; visible: [B, N, Q] or null.
template <class T, class O, int kChannels, int kLanes, class Index, bool kFused>
__global__ void __launch_bounds__(kAttentionThreads, sizeof(T) == 8 ? 2 : 3)
    attention_forward_kernel(const __grid_constant__ AttentionParams p, const T* __restrict__ value,
                             const Arithmetic<T>* __restrict__ reference, const bool* __restrict__ visible,
                             const O* __restrict__ offsets, const O* __restrict__ logits, T* __restrict__ out,
                             int64_t first_batch) {
  using S = Arithmetic<T>;
  using L = ThreadLanes<S, Index>;
  using Shared = SharedTaps<S, Index, kLanes>;
  __shared__ Shared shared;
  const auto at = AttentionPlace::make<kLanes>(p, first_batch);
  const int taps = p.levels * p.points, column = p.heads * p.channels;
  const O* own_offsets = offsets + at.query_row * p.offset_query + int64_t(at.head) * taps * 2;
  const O* own_logits = logits + at.query_row * p.logit_query + int64_t(at.head) * taps;
  const T* values = value + at.batch * p.cameras * p.tokens * column + int64_t(at.head) * p.channels;
  const Visibility seen(p, at, visible);
  S largest = 0, factor = 1;
  if (kFused) {
    if (!p.level_mean) softmax_of_lanes<S, kLanes>(own_logits, taps, at.lane, largest, factor);
    const int cameras = seen.count();
    if (cameras > 1) factor /= S(cameras);
  }
  // One walk, but for odd numbers of channels, where the lanes walk over them.
  for (int first = 0; first < p.channels; first += kLanes * kChannels) {
    const int c = first + at.lane * kChannels;
    const bool has_channels = c < p.channels;
    S acc[kChannels] = {};
    for (int l = 0; l < p.levels; ++l) {
      S level_largest = largest, level_factor = factor;
      if (kFused && p.level_mean) {
        softmax_of_lanes<S, kLanes>(own_logits + l * p.points, p.points, at.lane, level_largest, level_factor);
        level_factor *= factor / S(p.levels);
      }
      for (int base = 0; base < p.points; base += kLanes) {
        const int point = base + at.lane, t = l * p.points + point;
        OwnTap<S> tap = {};
        if (point < p.points) {
          load_pair(own_offsets + 2 * t, p.paired, tap.x, tap.y);
          tap.weight = widen(own_logits[t]);
          if (kFused) tap.weight = exponential(tap.weight - level_largest, kIsHalf<O>) * level_factor;
        }
        for (int n = 0; n < p.cameras; ++n) {
          if (!seen.needs(n)) continue;
          typename Shared::Corners corners = {};
          typename Shared::Weights weights = {};
          if (point < p.points) {
            S x, y;
            TapAxes<L> axes;
            place_tap<S, kFused>(p, at, reference, n, l, point, tap, x, y);
            tap_corners<L>(x, y, p.level[l].width, p.level[l].height, Index(p.level[l].start) * column,
                           Index(p.level[l].width) * column, Index(column), corners.at, axes);
            corner_weights<L>(axes, tap.weight, weights.of);
          }
          __syncwarp();
          shared.corners[Shared::slot(at.lane)] = corners;
          shared.weights[Shared::slot(at.lane)] = weights;
          __syncwarp();
          if (!has_channels || !seen.sees(n)) continue;
          const T* image = values + n * p.tokens * column + c;
          auto blend = [&](int s) {
            const auto from = shared.corners[Shared::slot(s)];
            const auto weight = shared.weights[Shared::slot(s)];
#pragma unroll
            for (int q = 0; q < 4; ++q) {
              S v[kChannels];
              load_channels(image + from.at[q], v);
#pragma unroll
              for (int i = 0; i < kChannels; ++i) acc[i] += weight.of[q] * v[i];
            }
          };
          const int left = p.points - base;
          if (left >= kLanes) {  // no branch between the taps, so that the loads of several are under way at once
#pragma unroll
            for (int s = 0; s < kLanes; ++s) blend(s);
          } else {
#pragma unroll 1
            for (int s = 0; s < left; ++s) blend(s);
          }
        }
      }
    }
    if (at.inside && has_channels) store_channels<T>(out + at.tap_row * p.channels + c, acc);
  }
}

// grad_offsets [B, Q, M, L, P, 2] and grad_logits [B, Q, M, L, P] are contiguous. kept: room for the gradients to the
// probabilities, shaped like grad_logits, which it may be; each number is written and read back by one thread.
template <class T, class O, int kChannels, int kLanes, class Index, bool kFused, class Sum>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_backward_kernel(const __grid_constant__ AttentionParams p, const T* __restrict__ grad_out,
                              const T* __restrict__ value, const Arithmetic<T>* __restrict__ reference,
                              const bool* __restrict__ visible, const O* __restrict__ offsets,
                              const O* __restrict__ logits, Sum grad_value, O* __restrict__ grad_offsets,
                              O* grad_logits, Arithmetic<T>* kept, int64_t first_batch) {
  using S = Arithmetic<T>;
  using L = ThreadLanes<S, Index>;
  using Shared = SharedTaps<S, Index, kLanes>;
  constexpr bool kWalks = kChannels == 1;  // vector kernels have a lane for every channel; the scalar one walks
  __shared__ Shared shared;
  const auto at = AttentionPlace::make<kLanes>(p, first_batch);
  const int taps = p.levels * p.points, column = p.heads * p.channels;
  const O* own_offsets = offsets + at.query_row * p.offset_query + int64_t(at.head) * taps * 2;
  const O* own_logits = logits + at.query_row * p.logit_query + int64_t(at.head) * taps;
  const int64_t images = at.batch * p.cameras * p.tokens * column + int64_t(at.head) * p.channels;
  const T* grads_out = grad_out + at.tap_row * p.channels;
  const int64_t first_tap = at.tap_row * taps;
  grad_value.start();
  S g[kChannels] = {};
  const int own = at.lane * kChannels;
  const bool has_channels = own < p.channels;
  if (!kWalks && has_channels) load_channels(grads_out + own, g);

  const Visibility seen(p, at, visible);
  // The result is factor * sum of probability * sample.
  S factor = 1, largest = 0, inverse = 1, inner = 0;
  if (kFused) {
    const int cameras = seen.count();
    if (cameras > 1) factor /= S(cameras);
    if (p.level_mean)
      factor /= S(p.levels);
    else
      softmax_of_lanes<S, kLanes>(own_logits, taps, at.lane, largest, inverse);
  }
  for (int l = 0; l < p.levels; ++l) {
    if (kFused && p.level_mean) {
      softmax_of_lanes<S, kLanes>(own_logits + l * p.points, p.points, at.lane, largest, inverse);
      inner = 0;
    }
    for (int base = 0; base < p.points; base += kLanes) {
      const int point = base + at.lane, t = l * p.points + point;
      const bool has_tap = point < p.points;
      OwnTap<S> tap = {};
      if (has_tap) {
        load_pair(own_offsets + 2 * t, p.paired, tap.x, tap.y);
        tap.weight = widen(own_logits[t]);
        if (kFused) tap.weight = exponential(tap.weight - largest, kIsHalf<O>) * inverse;
      }
      S grad_weight = 0, grad_x = 0, grad_y = 0;
      for (int n = 0; n < p.cameras; ++n) {
        if (!seen.needs(n)) continue;
        typename Shared::Corners corners = {};
        typename Shared::Weights weights = {};
        TapAxes<L> axes = {};
        if (has_tap) {
          S x, y;
          place_tap<S, kFused>(p, at, reference, n, l, point, tap, x, y);
          tap_corners<L>(x, y, p.level[l].width, p.level[l].height, Index(p.level[l].start) * column,
                         Index(p.level[l].width) * column, Index(column), corners.at, axes);
          corner_weights<L>(axes, tap.weight * factor, weights.of);
        }
        __syncwarp();
        shared.corners[Shared::slot(at.lane)] = corners;
        shared.weights[Shared::slot(at.lane)] = weights;
        __syncwarp();
        S dot[kLanes][4] = {};
        if (has_channels && seen.sees(n)) {
          const int64_t image = images + n * p.tokens * column;
#pragma unroll
          for (int s = 0; s < kLanes; ++s) {
            if (base + s >= p.points) continue;
            const auto from = shared.corners[Shared::slot(s)];
            const auto weight = shared.weights[Shared::slot(s)];
            auto visit = [&](int c) {
              S v[4][kChannels];
#pragma unroll
              for (int q = 0; q < 4; ++q) load_channels(value + image + from.at[q] + c, v[q]);
#pragma unroll
              for (int q = 0; q < 4; ++q) {
#pragma unroll
                for (int i = 0; i < kChannels; ++i) dot[s][q] += g[i] * v[q][i];
                if (weight.of[q] != S(0)) grad_value.add(image + from.at[q] + c, g, weight.of[q]);
              }
            };
            if constexpr (kWalks) {
              for (int c = own; c < p.channels; c += kLanes) {
                g[0] = widen(grads_out[c]);
                visit(c);
              }
            } else {
              visit(own);
            }
          }
        }
        distribute_sums<kLanes / 2>(dot, at.lane);
        if (has_tap && seen.sees(n)) {
          S one_weight, one_x, one_y;
          tap_gradients<L>(axes, tap.weight * factor, dot[0], one_weight, one_x, one_y);
          grad_weight += one_weight * factor;
          grad_x += one_x;
          grad_y += one_y;
        }
      }
      if (!has_tap || !at.inside) continue;
      if (!kFused) {  // to the normalised location
        grad_x *= S(p.level[l].width);
        grad_y *= S(p.level[l].height);
      }
      grad_offsets[2 * (first_tap + t)] = narrow<O>(grad_x);
      grad_offsets[2 * (first_tap + t) + 1] = narrow<O>(grad_y);
      if (kFused) {
        inner += tap.weight * grad_weight;
        kept[first_tap + t] = grad_weight;
      } else {
        grad_logits[first_tap + t] = narrow<O>(grad_weight);
      }
    }
    if (!kFused || (!p.level_mean && l + 1 < p.levels)) continue;
    const S product = sum_over_lanes(inner, kLanes);
    if (!at.inside) continue;
    for (int k = p.level_mean ? l : 0; k <= l; ++k)
      for (int point = at.lane; point < p.points; point += kLanes) {
        const int t = k * p.points + point;
        const S probability = exponential(S(widen(own_logits[t])) - largest, kIsHalf<O>) * inverse;
        grad_logits[first_tap + t] = narrow<O>(softmax_gradient<L>(probability, kept[first_tap + t], product));
      }
  }
}

}  // namespace cuda
}  // namespace drivestack
