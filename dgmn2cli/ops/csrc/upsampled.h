// The problem statement of a 3x3 convolution over a bilinearly enlarged map, with its bias and ReLU.
//
// A convolution is nine products with a matrix of channels, one per tap, and such products commute with bilinear resizing.
// So the products are taken on the small map, where there are few positions; what is left is to interpolate and to add:
// first along each source row, then down the columns, through a ring of the rows that are still needed.
#pragma once

#include "scalar.h"

namespace dgmn2 {

constexpr index UPSAMPLED_COLUMNS = 8;  // of the large map, in one work item

// Between which two positions of the small map one of the large map lies, and how much each of them counts.
template <class A>
struct Between {
    index upper, lower;
    A nearer, farther;  // weights of upper and of lower
};

// One axis of the resize, aligned corners: as ops/resample.py rounds it.
template <class A>
struct ResizedAxis {
    const std::int32_t* upper;  // (to)
    const A* weight;            // (to): of the position after `upper`
    index from, to;

    Between<A> at(index position) const {  // one beyond the map counts nothing: the convolution's padding
        const index inside = position < 0 ? 0 : position < to ? position : to - 1;
        const index above = upper[inside], below = above + 1 < from ? above + 1 : above;
        if (inside != position) return {above, below, 0, 0};
        return {above, below, 1 - weight[inside], weight[inside]};
    }
};

template <class T>
struct Upsampled {
    using A = accumulate<T>;
    const T* products;  // (rows, w, 3, 3, C): of source rows `first_row` and on with the matrices of taps (ky, kx)
    A* ring;            // (ring_rows, W, 3, C): source rows summed along x, one sum per ky; row r lies at r % ring_rows
    T* out;             // (out_rows, W, C): rows `first_out` and on of the result
    const A* bias;      // (C)
    ResizedAxis<A> down, across;
    index channels, rows, first_row, ring_rows, out_rows, first_out;
    index relu;  // whether negative sums are cut to zero

    const T* tap(index row, index x, index ky, index kx) const {
        return products + (((row - first_row) * across.from + x) * 9 + ky * 3 + kx) * channels;
    }
    A* ring_row(index row) const { return ring + row % ring_rows * across.to * 3 * channels; }
};

}  // namespace dgmn2
