// Taps of DCNv3: from offsets and masks to blocks and weights, for a run of pixels at a time.

// What is the same for all pixels of a call: the window, and where offsets and masks are. The functions below work on
// copies: stores of taps could change what a reference refers to, for all the compiler knows.
template <class S, class O>
struct TapPlan {
  const O *offset, *mask;                                          // of the first group at pixel 0
  int64_t offset_pixel, offset_group, mask_pixel, mask_group;      // strides
  int64_t groups, K, n;                                            // n: taps of a pixel
  int64_t line;                                                    // room for them, with a register to spare
  int64_t out_height, out_width, stride_h, stride_w, top, left;    // (top, left): anchor of the first pixel
  int64_t width, channels;                                         // of the image that corners are counted in
  bool softmax, gathers;                                           // gathers: side by side only after copying
  S *grid_x, *grid_y;                                              // [line] pixels from the anchor
  Index<S>* channel;                                               // [line] first channel of the tap's group
  S *logits, *exponentials;                                        // [run * n] and a register, scratch
  O *near_offset, *near_mask;                                      // [2 line], [line] the copies
  Full<S> scale;
  BlockLimits<SimdLanes<S>> limits_x, limits_y;
  int64_t run;  // pixels whose taps are made at a time: their stores are done when they are read

  static int64_t line_of(const Dcnv3Sizes& s) { return padded(s.groups * s.taps()) + kLanes<S>; }
  static int64_t run_of(int64_t taps) { return std::max<int64_t>(1, std::min<int64_t>(16, 256 / taps)); }
  static size_t bytes(const Dcnv3Sizes& s, int64_t n_groups) {
    const int64_t taps = n_groups * s.taps();
    return (line_of(s) * 6 + (run_of(taps) * taps + kLanes<S>) * 2) * sizeof(S) + 8 * 64;
  }

  TapPlan(const Dcnv3Sizes& s, const O* all_offsets, const O* all_masks, int64_t first_group, int64_t n_groups,
          int64_t image_channels, Arena& arena)
      : offset(all_offsets + first_group * s.offset_group),
        mask(all_masks + first_group * s.mask_group),
        offset_pixel(s.offset_pixel),
        offset_group(s.offset_group),
        mask_pixel(s.mask_pixel),
        mask_group(s.mask_group),
        groups(n_groups),
        K(s.taps()),
        n(n_groups * K),
        line(line_of(s)),
        out_height(s.out_height),
        out_width(s.out_width),
        stride_h(s.stride_h),
        stride_w(s.stride_w),
        top(s.dilation_h * (s.kernel_h - 1) / 2 - s.pad_h),
        left(s.dilation_w * (s.kernel_w - 1) / 2 - s.pad_w),
        width(s.width),
        channels(image_channels),
        softmax(s.mask_softmax),
        gathers((n_groups > 1 && (s.offset_group != 2 * K || s.mask_group != K)) || n < kLanes<S>),
        grid_x(arena.take<S>(line)),
        grid_y(arena.take<S>(line)),
        channel(arena.take<Index<S>>(line)),
        near_offset(arena.take<O>(2 * line)),
        near_mask(arena.take<O>(line)),
        scale(broadcast<S>(S(s.offset_scale))),
        limits_x(broadcast_index<S>(Index<S>(s.width))),
        limits_y(broadcast_index<S>(Index<S>(s.height))),
        run(run_of(n)) {
    logits = arena.take<S>(run * n + kLanes<S>);
    exponentials = arena.take<S>(run * n + kLanes<S>);
    int64_t t = 0;
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t i = 0; i < s.kernel_w; ++i)
        for (int64_t j = 0; j < s.kernel_h; ++j) {
          if (s.remove_center && i == s.kernel_w / 2 && j == s.kernel_h / 2) continue;
          channel[t] = Index<S>(g * s.group_channels);
          grid_x[t] = S(i * s.dilation_w - s.dilation_w * (s.kernel_w - 1) / 2);
          grid_y[t++] = S(j * s.dilation_h - s.dilation_h * (s.kernel_h - 1) / 2);
        }
  }

  // Position of the register of taps from t on: the last one overlaps the one before. (With less than a register of taps
  // it reads behind them, which the copies allow.)
  DS_INLINE int64_t at(int64_t t) const { return t + kLanes<S> <= n ? t : std::max<int64_t>(0, n - kLanes<S>); }

  DS_INLINE const O* side_by_side(const O* from, int64_t stride, int64_t each, O* copy) const {
    if (!gathers) return from;
    for (int64_t g = 0; g < groups; ++g) std::memcpy(copy + g * each, from + g * stride, each * sizeof(O));
    return copy;
  }
  DS_INLINE const O* offsets_of(int64_t pixel) const {
    return side_by_side(offset + pixel * offset_pixel, offset_group, 2 * K, near_offset);
  }
  DS_INLINE const O* masks_of(int64_t pixel) const {
    return side_by_side(mask + pixel * mask_pixel, mask_group, K, near_mask);
  }
  // Exponentials of the masks of a run of pixels, [count][n], and the inverses of their sums, [count][groups].
  DS_INLINE void softmax_of(int64_t pixel, int64_t count, S* inverse) const {
    for (int64_t i = 0; i < count; ++i) {
      const O* m = masks_of(pixel + i);
      for (int64_t t = 0; t < n; t += kLanes<S>) store<kLanes<S>>(logits + i * n + at(t), load<kLanes<S>>(m + at(t)));
    }
    softmax_rows_of<S>(logits, count * groups, K, exponentials, inverse);
  }

  // Coordinates of the taps from t on, of the pixel with this anchor.
  DS_INLINE void coordinates(const O* o, int64_t t, Full<S> anchor_x, Full<S> anchor_y, Full<S>& x, Full<S>& y) const {
    load_pairs<S>(o, t, t + kLanes<S>, x, y);
    x = dcnv3_coordinate<Full<S>>(load_full<S>(grid_x + t), x, scale, anchor_x);
    y = dcnv3_coordinate<Full<S>>(load_full<S>(grid_y + t), y, scale, anchor_y);
  }
  DS_INLINE Full<S> anchor_x(int64_t wo) const { return broadcast<S>(S(left + wo * stride_w)); }
  DS_INLINE Full<S> anchor_y(int64_t ho) const { return broadcast<S>(S(top + ho * stride_h)); }

  template <class Offset>
  DS_INLINE void store_corner(Offset* to, Full<S> x, Full<S> y, int64_t t) const {
    const FullIndex<S> c = load_raw<FullIndex<S>>(channel + t);
    if constexpr (sizeof(Offset) == sizeof(Index<S>)) {  // the number of the pixel is exact in a Real
      const FullIndex<S> pixel = convert<Index<S>, kLanes<S>, S>(y * S(width) + x);
      store_raw(to + t, pixel * Index<S>(channels) + c);
    } else {
      for (int i = 0; i < kLanes<S>; ++i) to[t + i] = (int64_t(y[i]) * width + int64_t(x[i])) * channels + c[i];
    }
  }
};

// The taps of a run of pixels, [run][line]: corners, (x, y) from them on, weights of the four corners with the masks in
// them, masks (exponentials, with the softmax); [run][groups]: what the sums over taps are to be multiplied with. The
// gradients take part of it.
template <class S, class Offset, bool kBackward>
struct TapRun {
  Offset* corner;
  S* scale;
  S* weight[4];
  S *x, *y, *mask, *grad_mask;
  S* dots[4];
  static size_t bytes(int64_t run, int64_t line) {
    return run * line * ((kBackward ? 9 : 5) * sizeof(S) + sizeof(Offset)) + 10 * 64;
  }
  TapRun(Arena& arena, int64_t run, int64_t line) : corner(arena.take<Offset>(run * line)) {
    auto take = [&] { return arena.take<S>(run * line); };
    scale = take();
    for (S*& w : weight) w = kBackward ? nullptr : take();
    for (S*& d : dots) d = kBackward ? take() : nullptr;
    for (S** p : {&x, &y, &mask, &grad_mask}) *p = kBackward ? take() : nullptr;
  }
};

template <class S, class O, class Offset, bool kBackward>
__attribute__((noinline)) void make_taps(const TapPlan<S, O>& shared_plan, int64_t pixel, int64_t count,
                                         const TapRun<S, Offset, kBackward>& shared_run) {
  using L = SimdLanes<S>;
  constexpr int N = kLanes<S>;
  const TapPlan<S, O> plan = shared_plan;
  const TapRun<S, Offset, kBackward> taps = shared_run;
  if (plan.softmax) plan.softmax_of(pixel, count, taps.scale);
  int64_t wo = pixel % plan.out_width, ho = pixel / plan.out_width % plan.out_height;
  for (int64_t i = 0; i < count; ++i) {
    const O *o = plan.offsets_of(pixel + i), *m = plan.softmax ? nullptr : plan.masks_of(pixel + i);
    const S* e = plan.exponentials + i * plan.n;
    const int64_t first = i * plan.line;
    const Full<S> anchor_x = plan.anchor_x(wo), anchor_y = plan.anchor_y(ho);
    for (int64_t t0 = 0; t0 < plan.n; t0 += N) {
      const int64_t t = plan.at(t0), to = first + t;
      Full<S> x, y;
      plan.coordinates(o, t, anchor_x, anchor_y, x, y);
      const Full<S> mask = plan.softmax ? load_full<S>(e + t) : load<N>(m + t);
      const Full<S> ix = block_place<L>(x, plan.limits_x), iy = block_place<L>(y, plan.limits_y);
      plan.store_corner(taps.corner + first, ix, iy, t);
      if constexpr (kBackward) {
        store<N>(taps.x + to, x - ix);
        store<N>(taps.y + to, y - iy);
        store<N>(taps.mask + to, mask);
      } else {
        const BlockWeights<L> across(x - ix, plan.limits_x), down(y - iy, plan.limits_y);
        const Full<S> low = down.low * mask, high = down.high * mask;
        store<N>(taps.weight[0] + to, low * across.low);
        store<N>(taps.weight[1] + to, low * across.high);
        store<N>(taps.weight[2] + to, high * across.low);
        store<N>(taps.weight[3] + to, high * across.high);
      }
    }
    if (++wo == plan.out_width) wo = 0, ++ho;
  }
}

// From the dots to the gradients of the offsets and masks (logits, with the softmax) of a run of pixels.
template <class S, class O, class Offset>
__attribute__((noinline)) void finish_taps(const TapPlan<S, O>& shared_plan, int64_t count,
                                           const TapRun<S, Offset, true>& shared_run, O* grad_offset, O* grad_mask) {
  using L = SimdLanes<S>;
  constexpr int N = kLanes<S>;
  const TapPlan<S, O> plan = shared_plan;
  const TapRun<S, Offset, true> taps = shared_run;
  if (plan.softmax)  // masks; rows in order: what a row writes too much, the next one corrects
    for (int64_t i = 0; i < count; ++i)
      for (int64_t g = 0; g < plan.groups; ++g) {
        const S scale = taps.scale[i * plan.groups + g];
        for (int64_t k = g * plan.K; k < (g + 1) * plan.K; k += N)
          store<N>(taps.mask + i * plan.line + k, load_full<S>(plan.exponentials + i * plan.n + k) * scale);
      }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t t0 = 0; t0 < plan.n; t0 += N) {
      const int64_t t = plan.at(t0), from = i * plan.line + t;
      Full<S> dot[4], gm, gx, gy;
      for (int c = 0; c < 4; ++c) dot[c] = load_full<S>(taps.dots[c] + from);
      block_gradients<L>(load_full<S>(taps.x + from), load_full<S>(taps.y + from), plan.limits_x, plan.limits_y,
                         load_full<S>(taps.mask + from), dot, gm, gx, gy);
      store_pairs<S>(grad_offset + 2 * i * plan.n, t, plan.n, gx * plan.scale, gy * plan.scale);
      if (plan.softmax)
        store<N>(taps.grad_mask + from, gm);
      else
        store_part<S>(grad_mask + i * plan.n, t, plan.n, gm);
    }
  if (!plan.softmax) return;
  constexpr std::make_integer_sequence<int, N> lanes{};
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t g = 0; g < plan.groups; ++g) {
      const S *p = taps.mask + i * plan.line + g * plan.K, *q = taps.grad_mask + i * plan.line + g * plan.K;
      Full<S> inner{};
      for (int64_t k = 0; k < plan.K; k += N)
        inner += keep<S>(first_lanes<S>(plan.K - k, lanes), load_full<S>(p + k) * load_full<S>(q + k));
      inner = sum_of_lanes<N / 2>(inner, lanes);
      for (int64_t k = 0; k < plan.K; k += N)  // in order, as above
        store<N>(taps.x + i * plan.line + g * plan.K + k,
                 softmax_gradient<L>(load_full<S>(p + k), load_full<S>(q + k), inner));
    }
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t t = 0; t < plan.n; t += N)
      store_part<S>(grad_mask + i * plan.n, t, plan.n, load_full<S>(taps.x + i * plan.line + t));
}
