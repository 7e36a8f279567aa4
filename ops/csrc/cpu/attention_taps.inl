// From what a query predicts to its taps: softmax, coordinates, corner offsets and weights. Shared by all operators of
// deformable attention.

// ---- softmax of rows that lie one after the other

template <class S>
DS_INLINE Full<S> exponential(Full<S> x) {  // of x <= 0; float: relative error 2e-7, zero below -87
  if constexpr (sizeof(S) == 8) {
    for (int i = 0; i < kLanes<S>; ++i) x[i] = std::exp(x[i]);
    return x;
  } else {
    const FullIndex<S> tiny = FullIndex<S>(x < -87.f);
    x = keep<S>(~tiny, x);
    Full<S> fraction;
    const FullIndex<S> i = floor_of<S>(x * 1.44269504088896341f + 0.5f, fraction);
    const Full<S> n = convert<S, kLanes<S>, Index<S>>(i);
    const Full<S> r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    Full<S> p = broadcast<S>(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return keep<S>(~tiny, (p * r * r + r + 1.f) * bits_as<Full<S>>((i + 127) << 23));
  }
}

template <int Step, class V, int... I>
DS_INLINE V exchanged(V v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I ^ Step)...);
}
template <class S>
DS_INLINE Full<S> largest_of_two(Full<S> a, Full<S> b) {  // not larger_of: GCC 12 warns of its intrinsic here
  return select<S>(FullIndex<S>(a < b), b, a);
}
// Every lane becomes the largest, or the sum, of the lanes of its block.
template <class S, int Block>
DS_INLINE Full<S> largest_of_blocks(Full<S> v) {
  if constexpr (Block > 1) {
    v = largest_of_two<S>(v, exchanged<Block / 2>(v, std::make_integer_sequence<int, kLanes<S>>{}));
    return largest_of_blocks<S, Block / 2>(v);
  }
  return v;
}
template <class S, int Block>
DS_INLINE Full<S> sums_of_blocks(Full<S> v) {
  if constexpr (Block > 1) {
    v += exchanged<Block / 2>(v, std::make_integer_sequence<int, kLanes<S>>{});
    return sums_of_blocks<S, Block / 2>(v);
  }
  return v;
}

template <class S, int Length>  // a power of two up to kLanes: whole rows in a register
DS_INLINE void softmax_short_rows(S* p, int64_t count, S scale) {
  for (int64_t t = 0; t < count; t += kLanes<S>) {
    const Full<S> x = load_full<S>(p + t);
    const Full<S> e = exponential<S>(x - largest_of_blocks<S, Length>(x));
    store_raw(p + t, e * (scale / sums_of_blocks<S, Length>(e)));
  }
}
template <class S>
DS_INLINE void softmax_long_rows(S* p, int64_t count, int64_t length, S scale) {  // a multiple of kLanes
  constexpr int N = kLanes<S>;
  for (S* row = p; row < p + count; row += length) {
    Full<S> largest = load_full<S>(row), sum{};
    for (int64_t t = N; t < length; t += N) largest = largest_of_two<S>(largest, load_full<S>(row + t));
    largest = largest_of_blocks<S, N>(largest);
    for (int64_t t = 0; t < length; t += N) {
      const Full<S> e = exponential<S>(load_full<S>(row + t) - largest);
      sum += e;
      store_raw(row + t, e);
    }
    sum = scale / sums_of_blocks<S, N>(sum);
    for (int64_t t = 0; t < length; t += N) store_raw(row + t, load_full<S>(row + t) * sum);
  }
}
template <class S>
DS_INLINE void softmax_any_rows(S* p, int64_t count, int64_t length, S scale) {
  for (S* row = p; row < p + count; row += length) {
    S largest = row[0], sum = 0;
    for (int64_t t = 1; t < length; ++t) largest = row[t] > largest ? row[t] : largest;
    for (int64_t t = 0; t < length; t += kLanes<S>)
      store_part<S>(row, t, length, exponential<S>(load_part<S>(row, t, length) - largest));
    for (int64_t t = 0; t < length; ++t) sum += row[t];
    for (int64_t t = 0; t < length; ++t) row[t] *= scale / sum;
  }
}
// In place, times `scale`. `p` has room for a whole register behind the last row.
template <class S>
void softmax_rows(S* p, int64_t count, int64_t length, S scale) {
  constexpr int N = kLanes<S>;
  if (N >= 16 && length == 16) return softmax_short_rows < S, N >= 16 ? 16 : 1 > (p, count, scale);
  if (N >= 8 && length == 8) return softmax_short_rows < S, N >= 8 ? 8 : 1 > (p, count, scale);
  if (N >= 4 && length == 4) return softmax_short_rows < S, N >= 4 ? 4 : 1 > (p, count, scale);
  if (length % N == 0) return softmax_long_rows<S>(p, count, length, scale);
  softmax_any_rows<S>(p, count, length, scale);
}

// ---- taps of a query

// Corner offsets and weights of many taps. Those of a register of taps lie together, so that one pointer walks over
// all.
template <class S>
struct TapBlock {
  Index<S> offset[4][kLanes<S>];  // top-left, top-right, bottom-left, bottom-right
  S weight[4][kLanes<S>];
};
// Calls f(block, lane) for n taps from t on.
template <class S, class F>
DS_INLINE void for_taps(const TapBlock<S>* blocks, uint64_t t, uint64_t n, F f) {
  constexpr uint64_t N = kLanes<S>;
  const TapBlock<S>* block = blocks + t / N;
  for (uint64_t lane = t % N; n > 0; ++block, lane = 0) {
    const uint64_t end = lane + n < N ? lane + n : N;
    n -= end - lane;
    for (; lane < end; ++lane) f(*block, lane);
  }
}

template <class S, class O>
void read_taps(const void* positions, const void* scores, int64_t n, S* x, S* y, S* score) {
  for (int64_t t = 0; t < n; t += kLanes<S>) {
    Full<S> at_x, at_y;
    load_pairs<S>(static_cast<const O*>(positions), t, n, at_x, at_y);
    store_raw(x + t, at_x);
    store_raw(y + t, at_y);
    store_raw(score + t, load_part<S>(static_cast<const O*>(scores), t, n));
  }
}
template <class S, class O>
void write_gradients(const S* x, const S* y, const S* score, int64_t n, void* positions, void* scores) {
  for (int64_t t = 0; t < n; t += kLanes<S>) {
    store_pairs<S>(static_cast<O*>(positions), t, n, load_full<S>(x + t), load_full<S>(y + t));
    store_part<S>(static_cast<O*>(scores), t, n, load_full<S>(score + t));
  }
}

// How taps of `n_heads` heads from h0 on are made, query by query, and what they were made of.
template <class S>
struct TapMaker {
  static constexpr int N = kLanes<S>;
  const AttentionCall& call;
  const int64_t n_heads, n, all;  // n: taps of a head
  int64_t period;                 // levels and references repeat after so many taps
  S *width_f, *height_f, *reference_x, *reference_y;
  Index<S>*width, *height, *row, *first;
  int32_t* reference_of;  // element of the x of the tap's reference
  S *x, *y, *score;       // of the query's taps; score: attention weight
  void (*read)(const void*, const void*, int64_t, S*, S*, S*);
  int64_t tap_bytes;

  static size_t bytes(const AttentionCall& c, int64_t n_heads) {
    return 12 * (padded(n_heads * c.taps()) * sizeof(S) + 64);
  }

  TapMaker(Arena& arena, const AttentionCall& c, int64_t n_heads_)
      : call(c), n_heads(n_heads_), n(c.taps()), all(n_heads * n) {
    int64_t shared = N;  // the lanes are a power of two: gcd(n, N)
    while (n % shared) shared /= 2;
    period = n / shared * N < padded(all) ? n / shared * N : padded(all);
    for (S** p : {&width_f, &height_f, &reference_x, &reference_y, &x, &y, &score}) *p = arena.take<S>(padded(all));
    for (Index<S>** p : {&width, &height, &row, &first}) *p = arena.take<Index<S>>(padded(all));
    reference_of = arena.take<int32_t>(padded(all));
    const int64_t unit = c.wide ? 1 : c.channels();  // wide offsets count tokens
    for (int64_t t = 0; t < period; ++t) {
      const int64_t k = t % n, l = k / c.points;
      const int64_t* level = c.level_table + 3 * l;
      height_f[t] = S(height[t] = Index<S>(level[0]));
      width_f[t] = S(width[t] = Index<S>(level[1]));
      row[t] = Index<S>(level[1] * unit);
      first[t] = Index<S>(level[2] * unit);
      if (c.references) reference_of[t] = int32_t(l * c.reference_stride[3] + k % c.points % c.reference_count * 2);
    }
    switch (c.tap_dtype) {
      case Dtype::f64:
      case Dtype::f32:
        read = read_taps<S, S>;
        break;
      case Dtype::bf16:
        read = read_taps<S, std::conditional_t<sizeof(S) == 8, S, BFloat16>>;
        break;
      case Dtype::f16:
        read = read_taps<S, std::conditional_t<sizeof(S) == 8, S, Half>>;
        break;
    }
    tap_bytes = c.tap_dtype == Dtype::f64 ? 8 : c.tap_dtype == Dtype::f32 ? 4 : 2;
  }

  // Scores of query (b, q), seen by `cameras` cameras, become weights that average over them.
  DS_INLINE void start_query(int64_t query, int64_t h0, int64_t cameras) {
    const int64_t skip = h0 * n;
    positions = static_cast<const char*>(call.positions) + (query * call.position_stride + 2 * skip) * tap_bytes;
    scores = static_cast<const char*>(call.scores) + (query * call.score_stride + skip) * tap_bytes;
    if (!call.references) return;
    read(positions, scores, all, x, y, score);
    softmax_rows<S>(score, all, softmax_length(), S(1) / S(cameras * (call.level_mean ? call.levels : 1)));
  }
  int64_t softmax_length() const { return call.level_mean ? call.points : n; }

  // Taps of the query in the images of a camera; `kept`: what a backward pass needs besides.
  template <bool kBackward>
  DS_INLINE void make(int64_t query, int64_t camera, TapBlock<S>* blocks, MaskedAxes<S>* kept) {
    if (call.references) {
      const S* from = static_cast<const S*>(call.references) + query / call.queries * call.reference_stride[0] +
                      camera * call.reference_stride[1] + query % call.queries * call.reference_stride[2];
      for (int64_t t = 0; t < period; ++t) {
        reference_x[t] = from[reference_of[t]];
        reference_y[t] = from[reference_of[t] + 1];
      }
      make_all<kBackward>(
          blocks, kept, [&](int64_t t, int64_t u, Full<S> w, Full<S> h, Full<S>& at_x, Full<S>& at_y, Full<S>& weight) {
            at_x = referred_coordinate<Full<S>>(load_full<S>(reference_x + u), w, load_full<S>(x + t));
            at_y = referred_coordinate<Full<S>>(load_full<S>(reference_y + u), h, load_full<S>(y + t));
            weight = load_full<S>(score + t);
          });
    } else {
      make_all<kBackward>(blocks, kept,
                          [&](int64_t t, int64_t, Full<S> w, Full<S> h, Full<S>& at_x, Full<S>& at_y, Full<S>& weight) {
                            load_pairs<S>(static_cast<const S*>(positions), t, all, at_x, at_y);
                            at_x = located_coordinate<Full<S>>(at_x, w);
                            at_y = located_coordinate<Full<S>>(at_y, h);
                            weight = load_part<S>(static_cast<const S*>(scores), t, all);
                          });
    }
  }

 private:
  const void *positions, *scores;  // of the query

  template <bool kBackward, class F>
  DS_INLINE void make_all(TapBlock<S>* blocks, MaskedAxes<S>* kept, F place) {
    using L = SimdLanes<S>;
    const auto column = broadcast_index<S>(Index<S>(call.wide ? 1 : call.channels()));
    for (int64_t t = 0, u = 0; t < all; t += N, ++blocks) {
      Full<S> at_x, at_y, weight, weights[4];
      place(t, u, load_full<S>(width_f + u), load_full<S>(height_f + u), at_x, at_y, weight);
      TapAxes<L> axes;
      FullIndex<S> corner[4];
      tap_corners<L>(at_x, at_y, load_raw<FullIndex<S>>(width + u), load_raw<FullIndex<S>>(height + u),
                     load_raw<FullIndex<S>>(first + u), load_raw<FullIndex<S>>(row + u), column, corner, axes);
      corner_weights<L>(axes, weight, weights);
      for (int c = 0; c < 4; ++c) {
        store_raw(blocks->offset[c], corner[c]);
        store_raw(blocks->weight[c], weights[c]);
      }
      if (kBackward) {
        static_cast<TapAxes<L>&>(*kept) = axes;
        (kept++)->mask = weight;
      }
      u = u + N == period ? 0 : u + N;
    }
  }
};

// The pairs of a query and a camera that sees it, in order.
struct Pairs {
  const AttentionCall& call;
  int64_t query, end, camera = -1, index = 0, count = 0;  // the index-th of count cameras of the query
  Pairs(const AttentionCall& c, int64_t begin, int64_t end_) : call(c), query(begin - 1), end(end_) {}

  DS_INLINE bool sees(int64_t c) const {
    return !call.visible ||
           call.visible[(query / call.queries * call.cameras + c) * call.queries + query % call.queries];
  }
  // False behind the last pair. Calls unseen(query) for queries that no camera sees.
  template <class F>
  DS_INLINE bool next(F unseen) {
    if (++index >= count) {
      do {
        if (count == 0 && camera >= 0) unseen(query);
        if (++query >= end) return false;
        count = 0;
        for (camera = 0; camera < call.cameras; ++camera) count += sees(camera);
      } while (!count);
      index = 0;
      camera = -1;
    }
    do ++camera;
    while (!sees(camera));
    return true;
  }
  bool first() const { return index == 0; }
  bool last() const { return index + 1 == count; }
};
