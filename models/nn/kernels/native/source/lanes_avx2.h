// Sixteen float32 at a time by AVX2, in two halves; the same words as `lanes_avx512.h`.
#pragma once

#include <immintrin.h>

#include "coded.h"
#include "common.h"

namespace gw {

struct Floats {
    __m256 low, high;
};

struct Mask {
    __m256 low, high;  // all bits of a lane, or none
};

inline Floats operator+(Floats a, Floats b) { return {a.low + b.low, a.high + b.high}; }
inline Floats operator-(Floats a, Floats b) { return {a.low - b.low, a.high - b.high}; }
inline Floats operator*(Floats a, Floats b) { return {a.low * b.low, a.high * b.high}; }
inline Floats operator/(Floats a, Floats b) { return {a.low / b.low, a.high / b.high}; }

inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats splat(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Floats load(const float* source) {
    return {_mm256_loadu_ps(source), _mm256_loadu_ps(source + 8)};
}
inline void store(float* target, Floats value) {
    _mm256_storeu_ps(target, value.low);
    _mm256_storeu_ps(target + 8, value.high);
}

inline Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats fms(Floats a, Floats b, Floats c) {
    return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
inline Floats fnma(Floats a, Floats b, Floats c) {
    return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}

inline Floats larger(Floats a, Floats b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Floats smaller(Floats a, Floats b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}

inline Floats about_reciprocal(Floats x) {
    return {_mm256_rcp_ps(x.low), _mm256_rcp_ps(x.high)};
}

inline Floats magnitude(Floats x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}

// Halves are joined with halves, so that sums are those of `lanes_avx512.h`.
template <class Join>
inline float reduce(Floats x, Join&& join) {
    const __m256 eight = join(x.low, x.high);
    const __m256 four = join(eight, _mm256_permute2f128_ps(eight, eight, 1));
    const __m256 two = join(four, _mm256_permute_ps(four, 0x4e));
    return _mm256_cvtss_f32(join(two, _mm256_permute_ps(two, 0xb1)));
}
inline float sum(Floats x) {
    return reduce(x, [](__m256 a, __m256 b) { return a + b; });
}
inline float largest(Floats x) {
    return reduce(x, [](__m256 a, __m256 b) { return _mm256_max_ps(a, b); });
}
inline float front(Floats x) { return _mm256_cvtss_f32(x.low); }

inline Mask first_lanes(index count) {
    const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const auto until = [&](index end) {
        const int last = static_cast<int>(std::clamp<index>(end, 0, 8));
        return _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(last), places));
    };
    return {until(count), until(count - 8)};
}
inline Mask lanes_from(Mask some, index first) {
    const Mask before = first_lanes(first);
    return {_mm256_andnot_ps(before.low, some.low), _mm256_andnot_ps(before.high, some.high)};
}
inline Mask below(Floats a, Floats b) {
    return {_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ), _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ)};
}
inline Mask not_below(Floats a, Floats b) {
    return {_mm256_cmp_ps(a.low, b.low, _CMP_NLT_UQ), _mm256_cmp_ps(a.high, b.high, _CMP_NLT_UQ)};
}
inline bool any(Mask some) { return _mm256_movemask_ps(_mm256_or_ps(some.low, some.high)) != 0; }
inline Floats keep(Mask where, Floats x) {
    return {_mm256_and_ps(where.low, x.low), _mm256_and_ps(where.high, x.high)};
}
inline Floats pick(Mask where, Floats x, Floats other) {
    return {_mm256_blendv_ps(other.low, x.low, where.low),
            _mm256_blendv_ps(other.high, x.high, where.high)};
}

inline Floats load_some(Mask there, const float* source, Floats other) {
    const __m256i low = _mm256_castps_si256(there.low), high = _mm256_castps_si256(there.high);
    return pick(there, {_mm256_maskload_ps(source, low), _mm256_maskload_ps(source + 8, high)},
                other);
}

inline Floats load_whole(const std::int32_t* source, std::int32_t more) {
    const auto eight = [more](const std::int32_t* at) {
        const __m256i whole = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
        return _mm256_cvtepi32_ps(_mm256_add_epi32(whole, _mm256_set1_epi32(more)));
    };
    return {eight(source), eight(source + 8)};
}

inline Floats nearest_whole(Floats x) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.low, nearest), _mm256_round_ps(x.high, nearest)};
}
// By the bits of the exponent: powers are those of normal numbers, -126 to 127.
inline Floats scale_by_power(Floats x, Floats power) {
    const auto two_to = [](__m256 n) {
        const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    };
    return x * Floats{two_to(power.low), two_to(power.high)};
}

// The upper halves of eight numbers, rounded to nearest, ties to even; NaN stays NaN.
inline __m256i rounded_halves(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    return _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, _mm256_castps_si256(is_nan)), 16);
}

// Returns what it stores.
inline Floats store_rounded(bf16* target, Floats value) {
    const __m256i low = rounded_halves(value.low), high = rounded_halves(value.high);
    const __m256i mixed = _mm256_packus_epi32(low, high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                        _mm256_permute4x64_epi64(mixed, 0xd8));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}

inline void store_bf16(bf16* target, Floats value) { store_rounded(target, value); }

inline Floats load_bf16(const bf16* source) {
    const auto widen = [](const bf16* eight) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(eight));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    };
    return {widen(source), widen(source + 8)};
}

inline Floats load_int8(const std::int8_t* source) {
    const auto widen = [](const std::int8_t* eight) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(eight));
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    };
    return {widen(source), widen(source + 8)};
}

inline void store_exact_pairs(bf16* target, Floats even, Floats odd) {
    const auto join = [](__m256 first, __m256 second) {
        return _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(first), 16),
                               _mm256_castps_si256(second));
    };
    auto* place = reinterpret_cast<__m256i*>(target);
    _mm256_storeu_si256(place, join(even.low, odd.low));
    _mm256_storeu_si256(place + 1, join(even.high, odd.high));
}

template <class Meanwhile>
inline void widen_coded(const std::uint8_t* tile, index part, const std::uint8_t* uppers,
                        bf16* target, Meanwhile&&) {
    for (index i = part * part_numbers; i < (part + 1) * part_numbers; ++i) {
        const index byte = coded_byte(i);
        const int codes = tile[code_byte(byte)];
        const int upper = uppers[holds_second(byte) ? codes >> 4 : codes & 15];
        target[i] = static_cast<bf16>(upper << 8 | tile[byte]);
    }
}

// Element j of row i becomes element i of row j.
inline void transpose(__m256i (&r)[8]) {
    __m256i t[8];
    for (int n = 0; n < 8; n += 2) {
        t[n] = _mm256_unpacklo_epi32(r[n], r[n + 1]);
        t[n + 1] = _mm256_unpackhi_epi32(r[n], r[n + 1]);
    }
    for (int n = 0; n < 8; n += 4) {
        r[n] = _mm256_unpacklo_epi64(t[n], t[n + 2]);
        r[n + 1] = _mm256_unpackhi_epi64(t[n], t[n + 2]);
        r[n + 2] = _mm256_unpacklo_epi64(t[n + 1], t[n + 3]);
        r[n + 3] = _mm256_unpackhi_epi64(t[n + 1], t[n + 3]);
    }
    for (int n = 0; n < 4; ++n) {
        t[n] = _mm256_permute2x128_si256(r[n], r[n + 4], 0x20);
        t[n + 4] = _mm256_permute2x128_si256(r[n], r[n + 4], 0x31);
    }
    for (int n = 0; n < 8; ++n) r[n] = t[n];
}

inline void transpose_pairs(const bf16* source, index ld, index rows, bf16* target) {
    for (int top = 0; top < 16; top += 8)
        for (int left = 0; left < 16; left += 8) {
            __m256i tile[8];
            for (int n = 0; n < 8; ++n) {
                const bf16* row = source + (top + n) * ld + 2 * left;
                tile[n] = top + n < rows
                              ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row))
                              : _mm256_setzero_si256();
            }
            transpose(tile);
            for (int n = 0; n < 8; ++n)
                _mm256_storeu_si256(
                    reinterpret_cast<__m256i*>(target + (left + n) * 32 + 2 * top), tile[n]);
        }
}

inline void store_pairs(bf16* target, const bf16* even, const bf16* odd) {
    const auto row = [](const bf16* source) {
        return source ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source))
                      : _mm256_setzero_si256();
    };
    const __m256i low = _mm256_unpacklo_epi16(row(even), row(odd));
    const __m256i high = _mm256_unpackhi_epi16(row(even), row(odd));
    auto* place = reinterpret_cast<__m256i*>(target);
    _mm256_storeu_si256(place, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256(place + 1, _mm256_permute2x128_si256(low, high, 0x31));
}

}  // namespace gw
