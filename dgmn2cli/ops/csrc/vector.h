// The vector arithmetic of one instruction set. Included once per set, inside its namespace and target region, with
// DGMN2_VECTOR_BYTES defined; hence no include guard and no include of its own.

template <class A>
struct VectorOf {
    static constexpr int lanes = DGMN2_VECTOR_BYTES / int(sizeof(A));
    typedef A type __attribute__((vector_size(DGMN2_VECTOR_BYTES)));
};
template <class A>
using Vector = typename VectorOf<A>::type;
template <class A>
constexpr int LANES = VectorOf<A>::lanes;

// Whole numbers as wide as A, one per lane; what comparisons of vectors give (0 or -1).
template <class A>
using Lane = std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t>;
template <class A>
struct LanesOf {
    typedef Lane<A> type __attribute__((vector_size(DGMN2_VECTOR_BYTES)));
};
template <class A>
using Whole = typename LanesOf<A>::type;

typedef std::uint32_t Words __attribute__((vector_size(DGMN2_VECTOR_BYTES)));
typedef std::uint16_t Halves __attribute__((vector_size(DGMN2_VECTOR_BYTES / 2)));

template <class To, class From>
DGMN2_INLINE To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "reinterpreted as it lies");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

DGMN2_INLINE Vector<float> load(const float* from) {
    Vector<float> vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

DGMN2_INLINE Vector<double> load(const double* from) {
    Vector<double> vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

DGMN2_INLINE Vector<float> load(const bfloat16* from) {
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    return same_bits<Vector<float>>(__builtin_convertvector(halves, Words) << 16);
}

DGMN2_INLINE void store(Vector<float> vector, float* to) { __builtin_memcpy(to, &vector, sizeof vector); }
DGMN2_INLINE void store(Vector<double> vector, double* to) { __builtin_memcpy(to, &vector, sizeof vector); }
DGMN2_INLINE void store(Whole<float> vector, std::int32_t* to) { __builtin_memcpy(to, &vector, sizeof vector); }
DGMN2_INLINE void store(Whole<double> vector, std::int64_t* to) { __builtin_memcpy(to, &vector, sizeof vector); }

DGMN2_INLINE void store(Vector<float> vector, bfloat16* to) {  // to nearest, ties to even; NaN stays NaN
    const Words bits = same_bits<Words>(vector);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words safe = vector == vector ? rounded : rounded * 0u + 0x7fc0u;
    const Halves halves = __builtin_convertvector(safe, Halves);
    __builtin_memcpy(to, &halves, sizeof halves);
}

// The first `count` elements, zeros behind them.
template <class T>
DGMN2_INLINE Vector<accumulate<T>> load_first(const T* from, index count) {
    T part[LANES<accumulate<T>>] = {};
    for (index i = 0; i < count; ++i) part[i] = from[i];
    return load(part);
}

template <class T>
DGMN2_INLINE void store_first(Vector<accumulate<T>> vector, T* to, index count) {
    T part[LANES<accumulate<T>>];
    store(vector, part);
    for (index i = 0; i < count; ++i) to[i] = part[i];
}

// Rows of DEPTH channels in whole vectors; DEPTH 0 means a depth known at run time, whose last vector may be partial.
template <int DEPTH, class T>
DGMN2_INLINE Vector<accumulate<T>> load_row(const T* row, index from, index depth) {
    if (DEPTH != 0 || from + LANES<accumulate<T>> <= depth) return load(row + from);
    return load_first(row + from, depth - from);
}

template <int DEPTH, class T>
DGMN2_INLINE void store_row(Vector<accumulate<T>> vector, T* row, index from, index depth) {
    if (DEPTH != 0 || from + LANES<accumulate<T>> <= depth) return store(vector, row + from);
    store_first(vector, row + from, depth - from);
}

// Vectors of a row that are summed at a time, as many as the registers hold.
template <int DEPTH, class A>
constexpr int BLOCK = DEPTH == 0 ? 1 : DEPTH / LANES<A> < 8 ? DEPTH / LANES<A> : 8;

// Every second lane of `a`, then of `b`, from lane START on: what undoes an interleaving.
template <int START, class V, int... I>
DGMN2_INLINE V every_second(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (2 * I + START)...);
#else
    using Lane = std::conditional_t<sizeof(a[0]) == 4, std::int32_t, std::int64_t>;
    typedef Lane Lanes __attribute__((vector_size(DGMN2_VECTOR_BYTES)));
    return __builtin_shuffle(a, b, Lanes{(2 * I + START)...});
#endif
}

template <class V>
DGMN2_INLINE V evens(V a, V b) {
    return every_second<0>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>());
}

template <class V>
DGMN2_INLINE V odds(V a, V b) {
    return every_second<1>(a, b, std::make_integer_sequence<int, sizeof(V) / sizeof(a[0])>());
}

// Writes the sum of all lanes of each of COUNT vectors to out[0 .. COUNT); whole vectors of `out` are overwritten.
template <int COUNT, int WIDTH, class A>
DGMN2_INLINE void fold_group(const Vector<A>* vectors, A* out) {
    if constexpr (WIDTH == 1) {
        store(vectors[0], out);
    } else {
        constexpr int half = (COUNT + 1) / 2;
        Vector<A> folded[half];
        for (int i = 0; i < half; ++i) {
            const int second = 2 * i + 1 < COUNT ? 2 * i + 1 : 2 * i;
            folded[i] = evens(vectors[2 * i], vectors[second]) + odds(vectors[2 * i], vectors[second]);
        }
        fold_group<half, WIDTH / 2>(folded, out);
    }
}

template <int COUNT, class A>
DGMN2_INLINE void lane_sums(const Vector<A>* vectors, A* out) {
    constexpr int width = LANES<A>, group = COUNT < width ? COUNT : width;
    fold_group<group, width>(vectors, out);
    if constexpr (COUNT > group) lane_sums<COUNT - group>(vectors + group, out + group);
}

// exp of values <= 0, in place, whole vectors; NaN stays NaN. Relative error below 2 units in the last place.
DGMN2_INLINE Vector<float> exp_negative(Vector<float> x) {
    const Vector<float> lowest = Vector<float>{} - 87.0f;
    x = x < lowest ? lowest : x;  // e^-87 is 1.6e-38; the comparison is false for NaN
    // e^x = 2^n * e^r, n the nearest whole number: the low bits of a float so large that its unit is 1
    const Vector<float> shifted = x * 1.44269504f + 12582912.0f;
    const Vector<float> n = shifted - 12582912.0f;
    const Vector<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    Vector<float> e = r * 1.38144649e-3f + 8.36878084e-3f;  // (e^r - 1 - r) / r^2, fitted on |r| <= ln(2) / 2
    e = e * r + 4.16683927e-2f;
    e = e * r + 1.66665196e-1f;
    e = e * r + 4.99999940e-1f;
    e = e * (r * r) + r + 1.0f;
    const Words power = (same_bits<Words>(shifted) - 0x4b400000u + 127u) << 23;
    return e * same_bits<Vector<float>>(power);
}

DGMN2_INLINE void exp_negative(float* values, index count) {  // a multiple of the lanes
    for (index i = 0; i < count; i += LANES<float>) store(exp_negative(load(values + i)), values + i);
}

DGMN2_INLINE void exp_negative(double* values, index count) {
    for (index i = 0; i < count; ++i) values[i] = std::exp(values[i]);
}
