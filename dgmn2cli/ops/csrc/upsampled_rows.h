// The sums of an upsampled convolution (upsampled.h). Included once per instruction set, after vector.h. WHOLE is 0 where the last vector
// of a row of channels may be partial.

// Sums of one source row's products along the row: for every kernel row ky and column x of the large map, C numbers.
template <int WHOLE, class T>
DGMN2_INLINE void sum_across(const Upsampled<T>& p, index row, index x) {
    using A = accumulate<T>;
    for (index ky = 0; ky < 3; ++ky) {
        const T *left[3], *right[3];
        A nearer[3], farther[3];
        for (index kx = 0; kx < 3; ++kx) {
            const Between<A> at = p.across.at(x + kx - 1);
            left[kx] = p.tap(row, at.upper, ky, kx);
            right[kx] = p.tap(row, at.lower, ky, kx);
            nearer[kx] = at.nearer, farther[kx] = at.farther;
        }
        A* to = p.ring_row(row) + (x * 3 + ky) * p.channels;
        for (index j = 0; j < p.channels; j += LANES<A>) {
            Vector<A> sum = {};
#pragma GCC unroll 3
            for (index kx = 0; kx < 3; ++kx) {
                sum += load_row<WHOLE>(left[kx], j, p.channels) * nearer[kx];
                sum += load_row<WHOLE>(right[kx], j, p.channels) * farther[kx];
            }
            store_row<WHOLE>(sum, to, j, p.channels);
        }
    }
}

// One position of the result: the row sums of three kernel rows interpolated, bias added, negative numbers cut to zero where wanted.
template <int WHOLE, class T>
DGMN2_INLINE void sum_down(const Upsampled<T>& p, index y, index x) {
    using A = accumulate<T>;
    const A *upper[3], *lower[3];
    A nearer[3], farther[3];
    for (index ky = 0; ky < 3; ++ky) {
        const Between<A> at = p.down.at(y + ky - 1);
        upper[ky] = p.ring_row(at.upper) + (x * 3 + ky) * p.channels;
        lower[ky] = p.ring_row(at.lower) + (x * 3 + ky) * p.channels;
        nearer[ky] = at.nearer, farther[ky] = at.farther;
    }
    T* to = p.out + ((y - p.first_out) * p.across.to + x) * p.channels;
    for (index j = 0; j < p.channels; j += LANES<A>) {
        Vector<A> sum = load_row<WHOLE>(p.bias, j, p.channels);
#pragma GCC unroll 3
        for (index ky = 0; ky < 3; ++ky) {
            sum += load_row<WHOLE>(upper[ky], j, p.channels) * nearer[ky];
            sum += load_row<WHOLE>(lower[ky], j, p.channels) * farther[ky];
        }
        if (p.relu) sum = sum < Vector<A>{} ? Vector<A>{} : sum;  // NaN stays NaN
        store_row<WHOLE>(sum, to, j, p.channels);
    }
}

// Work item: a few neighbouring columns of the large map, through all rows of the step.
template <int WHOLE, class T>
void upsampled_columns(const Upsampled<T>& p, index item) {
    const index first = item * UPSAMPLED_COLUMNS;
    const index last = first + UPSAMPLED_COLUMNS < p.across.to ? first + UPSAMPLED_COLUMNS : p.across.to;
    for (index row = p.first_row; row < p.first_row + p.rows; ++row)
        for (index x = first; x < last; ++x) sum_across<WHOLE>(p, row, x);
    for (index y = p.first_out; y < p.first_out + p.out_rows; ++y)
        for (index x = first; x < last; ++x) sum_down<WHOLE>(p, y, x);
}
