// Softmax over short rows (taps, points). ATen's takes several times the operators it feeds on rows of 4 to 32.

DS_INLINE Full<float> exp_of(Full<float> x) {  // relative error 2e-7 for x <= 0; 0 below -87
  constexpr int N = kLanes<float>;
  const FullIndex<float> vanishes = FullIndex<float>(x < -87.f);
  x = keep<float>(~vanishes, x);
  const Full<float> n = floor_of(x * 1.44269504088896341f + 0.5f);
  const FullIndex<float> i = convert<int32_t, N, float>(n);
  const Full<float> r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Full<float> p = broadcast<float>(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * r + c;
  return keep<float>(~vanishes, (p * r * r + r + 1.f) * bits_as<Full<float>>((i + 127) << 23));
}

DS_INLINE Full<double> exp_of(Full<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}
// The largest lane, or the sum of the lanes, in every lane; the order of additions is always the same.
template <int Step, class V, int... I>
DS_INLINE V largest_of_lanes(V v, std::integer_sequence<int, I...> lanes) {
  if constexpr (Step > 0)
    return largest_of_lanes<Step / 2>(larger_of(v, __builtin_shufflevector(v, v, (I ^ Step)...)), lanes);
  else
    return v;
}
template <int Step, class V, int... I>
DS_INLINE V sum_of_lanes(V v, std::integer_sequence<int, I...> lanes) {
  if constexpr (Step > 0)
    return sum_of_lanes<Step / 2>(v + __builtin_shufflevector(v, v, (I ^ Step)...), lanes);
  else
    return v;
}
template <class S, int... I>
DS_INLINE FullIndex<S> first_lanes(int64_t count, std::integer_sequence<int, I...>) {
  return FullIndex<S>(FullIndex<S>{I...} < broadcast_index<S>(Index<S>(count)));
}

// For `rows` rows of `length` logits, one behind the other: exponentials, shifted by the largest of their row, and the
// inverse of each row's sum. All three have room for a register more: what a row writes too much, the next one corrects.
// Many rows at a time: every step reads across the stores of the one before, and would wait for them.
template <class S>
DS_INLINE void softmax_rows_of(const S* logits, int64_t rows, int64_t length, S* exponentials, S* inverse) {
  constexpr int N = kLanes<S>;
  constexpr std::make_integer_sequence<int, N> lanes{};
  for (int64_t r = 0; r < rows; ++r) {
    const S* x = logits + r * length;
    Full<S> most = broadcast<S>(-S(__builtin_inf()));
    for (int64_t k = 0; k < length; k += N)
      most = select<S>(first_lanes<S>(length - k, lanes), larger_of(load_full<S>(x + k), most), most);
    most = largest_of_lanes<N / 2>(most, lanes);
    for (int64_t k = 0; k < length; k += N) store<N>(exponentials + r * length + k, load_full<S>(x + k) - most);
  }
  for (int64_t t = 0; t < rows * length; t += N) store<N>(exponentials + t, exp_of(load_full<S>(exponentials + t)));
  for (int64_t r = 0; r < rows; ++r) {
    Full<S> sum{};
    for (int64_t k = 0; k < length; k += N)
      sum += keep<S>(first_lanes<S>(length - k, lanes), load_full<S>(exponentials + r * length + k));
    inverse[r] = sum_of_lanes<N / 2>(sum, lanes)[0];
  }
  for (int64_t r = 0; r < rows; r += N) store<N>(inverse + r, S(1) / load_full<S>(inverse + r));
}

template <class T>
void narrow_to(const float* from, T* to, int64_t begin, int64_t end) {
  constexpr int N = kLanes<float>;
  int64_t i = begin;
  for (; i + N <= end; i += N) store<N>(to + i, load<N>(from + i));
  for (; i < end; ++i) store<1>(to + i, from[i]);
}
void narrow(Dtype dtype, const float* from, void* to, int64_t begin, int64_t end) {
  if (dtype == Dtype::bf16)
    narrow_to(from, static_cast<BFloat16*>(to), begin, end);
  else
    narrow_to(from, static_cast<Half*>(to), begin, end);
}
