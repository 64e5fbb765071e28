// Functions of sixteen float32 numbers, and of one row.
#pragma once

#include <immintrin.h>

#include "gemm.h"
#include "vector.h"

namespace gw::stepping {

inline __m512 splat(float value) { return _mm512_set1_ps(value); }

// The exponential of what may be large; its own remainder would not be small then. NaN stays NaN.
inline __m512 bounded_exponential(__m512 x) { return exponential(_mm512_min_ps(splat(80.0f), x)); }

inline __m512 silu(__m512 x) {
    const __m512 below = bounded_exponential(_mm512_sub_ps(_mm512_setzero_ps(), x));
    return _mm512_div_ps(x, _mm512_add_ps(splat(1.0f), below));
}

inline __m512 tangent(__m512 x) {
    const __m512 grown = bounded_exponential(_mm512_mul_ps(splat(2.0f), x));
    return _mm512_sub_ps(splat(1.0f), _mm512_div_ps(splat(2.0f), _mm512_add_ps(grown, splat(1.0f))));
}

// x times the normal distribution function of x; the error function is Abramowitz and Stegun's
// 7.1.26, within 2e-7.
inline __m512 gelu(__m512 x) {
    const __m512 scaled = _mm512_mul_ps(x, splat(0.70710678f)), size = _mm512_abs_ps(scaled);
    const __m512 t =
        _mm512_div_ps(splat(1.0f), _mm512_fmadd_ps(splat(0.3275911f), size, splat(1.0f)));
    __m512 sum = splat(1.061405429f);
    for (float factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f, 0.0f})
        sum = _mm512_fmadd_ps(sum, t, splat(factor));
    const __m512 tail = _mm512_mul_ps(
        sum, exponential(_mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), size), size)));
    const __m512 error = _mm512_sub_ps(splat(1.0f), tail);
    const __mmask16 below = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 odd = _mm512_mask_sub_ps(error, below, _mm512_setzero_ps(), error);
    return _mm512_mul_ps(_mm512_mul_ps(splat(0.5f), x), _mm512_add_ps(splat(1.0f), odd));
}

inline __m512 activate(__m512 x, std::int32_t which) {
    switch (which) {
        case 0: return gelu(x);
        case 1: return _mm512_max_ps(_mm512_setzero_ps(), x);
        case 2: return silu(x);
        default: return tangent(x);
    }
}

// target = x / rms(x) * gain, rounded once.
inline void normalise(const float* x, const float* gain, index size, float epsilon, bf16* target) {
    __m512 squares = _mm512_setzero_ps();
    for (index i = 0; i < size; i += 16) {
        const __m512 part = _mm512_loadu_ps(x + i);
        squares = _mm512_fmadd_ps(part, part, squares);
    }
    const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(size);
    const __m512 inverse = splat(1.0f / __builtin_sqrtf(mean + epsilon));
    for (index i = 0; i < size; i += 16)
        store_bf16(target + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse),
                                             _mm512_loadu_ps(gain + i)));
}

}  // namespace gw::stepping
