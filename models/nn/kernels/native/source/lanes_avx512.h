// Sixteen float32 at a time by AVX-512, and what is done to bfloat16 on the way in and out.
#pragma once

#include <immintrin.h>

#include <array>

#include "coded.h"
#include "common.h"

namespace gw {

using Floats = __m512;
using Mask = __mmask16;

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats splat(float value) { return _mm512_set1_ps(value); }
inline Floats load(const float* source) { return _mm512_loadu_ps(source); }
inline void store(float* target, Floats value) { _mm512_storeu_ps(target, value); }

// a * b + c, a * b - c and c - a * b, rounded once.
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats fms(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }

// Of each pair; the second where one is NaN.
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }

// To twelve bits or more.
inline Floats about_reciprocal(Floats x) { return _mm512_rcp14_ps(x); }

inline Floats magnitude(Floats x) { return _mm512_abs_ps(x); }
inline float sum(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }
inline float front(Floats x) { return _mm512_cvtss_f32(x); }

// A mask of as many lanes as there are, none to all.
inline Mask first_lanes(index count) {
    return static_cast<Mask>((1u << std::max<index>(0, std::min<index>(16, count))) - 1);
}
// Those of some lanes that are not before `first`.
inline Mask lanes_from(Mask some, index first) {
    const __m512i places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_mask_cmp_epi32_mask(some, places, _mm512_set1_epi32(static_cast<int>(first)),
                                      _MM_CMPINT_NLT);
}
// Only what is there is read.
inline Floats load_some(Mask there, const float* source, Floats other) {
    return _mm512_mask_loadu_ps(other, there, source);
}
inline Mask below(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline Mask not_below(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
inline bool any(Mask some) { return some; }
inline Floats keep(Mask where, Floats x) { return _mm512_maskz_mov_ps(where, x); }
inline Floats pick(Mask where, Floats x, Floats other) {
    return _mm512_mask_mov_ps(other, where, x);
}

// Integers as numbers, all of them so much larger.
inline Floats load_whole(const std::int32_t* source, std::int32_t more) {
    const __m512i whole = _mm512_loadu_si512(source);
    return _mm512_cvtepi32_ps(_mm512_add_epi32(whole, _mm512_set1_epi32(more)));
}

inline Floats nearest_whole(Floats x) { return _mm512_roundscale_ps(x, 8); }
// x times two to the power of a whole number.
inline Floats scale_by_power(Floats x, Floats power) { return _mm512_scalef_ps(x, power); }

inline void store_bf16(bf16* target, Floats value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
}

// The second behind the first, as one line of a cache.
inline __m512i both_bf16(Floats first, Floats second) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}
inline void store_bf16(bf16* target, Floats first, Floats second) {
    _mm512_storeu_si512(target, both_bf16(first, second));
}

inline Floats load_bf16(const bf16* source) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline Floats load_int8(const std::int8_t* source) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen));
}

// Two inputs of a row, over and over.
inline __m512bh pair(const bf16* x) {
    std::int32_t two;
    __builtin_memcpy(&two, x, sizeof two);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
}

// Two inputs of sixteen outputs.
inline __m512bh pairs(const bf16* w) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(w)); }

// Numbers that bfloat16 holds exactly, as 16 pairs.
inline __m512i exact_pairs(Floats even, Floats odd) {
    return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16),
                           _mm512_castps_si512(odd));
}
inline void store_exact_pairs(bf16* target, Floats even, Floats odd) {
    _mm512_storeu_si512(target, exact_pairs(even, odd));
}

// The numbers of one part of a coded tile, from its bytes and the panel's upper ones. Where a
// register has been stored it may call meanwhile().
template <class Meanwhile>
[[gnu::always_inline]] inline void widen_coded(const std::uint8_t* tile, index part,
                                               const std::uint8_t* uppers, bf16* target,
                                               Meanwhile&& meanwhile) {
    const __m512i known = _mm512_broadcast_i32x4(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(uppers)));
    const __m512i half = _mm512_set1_epi8(15);
    const index begin = part * part_numbers;
    const __m512i both = _mm512_loadu_si512(tile + code_byte(begin));
#pragma GCC unroll 2
    for (index within = 0; within < part_numbers; within += 64) {
        const index first = begin + within;
        const __m512i own = holds_second(within) ? _mm512_srli_epi16(both, 4) : both;
        const __m512i upper = _mm512_shuffle_epi8(known, _mm512_and_si512(own, half));
        const __m512i lower = _mm512_loadu_si512(tile + first);
        _mm512_storeu_si512(target + first, _mm512_unpacklo_epi8(lower, upper));
        meanwhile();
        _mm512_storeu_si512(target + first + 32, _mm512_unpackhi_epi8(lower, upper));
        meanwhile();
    }
}

// Transposes 16 rows of 16 pairs: target[i][n] is pair i of row n, zero for rows from `rows` on;
// its own rows lie as far apart as is said.
inline void transpose_pairs(const bf16* source, index ld, index rows, bf16* target,
                            index apart = input_step) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int n = 0; n < 16; ++n)
        r[n] = n < rows ? _mm512_loadu_si512(source + n * ld) : _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int n = 0; n < 16; n += 2) {
        t[n] = _mm512_unpacklo_epi32(r[n], r[n + 1]);
        t[n + 1] = _mm512_unpackhi_epi32(r[n], r[n + 1]);
    }
#pragma GCC unroll 4
    for (int n = 0; n < 16; n += 4) {
        r[n] = _mm512_unpacklo_epi64(t[n], t[n + 2]);
        r[n + 1] = _mm512_unpackhi_epi64(t[n], t[n + 2]);
        r[n + 2] = _mm512_unpacklo_epi64(t[n + 1], t[n + 3]);
        r[n + 3] = _mm512_unpackhi_epi64(t[n + 1], t[n + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i even = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
        const __m512i even_below = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        const __m512i odd = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        const __m512i odd_below = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        const __m512i columns[4] = {_mm512_shuffle_i32x4(even, even_below, 0x88),
                                    _mm512_shuffle_i32x4(odd, odd_below, 0x88),
                                    _mm512_shuffle_i32x4(even, even_below, 0xdd),
                                    _mm512_shuffle_i32x4(odd, odd_below, 0xdd)};
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) _mm512_storeu_si512(target + (4 * c + j) * apart, columns[c]);
    }
}

// Where pairs of two registers' lower halves come from; of one register's halves, with `second` 16.
template <std::int16_t second>
inline __m512i order_of_pairs() {
    alignas(64) static constexpr auto order = [] {
        std::array<std::int16_t, 32> places{};
        for (std::int16_t n = 0; n < 16; ++n) {
            places[2 * n] = n;
            places[2 * n + 1] = second + n;
        }
        return places;
    }();
    return _mm512_load_si512(order.data());
}

// Two rows of 16, or zeros for none, as 16 pairs.
inline void store_pairs(bf16* target, const bf16* even, const bf16* odd) {
    const auto row = [](const bf16* source) {
        if (!source) return _mm512_setzero_si512();
        return _mm512_castsi256_si512(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
    };
    _mm512_storeu_si512(target,
                        _mm512_permutex2var_epi16(row(even), order_of_pairs<32>(), row(odd)));
}
inline void store_pairs(bf16* target, Floats even, Floats odd) {
    _mm512_storeu_si512(
        target, _mm512_permutexvar_epi16(order_of_pairs<16>(), both_bf16(even, odd)));
}

}  // namespace gw
