// DCNv3 and DCNv4 with a whole 3 x 3 window, where kLanes threads of one 16-byte word each fill a group: what networks
// use. The lanes share the work of the taps: each reads offsets and masks of every kLanes-th tap, makes its corners and
// weights, and hands them to the others, so that the bytes of a corner are read by neighbouring threads in one access.
#pragma once
#include "dcnv3.cuh"

namespace drivestack {
namespace cuda {

// The taps of one lane: lane, lane + kLanes, ...
template <class S, class O, int kLanes>
struct OwnTaps {
  static constexpr int kOwn = (9 + kLanes - 1) / kLanes;
  S offset_x[kOwn], offset_y[kOwn], mask[kOwn];

  static DS_DEVICE int tap(int i, int lane) { return i * kLanes + lane; }

  DS_DEVICE OwnTaps(const Dcnv3Params& p, const O* offsets, const O* masks, int lane) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int k = tap(i, lane);
      offset_x[i] = offset_y[i] = 0;
      mask[i] = p.softmax ? -S(INFINITY) : S(0);
      if (k < 9) {
        load_pair(offsets + 2 * k, p.paired, offset_x[i], offset_y[i]);
        mask[i] = widen(masks[k]);
      }
    }
    if (!p.softmax) return;
    S largest = mask[0], sum = 0;
#pragma unroll
    for (int i = 1; i < kOwn; ++i) largest = mask[i] > largest ? mask[i] : largest;
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const S other = __shfl_xor_sync(~0u, largest, step);
      largest = other > largest ? other : largest;
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) sum += mask[i] = exponential(mask[i] - largest, kIsHalf<O>);
    const S inverse = S(1) / sum_over_lanes(sum, kLanes);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) mask[i] *= inverse;
  }
};

// The tap that lane s made.
template <int kLanes, class Index, class S>
DS_DEVICE void receive_tap(const Index (&corner)[4], const S (&weight)[4], int s, Index (&its_corner)[4],
                           S (&its_weight)[4]) {
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    its_corner[q] = __shfl_sync(~0u, corner[q], s, kLanes);
    its_weight[q] = __shfl_sync(~0u, weight[q], s, kLanes);
  }
}

template <class T, class O, int kLanes>
__global__ void __launch_bounds__(kDcnv3Threads, 3)
    dcnv3_3x3_forward_kernel(const Dcnv3Params p, const T* __restrict__ value, const O* __restrict__ offset,
                             const O* __restrict__ mask, T* __restrict__ out, int64_t first_image) {
  using S = Arithmetic<T>;
  using L = ThreadLanes<S, uint32_t>;  // offsets in bytes
  using Own = OwnTaps<S, O, kLanes>;
  constexpr int kChannels = 16 / sizeof(T);
  const Dcnv3Place at = Dcnv3Place(p, first_image).or_any(p);
  const TapGrid<S> grid(p, at);
  const Own own(p, offset + at.pixel * p.offset_pixel + at.group * p.offset_group,
                mask + at.pixel * p.mask_pixel + at.group * p.mask_group, at.lane);
  const int64_t image = at.image * p.height * p.width;
  const int channel = at.group * p.channels + at.lane * kChannels;
  const char* values = reinterpret_cast<const char*>(value + image * p.value_pixel + channel);
  const uint32_t column = uint32_t(p.value_pixel) * sizeof(T), row = column * p.width;
  S acc[kChannels] = {};
#pragma unroll
  for (int i = 0; i < Own::kOwn; ++i) {
    S x, y, weight[4];
    uint32_t corner[4];
    TapAxes<L> axes;
    grid.locate_3x3(Own::tap(i, at.lane), own.offset_x[i], own.offset_y[i], x, y);
    tap_corners<L>(x, y, p.width, p.height, 0, row, column, corner, axes);
    corner_weights<L>(axes, own.mask[i], weight);
#pragma unroll
    for (int s = 0; s < kLanes; ++s) {
      if (i * kLanes + s >= 9) break;
      uint32_t from[4];
      S w[4];
      receive_tap<kLanes>(corner, weight, s, from, w);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        S v[kChannels];
        load_channels(reinterpret_cast<const T*>(values + from[q]), v);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) acc[c] += w[q] * v[c];
      }
    }
  }
  if (at.inside) store_channels<T>(out + at.pixel * p.groups * p.channels + channel, acc);
}

template <class T, class O, int kLanes, class Sum>
__global__ void __launch_bounds__(kDcnv3Threads, 2)
    dcnv3_3x3_backward_kernel(const Dcnv3Params p, const T* __restrict__ grad_out, const T* __restrict__ value,
                              const O* __restrict__ offset, const O* __restrict__ mask, Sum grad_value,
                              O* __restrict__ grad_offset, O* __restrict__ grad_mask, int64_t first_image) {
  using S = Arithmetic<T>;
  using L = ThreadLanes<S, int32_t>;  // offsets in pixels: value and its gradient have different strides
  using Own = OwnTaps<S, O, kLanes>;
  constexpr int kChannels = 16 / sizeof(T);
  const Dcnv3Place at = Dcnv3Place(p, first_image).or_any(p);
  grad_value.start();
  const TapGrid<S> grid(p, at);
  const Own own(p, offset + at.pixel * p.offset_pixel + at.group * p.offset_group,
                mask + at.pixel * p.mask_pixel + at.group * p.mask_group, at.lane);
  const int64_t image = at.image * p.height * p.width;
  const int channel = at.group * p.channels + at.lane * kChannels;
  const T* values = value + image * p.value_pixel + channel;
  const int column = p.groups * p.channels;
  const int64_t grads = image * column + channel;  // grad_value is contiguous
  S g[kChannels] = {};
  if (at.inside) load_channels(grad_out + at.pixel * column + channel, g);
  S grad_m[Own::kOwn], inner = 0;
  const int64_t first_tap = (at.pixel * p.groups + at.group) * 9;
#pragma unroll
  for (int i = 0; i < Own::kOwn; ++i) {
    const int k = Own::tap(i, at.lane);
    S x, y, weight[4], dot[kLanes][4] = {};
    int32_t corner[4];
    TapAxes<L> axes;
    grid.locate_3x3(k, own.offset_x[i], own.offset_y[i], x, y);
    tap_corners<L>(x, y, p.width, p.height, 0, p.width, 1, corner, axes);
    corner_weights<L>(axes, own.mask[i], weight);
#pragma unroll
    for (int s = 0; s < kLanes; ++s) {
      if (i * kLanes + s >= 9) continue;
      int32_t from[4];
      S w[4], v[4][kChannels];
      receive_tap<kLanes>(corner, weight, s, from, w);
#pragma unroll
      for (int q = 0; q < 4; ++q) load_channels(values + from[q] * int(p.value_pixel), v[q]);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) dot[s][q] += g[c] * v[q][c];
        if (at.inside && w[q] != S(0)) grad_value.add(grads + int64_t(from[q]) * column, g, w[q]);
      }
    }
    distribute_sums<kLanes / 2>(dot, at.lane);
    S grad_x, grad_y;
    tap_gradients<L>(axes, own.mask[i], dot[0], grad_m[i], grad_x, grad_y);
    inner += own.mask[i] * grad_m[i];
    if (at.inside && k < 9) {
      grad_offset[2 * (first_tap + k)] = narrow<O>(grad_x * grid.scale);
      grad_offset[2 * (first_tap + k) + 1] = narrow<O>(grad_y * grid.scale);
    }
  }
  if (p.softmax) inner = sum_over_lanes(inner, kLanes);
#pragma unroll
  for (int i = 0; i < Own::kOwn; ++i) {
    const int k = Own::tap(i, at.lane);
    const S gradient = p.softmax ? softmax_gradient<L>(own.mask[i], grad_m[i], inner) : grad_m[i];
    if (at.inside && k < 9) grad_mask[first_tap + k] = narrow<O>(gradient);
  }
}

}  // namespace cuda
}  // namespace drivestack
