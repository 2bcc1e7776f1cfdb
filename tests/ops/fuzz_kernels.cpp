// The random trial of the CPU kernels under the sanitizers: `fuzz_kernels COUNT SEED`, no Python and no PyTorch.
//
// Case i is drawn from SEED + i alone, so the one that failed runs again with `fuzz_kernels 1 <its seed>`. Every operand
// is a heap allocation of exactly the size its contract states: AddressSanitizer sees the first element beside it. What
// the sanitizers cannot see is checked here:
//   - a query with finite inputs has a finite output and finite offset gradients, one with a NaN or infinite offset has not;
//   - one and two threads give the same bits, from scratch memory filled differently: nothing unwritten is read;
//   - finite inputs raise no invalid-operation flag: no vector conversion was out of range (UBSan sees only scalar ones).
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>

#if defined(FUZZ_BASELINE_ONLY)  // a third of the compile time: one instruction set
#undef __x86_64__
#endif
#include "run.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#include <sanitizer/common_interface_defs.h>
#define FUZZ_SANITIZED 1
#endif

extern "C" const char* __asan_default_options() {  // nothing allocates but this file, which frees by unique_ptr
    return "redzone=256:quarantine_size_mb=8:detect_leaks=0";
}
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }

namespace {

using dgmn2::accumulate;
using dgmn2::bfloat16;
using dgmn2::index;
using dgmn2::Isa;

char g_case[512] = "before the first case";
long g_finite = 0, g_hostile = 0, g_flagged = 0;  // queries or samples of each kind that were checked; cases with flags checked
long g_upsampled = 0;  // cases of enlarged maps

void say_case() { std::fprintf(stderr, "case: %s\n", g_case); }

[[noreturn]] void fail(const char* why) {
    std::fprintf(stderr, "FAILED: %s\n", why);
    say_case();
    std::exit(1);
}

void require(bool holds, const char* why) {
    if (!holds) fail(why);
}

// Whole numbers from one seed (SplitMix64), the same on every machine.
class Draw {
  public:
    explicit Draw(std::uint64_t seed) : state_(seed) {}
    std::uint64_t bits() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    index between(index least, index most) { return least + index(bits() % std::uint64_t(most - least + 1)); }
    bool one_in(index count) { return between(1, count) == 1; }
    double within(double reach) { return (double(bits() >> 11) / 9007199254740992.0 * 2 - 1) * reach; }
    template <int N>
    double any(const double (&values)[N]) {
        return values[between(0, N - 1)];
    }

  private:
    std::uint64_t state_;
};

// An allocation of exactly `count` elements.
template <class T>
class Buffer {
  public:
    explicit Buffer(index count) : count_(count), at_(new T[std::size_t(count)]) {}
    Buffer(index count, int filling) : Buffer(count) { std::memset(at(), filling, bytes()); }
    T* at() { return at_.get(); }
    T& operator[](index i) { return at_[std::size_t(i)]; }
    index count() const { return count_; }
    std::size_t bytes() const { return std::size_t(count_) * sizeof(T); }
    bool same_bits(Buffer& other) { return std::memcmp(at(), other.at(), bytes()) == 0; }

  private:
    index count_;
    std::unique_ptr<T[]> at_;
};

template <class T>
bool finite(const T* values, index count) {
    for (index i = 0; i < count; ++i)
        if (!std::isfinite(dgmn2::widen(values[i]))) return false;
    return true;
}

template <class T>
bool none_finite(const T* values, index count) {
    for (index i = 0; i < count; ++i)
        if (std::isfinite(dgmn2::widen(values[i]))) return false;
    return true;
}

// What the operands of one case are drawn from.
struct Style {
    index hostile;    // one offset in so many is hostile; 0: none
    bool non_finite;  // NaN and infinity among them
    double scale;     // of keys, values, gradients and tables
    bool broken;      // NaN and infinity among those, too

    explicit Style(Draw& draw) {
        const index rarity[] = {0, 1, 3, 20, 200};
        hostile = rarity[draw.between(0, 4)];
        non_finite = draw.one_in(2);
        scale = draw.any({1, 1, 1, 100, 1e-3, 1e-39});
        broken = draw.one_in(12);
    }
};

template <class A>
A hostile_offset(Draw& draw, bool non_finite, index height, index width) {
    constexpr double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
    using limits = std::numeric_limits<A>;
    const A towards = draw.one_in(2) ? limits::infinity() : -limits::infinity();
    const A whole = A(draw.between(-13, 13));
    switch (draw.between(non_finite ? 0 : 1, 8)) {
        case 0: return A(draw.any({nan, -nan, inf, -inf}));
        case 1: return A(draw.any({0x1p31, -0x1p31, 0x1p31 - 1, 0x1p32, -0x1p32, 0x1p63, -0x1p63, 0x1p64, 0x1p24, 0x1p53}));
        case 2: return A(draw.any({1e30, -1e30})) * (draw.one_in(2) ? 1 : A(1e5));
        case 3: return draw.one_in(2) ? limits::max() : limits::lowest();
        case 4: return draw.one_in(2) ? limits::denorm_min() : -limits::min() / 2;
        case 5: return A(draw.any({-1, -0.0, double(height), double(width), double(height - 1), double(width - 1)}));
        case 6: return std::nextafter(whole, towards);  // a hair beside a pixel or the border
        default: return whole;
    }
}

template <class A>
void fill_offsets(Buffer<A>& to, Draw& draw, const Style& style, index height, index width) {
    for (index i = 0; i < to.count(); ++i)
        to[i] = style.hostile && draw.one_in(style.hostile) ? hostile_offset<A>(draw, style.non_finite, height, width)
                                                            : A(draw.within(4));
}

template <class T>
void fill(Buffer<T>& to, Draw& draw, const Style& style) {
    using A = accumulate<T>;
    for (index i = 0; i < to.count(); ++i) dgmn2::narrow(A(draw.within(2) * style.scale), to[i]);
    if (style.broken && to.count() > 0)
        dgmn2::narrow(A(draw.any({double(NAN), double(INFINITY), -double(INFINITY)})), to[draw.between(0, to.count() - 1)]);
}

// Runs `work`; where all inputs are finite, no operation of it may have been invalid.
template <class Work>
void watch_flags(bool all_finite, const Work& work) {
    std::feclearexcept(FE_ALL_EXCEPT);
    work();
    if (!all_finite) return;
    ++g_flagged;
    require(std::fetestexcept(FE_INVALID) == 0, "finite inputs raised the invalid-operation flag");
}

constexpr int FILLINGS[] = {0xff, 0x41};  // scratch before a run with one thread, with two: NaN; a number about 12

// ---- fused attention ----

template <class T>
struct AttentionRun {
    using A = accumulate<T>;
    Buffer<T> out;
    Buffer<A> grad_qkv, grad_offset, grad_height, grad_width;

    AttentionRun(dgmn2::Attention<T> p, const T* grad, Isa isa, int threads)
        : out(size(p) * p.depth, FILLINGS[threads - 1]),
          grad_qkv(3 * size(p) * p.depth, FILLINGS[threads - 1]),
          grad_offset(size(p) * 2 * dgmn2::SAMPLES, FILLINGS[threads - 1]),
          grad_height((p.rows + 8) * p.depth, FILLINGS[threads - 1]),
          grad_width((p.columns + 8) * p.depth, FILLINGS[threads - 1]) {
        const int filling = FILLINGS[threads - 1];
        const index samples = size(p) * dgmn2::SAMPLES;
        {
            Buffer<A> held(samples + dgmn2::SPARE, filling);
            p.held = held.at(), p.out = out.at();
            dgmn2::attention_forward(p, isa, threads);
        }
        Buffer<A> held(samples + dgmn2::SPARE, filling), share(samples, filling), slope(samples, filling);
        Buffer<A> grad_held(p.rows == p.columns ? 0 : samples, 0);
        Buffer<dgmn2::Record<A>> records(p.heads * p.tokens() * dgmn2::SAMPLES, filling);
        Buffer<std::int32_t> ends(p.heads * dgmn2::BANDS * p.cells(), filling);
        Buffer<A> part_height(p.rows * dgmn2::SAMPLES * p.depth, filling);
        Buffer<A> part_width(p.columns * dgmn2::SAMPLES * p.depth, filling);
        p.held = held.at(), p.out = nullptr, p.grad = grad;
        p.grad_qkv = grad_qkv.at(), p.grad_offset = grad_offset.at();
        p.grad_height = grad_height.at(), p.grad_width = grad_width.at();
        p.share = share.at(), p.slope = slope.at(), p.grad_held = grad_held.at();
        p.records = records.at(), p.ends = ends.at();
        p.part_height = part_height.at(), p.part_width = part_width.at();
        dgmn2::attention_backward(p, isa, threads);
    }

    static index size(const dgmn2::Attention<T>& p) { return p.batch * p.tokens() * p.heads; }
};

// Strides of qkv for axes batch, token, part and head nested in any order, gaps between them, an axis now and then
// expanded (stride 0); returns the elements from the first to the last one that is addressed.
template <class T>
index draw_strides(Draw& draw, dgmn2::Attention<T>& p) {
    const index sizes[4] = {p.batch, p.tokens(), 3, p.heads};
    index* strides[4] = {&p.batch_stride, &p.token_stride, &p.part_stride, &p.head_stride};
    int order[4] = {3, 2, 1, 0};  // innermost first
    if (draw.one_in(2))
        for (int i = 3; i > 0; --i) std::swap(order[i], order[draw.between(0, i)]);
    index step = p.depth, last = p.depth;
    const bool gaps = draw.one_in(2);
    for (int axis : order) {
        if (gaps) step += draw.between(0, 5);
        *strides[axis] = draw.one_in(25) ? 0 : step;
        last += (sizes[axis] - 1) * *strides[axis];
        step = last > step ? last : step;
    }
    return p.batch == 0 ? 0 : last;
}

template <class T>
void check_queries(const dgmn2::Attention<T>& p, AttentionRun<T>& run, bool inputs_finite) {
    constexpr index pairs = 2 * dgmn2::SAMPLES;
    bool all = inputs_finite;
    for (index query = 0; query < AttentionRun<T>::size(p); ++query) {
        const T* out = run.out.at() + query * p.depth;
        if (!finite(p.offset + query * pairs, pairs)) {
            all = false;
            ++g_hostile;
            require(none_finite(out, p.depth), "a non-finite offset gave a finite output");
        } else if (inputs_finite) {
            ++g_finite;
            require(finite(out, p.depth), "finite inputs and offsets gave a non-finite output");
            require(finite(run.grad_offset.at() + query * pairs, pairs), "finite inputs gave a non-finite offset gradient");
        }
    }
    if (!all) return;
    require(finite(run.grad_qkv.at(), run.grad_qkv.count()), "finite inputs gave a non-finite qkv gradient");
    require(finite(run.grad_height.at(), run.grad_height.count()), "finite inputs gave a non-finite height gradient");
    require(finite(run.grad_width.at(), run.grad_width.count()), "finite inputs gave a non-finite width gradient");
}

template <class T>
void attention_case(Draw& draw, Isa isa, const char* name) {
    using A = accumulate<T>;
    constexpr index depths[] = {1, 3, 7, 8, 16, 20, 64};
    dgmn2::Attention<T> p{};
    p.batch = draw.between(0, 3), p.heads = draw.between(1, 3), p.depth = depths[draw.between(0, 6)];
    p.rows = draw.between(1, 12), p.columns = draw.between(1, 12);
    if (draw.one_in(8)) p.columns = p.rows;
    if (draw.one_in(8)) p.rows = draw.between(1, 3), p.columns = draw.between(13, 35);  // several runs to a row
    const Style style(draw);
    Buffer<T> qkv(draw_strides(draw, p)), zeros(p.depth, 0), grad(AttentionRun<T>::size(p) * p.depth);
    Buffer<A> offset(AttentionRun<T>::size(p) * 2 * dgmn2::SAMPLES), height((p.rows + 8) * p.depth);
    Buffer<A> width((p.columns + 8) * p.depth);
    std::snprintf(g_case + std::strlen(g_case), sizeof g_case - std::strlen(g_case),
                  "attention %s, map %td x %td, batch %td, heads %td, depth %td, strides %td %td %td %td, hostile 1/%td%s%s, "
                  "scale %g",
                  name, p.rows, p.columns, p.batch, p.heads, p.depth, p.batch_stride, p.token_stride, p.part_stride,
                  p.head_stride, style.hostile, style.non_finite ? " and non-finite" : "", style.broken ? ", broken" : "",
                  style.scale);
    fill(qkv, draw, style), fill(grad, draw, style), fill(height, draw, style), fill(width, draw, style);
    fill_offsets(offset, draw, style, p.rows, p.columns);
    p.qkv = qkv.at(), p.offset = offset.at(), p.height = height.at(), p.width = width.at(), p.zeros = zeros.at();

    std::unique_ptr<AttentionRun<T>> one;
    watch_flags(!style.broken && finite(offset.at(), offset.count()),
                [&] { one = std::make_unique<AttentionRun<T>>(p, grad.at(), isa, 1); });
    AttentionRun<T> two(p, grad.at(), isa, 2);
    require(one->out.same_bits(two.out), "outputs differ between one thread and two");
    require(one->grad_qkv.same_bits(two.grad_qkv), "qkv gradients differ between one thread and two");
    require(one->grad_offset.same_bits(two.grad_offset), "offset gradients differ between one thread and two");
    require(one->grad_height.same_bits(two.grad_height), "height gradients differ between one thread and two");
    require(one->grad_width.same_bits(two.grad_width), "width gradients differ between one thread and two");
    check_queries(p, *one, !style.broken);
}

// ---- unfold ----

template <class T>
struct UnfoldRun {
    using A = accumulate<T>;
    Buffer<T> output;
    Buffer<A> grad_input, grad_offset;

    UnfoldRun(dgmn2::Unfold<T> p, const T* grad, int threads)
        : output(p.batch * p.channels * p.taps() * p.positions(), FILLINGS[threads - 1]),
          grad_input(p.batch * p.channels * p.height * p.width, 0),
          grad_offset(p.batch * p.groups * 2 * p.taps() * p.positions(), FILLINGS[threads - 1]) {
        p.output = output.at();
        dgmn2::unfold_forward(p, threads);
        p.output = nullptr, p.grad = grad, p.grad_input = grad_input.at(), p.grad_offset = grad_offset.at();
        dgmn2::unfold_backward(p, threads);
    }
};

// Sizes and windows until one fits into its map.
template <class T>
dgmn2::Unfold<T> draw_unfold(Draw& draw) {
    dgmn2::Unfold<T> p{};
    do {
        p.batch = draw.between(0, 3), p.groups = draw.between(1, 3), p.channels = p.groups * draw.between(1, 3);
        p.height = draw.between(1, 12), p.width = draw.between(1, 12);
        p.kernel_h = draw.between(1, 4), p.kernel_w = draw.between(1, 4);
        p.stride_h = draw.between(1, 3), p.stride_w = draw.between(1, 3);
        p.pad_h = draw.between(0, 4), p.pad_w = draw.between(0, 4);
        p.dilation_h = draw.between(1, 3), p.dilation_w = draw.between(1, 3);
        const index free_h = p.height + 2 * p.pad_h - p.dilation_h * (p.kernel_h - 1) - 1;
        const index free_w = p.width + 2 * p.pad_w - p.dilation_w * (p.kernel_w - 1) - 1;
        p.out_height = free_h < 0 ? 0 : free_h / p.stride_h + 1;
        p.out_width = free_w < 0 ? 0 : free_w / p.stride_w + 1;
    } while (p.positions() == 0);
    return p;
}

template <class T>
void check_samples(const dgmn2::Unfold<T>& p, UnfoldRun<T>& run, bool inputs_finite) {
    for (index i = 0; i < run.output.count(); ++i) {
        const index here = i % p.positions(), tap = i / p.positions() % p.taps(), plane = i / p.positions() / p.taps();
        const index group = plane % p.channels / (p.channels / p.groups);
        const accumulate<T>* pair = p.offset + ((plane / p.channels * p.groups + group) * p.taps() + tap) * 2 * p.positions();
        const bool sampled = std::isfinite(pair[here]) && std::isfinite(pair[p.positions() + here]);
        sampled ? ++g_finite : ++g_hostile;
        if (sampled && inputs_finite) require(finite(run.output.at() + i, 1), "finite inputs and offsets gave a non-finite output");
        if (!sampled) require(none_finite(run.output.at() + i, 1), "a non-finite offset gave a finite output");
    }
    if (!inputs_finite) return;  // a sample that is nowhere has no gradient: they are finite whatever the offsets
    require(finite(run.grad_input.at(), run.grad_input.count()), "finite inputs gave a non-finite input gradient");
    require(finite(run.grad_offset.at(), run.grad_offset.count()), "finite inputs gave a non-finite offset gradient");
}

template <class T>
void unfold_case(Draw& draw, const char* name) {
    dgmn2::Unfold<T> p = draw_unfold<T>(draw);
    const Style style(draw);
    std::snprintf(g_case + std::strlen(g_case), sizeof g_case - std::strlen(g_case),
                  "unfold %s, map %td x %td, batch %td, channels %td, groups %td, kernel %td %td, stride %td %td, padding "
                  "%td %td, dilation %td %td, hostile 1/%td%s%s, scale %g",
                  name, p.height, p.width, p.batch, p.channels, p.groups, p.kernel_h, p.kernel_w, p.stride_h, p.stride_w,
                  p.pad_h, p.pad_w, p.dilation_h, p.dilation_w, style.hostile, style.non_finite ? " and non-finite" : "",
                  style.broken ? ", broken" : "", style.scale);
    Buffer<T> input(p.batch * p.channels * p.height * p.width), grad(p.batch * p.channels * p.taps() * p.positions());
    Buffer<accumulate<T>> offset(p.batch * p.groups * 2 * p.taps() * p.positions());
    fill(input, draw, style), fill(grad, draw, style), fill_offsets(offset, draw, style, p.height, p.width);
    p.input = input.at(), p.offset = offset.at();

    std::unique_ptr<UnfoldRun<T>> one;
    watch_flags(!style.broken && finite(offset.at(), offset.count()),
                [&] { one = std::make_unique<UnfoldRun<T>>(p, grad.at(), 1); });
    UnfoldRun<T> two(p, grad.at(), 2);
    require(one->output.same_bits(two.output), "outputs differ between one thread and two");
    require(one->grad_input.same_bits(two.grad_input), "input gradients differ between one thread and two");
    require(one->grad_offset.same_bits(two.grad_offset), "offset gradients differ between one thread and two");
    check_samples(p, *one, !style.broken);
}

// ---- convolution of an enlarged map ----

// One axis of a resize with aligned corners, as ops/resample.py has it.
template <class A>
struct AxisTables {
    Buffer<std::int32_t> upper;
    Buffer<A> weight;
    dgmn2::ResizedAxis<A> axis;

    AxisTables(index from, index to) : upper(to), weight(to) {
        const float step = to > 1 ? float(double(from - 1) / double(to - 1)) : 0.0f;
        for (index i = 0; i < to; ++i) {
            const float place = float(i) * step;
            upper[i] = std::int32_t(index(place) < from - 1 ? index(place) : from - 1);
            weight[i] = A(place - float(upper[i]));
        }
        axis = {upper.at(), weight.at(), from, to};
    }
    index lower(index i) { return upper[i] + 1 < axis.from ? upper[i] + 1 : upper[i]; }
};

// The rows of the result, step by step, as ops/upsampled.py plans them; every operand exactly as large as stated.
template <class T>
Buffer<T> upsampled_run(dgmn2::Upsampled<T> p, Buffer<T>& products, AxisTables<accumulate<T>>& down,
                        index step, Isa isa, int threads) {
    using A = accumulate<T>;
    const index from = down.axis.from, to = down.axis.to, line = p.across.from * 9 * p.channels;
    Buffer<T> whole(to * p.across.to * p.channels, FILLINGS[threads - 1]);
    p.ring_rows = 1;
    for (int pass = 0; pass < 2; ++pass) {  // first how deep the ring must be, then the work
        Buffer<A> ring(pass ? p.ring_rows * p.across.to * 3 * p.channels : 0, FILLINGS[threads - 1]);
        for (p.first_row = 0, p.first_out = 0; p.first_row < from; p.first_row += step, p.first_out += p.out_rows) {
            p.rows = p.first_row + step < from ? step : from - p.first_row;
            const index stop = p.first_row + p.rows, begin = p.first_out;
            index end = begin;
            while (end < to && down.lower(end + 1 < to ? end + 1 : end) < stop) ++end;
            p.out_rows = end - begin;
            index oldest = down.upper[begin > 0 ? begin - 1 : 0];
            if (p.first_row < oldest) oldest = p.first_row;
            if (stop - oldest > p.ring_rows) p.ring_rows = stop - oldest;
            if (!pass) continue;
            Buffer<T> part(p.rows * line), out(p.out_rows * p.across.to * p.channels);
            for (index i = 0; i < part.count(); ++i) part[i] = products[p.first_row * line + i];
            p.products = part.at(), p.out = out.at(), p.ring = ring.at();
            dgmn2::upsampled_rows(p, isa, threads);
            for (index i = 0; i < out.count(); ++i) whole[begin * p.across.to * p.channels + i] = out[i];
        }
        require(p.first_out == to, "the steps do not give every row");
    }
    return whole;
}

template <class T>
void upsampled_case(Draw& draw, Isa isa, const char* name) {
    using A = accumulate<T>;
    AxisTables<A> down(draw.between(1, 12), draw.between(1, 30)), across(draw.between(1, 12), draw.between(1, 30));
    const index step = draw.between(1, 5);
    dgmn2::Upsampled<T> p{};
    p.channels = draw.one_in(2) ? 16 * draw.between(1, 3) : draw.between(1, 40);
    p.down = down.axis, p.across = across.axis;
    p.relu = draw.one_in(2);
    const Style style(draw);
    std::snprintf(g_case + std::strlen(g_case), sizeof g_case - std::strlen(g_case),
                  "upsampled %s, %td x %td to %td x %td, channels %td, rows a step %td%s, scale %g", name, down.axis.from,
                  across.axis.from, down.axis.to, across.axis.to, p.channels, step, style.broken ? ", broken" : "",
                  style.scale);
    Buffer<T> products(down.axis.from * across.axis.from * 9 * p.channels);
    Buffer<A> bias(p.channels);
    fill(products, draw, style), fill(bias, draw, style);
    p.bias = bias.at();
    std::unique_ptr<Buffer<T>> one;
    watch_flags(!style.broken, [&] { one = std::make_unique<Buffer<T>>(upsampled_run(p, products, down, step, isa, 1)); });
    Buffer<T> two = upsampled_run(p, products, down, step, isa, 2);
    require(one->same_bits(two), "rows differ between one thread and two");
    if (!style.broken) require(finite(one->at(), one->count()), "finite inputs gave a non-finite row");
    for (index i = 0; p.relu && i < one->count(); ++i) require(!((*one)[i] < T(0)), "a negative number after ReLU");
    ++g_upsampled;
}

// ---- the trial ----

// Kinds of cases: unfold, then by instruction set attention or an enlarged map, each in three number formats.
constexpr int FORMATS = 3;
const char* const FORMAT_NAMES[FORMATS] = {"float32", "float64", "bfloat16"};
const char* const KIND_NAMES[] = {"unfold", "vectors baseline", "vectors avx2", "vectors avx512"};

template <class T>
void run_case(Draw& draw, int kind, const char* format) {
    if (kind == 0) return unfold_case<T>(draw, format);
    if (draw.one_in(3)) return upsampled_case<T>(draw, Isa(kind - 1), format);
    attention_case<T>(draw, Isa(kind - 1), format);
}

void run_seed(std::uint64_t seed, int kind, int format) {
    std::snprintf(g_case, sizeof g_case, "seed %llu: ", static_cast<unsigned long long>(seed));
    if (kind > 0) std::snprintf(g_case + std::strlen(g_case), 100, "[%s] ", KIND_NAMES[kind]);
    Draw draw(seed);
    if (format == 0) run_case<float>(draw, kind, FORMAT_NAMES[format]);
    if (format == 1) run_case<double>(draw, kind, FORMAT_NAMES[format]);
    if (format == 2) run_case<bfloat16>(draw, kind, FORMAT_NAMES[format]);
}

}  // namespace

// What libtorch does with two threads: either takes one half, the caller the first.
std::int32_t two_threads(std::int64_t begin, std::int64_t end, std::int64_t, dgmn2::Range range, void* context) {
    const std::int64_t middle = begin + (end - begin + 1) / 2;
    std::thread second(range, middle, end, context);
    range(begin, middle, context);
    second.join();
    return 0;
}

int main(int argc, char** argv) {
    dgmn2::parallel_for = two_threads;
    if (argc != 3) {
        std::fprintf(stderr, "usage: fuzz_kernels COUNT SEED\n");
        return 2;
    }
#if defined(FUZZ_SANITIZED)
    __sanitizer_set_death_callback(say_case);
#endif
    const long count = std::strtol(argv[1], nullptr, 10);
    const std::uint64_t seed = std::strtoull(argv[2], nullptr, 10);
    const int kinds = 2 + int(dgmn2::best_isa());
    long done[4][FORMATS] = {};
    for (long i = 0; i < count; ++i) {
        const std::uint64_t at = seed + std::uint64_t(i);
        const int kind = int(at % std::uint64_t(kinds)), format = int(at / std::uint64_t(kinds) % FORMATS);
        run_seed(at, kind, format);
        ++done[kind][format];
    }
    for (int kind = 0; kind < kinds; ++kind)
        for (int format = 0; format < FORMATS; ++format)
            std::printf("%s %s: %ld\n", KIND_NAMES[kind], FORMAT_NAMES[format], done[kind][format]);
    std::printf("finite: %ld\nnon-finite: %ld\nflags: %ld\nupsampled: %ld\n", g_finite, g_hostile, g_flagged, g_upsampled);
    std::printf("cases: %ld\n", count);
    return 0;
}
