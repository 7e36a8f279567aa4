// The arithmetic of a bilinear tap, once for the vectorised CPU kernels, for CUDA and for plain host code. Everything
// works on `Lanes`: a register of taps in the CPU kernels (cpu/simd.h), one tap elsewhere (ScalarLanes below). No torch,
// C++17, no standard header but those of <cstdint> and <cmath>, which come before; included inside the user's namespace,
// so that objects for different processors share nothing.
//
// A policy has the types Real, Int (coordinates), Mask and Offset (elements inside an image), `Scalar` (one Real),
// arithmetic operators on all of them, and the functions of ScalarLanes.
//
// Pixel centres lie at integers. A tap counts where it lies less than one pixel outside of the image, and each of its
// corners where it lies inside. NaN and infinity lie outside.
#pragma once

#if defined(__CUDACC__)
#define DS_TAP __host__ __device__ __forceinline__
#else
#define DS_TAP inline __attribute__((always_inline))
#endif

template <class S, class O = int32_t>
struct ScalarLanes {
  using Scalar = S;
  using Real = S;
  using Int = int32_t;
  using Mask = bool;
  using Offset = O;

  static DS_TAP Real broadcast(Scalar x) { return x; }
  static DS_TAP Mask both(Mask a, Mask b) { return a && b; }
  static DS_TAP Mask less(Real a, Real b) { return a < b; }
  static DS_TAP Mask less_or_equal(Real a, Real b) { return a <= b; }
  static DS_TAP Mask differ(Real a, Real b) { return a != b; }
  static DS_TAP Mask below(Int x, Int size) { return uint32_t(x) < uint32_t(size); }  // 0 <= x < size
  static DS_TAP Real keep(Mask m, Real x) { return m ? x : Real(0); }
  static DS_TAP Real select(Mask m, Real yes, Real no) { return m ? yes : no; }
  static DS_TAP Int clamp(Int x, Int high) { return x < 0 ? 0 : x > high ? high : x; }  // to [0, high]
  static DS_TAP Real real(Int x) { return Real(x); }
  static DS_TAP Offset offset(Int x) { return Offset(x); }
  static DS_TAP Int floor(Real x, Real& fraction) {  // |x| < 2^22
    Int i = Int(x);
    i -= Real(i) > x;
    fraction = x - Real(i);
    return i;
  }
  static DS_TAP Real larger(Real a, Real b) { return a > b ? a : b; }   // b where a is NaN
  static DS_TAP Real smaller(Real a, Real b) { return a < b ? a : b; }  // b where a is NaN
  static DS_TAP Real magnitude(Real x) { return x < 0 ? -x : x; }
  static DS_TAP Real floor(Real x) { return ::floor(x); }  // any x: of NaN anything
};

// One-dimensional weights and whether the two neighbours lie inside; a weight is zero where its neighbour does not.
template <class L>
struct TapAxes {
  typename L::Real low_x, high_x, low_y, high_y;
  typename L::Mask has_low_x, has_high_x, has_low_y, has_high_y;
};

// Image coordinates of taps.
template <class R>
DS_TAP R dcnv3_coordinate(R grid, R offset, R scale, R anchor) {
  return (grid + offset) * scale + anchor;
}
template <class R>
DS_TAP R located_coordinate(R normalised, R size) {  // a sampling location in [0, 1]
  return normalised * size - 0.5f;
}
template <class R>
DS_TAP R referred_coordinate(R reference, R size, R offset) {  // reference in [0, 1], offset in pixels
  return reference * size + (offset - 0.5f);
}

// Corners 0..3 (top-left, top-right, bottom-left, bottom-right) of the taps at (x, y): their offsets
// first + iy * row + ix * column, all inside the image, and the weights along the axes.
template <class L>
DS_TAP void tap_corners(typename L::Real x, typename L::Real y, typename L::Int width, typename L::Int height,
                        typename L::Offset first, typename L::Offset row, typename L::Offset column,
                        typename L::Offset (&corner)[4], TapAxes<L>& axes) {
  using R = typename L::Real;
  using I = typename L::Int;
  using O = typename L::Offset;
  const R minus_one = L::broadcast(-1), one = L::broadcast(1), nowhere = L::broadcast(-2);
  const auto inside = L::both(L::both(L::less(minus_one, x), L::less(x, L::real(width))),
                              L::both(L::less(minus_one, y), L::less(y, L::real(height))));
  R above_x, above_y;
  const I ix = L::floor(L::select(inside, x, nowhere), above_x), iy = L::floor(L::select(inside, y, nowhere), above_y);
  axes.has_low_x = L::below(ix, width);
  axes.has_high_x = L::below(ix + 1, width);
  axes.has_low_y = L::below(iy, height);
  axes.has_high_y = L::below(iy + 1, height);
  axes.low_x = L::keep(axes.has_low_x, one - above_x);
  axes.high_x = L::keep(axes.has_high_x, above_x);
  axes.low_y = L::keep(axes.has_low_y, one - above_y);
  axes.high_y = L::keep(axes.has_high_y, above_y);
  const O x0 = L::offset(L::clamp(ix, width - 1)) * column, x1 = L::offset(L::clamp(ix + 1, width - 1)) * column;
  const O y0 = L::offset(L::clamp(iy, height - 1)) * row + first;
  const O y1 = L::offset(L::clamp(iy + 1, height - 1)) * row + first;
  corner[0] = y0 + x0;
  corner[1] = y0 + x1;
  corner[2] = y1 + x0;
  corner[3] = y1 + x1;
}

// Bilinear weights of the corners, times `scale` (the tap's mask or attention weight in a forward pass, 1 in a backward).
template <class L>
DS_TAP void corner_weights(const TapAxes<L>& axes, typename L::Real scale, typename L::Real (&weight)[4]) {
  const typename L::Real low_y = axes.low_y * scale, high_y = axes.high_y * scale;
  weight[0] = low_y * axes.low_x;
  weight[1] = low_y * axes.high_x;
  weight[2] = high_y * axes.low_x;
  weight[3] = high_y * axes.high_x;
}

// Gradients to a tap's weight and pixel coordinates from the four products <grad_out, corner>.
template <class L>
DS_TAP void tap_gradients(const TapAxes<L>& axes, typename L::Real mask, const typename L::Real (&dot)[4],
                          typename L::Real& grad_mask, typename L::Real& grad_x, typename L::Real& grad_y) {
  using R = typename L::Real;
  // A product with a corner that is not there is of another pixel: it must not count, even if it is NaN.
  const auto top_left = L::both(axes.has_low_y, axes.has_low_x), top_right = L::both(axes.has_low_y, axes.has_high_x);
  const auto low_left = L::both(axes.has_high_y, axes.has_low_x), low_right = L::both(axes.has_high_y, axes.has_high_x);
  const R d0 = L::keep(top_left, dot[0]), d1 = L::keep(top_right, dot[1]);
  const R d2 = L::keep(low_left, dot[2]), d3 = L::keep(low_right, dot[3]);
  grad_mask = axes.low_y * (axes.low_x * d0 + axes.high_x * d1) + axes.high_y * (axes.low_x * d2 + axes.high_x * d3);
  grad_x = mask * (axes.low_y * (d1 - d0) + axes.high_y * (d3 - d2));
  grad_y = mask * (axes.low_x * (d2 - d0) + axes.high_x * (d3 - d1));
}

// The same for kernels that want one offset per tap: the block of two by two pixels around a tap, moved inwards where it
// would stick out of the image, so that its corners always lie at `first`, one column and one row further on. The weight
// of a column at c is max(0, 1 - |x - c|): zero where the tap lies outside, and right for the blocks that were moved.
// (On an axis of one pixel the step must be zero.) Weights differ from those above by rounding, 6e-8, at most.
template <class L>
struct BlockLimits {
  typename L::Real last, second;  // last place of a block on an axis; 1, or 0 where there is no second pixel
  explicit DS_TAP BlockLimits(typename L::Int n)
      : last(L::larger(L::real(n) - L::broadcast(2), L::broadcast(0))),
        second(L::smaller(L::real(n) - L::broadcast(1), L::broadcast(1))) {}
};
// The place of the block of a tap at x: a pixel's number. Inside [0, last] for any x, NaN too.
template <class L>
DS_TAP typename L::Real block_place(typename L::Real x, const BlockLimits<L>& limits) {
  return L::smaller(L::larger(L::floor(x), L::broadcast(0)), limits.last);
}
// Weights of the two pixels of an axis for a tap `u` behind the first one: between 0 and 1, unless the block was moved.
template <class L>
struct BlockWeights {
  typename L::Real low, high;
  DS_TAP BlockWeights(typename L::Real u, const BlockLimits<L>& limits)
      : low(L::larger(L::broadcast(1) - L::magnitude(u), L::broadcast(0))),
        high(L::larger(limits.second - L::magnitude(u - L::broadcast(1)), L::broadcast(0))) {}
};
// Their derivatives by u, the right-hand ones at pixel centres, and zero where a weight is not of a tap inside.
template <class L>
struct BlockSlopes {
  typename L::Real low, high;
  DS_TAP BlockSlopes(typename L::Real u, const BlockLimits<L>& limits) {
    using R = typename L::Real;
    const R zero = L::broadcast(0), one = L::broadcast(1);
    const auto before = L::both(L::less(-one, u), L::less(u, zero));
    const auto between = L::both(L::less_or_equal(zero, u), L::less(u, one));
    const auto behind = L::both(L::less_or_equal(one, u), L::less(u, one + one));
    low = L::keep(before, one) - L::keep(between, one);
    high = L::keep(between, limits.second) - L::keep(behind, limits.second);
  }
};
// As tap_gradients, for a tap (x, y) behind the first corner of its block.
template <class L>
DS_TAP void block_gradients(typename L::Real x, typename L::Real y, const BlockLimits<L>& limits_x,
                            const BlockLimits<L>& limits_y, typename L::Real mask, const typename L::Real (&dot)[4],
                            typename L::Real& grad_mask, typename L::Real& grad_x, typename L::Real& grad_y) {
  using R = typename L::Real;
  const R zero = L::broadcast(0);
  const BlockWeights<L> across(x, limits_x), down(y, limits_y);
  const BlockSlopes<L> slope_x(x, limits_x), slope_y(y, limits_y);
  const auto left = L::differ(slope_x.low, zero), right = L::differ(slope_x.high, zero);
  const auto top = L::differ(slope_y.low, zero), bottom = L::differ(slope_y.high, zero);
  const R d0 = L::keep(L::both(top, left), dot[0]), d1 = L::keep(L::both(top, right), dot[1]);
  const R d2 = L::keep(L::both(bottom, left), dot[2]), d3 = L::keep(L::both(bottom, right), dot[3]);
  const R above = across.low * d0 + across.high * d1, below = across.low * d2 + across.high * d3;
  grad_mask = down.low * above + down.high * below;
  grad_x = mask * (down.low * (slope_x.low * d0 + slope_x.high * d1) +
                   down.high * (slope_x.low * d2 + slope_x.high * d3));
  grad_y = mask * (slope_y.low * above + slope_y.high * below);
}

// Softmax over a few taps: the largest logit first, then exponentials, then the division by their sum. Its gradient
// needs the sum over taps of probability * gradient.
template <class L>
DS_TAP typename L::Real softmax_gradient(typename L::Real probability, typename L::Real gradient,
                                         typename L::Real inner_product) {
  return probability * (gradient - inner_product);
}
