// The fused attention's problem statement: where its operands lie, and the work items the kernels are called for.
#pragma once

#include <type_traits>

#include "scalar.h"

namespace dgmn2 {

constexpr int SAMPLES = 9;   // taps of the 3x3 kernel, s = 3*i + j
constexpr int CORNERS = 4;
constexpr int RUN = 16;      // neighbouring queries of one row that are worked on together
constexpr int SPARE = 16;    // elements that may be touched behind a scratch array of per-sample values
constexpr int STRIP = 8;    // rows of queries whose height logits are taken together
constexpr int AHEAD = 6;     // rows of keys and values that are asked of memory before they are needed
constexpr int BANDS = 8;     // parts of the rows whose samples are sorted side by side

// What one sample gives the key and value gradients of the four pixels around it.
template <class A>
struct Record {
    std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t> query;  // row-major position of its query
    A down, across;                                                        // its place between the four pixels
    A key, value;                                                          // factors of q and of the output's gradient
};
static_assert(sizeof(Record<float>) == 5 * sizeof(float) && sizeof(Record<double>) == 5 * sizeof(double), "5 numbers");

template <class T>
struct Attention {
    using A = accumulate<T>;
    const T* qkv;     // (B, N, 3, h, d), last stride 1
    const A* offset;  // (B, N, h, 18), pairs (dy, dx)
    const A* height;  // (H + 8, d)
    const A* width;   // (W + 8, d)
    const T* zeros;   // (d): what a sample outside the map reads
    A* held;          // (B, h, W, H, 9) and SPARE: the height logits as the published model holds them
    T* out;           // (B, N, h, d)
    index batch, rows, columns, heads, depth;
    index batch_stride, token_stride, part_stride, head_stride;  // of qkv, in elements

    // Backward only; every gradient is in the accumulation format.
    const T* grad;                // (B, N, h, d), of `out`
    A *grad_qkv, *grad_offset;    // (B, N, 3, h, d); (B, N, h, 18)
    A *grad_height, *grad_width;  // (H + 8, d), (W + 8, d)
    A *share, *slope;             // (B, N, h, 9): softmax shares; gradients of the logits
    A* grad_held;                 // (B, h, W, H, 9), zeroed by the caller; of `held`, on maps that are not square
    Record<A>* records;           // (h, N * 9): one image's samples, sorted by the cell they lie in
    std::int32_t* ends;           // (h, BANDS, cells): where each band's records of each cell end
    A *part_height, *part_width;  // (H, 9, d), (W, 9, d): table gradients by row and column

    index tokens() const { return rows * columns; }
    index strips() const { return (rows + STRIP - 1) / STRIP; }
    bool by_head() const { return head_stride > token_stride; }  // whether qkv lies head by head, not token by token
    index cells() const { return (rows + 1) * (columns + 1); }
    std::int32_t* band_ends(index head, index band) const { return ends + (head * BANDS + band) * cells(); }
    Record<A>* head_records(index head) const { return records + head * tokens() * SAMPLES; }
    index samples_at(index b, index n, index head) const { return ((b * tokens() + n) * heads + head) * SAMPLES; }
    A* grad_token(index part, index b, index n, index head) const {
        return grad_qkv + (((b * tokens() + n) * 3 + part) * heads + head) * depth;
    }
    const T* grad_out(index b, index n, index head) const { return grad + ((b * tokens() + n) * heads + head) * depth; }
    // Gradient of the height logits that the query at (y, x) gave, whichever position they were added to.
    const A* held_gradient(index b, index head, index y, index x) const {
        if (rows == columns) return slope + samples_at(b, x * columns + y, head);
        return grad_held + (((b * heads + head) * columns + x) * rows + y) * SAMPLES;
    }
    const T* token(index part, index b, index n, index head) const {
        return qkv + b * batch_stride + n * token_stride + part * part_stride + head * head_stride;
    }
    // Height logits of column x of the map as held, position y: laid out (W, H).
    A* held_at(index b, index head, index x, index y) const {
        return held + (((b * heads + head) * columns + x) * rows + y) * SAMPLES;
    }
};

// Where one position of a resized axis reads from (half-pixel centres, clamped at the lower end).
struct Source {
    index lower, upper;
    double weight;  // of the upper one
};

inline Source resize_source(index position, index from, index to) {
    const double exact = (double(position) + 0.5) * double(from) / double(to) - 0.5;
    const double at = exact > 0 ? exact : 0;
    index lower = index(at);
    lower = lower < from - 1 ? lower : from - 1;
    return {lower, lower + 1 < from ? lower + 1 : lower, at - double(lower)};
}

}  // namespace dgmn2
