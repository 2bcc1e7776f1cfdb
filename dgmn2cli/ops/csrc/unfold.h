// The published extension's operation, ported plainly: NCHW, scalar, one channel plane or offset row per work item.
#pragma once

#include "scalar.h"

namespace dgmn2 {

template <class T>
struct Unfold {
    using A = accumulate<T>;
    const T* input;    // (B, C, H, W)
    const A* offset;   // (B, G * 2 * kh * kw, Ho, Wo), pairs (dy, dx)
    T* output;         // (B, C * kh * kw, Ho * Wo)
    const T* grad;     // as output
    A* grad_input;     // as input, zeroed by the caller
    A* grad_offset;    // as offset
    index batch, channels, height, width, groups, out_height, out_width;
    index kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;

    index taps() const { return kernel_h * kernel_w; }
    index positions() const { return out_height * out_width; }
};

// One bilinear sample of a plane: which corners exist, where they lie, and how far the point is from the upper left one.
template <class A>
struct Sample {
    bool inside, finite, top, bottom, left, right;
    index corner;  // upper left; may lie outside the plane, where `top` or `left` is false
    A down, across;
};

template <class A>
inline Sample<A> locate(A y, A x, index height, index width) {
    Sample<A> at{};
    at.finite = std::isfinite(y) && std::isfinite(x);
    at.inside = y > -1 && x > -1 && y < A(height) && x < A(width);
    if (!at.inside) return at;
    const A floor_y = std::floor(y), floor_x = std::floor(x);
    const index row = index(floor_y), column = index(floor_x);
    at.top = row >= 0;
    at.bottom = row + 1 < height;
    at.left = column >= 0;
    at.right = column + 1 < width;
    at.corner = row * width + column;
    at.down = y - floor_y;
    at.across = x - floor_x;
    return at;
}

template <class T>
inline Sample<accumulate<T>> locate(const Unfold<T>& p, const accumulate<T>* pair, index tap, index oy, index ox) {
    using A = accumulate<T>;
    const index here = oy * p.out_width + ox;
    const A y = A(oy * p.stride_h - p.pad_h + (tap / p.kernel_w) * p.dilation_h) + pair[here];
    const A x = A(ox * p.stride_w - p.pad_w + (tap % p.kernel_w) * p.dilation_w) + pair[p.positions() + here];
    return locate(y, x, p.height, p.width);
}

template <class T>
inline const accumulate<T>* offset_pair(const Unfold<T>& p, index b, index group, index tap) {
    return p.offset + ((b * p.groups + group) * p.taps() + tap) * 2 * p.positions();
}

// Work item: one channel plane, 0 <= item < B * C.
template <class T>
void unfold_plane(const Unfold<T>& p, index item) {
    using A = accumulate<T>;
    const index b = item / p.channels, channel = item % p.channels, group = channel / (p.channels / p.groups);
    const T* plane = p.input + item * p.height * p.width;
    for (index tap = 0; tap < p.taps(); ++tap) {
        const A* pair = offset_pair(p, b, group, tap);
        T* out = p.output + (item * p.taps() + tap) * p.positions();
        for (index oy = 0; oy < p.out_height; ++oy)
            for (index ox = 0; ox < p.out_width; ++ox) {
                const Sample<A> at = locate(p, pair, tap, oy, ox);
                A value = at.finite ? A(0) : std::numeric_limits<A>::quiet_NaN();
                if (at.inside) {
                    const index upper = at.corner, lower = upper + p.width;
                    if (at.top && at.left) value += (1 - at.down) * (1 - at.across) * widen(plane[upper]);
                    if (at.top && at.right) value += (1 - at.down) * at.across * widen(plane[upper + 1]);
                    if (at.bottom && at.left) value += at.down * (1 - at.across) * widen(plane[lower]);
                    if (at.bottom && at.right) value += at.down * at.across * widen(plane[lower + 1]);
                }
                narrow(value, out[oy * p.out_width + ox]);
            }
    }
}

// Work item: one channel plane; its gradient is written by this item alone, in a fixed order.
template <class T>
void unfold_grad_plane(const Unfold<T>& p, index item) {
    using A = accumulate<T>;
    const index b = item / p.channels, channel = item % p.channels, group = channel / (p.channels / p.groups);
    A* plane = p.grad_input + item * p.height * p.width;
    for (index tap = 0; tap < p.taps(); ++tap) {
        const A* pair = offset_pair(p, b, group, tap);
        const T* grad = p.grad + (item * p.taps() + tap) * p.positions();
        for (index oy = 0; oy < p.out_height; ++oy)
            for (index ox = 0; ox < p.out_width; ++ox) {
                const Sample<A> at = locate(p, pair, tap, oy, ox);
                if (!at.inside) continue;
                const A value = widen(grad[oy * p.out_width + ox]);
                const index upper = at.corner, lower = upper + p.width;
                if (at.top && at.left) plane[upper] += (1 - at.down) * (1 - at.across) * value;
                if (at.top && at.right) plane[upper + 1] += (1 - at.down) * at.across * value;
                if (at.bottom && at.left) plane[lower] += at.down * (1 - at.across) * value;
                if (at.bottom && at.right) plane[lower + 1] += at.down * at.across * value;
            }
    }
}

// Work item: one tap's offset rows, 0 <= item < B * G * taps; a coordinate outside the open box has gradient 0.
template <class T>
void unfold_grad_offset(const Unfold<T>& p, index item) {
    using A = accumulate<T>;
    const index tap = item % p.taps(), group = item / p.taps() % p.groups, b = item / p.taps() / p.groups;
    const index per_group = p.channels / p.groups, first = b * p.channels + group * per_group;
    const A* pair = offset_pair(p, b, group, tap);
    A* grad_pair = p.grad_offset + (pair - p.offset);
    for (index oy = 0; oy < p.out_height; ++oy)
        for (index ox = 0; ox < p.out_width; ++ox) {
            const index here = oy * p.out_width + ox;
            const Sample<A> at = locate(p, pair, tap, oy, ox);
            A grad_y = 0, grad_x = 0;
            for (index c = first; at.inside && c < first + per_group; ++c) {
                const T* plane = p.input + c * p.height * p.width;
                const index upper = at.corner, lower = upper + p.width;
                const A value = widen(p.grad[(c * p.taps() + tap) * p.positions() + here]);
                const A upper_left = at.top && at.left ? widen(plane[upper]) : A(0);
                const A upper_right = at.top && at.right ? widen(plane[upper + 1]) : A(0);
                const A lower_left = at.bottom && at.left ? widen(plane[lower]) : A(0);
                const A lower_right = at.bottom && at.right ? widen(plane[lower + 1]) : A(0);
                grad_y += value * ((1 - at.across) * (lower_left - upper_left) + at.across * (lower_right - upper_right));
                grad_x += value * ((1 - at.down) * (upper_right - upper_left) + at.down * (lower_right - lower_left));
            }
            grad_pair[here] = grad_y;
            grad_pair[p.positions() + here] = grad_x;
        }
}

}  // namespace dgmn2
