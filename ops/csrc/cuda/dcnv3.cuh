// DCNv3 and DCNv4 kernels on channels-last tensors; InternImage, arXiv 2211.05778. See ops/dcnv3.py for the layout.
//
// A block is a tile of output pixels of one image, times some groups: neighbouring pixels meet in the L1 cache. A
// thread owns kChannels channels of one group at one pixel; `lanes` neighbouring threads share a group. Offsets and
// masks are read once per pixel and group.
#pragma once
#include "device.cuh"
#include "kernels.h"

namespace drivestack {
namespace cuda {

constexpr int kDcnv3Threads = 256;
template <class T>  // that a multiprocessor should hold: bounds the registers of a thread
constexpr int kResidentBlocks = sizeof(T) == 8 ? 2 : 3;

// Which pixel and group the thread works on.
struct Dcnv3Place {
  int group, lane, x, y;
  int64_t image, pixel;
  bool inside;

  DS_DEVICE Dcnv3Place(const Dcnv3Params& p, int64_t first_image) {
    const unsigned tile = blockIdx.x / p.group_blocks;
    lane = threadIdx.x % p.lanes;
    group = (blockIdx.x % p.group_blocks) * p.block_groups + threadIdx.x / p.lanes;
    x = tile % p.tiles_x * blockDim.y + threadIdx.y;
    y = tile / p.tiles_x * blockDim.z + threadIdx.z;
    image = first_image + blockIdx.y;
    pixel = (image * p.out_height + y) * p.out_width + x;
    inside = group < p.groups && x < p.out_width && y < p.out_height;
  }
  // Outside of the output some other place, for threads that must stay to the end; they write nothing.
  DS_DEVICE Dcnv3Place or_any(const Dcnv3Params& p) const {
    Dcnv3Place other = *this;
    if (!inside) {
      other.group = other.x = other.y = 0;
      other.pixel = image * p.out_height * p.out_width;
    }
    return other;
  }
};

// Pixel coordinates of the taps, x in the outer loop.
template <class S>
struct TapGrid {
  const Dcnv3Params& p;
  S scale, anchor_x, anchor_y;
  int center_x, center_y;

  DS_DEVICE TapGrid(const Dcnv3Params& params, const Dcnv3Place& at) : p(params), scale(S(params.offset_scale)) {
    center_x = p.dilation_w * (p.kernel_w - 1) / 2;
    center_y = p.dilation_h * (p.kernel_h - 1) / 2;
    anchor_x = S(at.x * p.stride_w - p.pad_w + center_x);
    anchor_y = S(at.y * p.stride_h - p.pad_h + center_y);
  }
  DS_DEVICE void locate(int k, S offset_x, S offset_y, S& x, S& y) const {
    if (p.remove_center && k >= p.kernel_w / 2 * p.kernel_h + p.kernel_h / 2) ++k;
    locate_at(k / p.kernel_h, k % p.kernel_h, offset_x, offset_y, x, y);
  }
  DS_DEVICE void locate_3x3(int k, S offset_x, S offset_y, S& x, S& y) const {
    locate_at(k / 3, k % 3, offset_x, offset_y, x, y);
  }
  DS_DEVICE void locate_at(int i, int j, S offset_x, S offset_y, S& x, S& y) const {
    x = dcnv3_coordinate(S(i * p.dilation_w - center_x), offset_x, scale, anchor_x);
    y = dcnv3_coordinate(S(j * p.dilation_h - center_y), offset_y, scale, anchor_y);
  }
};

// Softmax of the logits of one pixel and group: probability = exp(logit - largest) * inverse_sum.
template <class S>
struct MaskSoftmax {
  S largest, inverse_sum;

  template <class O>
  DS_DEVICE MaskSoftmax(const O* logits, int taps) {
    largest = widen(logits[0]);
    for (int k = 1; k < taps; ++k) {
      const S logit = widen(logits[k]);
      largest = logit > largest ? logit : largest;
    }
    S sum = 0;
    for (int k = 0; k < taps; ++k) sum += exponential(S(widen(logits[k])) - largest, kIsHalf<O>);
    inverse_sum = S(1) / sum;
  }
};

// acc += the four corners of the tap at (x, y), blended.
template <class T, int kChannels, class Index>
DS_DEVICE void blend_tap(const Dcnv3Params& p, const T* image, Arithmetic<T> x, Arithmetic<T> y, Arithmetic<T> mask,
                         Arithmetic<T> (&acc)[kChannels]) {
  using S = Arithmetic<T>;
  using L = ThreadLanes<S, Index>;
  Index corner[4];
  TapAxes<L> axes;
  S weight[4];
  tap_corners<L>(x, y, p.width, p.height, Index(0), Index(p.value_pixel) * p.width, Index(p.value_pixel), corner, axes);
  corner_weights<L>(axes, mask, weight);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    S v[kChannels];
    load_channels(image + corner[c], v);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) acc[i] += weight[c] * v[i];
  }
}

template <class T, class O, int kChannels, class Index>
__global__ void __launch_bounds__(kDcnv3Threads, kResidentBlocks<T>)
    dcnv3_forward_kernel(const Dcnv3Params p, const T* __restrict__ value, const O* __restrict__ offset,
                         const O* __restrict__ mask, T* __restrict__ out, int64_t first_image) {
  using S = Arithmetic<T>;
  const Dcnv3Place at(p, first_image);
  if (!at.inside) return;
  const TapGrid<S> grid(p, at);
  const O* offsets = offset + at.pixel * p.offset_pixel + at.group * p.offset_group;
  const O* masks = mask + at.pixel * p.mask_pixel + at.group * p.mask_group;
  const T* image = value + at.image * p.height * p.width * p.value_pixel + int64_t(at.group) * p.channels;
  T* to = out + (at.pixel * p.groups + at.group) * p.channels;
  S largest = 0, inverse = 1;
  if (p.softmax) {
    const MaskSoftmax<S> softmax(masks, p.taps);
    largest = softmax.largest;
    inverse = softmax.inverse_sum;
  }
  for (int c = at.lane * kChannels; c < p.channels; c += p.lanes * kChannels) {
    S acc[kChannels] = {};
#pragma unroll 2
    for (int k = 0; k < p.taps; ++k) {
      S x, y, m = widen(masks[k]);
      if (p.softmax) m = exponential(m - largest, kIsHalf<O>) * inverse;
      load_pair(offsets + 2 * k, p.paired, x, y);
      grid.locate(k, x, y, x, y);
      blend_tap<T, kChannels, Index>(p, image + c, x, y, m, acc);
    }
    store_channels<T>(to + c, acc);
  }
}

// All threads stay to the end, for the sums over lanes. kept: room for the gradients to the probabilities, shaped like
// grad_mask, which it may be; each number is written and read back by one thread.
template <class T, class O, int kChannels, class Index, class Sum>
__global__ void __launch_bounds__(kDcnv3Threads, kResidentBlocks<T>)
    dcnv3_backward_kernel(const Dcnv3Params p, const T* __restrict__ grad_out, const T* __restrict__ value,
                          const O* __restrict__ offset, const O* __restrict__ mask, Sum grad_value,
                          O* __restrict__ grad_offset, O* grad_mask, Arithmetic<T>* kept, int64_t first_image) {
  using S = Arithmetic<T>;
  using L = ThreadLanes<S, Index>;
  const Dcnv3Place at = Dcnv3Place(p, first_image).or_any(p);
  const bool inside = at.inside;
  grad_value.start();
  const TapGrid<S> grid(p, at);
  const O* offsets = offset + at.pixel * p.offset_pixel + at.group * p.offset_group;
  const O* masks = mask + at.pixel * p.mask_pixel + at.group * p.mask_group;
  const int64_t image = at.image * p.height * p.width, group = int64_t(at.group) * p.channels;
  const T* values = value + image * p.value_pixel + group;
  const int64_t grads = image * p.groups * p.channels + group;  // grad_value is contiguous
  const T* grads_out = grad_out + (at.pixel * p.groups + at.group) * p.channels;
  const int64_t first_tap = (at.pixel * p.groups + at.group) * p.taps;
  const int column = p.groups * p.channels;
  // Vector kernels have a lane for every channel; the scalar one walks.
  constexpr bool kWalks = kChannels == 1;
  S g[kChannels] = {};
  const int own = at.lane * kChannels;
  const bool has_channels = inside && own < p.channels;
  if (!kWalks && has_channels) load_channels(grads_out + own, g);

  S largest = 0, inverse = 1, inner = 0;
  if (p.softmax) {
    const MaskSoftmax<S> softmax(masks, p.taps);
    largest = softmax.largest;
    inverse = softmax.inverse_sum;
  }
  for (int k = 0; k < p.taps; ++k) {
    S x, y, m = widen(masks[k]), weight[4], dot[4] = {};
    if (p.softmax) m = exponential(m - largest, kIsHalf<O>) * inverse;
    load_pair(offsets + 2 * k, p.paired, x, y);
    grid.locate(k, x, y, x, y);
    Index corner[4];
    TapAxes<L> axes;
    tap_corners<L>(x, y, p.width, p.height, Index(0), Index(p.width), Index(1), corner, axes);
    corner_weights<L>(axes, m, weight);
    auto visit = [&](int c) {
      S v[4][kChannels];
#pragma unroll
      for (int q = 0; q < 4; ++q) load_channels(values + corner[q] * Index(p.value_pixel) + c, v[q]);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
#pragma unroll
        for (int i = 0; i < kChannels; ++i) dot[q] += g[i] * v[q][i];
        if (weight[q] != S(0)) grad_value.add(grads + int64_t(corner[q]) * column + c, g, weight[q]);
      }
    };
    if constexpr (kWalks) {
      for (int c = own; inside && c < p.channels; c += p.lanes) {
        g[0] = widen(grads_out[c]);
        visit(c);
      }
    } else if (has_channels) {
      visit(own);
    }
    S grad_m, grad_x, grad_y;  // linear in the products, so that lanes can be summed afterwards
    tap_gradients<L>(axes, m, dot, grad_m, grad_x, grad_y);
    for (int step = p.lanes / 2; step > 0; step /= 2) {
      grad_m += __shfl_xor_sync(~0u, grad_m, step);
      grad_x += __shfl_xor_sync(~0u, grad_x, step);
      grad_y += __shfl_xor_sync(~0u, grad_y, step);
    }
    inner += m * grad_m;
    if (inside && (k & (p.lanes - 1)) == at.lane) {
      grad_offset[2 * (first_tap + k)] = narrow<O>(grad_x * grid.scale);
      grad_offset[2 * (first_tap + k) + 1] = narrow<O>(grad_y * grid.scale);
      if (p.softmax)
        kept[first_tap + k] = grad_m;
      else
        grad_mask[first_tap + k] = narrow<O>(grad_m);
    }
  }
  if (!p.softmax || !inside) return;
  for (int k = at.lane; k < p.taps; k += p.lanes) {
    const S probability = exponential(S(widen(masks[k])) - largest, kIsHalf<O>) * inverse;
    grad_mask[first_tap + k] = narrow<O>(softmax_gradient<L>(probability, kept[first_tap + k], inner));
  }
}

}  // namespace cuda
}  // namespace drivestack
