// Sixteen float32 at a time, by the instructions that a translation unit is compiled for.
#pragma once

#ifdef __AVX512BF16__
#include "lanes_avx512.h"
#else
#include "lanes_avx2.h"
#endif

namespace gw {

constexpr index lanes = 16;

// Sixteen numbers as they are stored.
inline Floats read(const bf16* source) { return load_bf16(source); }
inline Floats read(const float* source) { return load(source); }
inline void write(bf16* target, Floats value) { store_bf16(target, value); }
#ifdef __AVX512BF16__
inline void write(bf16* target, Floats first, Floats second) { store_bf16(target, first, second); }
#endif
inline void write(float* target, Floats value) { store(target, value); }

// e^x to the last bits of float32, up to 88; below -87 it goes to 0 without denormals.
inline Floats exponential(Floats x) {
    const Floats n = nearest_whole(x * splat(1.44269504f));
    Floats r = fnma(n, splat(0.693359375f), x);
    r = fnma(n, splat(-2.12194440e-4f), r);
    Floats e = splat(1.0f / 720);
    for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 1.0f / 2, 1.0f, 1.0f})
        e = fma(e, r, splat(c));
    return keep(not_below(x, splat(-87.0f)), scale_by_power(e, n));
}

}  // namespace gw
