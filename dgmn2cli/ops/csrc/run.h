// The order of work: which items each op runs over its threads. Results do not depend on the number of threads.
#pragma once

#include "isa.h"
#include "unfold.h"

namespace dgmn2 {

using Range = void (*)(std::int64_t begin, std::int64_t end, void* context);
using ParallelFor = std::int32_t (*)(std::int64_t begin, std::int64_t end, std::int64_t grain, Range range, void* context);

// libtorch's `torch_parallel_for`, so that the process has one pool of threads; where it is absent, loops run serially.
inline ParallelFor parallel_for = nullptr;
inline thread_local bool threads_failed = false;  // threads could not be started: the results are not complete

template <class Work>
void each(index items, int threads, const Work& work) {
    const Range range = [](std::int64_t begin, std::int64_t end, void* context) {
        for (std::int64_t item = begin; item < end; ++item) (*static_cast<const Work*>(context))(index(item));
    };
    void* context = const_cast<Work*>(&work);
    if (parallel_for == nullptr || threads < 2 || items < 2)
        range(0, items, context);
    else if (parallel_for(0, items, 1, range, context) != 0)
        threads_failed = true;
}

template <class T>
void unfold_forward(const Unfold<T>& p, int threads) {
    each(p.batch * p.channels, threads, [&](index item) { unfold_plane(p, item); });
}

template <class T>
void unfold_backward(const Unfold<T>& p, int threads) {
    each(p.batch * p.channels, threads, [&](index item) { unfold_grad_plane(p, item); });
    each(p.batch * p.groups * p.taps(), threads, [&](index item) { unfold_grad_offset(p, item); });
}

template <class T>
void upsampled_rows(const Upsampled<T>& p, Isa isa, int threads) {
    const UpsampledKernel<T> kernel = upsampled_kernel<T>(isa, p.channels);
    each((p.across.to + UPSAMPLED_COLUMNS - 1) / UPSAMPLED_COLUMNS, threads, [&](index item) { kernel(p, item); });
}

template <class T>
void attention_forward(const Attention<T>& p, Isa isa, int threads) {
    const AttentionKernels<T> kernels = attention_kernels<T>(isa, p.depth);
    each(p.batch * p.heads * p.strips(), threads, [&](index item) { kernels.height_logits_strip(p, item); });
    each(p.batch * p.rows * p.heads, threads, [&](index item) { kernels.attend_row(p, item); });
}

// Spreads one head's logit gradients over the map its height logits are held in: the adjoint of the resize.
template <class T>
void spread_held(const Attention<T>& p, index item) {
    using A = accumulate<T>;
    const index b = item / p.heads, head = item % p.heads;
    for (index y = 0; y < p.rows; ++y)
        for (index x = 0; x < p.columns; ++x) {
            const Source row = resize_source(y, p.columns, p.rows), column = resize_source(x, p.rows, p.columns);
            const A* from = p.slope + p.samples_at(b, y * p.columns + x, head);
            const A down = A(row.weight), across = A(column.weight);
            const index lines[2] = {row.lower, row.upper}, places[2] = {column.lower, column.upper};
            const A shares[2][2] = {{(1 - down) * (1 - across), (1 - down) * across}, {down * (1 - across), down * across}};
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 2; ++j) {
                    A* to = p.grad_held + (((b * p.heads + head) * p.columns + lines[i]) * p.rows + places[j]) * SAMPLES;
                    for (int s = 0; s < SAMPLES; ++s) to[s] += shares[i][j] * from[s];
                }
        }
}

// Sums the parts of one table row: sample s of line L - 1 + s - row lies in it.
template <class A>
void sum_table_row(const A* parts, index length, index depth, index row, A* table) {
    A* to = table + row * depth;
    for (index j = 0; j < depth; ++j) to[j] = 0;
    for (int s = 0; s < SAMPLES; ++s) {
        const index line = length - 1 + s - row;
        if (line < 0 || line >= length) continue;
        for (index j = 0; j < depth; ++j) to[j] += parts[(line * SAMPLES + s) * depth + j];
    }
}

// Work item head: turns the counts into where each band's records of each cell begin.
template <class T>
void place_cells(const Attention<T>& p, index head) {
    std::int32_t total = 0;
    for (index cell = 0; cell < p.cells(); ++cell)
        for (index band = 0; band < BANDS; ++band) {
            std::int32_t& at = p.band_ends(head, band)[cell];
            const std::int32_t count = at;
            at = total;
            total += count;
        }
}

// The forward's scratch is computed anew; nothing is kept between the two passes.
template <class T>
void attention_backward(const Attention<T>& p, Isa isa, int threads) {
    const AttentionKernels<T> kernels = attention_kernels<T>(isa, p.depth);
    each(p.batch * p.heads * p.strips(), threads, [&](index item) { kernels.height_logits_strip(p, item); });
    each(p.batch * p.rows * p.heads, threads, [&](index item) { kernels.query_gradients_row(p, item); });
    if (p.rows != p.columns) each(p.batch * p.heads, threads, [&](index item) { spread_held(p, item); });
    each(p.batch * p.rows, threads, [&](index item) { kernels.height_gradients_row(p, item); });
    each(p.rows + p.columns, threads, [&](index item) { kernels.table_gradients_line(p, item); });
    each(p.rows + SAMPLES - 1, threads, [&](index row) { sum_table_row(p.part_height, p.rows, p.depth, row, p.grad_height); });
    each(p.columns + SAMPLES - 1, threads, [&](index row) { sum_table_row(p.part_width, p.columns, p.depth, row, p.grad_width); });
    for (index b = 0; b < p.batch; ++b) {
        each(p.heads * BANDS, threads, [&](index item) { kernels.count_cells(p, b, item); });
        each(p.heads, threads, [&](index head) { place_cells(p, head); });
        each(p.heads * BANDS, threads, [&](index item) { kernels.sort_samples(p, b, item); });
        each(p.heads * p.rows, threads, [&](index item) { kernels.gather_row(p, b, item); });
    }
}

}  // namespace dgmn2
