// The scalar types of the kernels: storage formats, the format each is accumulated in, and the index type.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#define DGMN2_INLINE inline __attribute__((always_inline))

namespace dgmn2 {

using index = std::ptrdiff_t;  // every size, stride and position
static_assert(sizeof(index) == 8, "maps beyond 2^31 elements need 64-bit indices");

struct bfloat16 {
    std::uint16_t bits;
};

template <class T>
struct Accumulate {
    using type = T;
};
template <>
struct Accumulate<bfloat16> {
    using type = float;
};
template <class T>
using accumulate = typename Accumulate<T>::type;  // what T is computed in

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(bfloat16 value) {
    const std::uint32_t bits = std::uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

inline void narrow(float value, float& to) { to = value; }
inline void narrow(double value, double& to) { to = value; }
inline void narrow(float value, bfloat16& to) {  // to nearest, ties to even; NaN stays NaN
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to.bits = value == value ? std::uint16_t(rounded) : std::uint16_t(0x7fc0);
}

}  // namespace dgmn2
