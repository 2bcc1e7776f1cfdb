// The fused attention's forward kernels. Included once per instruction set, after vector.h and taps.h.

// The height logits of one query, written to where the published model holds them.
template <int DEPTH, class T>
DGMN2_INLINE void hold_logits(const Attention<T>& p, index b, index head, index y, index x) {
    using A = accumulate<T>;
    const A* table = p.height + (p.rows - 1 - y) * p.depth;
    const T* q = p.token(0, b, y * p.columns + x, head);
    alignas(64) A sums[SAMPLES + SPARE];
    Vector<A> products[SAMPLES] = {};
    for (index j = 0; j < (DEPTH ? DEPTH : p.depth); j += LANES<A>) {
        const Vector<A> part = load_row<DEPTH>(q, j, p.depth);
        for (int s = 0; s < SAMPLES; ++s) products[s] += part * load_row<DEPTH>(table + s * p.depth, j, p.depth);
    }
    lane_sums<SAMPLES>(products, sums);
    __builtin_memcpy(p.held_at(b, head, x, y), sums, SAMPLES * sizeof(A));
}

// Work item (b * h + head) * strips + strip: the height logits of STRIP rows of queries, column by column, because they
// are held transposed: a column's lie together.
template <int DEPTH, class T>
void height_logits_strip(const Attention<T>& p, index item) {
    const index head = item / p.strips() % p.heads, b = item / p.strips() / p.heads;
    const index first = item % p.strips() * STRIP, last = first + STRIP < p.rows ? first + STRIP : p.rows;
    for (index x = 0; x < p.columns; ++x)
        for (index y = first; y < last; ++y) hold_logits<DEPTH>(p, b, head, y, x);
}

// Height logits of position (y, x): as held on a square map, else the W x H map resized to H x W.
template <class T>
DGMN2_INLINE void height_logits(const Attention<T>& p, index b, index head, index y, index x, accumulate<T>* out) {
    using A = accumulate<T>;
    if (p.rows == p.columns) {
        __builtin_memcpy(out, p.held_at(b, head, y, x), SAMPLES * sizeof(A));
        return;
    }
    const Source row = resize_source(y, p.columns, p.rows), column = resize_source(x, p.rows, p.columns);
    const A down = A(row.weight), across = A(column.weight);
    const A* corners[4] = {p.held_at(b, head, row.lower, column.lower), p.held_at(b, head, row.lower, column.upper),
                           p.held_at(b, head, row.upper, column.lower), p.held_at(b, head, row.upper, column.upper)};
    for (int s = 0; s < SAMPLES; ++s) {
        const A upper = corners[0][s] + across * (corners[1][s] - corners[0][s]);
        const A lower = corners[2][s] + across * (corners[3][s] - corners[2][s]);
        out[s] = upper + down * (lower - upper);
    }
}

// The four corner rows of one tap in one part (k or v) of a head.
template <class T>
struct Corners {
    const T *upper_left, *upper_right, *lower_left, *lower_right;
};

template <class T, class A>
DGMN2_INLINE Corners<T> corner_rows(const Attention<T>& p, const T* part, const Taps<A>& taps, index t) {
    const index pixel = taps.pixel[t];
    const T* first = pixel >= 0 ? part + pixel * p.token_stride : p.zeros;
    const index right = index(taps.right[t]) & p.token_stride;
    const index below = index(taps.below[t]) & (p.columns * p.token_stride);
    return {first, first + right, first + below, first + below + right};
}

// The corners' weights of a run, times what their samples count; as vectors, not one by one where they are needed.
template <class A>
struct Factors {
    alignas(64) A at[CORNERS][RUN * SAMPLES];

    DGMN2_INLINE void scaled(const Taps<A>& taps, A scale) {
        for (int c = 0; c < CORNERS; ++c)
            for (int t = 0; t < RUN * SAMPLES; t += LANES<A>) store(load(taps.weight[c] + t) * scale, at[c] + t);
    }
    DGMN2_INLINE void shared(const Taps<A>& taps, const A* shares, A scale) {
        for (int c = 0; c < CORNERS; ++c)
            for (int t = 0; t < RUN * SAMPLES; t += LANES<A>)
                store(load(taps.weight[c] + t) * (load(shares + t) * scale), at[c] + t);
    }
};

// Sampled-key and width logits of one query: q . (scale * k_s + width_s), 9 of them.
template <int DEPTH, class T>
DGMN2_INLINE void tap_logits(const Attention<T>& p, const T* q, const T* k, const Taps<accumulate<T>>& taps,
                             const Factors<accumulate<T>>& factors, index first, const accumulate<T>* table,
                             accumulate<T>* out) {
    using A = accumulate<T>;
    Vector<A> products[SAMPLES];
    for (int s = 0; s < SAMPLES; ++s) {
        const index t = first + s;
        const Corners<T> at = corner_rows(p, k, taps, t);
        const A upper_left = factors.at[0][t], upper_right = factors.at[1][t];
        const A lower_left = factors.at[2][t], lower_right = factors.at[3][t];
        Vector<A> product = {};
        for (index j = 0; j < (DEPTH ? DEPTH : p.depth); j += LANES<A>) {
            const Vector<A> key = load_row<DEPTH>(table + s * p.depth, j, p.depth) +
                                  load_row<DEPTH>(at.upper_left, j, p.depth) * upper_left +
                                  load_row<DEPTH>(at.upper_right, j, p.depth) * upper_right +
                                  load_row<DEPTH>(at.lower_left, j, p.depth) * lower_left +
                                  load_row<DEPTH>(at.lower_right, j, p.depth) * lower_right;
            product += key * load_row<DEPTH>(q, j, p.depth);
        }
        products[s] = product;
    }
    lane_sums<SAMPLES>(products, out);
}

// Softmax over each query's 9 logits, in place.
template <class A>
DGMN2_INLINE void softmax_run(A* logits, index count) {
    for (index i = 0; i < count; ++i) {
        A* at = logits + i * SAMPLES;
        A largest = at[0];
        for (int s = 1; s < SAMPLES; ++s) largest = at[s] > largest ? at[s] : largest;
        for (int s = 0; s < SAMPLES; ++s) at[s] -= largest;
    }
    exp_negative(logits, RUN * SAMPLES);
    for (index i = 0; i < count; ++i) {
        A* at = logits + i * SAMPLES;
        A sum = 0;
        for (int s = 0; s < SAMPLES; ++s) sum += at[s];
        const A share = 1 / sum;
        for (int s = 0; s < SAMPLES; ++s) at[s] *= share;
    }
}

// sums[i] += the sampled row of one part (k or v) of a tap by its factors; BLOCK vectors from channel `from` on.
template <int DEPTH, int BLOCK, class T>
DGMN2_INLINE void add_sample(const Attention<T>& p, const T* part, const Taps<accumulate<T>>& taps,
                             const Factors<accumulate<T>>& factors, index t, index from, Vector<accumulate<T>>* sums) {
    using A = accumulate<T>;
    const Corners<T> at = corner_rows(p, part, taps, t);
    const A upper_left = factors.at[0][t], upper_right = factors.at[1][t];
    const A lower_left = factors.at[2][t], lower_right = factors.at[3][t];
    for (int i = 0; i < BLOCK; ++i) {
        const index j = from + i * LANES<A>;
        sums[i] += load_row<DEPTH>(at.upper_left, j, p.depth) * upper_left;
        sums[i] += load_row<DEPTH>(at.upper_right, j, p.depth) * upper_right;
        sums[i] += load_row<DEPTH>(at.lower_left, j, p.depth) * lower_left;
        sums[i] += load_row<DEPTH>(at.lower_right, j, p.depth) * lower_right;
    }
}

// Weighted sum of one query's sampled values.
template <int DEPTH, class T>
DGMN2_INLINE void aggregate(const Attention<T>& p, const T* v, const Taps<accumulate<T>>& taps,
                            const Factors<accumulate<T>>& factors, index first, T* out) {
    using A = accumulate<T>;
    constexpr int block = BLOCK<DEPTH, A>;
    for (index from = 0; from < (DEPTH ? DEPTH : p.depth); from += block * LANES<A>) {
        Vector<A> sums[block] = {};
        for (int s = 0; s < SAMPLES; ++s) add_sample<DEPTH, block>(p, v, taps, factors, first + s, from, sums);
        for (int i = 0; i < block; ++i) store_row<DEPTH>(sums[i], out, from + i * LANES<A>, p.depth);
    }
}

// Asks memory for a row of numbers before it is needed, to be read or (WRITE 1) written.
template <int WRITE, class E>
DGMN2_INLINE void fetch(const E* row, index count) {
    const char* from = reinterpret_cast<const char*>(row);
    for (index byte = 0; byte < count * index(sizeof(E)); byte += 64) __builtin_prefetch(from + byte, WRITE);
}

// Asks for the key and value AHEAD rows below a pixel: the processor does not foresee these strides.
template <class T>
DGMN2_INLINE void fetch_below(const Attention<T>& p, index b, index head, index y, index x) {
    const index row = y + AHEAD < p.rows ? y + AHEAD : p.rows - 1;
    for (index part = 1; part <= 2; ++part) fetch<0>(p.token(part, b, row * p.columns + x, head), p.depth);
}

// Asks for what the query RUN positions on will need for itself: q, its offsets and the place of its result.
template <class T>
DGMN2_INLINE void fetch_next(const Attention<T>& p, index b, index head, index n) {
    const index soon = n + RUN < p.tokens() ? n + RUN : n;
    fetch<0>(p.token(0, b, soon, head), p.depth);
    fetch<0>(p.offset + p.samples_at(b, soon, head) * 2, 2 * SAMPLES);
    fetch<1>(p.out + ((b * p.tokens() + soon) * p.heads + head) * p.depth, p.depth);
}

// Attention of up to RUN neighbouring queries of one row and head.
template <int DEPTH, class T>
DGMN2_INLINE void attend_run(const Attention<T>& p, index b, index head, index y, index x, index count) {
    using A = accumulate<T>;
    Taps<A> taps;
    Factors<A> factors;
    locate_taps(p, b, head, y, x, count, taps);
    factors.scaled(taps, A(1) / std::sqrt(A(p.depth)));
    alignas(64) A logits[RUN * SAMPLES + SPARE] = {};
    alignas(64) A held[SAMPLES];
    const T* k = p.token(1, b, 0, head);
    const T* v = p.token(2, b, 0, head);
    const index n = y * p.columns + x;
    for (index i = 0; i < count; ++i) {
        fetch_below(p, b, head, y, x + i);
        fetch_next(p, b, head, n + i);
        A* at = logits + i * SAMPLES;
        const A* table = p.width + (p.columns - 1 - x - i) * p.depth;
        tap_logits<DEPTH>(p, p.token(0, b, n + i, head), k, taps, factors, i * SAMPLES, table, at);
        height_logits(p, b, head, y, x + i, held);
        for (int s = 0; s < SAMPLES; ++s) at[s] += held[s];
    }
    for (index i = count * SAMPLES; i < RUN * SAMPLES; ++i) logits[i] = 0;
    softmax_run(logits, count);
    factors.shared(taps, logits, A(1));
    for (index i = 0; i < count; ++i)
        aggregate<DEPTH>(p, v, taps, factors, i * SAMPLES,
                         p.out + ((b * p.tokens() + n + i) * p.heads + head) * p.depth);
}

// Work item: one row of queries of one head, in the order in which their keys and values lie in memory.
template <int DEPTH, class T>
void attend_row(const Attention<T>& p, index item) {
    const index b = item / (p.heads * p.rows), rest = item % (p.heads * p.rows);
    const index head = p.by_head() ? rest / p.rows : rest % p.heads, y = p.by_head() ? rest % p.rows : rest / p.heads;
    for (index x = 0; x < p.columns; x += RUN)
        attend_run<DEPTH>(p, b, head, y, x, p.columns - x < RUN ? p.columns - x : RUN);
}
