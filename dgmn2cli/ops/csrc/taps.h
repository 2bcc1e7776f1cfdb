// Where a run of queries samples: corner weights and pixels of its taps. Included once per instruction set.

// Samples of RUN queries, 9 each, flat; every corner pixel is one of the map, whatever the offsets are.
template <class A>
struct Taps {
    static constexpr int count = RUN * SAMPLES;
    alignas(64) A weight[4][count];    // upper left, upper right, lower left, lower right; NaN for a non-finite offset
    alignas(64) Lane<A> pixel[count];  // of the uppermost and leftmost corner that exists; -1 outside the map
    alignas(64) Lane<A> right[count];  // -1 where both columns exist, else 0
    alignas(64) Lane<A> below[count];  // -1 where both rows exist, else 0
};

// What the backward needs beside: how the corners' weights change with the sample's place, 0 where a corner is missing.
template <class A>
struct Slopes {
    static constexpr int count = RUN * SAMPLES;
    alignas(64) A y[CORNERS][count], x[CORNERS][count];
};

// Where in its cell, the square between four pixels, each sample lies.
template <class A>
struct Cells {
    static constexpr int count = RUN * SAMPLES;
    alignas(64) Lane<A> cell[count];           // (row + 1) * (W + 1) + column + 1 of its upper left pixel; -1 outside
    alignas(64) A down[count], across[count];  // 0 <= fraction < 1
};

// Undisplaced sample positions of a run, relative to the pixel up and left of its first query.
template <class A>
struct Grid {
    alignas(64) A row[RUN * SAMPLES], column[RUN * SAMPLES];
    constexpr Grid() : row(), column() {
        for (int t = 0; t < RUN * SAMPLES; ++t) {
            row[t] = A(t % SAMPLES / 3);
            column[t] = A(t / SAMPLES + t % SAMPLES % 3);
        }
    }
};
template <class A>
constexpr Grid<A> GRID{};

// One axis of a vector of sample positions: its two neighbouring pixels, which of them exist, and their weights.
template <class A>
struct Axis {
    Whole<A> floor, has_lower, has_upper;
    Vector<A> fraction, lower, upper;
};

template <class A>
DGMN2_INLINE Axis<A> locate_axis(Vector<A> at, index length) {  // -1 < at < length
    Whole<A> floor = __builtin_convertvector(at, Whole<A>);     // towards zero
    floor += at < __builtin_convertvector(floor, Vector<A>);
    const Vector<A> fraction = at - __builtin_convertvector(floor, Vector<A>);
    const Whole<A> has_lower = floor >= 0, has_upper = floor < Lane<A>(length - 1);
    return {floor, has_lower, has_upper, fraction, has_lower ? 1 - fraction : Vector<A>{}, has_upper ? fraction : Vector<A>{}};
}

template <class A>
DGMN2_INLINE void slope_vector(const Axis<A>& row, const Axis<A>& column, Whole<A> inside, int t, Slopes<A>& slopes) {
    const Vector<A> one = Vector<A>{} + A(1), none = {};
    const Vector<A> upper = row.has_lower & inside ? one : none, lower = row.has_upper & inside ? one : none;
    const Vector<A> left = column.has_lower & inside ? one : none, right = column.has_upper & inside ? one : none;
    store(-upper * column.lower, slopes.y[0] + t);
    store(-upper * column.upper, slopes.y[1] + t);
    store(lower * column.lower, slopes.y[2] + t);
    store(lower * column.upper, slopes.y[3] + t);
    store(-left * row.lower, slopes.x[0] + t);
    store(right * row.lower, slopes.x[1] + t);
    store(-left * row.upper, slopes.x[2] + t);
    store(right * row.upper, slopes.x[3] + t);
}

// `slopes` and `cells` are null where they are not wanted.
template <class A>
DGMN2_INLINE void locate_vector(const A* offset, Vector<A> grid_y, Vector<A> grid_x, index rows, index columns, int t,
                                Taps<A>& taps, Slopes<A>* slopes, Cells<A>* cells) {
    const Vector<A> first = load(offset + 2 * t), second = load(offset + 2 * t + LANES<A>);
    const Vector<A> y = grid_y + evens(first, second), x = grid_x + odds(first, second);
    const Whole<A> inside = (y > A(-1)) & (x > A(-1)) & (y < A(rows)) & (x < A(columns));  // false for NaN
    const Axis<A> row = locate_axis<A>(inside ? y : Vector<A>{}, rows);
    const Axis<A> column = locate_axis<A>(inside ? x : Vector<A>{}, columns);
    const Vector<A> present = inside ? Vector<A>{} + A(1) : (y - y) + (x - x);  // 1, 0, or NaN where not finite
    const Vector<A> upper = row.lower * present, lower = row.upper * present;
    store(upper * column.lower, taps.weight[0] + t);
    store(upper * column.upper, taps.weight[1] + t);
    store(lower * column.lower, taps.weight[2] + t);
    store(lower * column.upper, taps.weight[3] + t);
    const Whole<A> top = row.has_lower ? row.floor : Whole<A>{}, left = column.has_lower ? column.floor : Whole<A>{};
    store(inside ? top * Lane<A>(columns) + left : Whole<A>{} - 1, taps.pixel + t);
    store(inside & column.has_lower & column.has_upper, taps.right + t);
    store(inside & row.has_lower & row.has_upper, taps.below + t);
    if (slopes != nullptr) slope_vector<A>(row, column, inside, t, *slopes);
    if (cells != nullptr) {
        const Whole<A> cell = (row.floor + 1) * Lane<A>(columns + 1) + column.floor + 1;
        store(inside ? cell : Whole<A>{} - 1, cells->cell + t);
        store(row.fraction, cells->down + t);
        store(column.fraction, cells->across + t);
    }
}

template <class T>
DGMN2_INLINE void locate_taps(const Attention<T>& p, index b, index head, index y, index x, index count,
                              Taps<accumulate<T>>& taps, Slopes<accumulate<T>>* slopes = nullptr,
                              Cells<accumulate<T>>* cells = nullptr) {
    using A = accumulate<T>;
    alignas(64) A offset[2 * RUN * SAMPLES];
    const A* from = p.offset + ((b * p.tokens() + y * p.columns + x) * p.heads + head) * (2 * SAMPLES);
    for (index i = 0; i < count; ++i)
        __builtin_memcpy(offset + i * 2 * SAMPLES, from + i * p.heads * 2 * SAMPLES, 2 * SAMPLES * sizeof(A));
    for (index i = count * 2 * SAMPLES; i < 2 * RUN * SAMPLES; ++i) offset[i] = 0;
    for (int t = 0; t < RUN * SAMPLES; t += LANES<A>)
        locate_vector<A>(offset, load(GRID<A>.row + t) + A(y - 1), load(GRID<A>.column + t) + A(x - 1), p.rows, p.columns,
                         t, taps, slopes, cells);
}
