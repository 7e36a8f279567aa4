// DCNv3 forward and backward on channels-last tensors; InternImage, arXiv 2211.05778. See ops/dcnv3.py for the layout.
// Included once per instruction set, behind target_*.h.
namespace drivestack {
namespace DRIVESTACK_ISA {
namespace {

#include "../common/tap.h"
#include "simd.h"
#include "taps.inl"
#include "softmax.inl"

// Pixel offsets of all taps of all groups from the anchor, x in the outer loop.
template <class S>
void fill_tap_grid(const Dcnv3Sizes& s, S* x, S* y) {
  int64_t t = 0;
  for (int64_t g = 0; g < s.groups; ++g)
    for (int64_t i = 0; i < s.kernel_w; ++i)
      for (int64_t j = 0; j < s.kernel_h; ++j) {
        if (s.remove_center && i == s.kernel_w / 2 && j == s.kernel_h / 2) continue;
        x[t] = S(i * s.dilation_w - s.dilation_w * (s.kernel_w - 1) / 2);
        y[t++] = S(j * s.dilation_h - s.dilation_h * (s.kernel_h - 1) / 2);
      }
}
inline int64_t anchor_x(const Dcnv3Sizes& s, int64_t wo) {
  return wo * s.stride_w - s.pad_w + s.dilation_w * (s.kernel_w - 1) / 2;
}
inline int64_t anchor_y(const Dcnv3Sizes& s, int64_t ho) {
  return ho * s.stride_h - s.pad_h + s.dilation_h * (s.kernel_h - 1) / 2;
}

constexpr int64_t kPrefetchRows = 4;
constexpr int64_t kInteriorSide = 16;  // on smaller maps most pixels touch the border

template <class T, class O, int VW, int NV>
void dcnv3_forward_rows(const Dcnv3Sizes& s, const T* value, const O* offset, const O* mask, T* out, int64_t begin,
                        int64_t end) {
  using S = Arithmetic<T>;
  constexpr int N = kLanes<S>;
  const int64_t C = s.channels(), D = s.group_channels, K = s.taps(), n_taps = s.groups * K, row = s.width * C;
  Arena arena(Taps<S>::bytes(n_taps) + 2 * (padded(n_taps) * sizeof(S) + 64));
  const Taps<S> taps(arena, n_taps);
  S *grid_x = arena.take<S>(padded(n_taps)), *grid_y = arena.take<S>(padded(n_taps));
  fill_tap_grid(s, grid_x, grid_y);
  const S scale = S(s.offset_scale);
  const auto width = broadcast_index<S>(Index<S>(s.width)), height = broadcast_index<S>(Index<S>(s.height));
  const auto row_step = broadcast_index<S>(Index<S>(row)), no_offset = broadcast_index<S>(0);
  const bool prefetch = s.height * row * int64_t(sizeof(T)) > kPrefetchBytes;
  const bool try_interior = s.height >= kInteriorSide && s.width >= kInteriorSide;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t n = r / s.out_height, ho = r % s.out_height, ahead = ho * s.stride_h + kPrefetchRows;
    const T* image = value + n * s.height * row;
    const S ay = S(anchor_y(s, ho));
    for (int64_t wo = 0; wo < s.out_width; ++wo) {
      const int64_t pixel = r * s.out_width + wo;
      const O *o = offset + pixel * n_taps * 2, *m = mask + pixel * n_taps;
      T* to = out + pixel * C;
      const S ax = S(anchor_x(s, wo));
      if (prefetch && ahead < s.height && wo * s.stride_w < s.width) {
        const char* p = reinterpret_cast<const char*>(image + ahead * row + wo * s.stride_w * C);
        for (int64_t i = 0; i < C * int64_t(sizeof(T)); i += 64) __builtin_prefetch(p + i, 0, 2);
      }
      if (try_interior) {
        FullIndex<S> inside = broadcast_index<S>(-1);
        for (int64_t t = 0; t < n_taps; t += N) {
          Full<S> x, y;
          load_pairs<S>(o, t, n_taps, x, y);
          const Full<S> w = load_part<S>(m, t, n_taps);
          x = (load_full<S>(grid_x + t) + x) * scale + ax;
          y = (load_full<S>(grid_y + t) + y) * scale + ay;
          const FullIndex<S> ok = FullIndex<S>(x >= S(0)) & FullIndex<S>(x < S(s.width - 1)) & FullIndex<S>(y >= S(0)) &
                                  FullIndex<S>(y < S(s.height - 1));
          inside &= ok;
          x = keep<S>(ok, x);
          y = keep<S>(ok, y);  // NaN must not reach the conversion
          const FullIndex<S> ix = convert<Index<S>, N, S>(x), iy = convert<Index<S>, N, S>(y);
          const Full<S> lx = x - convert<S, N, Index<S>>(ix), ly = y - convert<S, N, Index<S>>(iy);
          store_raw(taps.offset[0] + t, iy * Index<S>(row) + ix * Index<S>(C));
          const Full<S> low = ly * w, high = w - low, bottom = low * lx, top = high * lx;
          store_raw(taps.weight[0] + t, high - top);
          store_raw(taps.weight[1] + t, top);
          store_raw(taps.weight[2] + t, low - bottom);
          store_raw(taps.weight[3] + t, bottom);
        }
        if (all_lanes<S>(inside)) {
          for (int64_t g = 0; g < s.groups; ++g)
            gather_interior<S, T, VW, NV>(image + g * D, D, C, row, taps, g * K, K, to + g * D);
          continue;
        }
      }
      for (int64_t t = 0; t < n_taps; t += N) {
        Full<S> x, y;
        load_pairs<S>(o, t, n_taps, x, y);
        x = (load_full<S>(grid_x + t) + x) * scale + ax;
        y = (load_full<S>(grid_y + t) + y) * scale + ay;
        make_taps<S, false>(x, y, load_part<S>(m, t, n_taps), width, height, no_offset, row_step, Index<S>(C), taps, t,
                            nullptr);
      }
      for (int64_t g = 0; g < s.groups; ++g) gather<S, T, VW, NV>(image + g * D, D, taps, g * K, K, to + g * D);
    }
  }
}

template <class T, class O, int VW, int NV>
void dcnv3_backward_tasks(const Dcnv3Sizes& s, const T* grad_out, const T* value, const O* offset, const O* mask,
                          Arithmetic<T>* grad_value, O* grad_offset, O* grad_mask, int64_t blocks, int64_t begin,
                          int64_t end) {
  using S = Arithmetic<T>;
  constexpr int N = kLanes<S>;
  const int64_t C = s.channels(), D = s.group_channels, K = s.taps(), all_taps = s.groups * K, row = s.width * C;
  const size_t line = padded(all_taps) * sizeof(S) + 64;
  Arena arena(Taps<S>::bytes(all_taps) + 9 * line + (padded(all_taps) / N) * sizeof(MaskedAxes<S>) + 64);
  const Taps<S> taps(arena, all_taps);
  S *grid_x = arena.take<S>(padded(all_taps)), *grid_y = arena.take<S>(padded(all_taps)),
    *weights = arena.take<S>(padded(all_taps));
  S* dots[4];
  for (S*& d : dots) d = arena.take<S>(padded(all_taps));
  int32_t *order = arena.take<int32_t>(padded(all_taps)), *group = arena.take<int32_t>(padded(all_taps));
  MaskedAxes<S>* axes = arena.take<MaskedAxes<S>>(padded(all_taps) / N);
  fill_tap_grid(s, grid_x, grid_y);
  const S scale = S(s.offset_scale);
  const auto width = broadcast_index<S>(Index<S>(s.width)), height = broadcast_index<S>(Index<S>(s.height));
  const auto row_step = broadcast_index<S>(Index<S>(row)), no_offset = broadcast_index<S>(0);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / blocks, block = task % blocks;
    const int64_t g0 = block * s.groups / blocks, n_groups = (block + 1) * s.groups / blocks - g0,
                  n_taps = n_groups * K;
    for (int64_t k = 0, i = 0; k < K; ++k)
      for (int64_t g = 0; g < n_groups; ++g, ++i) {
        order[i] = int32_t(g * K + k);
        group[i] = int32_t(g);
      }
    const T* image = value + n * s.height * row + g0 * D;
    S* grad_image = grad_value + n * s.height * row + g0 * D;
    for (int64_t ho = 0; ho < s.out_height; ++ho)
      for (int64_t wo = 0; wo < s.out_width; ++wo) {
        const int64_t pixel = (n * s.out_height + ho) * s.out_width + wo, first = pixel * all_taps + g0 * K;
        const S ax = S(anchor_x(s, wo)), ay = S(anchor_y(s, ho));
        for (int64_t t = 0; t < n_taps; t += N) {
          Full<S> x, y;
          load_pairs<S>(offset + 2 * first, t, n_taps, x, y);
          x = (load_full<S>(grid_x + t) + x) * scale + ax;
          y = (load_full<S>(grid_y + t) + y) * scale + ay;
          const Full<S> w = load_part<S>(mask + first, t, n_taps);
          store_raw(weights + t, w);
          make_taps<S, true>(x, y, w, width, height, no_offset, row_step, Index<S>(C), taps, t, axes + t / N);
        }
        scatter<S, T, VW, NV>(image, grad_out + pixel * C + g0 * D, grad_image, D, taps, weights, order, group, n_taps,
                              dots);
        for (int64_t t = 0; t < n_taps; t += N) {
          Full<S> gm, gx, gy;
          tap_gradients_at<S>(t, dots, axes[t / N], gm, gx, gy);
          store_pairs<S>(grad_offset + 2 * first, t, n_taps, gx * scale, gy * scale);
          store_part<S>(grad_mask + first, t, n_taps, gm);
        }
      }
  }
}

void dcnv3_forward(const Dcnv3Sizes& s, Dtype dtype, bool float_taps, const void* value, const void* offset,
                   const void* mask, void* out, int64_t begin, int64_t end) {
  dispatch_types(dtype, float_taps, [&](auto value_type, auto tap_type) {
    using T = decltype(value_type);
    using O = decltype(tap_type);
    const int64_t channels = s.group_channels;
#define DS_CALL(VW, NV)                                                                            \
  dcnv3_forward_rows<T, O, VW, NV>(s, static_cast<const T*>(value), static_cast<const O*>(offset), \
                                   static_cast<const O*>(mask), static_cast<T*>(out), begin, end)
    DS_DISPATCH_CHANNELS(Arithmetic<T>, channels, DS_CALL);
#undef DS_CALL
  });
}

void dcnv3_backward(const Dcnv3Sizes& s, Dtype dtype, bool float_taps, const void* grad_out, const void* value,
                    const void* offset, const void* mask, void* grad_value, void* grad_offset, void* grad_mask,
                    int64_t blocks, int64_t begin, int64_t end) {
  dispatch_types(dtype, float_taps, [&](auto value_type, auto tap_type) {
    using T = decltype(value_type);
    using O = decltype(tap_type);
    const int64_t channels = s.group_channels;
#define DS_CALL(VW, NV)                                                                                     \
  dcnv3_backward_tasks<T, O, VW, NV>(s, static_cast<const T*>(grad_out), static_cast<const T*>(value),      \
                                     static_cast<const O*>(offset), static_cast<const O*>(mask),            \
                                     static_cast<Arithmetic<T>*>(grad_value), static_cast<O*>(grad_offset), \
                                     static_cast<O*>(grad_mask), blocks, begin, end)
    DS_DISPATCH_CHANNELS(Arithmetic<T>, channels, DS_CALL);
#undef DS_CALL
  });
}

}  // namespace

constexpr Dcnv3Kernels dcnv3_kernels = {dcnv3_forward, dcnv3_backward};
constexpr RowKernels row_kernels = {softmax_forward, softmax_backward, narrow};

}  // namespace DRIVESTACK_ISA
}  // namespace drivestack
