// Owns the fused attention's backward kernels. Included once per instruction set, after attention_forward.h.
// Every work item writes addresses of its own, in an order of its own: no atomics, the same bits for any threads.

// out[4 * s + c] = row . corner c of sample s, in one part (k or v): 36 dot products.
template <int DEPTH, class T>
DGMN2_INLINE void corner_dots(const Attention<T>& p, const T* row, const T* part, const Taps<accumulate<T>>& taps, index first,
                              accumulate<T>* out) {
    using A = accumulate<T>;
    Vector<A> products[SAMPLES * CORNERS];
    for (int s = 0; s < SAMPLES; ++s) {
        const Corners<T> at = corner_rows(p, part, taps, first + s);
        Vector<A> sums[CORNERS] = {};
        for (index j = 0; j < (DEPTH ? DEPTH : p.depth); j += LANES<A>) {
            const Vector<A> with = load_row<DEPTH>(row, j, p.depth);
            sums[0] += with * load_row<DEPTH>(at.upper_left, j, p.depth);
            sums[1] += with * load_row<DEPTH>(at.upper_right, j, p.depth);
            sums[2] += with * load_row<DEPTH>(at.lower_left, j, p.depth);
            sums[3] += with * load_row<DEPTH>(at.lower_right, j, p.depth);
        }
        for (int c = 0; c < CORNERS; ++c) products[s * CORNERS + c] = sums[c];
    }
    lane_sums<SAMPLES * CORNERS>(products, out);
}

// out[s] = row . table row s: 9 dot products.
template <int DEPTH, class T>
DGMN2_INLINE void table_dots(const T* row, const accumulate<T>* table, index depth, accumulate<T>* out) {
    using A = accumulate<T>;
    Vector<A> products[SAMPLES] = {};
    for (index j = 0; j < (DEPTH ? DEPTH : depth); j += LANES<A>) {
        const Vector<A> with = load_row<DEPTH>(row, j, depth);
        for (int s = 0; s < SAMPLES; ++s) products[s] += with * load_row<DEPTH>(table + s * depth, j, depth);
    }
    lane_sums<SAMPLES>(products, out);
}

template <class A>
DGMN2_INLINE A weighted(const A (*weights)[RUN * SAMPLES], index t, const A* dots) {
    return weights[0][t] * dots[0] + weights[1][t] * dots[1] + weights[2][t] * dots[2] + weights[3][t] * dots[3];
}

// Gradients of one query's logits and offsets, from its shares and its corners' dot products.
template <class T>
DGMN2_INLINE void sample_gradients(const Attention<T>& p, const Taps<accumulate<T>>& taps, const Slopes<accumulate<T>>& slopes,
                                   index first, const accumulate<T>* keys, const accumulate<T>* values, index samples) {
    using A = accumulate<T>;
    const A scale = A(1) / std::sqrt(A(p.depth));
    A *share = p.share + samples, *slope = p.slope + samples, mean = 0;
    for (int s = 0; s < SAMPLES; ++s) {
        slope[s] = weighted(taps.weight, first + s, values + s * CORNERS);
        mean += share[s] * slope[s];
    }
    for (int s = 0; s < SAMPLES; ++s) {
        slope[s] = share[s] * (slope[s] - mean);
        A at_corner[CORNERS];
        for (int c = 0; c < CORNERS; ++c)
            at_corner[c] = slope[s] * scale * keys[s * CORNERS + c] + share[s] * values[s * CORNERS + c];
        p.grad_offset[2 * (samples + s)] = weighted(slopes.y, first + s, at_corner);
        p.grad_offset[2 * (samples + s) + 1] = weighted(slopes.x, first + s, at_corner);
    }
}

// Gradient of one query, the height term's part excepted.
template <int DEPTH, class T>
DGMN2_INLINE void query_gradient(const Attention<T>& p, const T* k, const Taps<accumulate<T>>& taps, index first,
                                 const accumulate<T>* table, const accumulate<T>* slope, accumulate<T>* out) {
    using A = accumulate<T>;
    constexpr int block = BLOCK<DEPTH, A>;
    const A scale = A(1) / std::sqrt(A(p.depth));
    for (index from = 0; from < (DEPTH ? DEPTH : p.depth); from += block * LANES<A>) {
        Vector<A> sums[block] = {};
        for (int s = 0; s < SAMPLES; ++s) {
            add_sample<DEPTH, block>(p, k, taps, first + s, from, slope[s] * scale, sums);
            for (int i = 0; i < block; ++i)
                sums[i] += load_row<DEPTH>(table + s * p.depth, from + i * LANES<A>, p.depth) * slope[s];
        }
        for (int i = 0; i < block; ++i) store_row<DEPTH>(sums[i], out, from + i * LANES<A>, p.depth);
    }
}

// Queries of a row and head, up to RUN: shares, gradients of logits, offsets and q. `held` holds the height logits.
template <int DEPTH, class T>
DGMN2_INLINE void query_gradients_run(const Attention<T>& p, index b, index head, index y, index x, index count) {
    using A = accumulate<T>;
    constexpr int DOTS = SAMPLES * CORNERS;
    Taps<A> taps;
    Slopes<A> slopes;
    locate_taps(p, b, head, y, x, count, taps, &slopes);
    alignas(64) A logits[RUN * SAMPLES + SPARE] = {}, keys[RUN * DOTS + SPARE], values[RUN * DOTS + SPARE];
    alignas(64) A across[SAMPLES + SPARE], held[SAMPLES];
    const A scale = A(1) / std::sqrt(A(p.depth));
    const T *k = p.token(1, b, 0, head), *v = p.token(2, b, 0, head);
    const index n = y * p.columns + x;
    const A* tables = p.width + (p.columns - 1 - x) * p.depth;
    for (index i = 0; i < count; ++i) {
        const T* q = p.token(0, b, n + i, head);
        corner_dots<DEPTH>(p, q, k, taps, i * SAMPLES, keys + i * DOTS);
        corner_dots<DEPTH>(p, p.grad_out(b, n + i, head), v, taps, i * SAMPLES, values + i * DOTS);
        table_dots<DEPTH>(q, tables - i * p.depth, p.depth, across);
        height_logits(p, b, head, y, x + i, held);
        for (int s = 0; s < SAMPLES; ++s)
            logits[i * SAMPLES + s] =
                scale * weighted(taps.weight, i * SAMPLES + s, keys + i * DOTS + s * CORNERS) + across[s] + held[s];
    }
    softmax_run(logits, count);
    for (index i = 0; i < count; ++i) {
        const index samples = p.samples_at(b, n + i, head);
        __builtin_memcpy(p.share + samples, logits + i * SAMPLES, SAMPLES * sizeof(A));
        sample_gradients(p, taps, slopes, i * SAMPLES, keys + i * DOTS, values + i * DOTS, samples);
        query_gradient<DEPTH>(p, k, taps, i * SAMPLES, tables - i * p.depth, p.slope + samples,
                              p.grad_token(0, b, n + i, head));
    }
}

// Work item (b * H + y) * h + head: one row of queries of one head.
template <int DEPTH, class T>
void query_gradients_row(const Attention<T>& p, index item) {
    const index head = item % p.heads, y = item / p.heads % p.rows, b = item / p.heads / p.rows;
    for (index x = 0; x < p.columns; x += RUN)
        query_gradients_run<DEPTH>(p, b, head, y, x, p.columns - x < RUN ? p.columns - x : RUN);
}

// to[j] += share * row[j] over a whole row.
template <int DEPTH, class T>
DGMN2_INLINE void add_row(accumulate<T> share, const T* row, accumulate<T>* to, index depth) {
    using A = accumulate<T>;
    for (index j = 0; j < (DEPTH ? DEPTH : depth); j += LANES<A>)
        store_row<DEPTH>(load_row<DEPTH>(to, j, depth) + load_row<DEPTH>(row, j, depth) * share, to, j, depth);
}

// Work item b * H + y: the height term's part of the query gradients of one image row.
template <int DEPTH, class T>
void height_gradients_row(const Attention<T>& p, index item) {
    using A = accumulate<T>;
    const index b = item / p.rows, y = item % p.rows;
    const A* table = p.height + (p.rows - 1 - y) * p.depth;
    for (index x = 0; x < p.columns; ++x)
        for (index head = 0; head < p.heads; ++head) {
            const A* slope = p.held_gradient(b, head, y, x);
            A* grad = p.grad_token(0, b, y * p.columns + x, head);
            for (int s = 0; s < SAMPLES; ++s) add_row<DEPTH>(slope[s], table + s * p.depth, grad, p.depth);
        }
}

// Work item y, or H + x: what the queries of one image row give the height table, or of one column the width table.
template <int DEPTH, class T>
void table_gradients_line(const Attention<T>& p, index item) {
    using A = accumulate<T>;
    const bool down = item < p.rows;
    const index line = down ? item : item - p.rows, length = down ? p.columns : p.rows;
    A* to = (down ? p.part_height : p.part_width) + line * SAMPLES * p.depth;
    for (index b = 0; b < p.batch; ++b)
        for (index i = 0; i < length; ++i)
            for (index head = 0; head < p.heads; ++head) {
                const index y = down ? line : i, x = down ? i : line, n = y * p.columns + x;
                const A* slope = down ? p.held_gradient(b, head, y, x) : p.slope + p.samples_at(b, n, head);
                const T* q = p.token(0, b, n, head);
                for (int s = 0; s < SAMPLES; ++s) add_row<DEPTH>(slope[s], q, to + s * p.depth, p.depth);
            }
}

// Work item ((b * h) + head) * chunks + chunk: key and value gradients of CHUNK channels of one head, whole map.
template <int DEPTH, class T>
void scatter_chunk(const Attention<T>& p, index item) {
    using A = accumulate<T>;
    const index from = item % p.chunks() * CHUNK, head = item / p.chunks() % p.heads, b = item / p.chunks() / p.heads;
    const index until = from + CHUNK < p.depth ? from + CHUNK : p.depth, stride = 3 * p.heads * p.depth;
    const A scale = A(1) / std::sqrt(A(p.depth));
    A *keys = p.grad_token(1, b, 0, head), *values = p.grad_token(2, b, 0, head);
    Taps<A> taps;
    for (index n = 0; n < p.tokens(); ++n) {
        const index x = n % p.columns, i = x % RUN;
        if (i == 0) locate_taps(p, b, head, n / p.columns, x, p.columns - x < RUN ? p.columns - x : RUN, taps);
        const T *q = p.token(0, b, n, head), *grad = p.grad_out(b, n, head);
        const index samples = p.samples_at(b, n, head);
        for (int s = 0; s < SAMPLES; ++s) {
            const index t = i * SAMPLES + s;
            if (taps.pixel[t] < 0) continue;
            const A key_share = p.slope[samples + s] * scale, value_share = p.share[samples + s];
            const index right = taps.right[t] * stride, below = taps.below[t] * p.columns * stride;
            for (int c = 0; c < CORNERS; ++c) {
                const index at = taps.pixel[t] * stride - (c & 1 ? right : 0) - (c & 2 ? below : 0);
                const A key_weight = taps.weight[c][t] * key_share, value_weight = taps.weight[c][t] * value_share;
                for (index j = from; j < until; j += LANES<A>) {
                    store_row<DEPTH>(load_row<DEPTH>(keys + at, j, p.depth) + load_row<DEPTH>(q, j, p.depth) * key_weight,
                                     keys + at, j, p.depth);
                    store_row<DEPTH>(
                        load_row<DEPTH>(values + at, j, p.depth) + load_row<DEPTH>(grad, j, p.depth) * value_weight,
                        values + at, j, p.depth);
                }
            }
        }
    }
}
