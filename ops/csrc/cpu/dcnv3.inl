// DCNv3 forward and backward on channels-last tensors; InternImage, arXiv 2211.05778. See ops/dcnv3.py for the layout.
// Included once per instruction set, behind target_*.h.
namespace drivestack {
namespace DRIVESTACK_ISA {
namespace {

#include "../common/tap.h"
#include "simd.h"
#include "scratch.inl"
#include "taps.inl"
#include "blocks.inl"
#include "softmax.inl"
#include "dcnv3_taps.inl"

constexpr int64_t kPrefetchRows = 4;

inline BlockSteps block_steps(const Dcnv3Sizes& s, int64_t channels) {
  return {s.width > 1 ? channels : 0, s.height > 1 ? s.width * channels : 0};
}

template <class Plan, class Run>
size_t tap_bytes(const Dcnv3Sizes& s, int64_t groups) {
  return Plan::bytes(s, groups) + Run::bytes(Plan::run_of(groups * s.taps()), Plan::line_of(s));
}

template <class T, class O, class Offset, int VW, int NV, int K>
void dcnv3_forward_pixels(const Dcnv3Sizes& s, const T* value, const O* offset, const O* mask, T* out, int64_t begin,
                          int64_t end) {
  using S = Arithmetic<T>;
  if (begin >= end) return;
  const int64_t C = s.channels(), pixels = s.out_height * s.out_width, image_size = s.height * s.width * C;
  const int64_t line = TapPlan<S, O>::line_of(s);
  Arena arena(tap_bytes<TapPlan<S, O>, TapRun<S, Offset, false>>(s, s.groups));
  const TapPlan<S, O> plan(s, offset, mask, 0, s.groups, C, arena);
  const TapRun<S, Offset, false> taps(arena, plan.run, line);
  const BlockSteps step = block_steps(s, C);
  if (!s.mask_softmax)
    for (int64_t i = 0; i < plan.run * s.groups; ++i) taps.scale[i] = 1;
  const bool prefetch = image_size * int64_t(sizeof(T)) > kPrefetchBytes;
  for (int64_t pixel = begin; pixel < end;) {
    const int64_t n = pixel / pixels, count = std::min({plan.run, end - pixel, (n + 1) * pixels - pixel});
    const T* image = value + n * image_size;
    make_taps(plan, pixel, count, taps);
    for (int64_t i = 0; i < count; ++i, ++pixel) {
      if (prefetch) {
        const int64_t in_image = pixel - n * pixels, ho = in_image / s.out_width, wo = in_image - ho * s.out_width;
        const int64_t ahead = ho * s.stride_h + kPrefetchRows;
        if (ahead < s.height && wo * s.stride_w < s.width) {
          const char* p = reinterpret_cast<const char*>(image + (ahead * s.width + wo * s.stride_w) * C);
          for (int64_t b = 0; b < C * int64_t(sizeof(T)); b += 64) __builtin_prefetch(p + b, 0, 2);
        }
      }
      const int64_t first = i * line;
      const S* const weight[4] = {taps.weight[0] + first, taps.weight[1] + first, taps.weight[2] + first,
                                  taps.weight[3] + first};
      gather_pixel<S, T, Offset, VW, NV, K>(image, step, taps.corner + first, weight, taps.scale + i * s.groups,
                                            s.groups, s.taps(), s.group_channels, out + pixel * C);
    }
  }
}

template <class T, class O, class Offset, int VW, int NV>
void dcnv3_backward_taps(const Dcnv3Sizes& s, const T* grad_out, const T* value, const O* offset, const O* mask,
                         O* grad_offset, O* grad_mask, int64_t begin, int64_t end) {
  using S = Arithmetic<T>;
  const int64_t C = s.channels(), pixels = s.out_height * s.out_width, image_size = s.height * s.width * C;
  const int64_t line = TapPlan<S, O>::line_of(s);
  if (begin >= end) return;
  Arena arena(tap_bytes<TapPlan<S, O>, TapRun<S, Offset, true>>(s, s.groups));
  const TapPlan<S, O> plan(s, offset, mask, 0, s.groups, C, arena);
  const TapRun<S, Offset, true> taps(arena, plan.run, line);
  const BlockSteps step = block_steps(s, C);
  for (int64_t pixel = begin; pixel < end;) {
    const int64_t n = pixel / pixels, count = std::min({plan.run, end - pixel, (n + 1) * pixels - pixel});
    make_taps(plan, pixel, count, taps);
    for (int64_t i = 0; i < count; ++i) {
      S* const dots[4] = {taps.dots[0] + i * line, taps.dots[1] + i * line, taps.dots[2] + i * line,
                          taps.dots[3] + i * line};
      corner_dots<S, T, Offset, VW, NV>(value + n * image_size, step, taps.corner + i * line, plan.channel,
                                        grad_out + (pixel + i) * C, plan.n, s.group_channels, dots);
    }
    finish_taps(plan, count, taps, grad_offset + 2 * pixel * plan.n, grad_mask + pixel * plan.n);
    pixel += count;
  }
}

// Zeroed memory that a thread keeps from call to call, up to some size: fresh pages cost as much as the sums in them.
class KeptMemory {
 public:
  template <class S>
  S* zeroed(int64_t n) {
    const size_t bytes = (n * sizeof(S) + 63) / 64 * 64;
    if (bytes > size_) {
      release();
      base_ = aligned_memory(bytes);
      size_ = bytes;
    }
    std::memset(base_, 0, bytes);
    return static_cast<S*>(base_);
  }
  void shrink() {
    if (size_ > kMost) release();
  }
  KeptMemory() = default;
  KeptMemory(const KeptMemory&) = delete;
  KeptMemory& operator=(const KeptMemory&) = delete;
  ~KeptMemory() { release(); }

 private:
  static constexpr size_t kMost = 4 << 20;
  void* base_ = nullptr;
  size_t size_ = 0;
  void release() {
    std::free(base_);
    base_ = nullptr;
    size_ = 0;
  }
};

// A task sums in memory of its own, side by side, and writes its channels of grad_value once: threads that added to
// neighbouring lines would take them from each other.
template <class T, class O, class Offset, int VW, int NV>
void dcnv3_backward_value(const Dcnv3Sizes& s, const T* grad_out, const O* offset, const O* mask, T* grad_value,
                          int64_t blocks, int64_t begin, int64_t end) {
  using S = Arithmetic<T>;
  const int64_t C = s.channels(), D = s.group_channels, pixels = s.out_height * s.out_width;
  const int64_t image_pixels = s.height * s.width, line = TapPlan<S, O>::line_of(s);
  static thread_local KeptMemory kept;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / blocks, block = task % blocks;
    const int64_t g0 = block * s.groups / blocks, groups = (block + 1) * s.groups / blocks - g0, own = groups * D;
    Arena arena(tap_bytes<TapPlan<S, O>, TapRun<S, Offset, false>>(s, groups) + (own + 16) * sizeof(S));
    const TapPlan<S, O> plan(s, offset, mask, g0, groups, own, arena);
    const TapRun<S, Offset, false> taps(arena, plan.run, line);
    const BlockSteps step = block_steps(s, own);
    S *sum = kept.zeroed<S>(image_pixels * own), *scaled = arena.take<S>(own);
    if (!s.mask_softmax)
      for (int64_t i = 0; i < plan.run * groups; ++i) taps.scale[i] = 1;
    for (int64_t pixel = n * pixels, last = pixel + pixels; pixel < last; pixel += plan.run) {
      const int64_t count = std::min(plan.run, last - pixel);
      make_taps(plan, pixel, count, taps);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t first = i * line;
        const S* const weight[4] = {taps.weight[0] + first, taps.weight[1] + first, taps.weight[2] + first,
                                    taps.weight[3] + first};
        const T* from = grad_out + (pixel + i) * C + g0 * D;
        for (int64_t g = 0; g < groups; ++g)
          for (int64_t d = g * D; d < (g + 1) * D; d += VW)
            store<VW>(scaled + d, load<VW>(from + d) * taps.scale[i * groups + g]);
        scatter_pixel<S, S, Offset, VW, NV>(sum, step, taps.corner + first, weight, scaled, groups, plan.K, D);
      }
    }
    for (int64_t i = 0; i < image_pixels; ++i) {
      T* to = grad_value + (n * image_pixels + i) * C + g0 * D;
      for (int64_t d = 0; d < own; d += VW) store<VW>(to + d, load<VW>(sum + i * own + d));
    }
  }
  kept.shrink();
}

// Calls f(T{}, O{}, Offset{}): the storage types of values and taps, and the integer of offsets inside an image.
template <class F>
void dispatch_dcnv3(Dtype dtype, bool float_taps, bool wide, F f) {
  dispatch_types(dtype, float_taps, [&](auto value_type, auto tap_type) {
    if constexpr (sizeof(value_type) == 8)
      f(value_type, tap_type, int64_t{});
    else
      wide ? f(value_type, tap_type, int64_t{}) : f(value_type, tap_type, int32_t{});
  });
}

void dcnv3_forward(const Dcnv3Sizes& s, Dtype dtype, bool float_taps, bool wide, const void* value, const void* offset,
                   const void* mask, void* out, int64_t begin, int64_t end) {
  dispatch_dcnv3(dtype, float_taps, wide, [&](auto value_type, auto tap_type, auto offset_type) {
    using T = decltype(value_type);
    using O = decltype(tap_type);
    using Offset = decltype(offset_type);
    constexpr int kFull = kLanes<Arithmetic<T>>;
    auto run = [&](auto width, auto vectors, auto taps) {
      dcnv3_forward_pixels<T, O, Offset, decltype(width)::value, decltype(vectors)::value, decltype(taps)::value>(
          s, static_cast<const T*>(value), static_cast<const O*>(offset), static_cast<const O*>(mask),
          static_cast<T*>(out), begin, end);
    };
    if constexpr (kFull == 16 && sizeof(Offset) == 4) {  // weights in registers
      if (s.group_channels == kFull && s.taps() == 9)
        return run(Constant<kFull>{}, Constant<1>{}, Constant<9>{});
      if (s.group_channels == kFull && s.taps() == 8)
        return run(Constant<kFull>{}, Constant<1>{}, Constant<8>{});
      if (s.group_channels == 2 * kFull && s.taps() == 9)
        return run(Constant<kFull>{}, Constant<2>{}, Constant<9>{});
    }
    dispatch_channels<Arithmetic<T>, sizeof(Offset) == 4 || sizeof(T) == 8>(
        s.group_channels, [&](auto width, auto vectors) { run(width, vectors, Constant<0>{}); });
  });
}

void dcnv3_backward_taps(const Dcnv3Sizes& s, Dtype dtype, bool float_taps, bool wide, const void* grad_out,
                         const void* value, const void* offset, const void* mask, void* grad_offset, void* grad_mask,
                         int64_t begin, int64_t end) {
  dispatch_dcnv3(dtype, float_taps, wide, [&](auto value_type, auto tap_type, auto offset_type) {
    using T = decltype(value_type);
    using O = decltype(tap_type);
    using Offset = decltype(offset_type);
    dispatch_channels<Arithmetic<T>, sizeof(Offset) == 4 || sizeof(T) == 8>(
        s.group_channels, [&](auto width, auto vectors) {
          dcnv3_backward_taps<T, O, Offset, decltype(width)::value, decltype(vectors)::value>(
              s, static_cast<const T*>(grad_out), static_cast<const T*>(value), static_cast<const O*>(offset),
              static_cast<const O*>(mask), static_cast<O*>(grad_offset), static_cast<O*>(grad_mask), begin, end);
        });
  });
}

void dcnv3_backward_value(const Dcnv3Sizes& s, Dtype dtype, bool float_taps, bool wide, const void* grad_out,
                          const void* offset, const void* mask, void* grad_value, int64_t blocks, int64_t begin,
                          int64_t end) {
  dispatch_dcnv3(dtype, float_taps, wide, [&](auto value_type, auto tap_type, auto offset_type) {
    using T = decltype(value_type);
    using O = decltype(tap_type);
    using Offset = decltype(offset_type);
    dispatch_channels<Arithmetic<T>, sizeof(Offset) == 4 || sizeof(T) == 8>(
        s.group_channels, [&](auto width, auto vectors) {
          dcnv3_backward_value<T, O, Offset, decltype(width)::value, decltype(vectors)::value>(
              s, static_cast<const T*>(grad_out), static_cast<const O*>(offset), static_cast<const O*>(mask),
              static_cast<T*>(grad_value), blocks, begin, end);
        });
  });
}

}  // namespace

constexpr Dcnv3Kernels dcnv3_kernels = {dcnv3_forward, dcnv3_backward_taps, dcnv3_backward_value};
constexpr RowKernels row_kernels = {narrow};

}  // namespace DRIVESTACK_ISA
}  // namespace drivestack
