// The fused attention's backward kernels. Included once per instruction set, after attention_forward.h.
// Every work item writes addresses of its own, in an order of its own: no atomics, the same bits for any threads.

// Dot products of a vector with the four corner rows of each sample of a run: corner by corner, flat as the taps are.
template <class A>
struct Dots {
    alignas(64) A at[CORNERS][RUN * SAMPLES];
};

// One query's part of `dots`: row . corner c of sample s, in one part (k or v).
template <int DEPTH, class T>
DGMN2_INLINE void corner_dots(const Attention<T>& p, const T* row, const T* part, const Taps<accumulate<T>>& taps, index first,
                              Dots<accumulate<T>>& dots) {
    using A = accumulate<T>;
    Vector<A> products[CORNERS * SAMPLES];
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
        for (int c = 0; c < CORNERS; ++c) products[c * SAMPLES + s] = sums[c];
    }
    alignas(64) A sums[CORNERS * SAMPLES + SPARE];
    lane_sums<CORNERS * SAMPLES>(products, sums);
    for (int c = 0; c < CORNERS; ++c) __builtin_memcpy(dots.at[c] + first, sums + c * SAMPLES, SAMPLES * sizeof(A));
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

// Sum over the corners of weight times dot product, for the samples from t on.
template <class A>
DGMN2_INLINE Vector<A> weighted(const A (*weights)[RUN * SAMPLES], const Dots<A>& dots, index t) {
    Vector<A> sum = {};
    for (int c = 0; c < CORNERS; ++c) sum += load(weights[c] + t) * load(dots.at[c] + t);
    return sum;
}

// Gradients of a run's logits and offsets, from its shares and its corners' dot products.
template <class T>
DGMN2_INLINE void sample_gradients(const Attention<T>& p, const Taps<accumulate<T>>& taps, const Slopes<accumulate<T>>& slopes,
                                   const accumulate<T>* share, const Dots<accumulate<T>>& keys,
                                   const Dots<accumulate<T>>& values, index count, accumulate<T>* slope, accumulate<T>* grad_y,
                                   accumulate<T>* grad_x) {
    using A = accumulate<T>;
    const A scale = A(1) / std::sqrt(A(p.depth));
    for (int t = 0; t < RUN * SAMPLES; t += LANES<A>) store(weighted(taps.weight, values, t), slope + t);
    for (index i = 0; i < count; ++i) {
        A mean = 0;
        for (int s = 0; s < SAMPLES; ++s) mean += share[i * SAMPLES + s] * slope[i * SAMPLES + s];
        for (int s = 0; s < SAMPLES; ++s) slope[i * SAMPLES + s] = share[i * SAMPLES + s] * (slope[i * SAMPLES + s] - mean);
    }
    for (int t = 0; t < RUN * SAMPLES; t += LANES<A>) {
        const Vector<A> key = load(slope + t) * scale, value = load(share + t);
        store(key * weighted(slopes.y, keys, t) + value * weighted(slopes.y, values, t), grad_y + t);
        store(key * weighted(slopes.x, keys, t) + value * weighted(slopes.x, values, t), grad_x + t);
    }
}

// Gradient of one query, the height term's part excepted.
template <int DEPTH, class T>
DGMN2_INLINE void query_gradient(const Attention<T>& p, const T* k, const Taps<accumulate<T>>& taps,
                                 const Factors<accumulate<T>>& factors, index first, const accumulate<T>* table,
                                 const accumulate<T>* slope, accumulate<T>* out) {
    using A = accumulate<T>;
    constexpr int block = BLOCK<DEPTH, A>;
    for (index from = 0; from < (DEPTH ? DEPTH : p.depth); from += block * LANES<A>) {
        Vector<A> sums[block] = {};
        for (int s = 0; s < SAMPLES; ++s) {
            add_sample<DEPTH, block>(p, k, taps, factors, first + s, from, sums);
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
    constexpr int ALL = RUN * SAMPLES;
    Taps<A> taps;
    Slopes<A> slopes;
    locate_taps(p, b, head, y, x, count, taps, &slopes);
    Dots<A> keys = {}, values = {};
    alignas(64) A logits[ALL + SPARE] = {}, added[SAMPLES], across[SAMPLES + SPARE], slope[ALL], grad_y[ALL], grad_x[ALL];
    const T *k = p.token(1, b, 0, head), *v = p.token(2, b, 0, head);
    const index n = y * p.columns + x;
    const A* tables = p.width + (p.columns - 1 - x) * p.depth;
    for (index i = 0; i < count; ++i) {
        const T* q = p.token(0, b, n + i, head);
        fetch_below(p, b, head, y, x + i);
        corner_dots<DEPTH>(p, q, k, taps, i * SAMPLES, keys);
        corner_dots<DEPTH>(p, p.grad_out(b, n + i, head), v, taps, i * SAMPLES, values);
        table_dots<DEPTH>(q, tables - i * p.depth, p.depth, across);
        height_logits(p, b, head, y, x + i, added);
        for (int s = 0; s < SAMPLES; ++s) logits[i * SAMPLES + s] = across[s] + added[s];
    }
    const A scale = A(1) / std::sqrt(A(p.depth));
    for (int t = 0; t < ALL; t += LANES<A>)
        store(load(logits + t) + weighted(taps.weight, keys, t) * scale, logits + t);
    softmax_run(logits, count);
    sample_gradients(p, taps, slopes, logits, keys, values, count, slope, grad_y, grad_x);
    Factors<A> factors;
    factors.shared(taps, slope, scale);
    for (index i = 0; i < count; ++i) {
        const index samples = p.samples_at(b, n + i, head);
        __builtin_memcpy(p.share + samples, logits + i * SAMPLES, SAMPLES * sizeof(A));
        __builtin_memcpy(p.slope + samples, slope + i * SAMPLES, SAMPLES * sizeof(A));
        for (int s = 0; s < SAMPLES; ++s) {
            p.grad_offset[2 * (samples + s)] = grad_y[i * SAMPLES + s];
            p.grad_offset[2 * (samples + s) + 1] = grad_x[i * SAMPLES + s];
        }
        query_gradient<DEPTH>(p, k, taps, factors, i * SAMPLES, tables - i * p.depth, slope + i * SAMPLES,
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

// Work item b * H + y: the height term's part of the query gradients of one image row.
template <int DEPTH, class T>
void height_gradients_row(const Attention<T>& p, index item) {
    using A = accumulate<T>;
    constexpr int block = BLOCK<DEPTH, A>;
    const index b = item / p.rows, y = item % p.rows;
    const A* table = p.height + (p.rows - 1 - y) * p.depth;
    for (index x = 0; x < p.columns; ++x)
        for (index head = 0; head < p.heads; ++head) {
            const A* slope = p.held_gradient(b, head, y, x);
            A* grad = p.grad_token(0, b, y * p.columns + x, head);
            for (index from = 0; from < (DEPTH ? DEPTH : p.depth); from += block * LANES<A>) {
                Vector<A> sums[block];
                for (int i = 0; i < block; ++i) sums[i] = load_row<DEPTH>(grad, from + i * LANES<A>, p.depth);
                for (int s = 0; s < SAMPLES; ++s)
                    for (int i = 0; i < block; ++i)
                        sums[i] += load_row<DEPTH>(table + s * p.depth, from + i * LANES<A>, p.depth) * slope[s];
                for (int i = 0; i < block; ++i) store_row<DEPTH>(sums[i], grad, from + i * LANES<A>, p.depth);
            }
        }
}

// Work item y, or H + x: what the queries of one image row give the height table, or of one column the width table.
template <int DEPTH, class T>
void table_gradients_line(const Attention<T>& p, index item) {
    using A = accumulate<T>;
    constexpr int block = DEPTH != 0 && LANES<A> * sizeof(A) == 64 ? 2 : 1;  // 9 sums each, in registers
    const bool down = item < p.rows;
    const index line = down ? item : item - p.rows, length = down ? p.columns : p.rows;
    A* to = (down ? p.part_height : p.part_width) + line * SAMPLES * p.depth;
    for (index from = 0; from < (DEPTH ? DEPTH : p.depth); from += block * LANES<A>) {
        Vector<A> sums[SAMPLES][block] = {};
        for (index b = 0; b < p.batch; ++b)
            for (index i = 0; i < length; ++i)
                for (index head = 0; head < p.heads; ++head) {
                    const index y = down ? line : i, x = down ? i : line, n = y * p.columns + x;
                    const A* slope = down ? p.held_gradient(b, head, y, x) : p.slope + p.samples_at(b, n, head);
                    for (int j = 0; j < block; ++j) {
                        const Vector<A> q = load_row<DEPTH>(p.token(0, b, n, head), from + j * LANES<A>, p.depth);
                        for (int s = 0; s < SAMPLES; ++s) sums[s][j] += q * slope[s];
                    }
                }
        for (int s = 0; s < SAMPLES; ++s)
            for (int j = 0; j < block; ++j)
                store_row<DEPTH>(sums[s][j], to + s * p.depth, from + j * LANES<A>, p.depth);
    }
}

// Calls visit(cells, t, query) for each sample inside the map of one band of rows of one head, in order.
template <class T, class Visit>
DGMN2_INLINE void each_sample(const Attention<T>& p, index b, index head, index band, const Visit& visit) {
    Taps<accumulate<T>> taps;
    Cells<accumulate<T>> cells;
    for (index y = band * p.rows / BANDS; y < (band + 1) * p.rows / BANDS; ++y)
        for (index x = 0; x < p.columns; x += RUN) {
            const index count = p.columns - x < RUN ? p.columns - x : RUN;
            locate_taps<T>(p, b, head, y, x, count, taps, nullptr, &cells);
            for (index t = 0; t < count * SAMPLES; ++t)
                if (cells.cell[t] >= 0) visit(cells, t, y * p.columns + x + t / SAMPLES);
        }
}

// Work item head * BANDS + band: counts the band's samples in each cell.
template <class T>
void count_cells(const Attention<T>& p, index b, index item) {
    std::int32_t* counts = p.band_ends(item / BANDS, item % BANDS);
    for (index cell = 0; cell < p.cells(); ++cell) counts[cell] = 0;
    each_sample(p, b, item / BANDS, item % BANDS, [&](const auto& cells, index t, index) { ++counts[cells.cell[t]]; });
}

// Work item head * BANDS + band: writes the band's records; what was where they begin becomes where they end.
template <class T>
void sort_samples(const Attention<T>& p, index b, index item) {
    using A = accumulate<T>;
    const index head = item / BANDS;
    std::int32_t* next = p.band_ends(head, item % BANDS);
    Record<A>* records = p.head_records(head);
    const A scale = A(1) / std::sqrt(A(p.depth));
    each_sample(p, b, head, item % BANDS, [&](const auto& cells, index t, index query) {
        const index sample = p.samples_at(b, query, head) + t % SAMPLES;
        records[next[cells.cell[t]]++] = {Lane<A>(query), cells.down[t], cells.across[t], p.slope[sample] * scale,
                                          p.share[sample]};
    });
}

// keys[i] and values[i] += what the samples of one cell give the pixel at one of its corners.
template <int DEPTH, int BLOCK, class T>
DGMN2_INLINE void add_cell(const Attention<T>& p, index b, index head, index cell, bool lower, bool right, index from,
                           Vector<accumulate<T>>* keys, Vector<accumulate<T>>* values) {
    using A = accumulate<T>;
    const std::int32_t* ends = p.band_ends(head, BANDS - 1);
    const Record<A>* records = p.head_records(head);
    for (index r = cell > 0 ? ends[cell - 1] : 0; r < ends[cell]; ++r) {
        const Record<A>& one = records[r];
        const A weight = (lower ? one.down : 1 - one.down) * (right ? one.across : 1 - one.across);
        const A key = weight * one.key, value = weight * one.value;
        const T *q = p.token(0, b, one.query, head), *grad = p.grad_out(b, one.query, head);
        for (int i = 0; i < BLOCK; ++i) {
            keys[i] += load_row<DEPTH>(q, from + i * LANES<A>, p.depth) * key;
            values[i] += load_row<DEPTH>(grad, from + i * LANES<A>, p.depth) * value;
        }
    }
}

// Work item head * H + y: the key and value gradients of one row of pixels, each from the four cells around it.
template <int DEPTH, class T>
void gather_row(const Attention<T>& p, index b, index item) {
    using A = accumulate<T>;
    constexpr int block = DEPTH == 0 ? 1 : DEPTH / LANES<A> < 4 ? DEPTH / LANES<A> : 4;
    const index head = item / p.rows, y = item % p.rows;
    for (index x = 0; x < p.columns; ++x) {
        const index above = y * (p.columns + 1) + x, beneath = above + p.columns + 1;
        for (index from = 0; from < (DEPTH ? DEPTH : p.depth); from += block * LANES<A>) {
            Vector<A> keys[block] = {}, values[block] = {};
            add_cell<DEPTH, block>(p, b, head, above, true, true, from, keys, values);
            add_cell<DEPTH, block>(p, b, head, above + 1, true, false, from, keys, values);
            add_cell<DEPTH, block>(p, b, head, beneath, false, true, from, keys, values);
            add_cell<DEPTH, block>(p, b, head, beneath + 1, false, false, from, keys, values);
            for (int i = 0; i < block; ++i) {
                store_row<DEPTH>(keys[i], p.grad_token(1, b, y * p.columns + x, head), from + i * LANES<A>, p.depth);
                store_row<DEPTH>(values[i], p.grad_token(2, b, y * p.columns + x, head), from + i * LANES<A>, p.depth);
            }
        }
    }
}
