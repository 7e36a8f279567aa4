// What DCNv3 and attention share of their taps, and the choice of code by channels and types.

constexpr int64_t kPrefetchBytes = 1 << 20;  // prefetching pays once the image leaves the L2 cache

inline int64_t padded(int64_t taps) { return (taps + 31) / 16 * 16; }

// What a backward pass keeps of a register of taps: the weights along the axes and the mask or attention weight.
template <class S>
struct MaskedAxes : TapAxes<SimdLanes<S>> {
  Full<S> mask;
};

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
