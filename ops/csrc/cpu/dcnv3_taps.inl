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
  int64_t width, channels;                                         // of the image
  bool softmax, gathers;                                           // gathers: side by side only after copying
  S *grid_x, *grid_y;                                              // [line] pixels from the anchor
  Index<S>* channel;                                               // [line] first channel of the tap's group
  S* exponentials;                                                 // [line] scratch
  O *near_offset, *near_mask;                                      // [2 line], [line] the copies
  Full<S> scale;
  BlockLimits<SimdLanes<S>> limits_x, limits_y;
  int64_t run;  // pixels whose taps are made at a time: their stores are done when they are read

  static constexpr int64_t kLongestRun = 16;
  static int64_t line_of(const Dcnv3Sizes& s) { return padded(s.groups * s.taps()) + kLanes<S>; }
  static size_t bytes(const Dcnv3Sizes& s) { return line_of(s) * 7 * sizeof(S) + 7 * 64; }

  TapPlan(const Dcnv3Sizes& s, const O* all_offsets, const O* all_masks, int64_t first_group, int64_t n_groups,
          Arena& arena)
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
        channels(s.channels()),
        softmax(s.mask_softmax),
        gathers((n_groups > 1 && (s.offset_group != 2 * K || s.mask_group != K)) || n < kLanes<S>),
        grid_x(arena.take<S>(line)),
        grid_y(arena.take<S>(line)),
        channel(arena.take<Index<S>>(line)),
        exponentials(arena.take<S>(line)),
        near_offset(arena.take<O>(2 * line)),
        near_mask(arena.take<O>(line)),
        scale(broadcast<S>(S(s.offset_scale))),
        limits_x(broadcast_index<S>(Index<S>(s.width))),
        limits_y(broadcast_index<S>(Index<S>(s.height))),
        run(std::max<int64_t>(1, std::min<int64_t>(kLongestRun, 256 / std::max<int64_t>(1, n)))) {
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

  DS_INLINE void taps_of(int64_t pixel, const O*& o, const O*& m) const {
    o = offset + pixel * offset_pixel;
    m = mask + pixel * mask_pixel;
    if (!gathers) return;
    for (int64_t g = 0; g < groups; ++g) {
      std::memcpy(near_offset + 2 * g * K, o + g * offset_group, 2 * K * sizeof(O));
      std::memcpy(near_mask + g * K, m + g * mask_group, K * sizeof(O));
    }
    o = near_offset;
    m = near_mask;
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

// The taps of a run of pixels; [run][line] each, `scale` [run][groups].
template <class S, class Offset>
struct ForwardTaps {
  Offset* corner;
  S* weight[4];
  S* scale;
  static size_t bytes(int64_t run, int64_t line) { return run * line * (5 * sizeof(S) + sizeof(Offset)) + 6 * 64; }
  ForwardTaps(Arena& arena, int64_t run, int64_t line)
      : corner(arena.take<Offset>(run * line)),
        weight{arena.take<S>(run * line), arena.take<S>(run * line), arena.take<S>(run * line),
               arena.take<S>(run * line)},
        scale(arena.take<S>(run * line)) {}
};

template <class S, class O, class Offset>
__attribute__((noinline)) void make_forward_taps(const TapPlan<S, O>& shared_plan, int64_t pixel, int64_t count,
                                                 const ForwardTaps<S, Offset>& shared_taps) {
  using L = SimdLanes<S>;
  constexpr int N = kLanes<S>;
  const TapPlan<S, O> plan = shared_plan;
  const ForwardTaps<S, Offset> taps = shared_taps;
  int64_t wo = pixel % plan.out_width, ho = pixel / plan.out_width % plan.out_height;
  for (int64_t i = 0; i < count; ++i) {
    const O *o, *m;
    plan.taps_of(pixel + i, o, m);
    const int64_t first = i * plan.line;
    const Full<S> anchor_x = plan.anchor_x(wo), anchor_y = plan.anchor_y(ho);
    if (plan.softmax)
      softmax_rows_of<S>(m, std::max<int64_t>(plan.n, N), plan.groups, plan.K, plan.exponentials,
                         taps.scale + i * plan.groups);
    for (int64_t t0 = 0; t0 < plan.n; t0 += N) {
      const int64_t t = plan.at(t0);
      Full<S> x, y;
      plan.coordinates(o, t, anchor_x, anchor_y, x, y);
      const Full<S> mask = plan.softmax ? load_full<S>(plan.exponentials + t) : load<N>(m + t);
      const Full<S> ix = block_place<L>(x, plan.limits_x), iy = block_place<L>(y, plan.limits_y);
      plan.store_corner(taps.corner + first, ix, iy, t);
      const BlockWeights<L> across(x - ix, plan.limits_x), down(y - iy, plan.limits_y);
      const Full<S> low = down.low * mask, high = down.high * mask;
      store<N>(taps.weight[0] + first + t, low * across.low);
      store<N>(taps.weight[1] + first + t, low * across.high);
      store<N>(taps.weight[2] + first + t, high * across.low);
      store<N>(taps.weight[3] + first + t, high * across.high);
    }
    if (++wo == plan.out_width) wo = 0, ++ho;
  }
}

// What the gradients to offsets and masks of a pixel need, [line] each: corners, (x, y) from them on, masks (with the
// softmax, if any).
template <class S, class Offset>
struct BackwardTaps {
  Offset* corner;
  S *x, *y, *mask, *grad_mask, *scale;
  S* dots[4];
  static size_t bytes(int64_t line) { return line * (9 * sizeof(S) + sizeof(Offset)) + 10 * 64; }
  BackwardTaps(Arena& arena, int64_t line)
      : corner(arena.take<Offset>(line)),
        x(arena.take<S>(line)),
        y(arena.take<S>(line)),
        mask(arena.take<S>(line)),
        grad_mask(arena.take<S>(line)),
        scale(arena.take<S>(line)),
        dots{arena.take<S>(line), arena.take<S>(line), arena.take<S>(line), arena.take<S>(line)} {}
};

template <class S, class O, class Offset>
__attribute__((noinline)) void make_backward_taps(const TapPlan<S, O>& shared_plan, int64_t pixel,
                                                  const BackwardTaps<S, Offset>& shared_taps) {
  using L = SimdLanes<S>;
  constexpr int N = kLanes<S>;
  const TapPlan<S, O> plan = shared_plan;
  const BackwardTaps<S, Offset> taps = shared_taps;
  const int64_t wo = pixel % plan.out_width, ho = pixel / plan.out_width % plan.out_height;
  const Full<S> anchor_x = plan.anchor_x(wo), anchor_y = plan.anchor_y(ho);
  const O *o, *m;
  plan.taps_of(pixel, o, m);
  if (plan.softmax) {
    softmax_rows_of<S>(m, std::max<int64_t>(plan.n, N), plan.groups, plan.K, plan.exponentials, taps.scale);
    for (int64_t g = 0; g < plan.groups; ++g)  // rows in order: what a row writes too much, the next one corrects
      for (int64_t k = g * plan.K; k < (g + 1) * plan.K; k += N)
        store<N>(taps.mask + k, load_full<S>(plan.exponentials + k) * taps.scale[g]);
  }
  for (int64_t t0 = 0; t0 < plan.n; t0 += N) {
    const int64_t t = plan.at(t0);
    Full<S> x, y;
    plan.coordinates(o, t, anchor_x, anchor_y, x, y);
    const Full<S> ix = block_place<L>(x, plan.limits_x), iy = block_place<L>(y, plan.limits_y);
    plan.store_corner(taps.corner, ix, iy, t);
    store<N>(taps.x + t, x - ix);
    store<N>(taps.y + t, y - iy);
    if (!plan.softmax) store<N>(taps.mask + t, load<N>(m + t));
  }
}

// From the dots to the gradients of a pixel's offsets and masks (logits, with the softmax).
template <class S, class O, class Offset>
__attribute__((noinline)) void finish_backward_taps(const TapPlan<S, O>& shared_plan,
                                                    const BackwardTaps<S, Offset>& shared_taps, O* grad_offset,
                                                    O* grad_mask) {
  using L = SimdLanes<S>;
  constexpr int N = kLanes<S>;
  const TapPlan<S, O> plan = shared_plan;
  const BackwardTaps<S, Offset> taps = shared_taps;
  for (int64_t t0 = 0; t0 < plan.n; t0 += N) {
    const int64_t t = plan.at(t0);
    Full<S> dot[4], gm, gx, gy;
    for (int c = 0; c < 4; ++c) dot[c] = load_full<S>(taps.dots[c] + t);
    block_gradients<L>(load_full<S>(taps.x + t), load_full<S>(taps.y + t), plan.limits_x, plan.limits_y,
                       load_full<S>(taps.mask + t), dot, gm, gx, gy);
    store_pairs<S>(grad_offset, t, plan.n, gx * plan.scale, gy * plan.scale);
    if (plan.softmax)
      store<N>(taps.grad_mask + t, gm);
    else
      store_part<S>(grad_mask, t, plan.n, gm);
  }
  if (!plan.softmax) return;
  for (int64_t g = 0; g < plan.groups; ++g) {
    const int64_t end = (g + 1) * plan.K;
    S inner = 0;
    for (int64_t k = g * plan.K; k < end; ++k) inner += taps.mask[k] * taps.grad_mask[k];
    for (int64_t k = g * plan.K; k < end; k += N)  // in order, as above
      store<N>(taps.scale + k,
               softmax_gradient<L>(load_full<S>(taps.mask + k), load_full<S>(taps.grad_mask + k), broadcast(inner)));
  }
  for (int64_t t = 0; t < plan.n; t += N) store_part<S>(grad_mask, t, plan.n, load_full<S>(taps.scale + t));
}
