// The choice of instruction set: the kernels compiled once per set, and a table of them for the one that runs.
#pragma once

#include <type_traits>
#include <utility>

#include "attention.h"
#include "upsampled.h"

#if defined(__clang__)
#define DGMN2_TARGET_BEGIN(features) \
    _Pragma("clang attribute push(__attribute__((target(features))), apply_to = function)")
#define DGMN2_TARGET_END _Pragma("clang attribute pop")
#endif

namespace dgmn2 {

enum class Isa { baseline, avx2, avx512 };

}  // namespace dgmn2

namespace dgmn2::baseline {
#define DGMN2_VECTOR_BYTES 16
#include "vector.h"
#include "taps.h"
#include "attention_forward.h"
#include "attention_backward.h"
#include "upsampled_rows.h"
#undef DGMN2_VECTOR_BYTES
}  // namespace dgmn2::baseline

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace dgmn2::avx2 {
#define DGMN2_VECTOR_BYTES 32
#include "vector.h"
#include "taps.h"
#include "attention_forward.h"
#include "attention_backward.h"
#include "upsampled_rows.h"
#undef DGMN2_VECTOR_BYTES
}  // namespace dgmn2::avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
namespace dgmn2::avx512 {
#define DGMN2_VECTOR_BYTES 64
#include "vector.h"
#include "taps.h"
#include "attention_forward.h"
#include "attention_backward.h"
#include "upsampled_rows.h"
#undef DGMN2_VECTOR_BYTES
}  // namespace dgmn2::avx512
#pragma GCC pop_options
#endif

namespace dgmn2 {

inline Isa best_isa() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
    return Isa::baseline;
}

// The kernels of one instruction set and head width, by work item.
template <class T>
struct AttentionKernels {
    using Kernel = void (*)(const Attention<T>&, index);
    Kernel height_logits_strip, attend_row;
    Kernel query_gradients_row, height_gradients_row, table_gradients_line;
    using ImageKernel = void (*)(const Attention<T>&, index, index);  // of image b
    ImageKernel count_cells, sort_samples, gather_row;
};

#define DGMN2_KERNELS(isa, depth)                                                                          \
    AttentionKernels<T> {                                                                                  \
        isa::height_logits_strip<depth, T>, isa::attend_row<depth, T>, isa::query_gradients_row<depth, T>,   \
            isa::height_gradients_row<depth, T>, isa::table_gradients_line<depth, T>, isa::count_cells<T>, \
            isa::sort_samples<T>, isa::gather_row<depth, T>                                                \
    }

template <class T>
AttentionKernels<T> attention_kernels(Isa isa, index depth) {  // 64 is every published head's width
#if defined(__x86_64__)
    if (isa == Isa::avx512) return depth == 64 ? DGMN2_KERNELS(avx512, 64) : DGMN2_KERNELS(avx512, 0);
    if (isa == Isa::avx2) return depth == 64 ? DGMN2_KERNELS(avx2, 64) : DGMN2_KERNELS(avx2, 0);
#else
    (void)isa;
#endif
    return depth == 64 ? DGMN2_KERNELS(baseline, 64) : DGMN2_KERNELS(baseline, 0);
}
#undef DGMN2_KERNELS

template <class T>
using UpsampledKernel = void (*)(const Upsampled<T>&, index);

#define DGMN2_KERNEL(isa) \
    (channels % isa::LANES<accumulate<T>> == 0 ? isa::upsampled_columns<1, T> : isa::upsampled_columns<0, T>)

template <class T>
UpsampledKernel<T> upsampled_kernel(Isa isa, index channels) {
#if defined(__x86_64__)
    if (isa == Isa::avx512) return DGMN2_KERNEL(avx512);
    if (isa == Isa::avx2) return DGMN2_KERNEL(avx2);
#else
    (void)isa;
#endif
    return DGMN2_KERNEL(baseline);
}
#undef DGMN2_KERNEL

}  // namespace dgmn2
