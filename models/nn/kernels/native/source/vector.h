// Sixteen float32 at a time: bfloat16 in and out, sums in a fixed order, the exponential.
#pragma once

#include <immintrin.h>

#include "common.h"

namespace gw {

constexpr index lanes = 16;

inline void store_bf16(bf16* target, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value)));
}

inline __m512 load_bf16(const bf16* source) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline float to_float(bf16 value) {
    const std::uint32_t whole = std::uint32_t{value} << 16;
    float result;
    __builtin_memcpy(&result, &whole, sizeof result);
    return result;
}

// What a store to bfloat16 and a load from it make of a value.
inline __m512 rounded(__m512 value) {
    const __m256i half = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// A mask of as many lanes as there are, none to all.
inline __mmask16 first_lanes(index count) {
    return static_cast<__mmask16>((1u << std::max<index>(0, std::min(lanes, count))) - 1);
}

inline float sum(__m512 value) { return _mm512_reduce_add_ps(value); }

// e^x to the last bits of float32; below -87 it goes to 0 without denormals.
inline __m512 exponential(__m512 x) {
    const __mmask16 gone = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 e = _mm512_set1_ps(1.0f / 720);
    for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f})
        e = _mm512_fmadd_ps(e, r, _mm512_set1_ps(c));
    return _mm512_maskz_scalef_ps(_mm512_knot(gone), e, n);
}

// 1 / (1 + e^-x), by a reciprocal that one step of Newton's makes exact to the last bits; 0 below
// -87.
inline __m512 sigmoid(__m512 x) {
    const __m512 most = _mm512_set1_ps(87.0f);
    const __m512 e = exponential(_mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), most));
    const __m512 whole = _mm512_add_ps(_mm512_set1_ps(1.0f), e);
    const __m512 near = _mm512_rcp14_ps(whole);
    const __mmask16 there = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    return _mm512_maskz_mul_ps(there, near, _mm512_fnmadd_ps(whole, near, _mm512_set1_ps(2.0f)));
}

}  // namespace gw
