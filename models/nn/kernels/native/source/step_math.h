// Functions of sixteen float32 numbers, and of one row.
#pragma once

#include <immintrin.h>

#include "gemm.h"
#include "vector.h"

namespace gw::stepping {

// The exponential of what may be large; its own remainder would not be small then. NaN stays NaN.
inline Floats bounded_exponential(Floats x) { return exponential(smaller(splat(80.0f), x)); }

inline Floats silu(Floats x) {
    const Floats below = bounded_exponential(zeros() - x);
    return x / (splat(1.0f) + below);
}

inline Floats tangent(Floats x) {
    const Floats grown = bounded_exponential(splat(2.0f) * x);
    return splat(1.0f) - splat(2.0f) / (grown + splat(1.0f));
}

// x times the normal distribution function of x; the error function is Abramowitz and Stegun's
// 7.1.26, within 2e-7.
inline Floats gelu(Floats x) {
    const Floats scaled = x * splat(0.70710678f), size = magnitude(scaled);
    const Floats t = splat(1.0f) / fma(splat(0.3275911f), size, splat(1.0f));
    Floats sum = splat(1.061405429f);
    for (float factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f, 0.0f})
        sum = fma(sum, t, splat(factor));
    const Floats tail = sum * exponential((zeros() - size) * size);
    const Floats error = splat(1.0f) - tail;
    const Floats odd = pick(below(x, zeros()), zeros() - error, error);
    return splat(0.5f) * x * (splat(1.0f) + odd);
}

inline Floats activate(Floats x, std::int32_t which) {
    switch (which) {
        case 0: return gelu(x);
        case 1: return larger(zeros(), x);
        case 2: return silu(x);
        default: return tangent(x);
    }
}

// target = x / rms(x) * gain, rounded once.
inline void normalise(const float* x, const float* gain, index size, float epsilon, bf16* target) {
    Floats squares = zeros();
    for (index i = 0; i < size; i += 16) {
        const Floats part = load(x + i);
        squares = fma(part, part, squares);
    }
    const float mean = sum(squares) / static_cast<float>(size);
    const Floats inverse = splat(1.0f / __builtin_sqrtf(mean + epsilon));
    for (index i = 0; i < size; i += 16)
        store_bf16(target + i, load(x + i) * inverse * load(gain + i));
}

}  // namespace gw::stepping
