// A thin SIMD layer on GCC/Clang vector extensions, included once per instruction set, behind target_*.h.
// The vector type must not be wider than the native register: GCC then falls back to scalar code (8x slower, measured).

constexpr int kVectorBytes = DRIVESTACK_VECTOR_BYTES;
template <class S>
constexpr int kLanes = kVectorBytes / int(sizeof(S));  // lanes of a full register

#define DS_INLINE inline __attribute__((always_inline))

template <class S, int N>
struct VecOf {
  typedef S type __attribute__((vector_size(sizeof(S) * N)));
};
template <class S>
struct VecOf<S, 1> {
  typedef S type;
};
template <class S, int N>
using Vec = typename VecOf<S, N>::type;

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Arithmetic type of a storage type, and the integers as wide as it.
template <class T>
struct ArithmeticOf {
  typedef float type;
};
template <>
struct ArithmeticOf<double> {
  typedef double type;
};
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;
template <class S>
using Index = std::conditional_t<sizeof(S) == 8, int64_t, int32_t>;
template <class S>
using UIndex = std::conditional_t<sizeof(S) == 8, uint64_t, uint32_t>;

template <class V, class P>
DS_INLINE V load_raw(const P* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class P>
DS_INLINE void store_raw(P* p, V v) {
  std::memcpy(p, &v, sizeof(V));
}
template <class V, class W>
DS_INLINE V bits_as(W w) {
  static_assert(sizeof(V) == sizeof(W));
  V v;
  std::memcpy(&v, &w, sizeof(V));
  return v;
}

template <class To, int N, class From>
DS_INLINE Vec<To, N> convert(Vec<From, N> v) {
  if constexpr (N == 1)
    return To(v);
  else
    return __builtin_convertvector(v, Vec<To, N>);
}

template <int N>
DS_INLINE Vec<float, N> load(const float* p) {
  return load_raw<Vec<float, N>>(p);
}
template <int N>
DS_INLINE Vec<double, N> load(const double* p) {
  return load_raw<Vec<double, N>>(p);
}
template <int N>
DS_INLINE void store(float* p, Vec<float, N> v) {
  store_raw(p, v);
}
template <int N>
DS_INLINE void store(double* p, Vec<double, N> v) {
  store_raw(p, v);
}
template <class S>
DS_INLINE Vec<S, kLanes<S>> load_full(const S* p) {
  return load<kLanes<S>>(p);
}

template <int N>
DS_INLINE Vec<float, N> load(const BFloat16* p) {
  return bits_as<Vec<float, N>>(convert<uint32_t, N, uint16_t>(load_raw<Vec<uint16_t, N>>(p)) << 16);
}
template <int N>
DS_INLINE void store(BFloat16* p, Vec<float, N> v) {  // round to nearest even, NaN stays NaN
  using U = Vec<uint32_t, N>;
  U u = bits_as<U>(v);
  U rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, nan = (u >> 16) | 0x40u;
  U is_nan = U((u & 0x7fffffffu) > 0x7f800000u);
  if constexpr (N == 1)
    store_raw(p, uint16_t(is_nan ? nan : rounded));
  else
    store_raw(p, convert<uint16_t, N, uint32_t>((rounded & ~is_nan) | (nan & is_nan)));
}

template <int N>
DS_INLINE Vec<float, N> load(const Half* p) {
  using U = Vec<uint32_t, N>;
  U h = convert<uint32_t, N, uint16_t>(load_raw<Vec<uint16_t, N>>(p));
  // Multiplying by 2^112 moves the exponent's bias and normalises subnormals in one go; infinity and NaN need their
  // own.
  Vec<float, N> scaled = bits_as<Vec<float, N>>((h & 0x7fffu) << 13) * 0x1p112f;
  U special = U((h & 0x7c00u) == 0x7c00u);
  if constexpr (N == 1) special = special ? ~0u : 0u;
  return bits_as<Vec<float, N>>(bits_as<U>(scaled) | (special & 0x7f800000u) | ((h & 0x8000u) << 16));
}
template <int N>
DS_INLINE void store(Half* p, Vec<float, N> v) {  // round to nearest even
  using U = Vec<uint32_t, N>;
  U u = bits_as<U>(v), sign = (u >> 16) & 0x8000u;
  u &= 0x7fffffffu;
  U is_nan = U(u > 0x7f800000u), is_large = U(u >= 0x47800000u), is_small = U(u < 0x38800000u);
  if constexpr (N == 1) is_nan = is_nan ? ~0u : 0u, is_large = is_large ? ~0u : 0u, is_small = is_small ? ~0u : 0u;
  U large = (is_nan & 0x7e00u) | (~is_nan & 0x7c00u);
  U small = bits_as<U>(bits_as<Vec<float, N>>(u) + 0.5f) - 0x3f000000u;  // subnormal: the addition rounds
  U normal = (u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13;
  U h = sign | (large & is_large) | (small & is_small) | (normal & ~is_large & ~is_small);
  store_raw(p, convert<uint16_t, N, uint32_t>(h));
}

// ---- arithmetic on full registers
// ------------------------------------------------------------------------------------
template <class S>
using Full = Vec<S, kLanes<S>>;
template <class S>
using FullIndex = Vec<Index<S>, kLanes<S>>;

template <class S>
DS_INLINE Full<S> broadcast(S x) {
  return Full<S>{} + x;
}
template <class S>
DS_INLINE FullIndex<S> broadcast_index(Index<S> x) {
  return FullIndex<S>{} + x;
}
template <class S>
DS_INLINE Full<S> keep(FullIndex<S> mask, Full<S> v) {  // mask ? v : 0
  return bits_as<Full<S>>(bits_as<FullIndex<S>>(v) & mask);
}
template <class S>
DS_INLINE Full<S> select(FullIndex<S> mask, Full<S> yes, Full<S> no) {
  return bits_as<Full<S>>((bits_as<FullIndex<S>>(yes) & mask) | (bits_as<FullIndex<S>>(no) & ~mask));
}
template <class S>
DS_INLINE FullIndex<S> clamp(FullIndex<S> x, FullIndex<S> high) {  // to [0, high]
  x &= FullIndex<S>(x > 0);
  FullIndex<S> over = x > high;
  return (high & over) | (x & ~over);
}
template <class S>
DS_INLINE FullIndex<S> floor_of(Full<S> x, Full<S>& fraction) {  // finite, small x only
  FullIndex<S> i = convert<Index<S>, kLanes<S>, S>(x);
  Full<S> t = convert<S, kLanes<S>, Index<S>>(i);
  FullIndex<S> above = t > x;  // truncation went up
  fraction = x - (t - keep<S>(above, broadcast<S>(1)));
  return i + above;
}
template <class S>
DS_INLINE bool all_lanes(FullIndex<S> mask) {
#if defined(__x86_64__)
  if constexpr (kVectorBytes == 16) return _mm_movemask_epi8(bits_as<__m128i>(mask)) == 0xffff;
#if DRIVESTACK_VECTOR_BYTES == 32
  if constexpr (kVectorBytes == 32) return _mm256_movemask_epi8(bits_as<__m256i>(mask)) == -1;
#elif DRIVESTACK_VECTOR_BYTES == 64
  if constexpr (sizeof(S) == 4) return _mm512_movepi32_mask(bits_as<__m512i>(mask)) == 0xffff;
  if constexpr (sizeof(S) == 8) return _mm512_movepi64_mask(bits_as<__m512i>(mask)) == 0xff;
#endif
#endif
  Index<S> all = -1;
  for (int i = 0; i < kLanes<S>; ++i) all &= mask[i];
  return all == -1;
}

// a > b ? a : b and a < b ? a : b, which are b where a is NaN, and the floor, which is any number far outside of the
// image where x is: GCC does not find the instructions by itself.
#if DRIVESTACK_VECTOR_BYTES == 64
DS_INLINE Full<float> larger_of(Full<float> a, Full<float> b) { return Full<float>(_mm512_max_ps(a, b)); }
DS_INLINE Full<double> larger_of(Full<double> a, Full<double> b) { return Full<double>(_mm512_max_pd(a, b)); }
DS_INLINE Full<double> smaller_of(Full<double> a, Full<double> b) { return Full<double>(_mm512_min_pd(a, b)); }
DS_INLINE Full<double> floor_of(Full<double> x) { return Full<double>(_mm512_roundscale_pd(x, 9)); }
DS_INLINE Full<float> smaller_of(Full<float> a, Full<float> b) { return Full<float>(_mm512_min_ps(a, b)); }
DS_INLINE Full<float> floor_of(Full<float> x) { return Full<float>(_mm512_roundscale_ps(x, 9)); }
#elif DRIVESTACK_VECTOR_BYTES == 32
DS_INLINE Full<float> larger_of(Full<float> a, Full<float> b) { return Full<float>(_mm256_max_ps(a, b)); }
DS_INLINE Full<double> larger_of(Full<double> a, Full<double> b) { return Full<double>(_mm256_max_pd(a, b)); }
DS_INLINE Full<double> smaller_of(Full<double> a, Full<double> b) { return Full<double>(_mm256_min_pd(a, b)); }
DS_INLINE Full<double> floor_of(Full<double> x) { return Full<double>(_mm256_floor_pd(x)); }
DS_INLINE Full<float> smaller_of(Full<float> a, Full<float> b) { return Full<float>(_mm256_min_ps(a, b)); }
DS_INLINE Full<float> floor_of(Full<float> x) { return Full<float>(_mm256_floor_ps(x)); }
#elif defined(__SSE2__)
DS_INLINE Full<float> larger_of(Full<float> a, Full<float> b) { return Full<float>(_mm_max_ps(a, b)); }
DS_INLINE Full<float> smaller_of(Full<float> a, Full<float> b) { return Full<float>(_mm_min_ps(a, b)); }
#endif
template <class V>
DS_INLINE V larger_of(V a, V b) {
  return a > b ? a : b;
}
template <class V>
DS_INLINE V smaller_of(V a, V b) {
  return a < b ? a : b;
}
template <class V>
DS_INLINE V floor_of(V x) {
  using S = std::decay_t<decltype(x[0])>;
  const V t = convert<S, kLanes<S>, Index<S>>(convert<Index<S>, kLanes<S>, S>(x));
  return t - keep<S>(FullIndex<S>(t > x), broadcast<S>(1));
}

// The policy of common/tap.h: a register of taps.
template <class S>
struct SimdLanes {
  using Scalar = S;
  using Real = Full<S>;
  using Int = FullIndex<S>;
  using Mask = FullIndex<S>;
  using Offset = FullIndex<S>;
  static DS_INLINE Real broadcast(S x) { return Real{} + x; }
  static DS_INLINE Mask both(Mask a, Mask b) { return a & b; }
  static DS_INLINE Mask less(Real a, Real b) { return Mask(a < b); }
  static DS_INLINE Mask less_or_equal(Real a, Real b) { return Mask(a <= b); }
  static DS_INLINE Mask differ(Real a, Real b) { return Mask(a != b); }
  static DS_INLINE Mask below(Int x, Int size) {
    using U = Vec<UIndex<S>, kLanes<S>>;
    return Mask(U(x) < U(size));
  }
  static DS_INLINE Real keep(Mask m, Real x) { return ::drivestack::DRIVESTACK_ISA::keep<S>(m, x); }
  static DS_INLINE Real select(Mask m, Real yes, Real no) {
    return ::drivestack::DRIVESTACK_ISA::select<S>(m, yes, no);
  }
  static DS_INLINE Int clamp(Int x, Int high) { return ::drivestack::DRIVESTACK_ISA::clamp<S>(x, high); }
  static DS_INLINE Real real(Int x) { return convert<S, kLanes<S>, Index<S>>(x); }
  static DS_INLINE Offset offset(Int x) { return x; }
  static DS_INLINE Int floor(Real x, Real& fraction) { return floor_of<S>(x, fraction); }
  static DS_INLINE Real larger(Real a, Real b) { return larger_of(a, b); }
  static DS_INLINE Real smaller(Real a, Real b) { return smaller_of(a, b); }
  static DS_INLINE Real magnitude(Real x) {
    return bits_as<Real>(bits_as<Int>(x) & Index<S>(~UIndex<S>(0) >> 1));
  }
  static DS_INLINE Real floor(Real x) { return floor_of(x); }
};

// ---- shuffles
// ----------------------------------------------------------------------------------------------------------
template <class V, int... I>
DS_INLINE V even_lanes(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, 2 * I...);
}
template <class V, int... I>
DS_INLINE V odd_lanes(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (2 * I + 1)...);
}
template <int First, int N, class V, int... I>
DS_INLINE V zip_lanes(V a, V b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (First + I / 2 + (I % 2) * N)...);
}
// n (x, y) pairs from element 2 t on, zero behind element 2 n: up to one register of each.
template <class S, class O>
DS_INLINE void load_pairs(const O* p, int64_t t, int64_t n, Full<S>& x, Full<S>& y) {
  constexpr int N = kLanes<S>;
  constexpr std::make_integer_sequence<int, N> seq{};
  Full<S> a, b;
  if (t + N <= n) {
    a = load<N>(p + 2 * t);
    b = load<N>(p + 2 * t + N);
  } else {
    O buffer[2 * N];
    std::memset(buffer, 0, sizeof(buffer));
    std::memcpy(buffer, p + 2 * t, sizeof(O) * 2 * (n - t));
    a = load<N>(buffer);
    b = load<N>(buffer + N);
  }
  x = even_lanes(a, b, seq);
  y = odd_lanes(a, b, seq);
}
template <class S, class O>
DS_INLINE void store_pairs(O* p, int64_t t, int64_t n, Full<S> x, Full<S> y) {
  constexpr int N = kLanes<S>;
  constexpr std::make_integer_sequence<int, N> seq{};
  Full<S> a = zip_lanes<0, N>(x, y, seq), b = zip_lanes<N / 2, N>(x, y, seq);
  if (t + N <= n) {
    store<N>(p + 2 * t, a);
    store<N>(p + 2 * t + N, b);
  } else {
    O buffer[2 * N];
    store<N>(buffer, a);
    store<N>(buffer + N, b);
    std::memcpy(p + 2 * t, buffer, sizeof(O) * 2 * (n - t));
  }
}
template <class S, class O>
DS_INLINE Full<S> load_part(const O* p, int64_t t, int64_t n) {
  constexpr int N = kLanes<S>;
  if (t + N <= n) return load<N>(p + t);
  O buffer[N];
  std::memset(buffer, 0, sizeof(buffer));
  std::memcpy(buffer, p + t, sizeof(O) * (n - t));
  return load<N>(buffer);
}
template <class S, class O>
DS_INLINE void store_part(O* p, int64_t t, int64_t n, Full<S> v) {
  constexpr int N = kLanes<S>;
  if (t + N <= n) {
    store<N>(p + t, v);
    return;
  }
  O buffer[N];
  store<N>(buffer, v);
  std::memcpy(p + t, buffer, sizeof(O) * (n - t));
}

// v[K] in every lane.
template <int K, class V, int... I>
DS_INLINE V lane_of(V v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I * 0 + K)...);
}
template <int K, class S, int N>
DS_INLINE Vec<S, N> lane(Vec<S, N> v) {
  return lane_of<K>(v, std::make_integer_sequence<int, N>{});
}

// Transposed reduction: lane i of the result is the sum of the lanes of v[i]. Every lane sums in the same order. A step
// joins two vectors whose indices differ by `Block`: one shuffle, one blend, one addition. The first steps, of which
// there are most, are those with the cheapest shuffles.
template <int Block, class V, int... I>
DS_INLINE V join_blocks(V a, V b, std::integer_sequence<int, I...>) {
  constexpr int N = sizeof...(I);
  return __builtin_shufflevector(a, b, (I & Block ? N + I : I)...) +
         __builtin_shufflevector(a, b, (I & Block ? N + I - Block : I + Block)...);
}
template <class S, int N, int Done, int Block, int... Rest>
DS_INLINE void join_steps(Vec<S, N>* v) {
  if constexpr (Block < N)
    for (int i = 0; i < N; ++i)
      if (!(i & (Done | Block))) v[i] = join_blocks<Block>(v[i], v[i | Block], std::make_integer_sequence<int, N>{});
  if constexpr (sizeof...(Rest) > 0) join_steps<S, N, Done | Block, Rest...>(v);
}
template <class S, int N>
DS_INLINE Vec<S, N> sums_of(Vec<S, N>* v) {  // destroys v
  if constexpr (N > 1) join_steps<S, N, 0, 2, 8, 4, 1>(v);
  return v[0];
}
template <class S, int N>
DS_INLINE S sum_of(Vec<S, N> v) {
  if constexpr (N == 1)
    return v;
  else {
    S s = 0;
    for (int i = 0; i < N; ++i) s += v[i];
    return s;
  }
}
