// Numbers in block floating point for AVX2: integers of 13 bits, of which a group shares a scale.
//
// AVX2 multiplies twice as many integers of 16 bits at once as float32, and their sums are exact up
// to a group's end. A number is rounded by up to 1/8190 of the largest of its group, which is the
// `group_inputs` numbers beside it that enter the same sum; bfloat16 rounds each by up to 1/256.
#pragma once

#include "vector.h"

namespace gw {

using Whole = std::int16_t;

// `screen.py` has these as well.
constexpr index group_inputs = 128;  // that share a scale
constexpr float most_whole = 4095;   // `group_inputs` products of two such fit into 32 bits

inline index groups_of(index inputs) { return (inputs + group_inputs - 1) / group_inputs; }
inline Range group(index which, index inputs) {
    return {which * group_inputs, std::min((which + 1) * group_inputs, inputs)};
}

// The largest magnitudes of numbers, and zeros, which infinity and NaN turn into NaN.
struct Extent {
    Floats most = zeros(), poison = zeros();

    void see(Floats x) {
        most = larger(most, magnitude(x));
        poison = fma(x, zeros(), poison);
    }
    Extent all() const {
        Extent one;
        one.most = splat(largest(most)), one.poison = splat(sum(poison));
        return one;
    }
    Floats scale() const { return fma(most, splat(1 / most_whole), poison); }
    Floats inverse() const {  // zero for what is next to nothing
        return keep(not_below(most, splat(1e-30f)), splat(most_whole) / most);
    }
};

// Sixteen numbers as integers, in two halves.
struct Wholes {
    __m256i low, high;

    Wholes(Floats x, Floats inverse) {
        const Floats scaled = x * inverse;
        low = _mm256_cvtps_epi32(scaled.low), high = _mm256_cvtps_epi32(scaled.high);
    }
    __m256i shortened() const {
        return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    }
};

inline void store(Whole* target, __m256i sixteen) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), sixteen);
}

// Inputs (a multiple of 16) of a row become integers, and a scale for each group.
template <class Number>
void round_row(const Number* x, index inputs, Whole* whole, float* scales) {
    for (index g = 0; g < groups_of(inputs); ++g) {
        const auto [first, last] = group(g, inputs);
        Extent seen;
        for (index k = first; k < last; k += lanes) seen.see(read(x + k));
        const Extent all = seen.all();
        const Floats inverse = all.inverse();
        scales[g] = front(all.scale());
        for (index k = first; k < last; k += lanes)
            store(whole + k, Wholes(read(x + k), inverse).shortened());
    }
}

// A panel: for each two inputs the weights of sixteen outputs, in pairs, and behind all of them
// their scales (groups, 16).
inline index panel_bytes(index inputs) {
    return panel_width * (inputs * sizeof(Whole) + groups_of(inputs) * sizeof(float));
}
inline Whole* pairs_of(char* panel) { return reinterpret_cast<Whole*>(panel); }
inline float* scales_of(char* panel, index inputs) {
    return reinterpret_cast<float*>(panel + panel_width * inputs * sizeof(Whole));
}

// Asks for a line of weights a group before it is read: sixteen places at once, or a line at each,
// are more than a processor foresees. What is behind the last one is not there, which does not hurt.
inline void fetch(const float* weights) {
    _mm_prefetch(reinterpret_cast<const char*>(weights), _MM_HINT_T0);
}

// Fills one with weights of which those of an output lie side by side, and outputs `ld` apart.
inline void round_along(const float* w, index ld, index inputs, char* panel) {
    Whole* const pairs = pairs_of(panel);
    float* const scales = scales_of(panel, inputs);
    for (index g = 0; g < groups_of(inputs); ++g) {
        const auto [first, last] = group(g, inputs);
        alignas(32) float inverse[panel_width];
        for (index n = 0; n < panel_width; ++n) {
            Extent seen;
            for (index k = first; k < last; k += lanes) {
                seen.see(load(w + n * ld + k));
                fetch(w + n * ld + k + group_inputs);
            }
            const Extent all = seen.all();
            scales[g * panel_width + n] = front(all.scale());
            inverse[n] = front(all.inverse());
        }
        for (index half = 0; half < panel_width; half += 8)
            for (index k = first; k < last; k += lanes) {
                __m256i tile[8];
                for (index n = 0; n < 8; ++n) {
                    const Floats own = load(w + (half + n) * ld + k);
                    tile[n] = Wholes(own, splat(inverse[half + n])).shortened();
                }
                transpose(tile);
                for (index n = 0; n < 8; ++n)
                    store(pairs + (k + 2 * n) * panel_width + 2 * half, tile[n]);
            }
    }
}

// The same of weights of which sixteen outputs lie side by side, and inputs `ld` apart.
inline void round_across(const float* w, index ld, index inputs, char* panel) {
    Whole* const pairs = pairs_of(panel);
    float* const scales = scales_of(panel, inputs);
    for (index g = 0; g < groups_of(inputs); ++g) {
        const auto [first, last] = group(g, inputs);
        Extent seen;
        for (index k = first; k < last; ++k) {
            seen.see(load(w + k * ld));
            fetch(w + (k + group_inputs) * ld);
        }
        const Floats inverse = seen.inverse();
        store(scales + g * panel_width, seen.scale());
        for (index k = first; k < last; k += 2) {
            const Wholes even(load(w + k * ld), inverse), odd(load(w + (k + 1) * ld), inverse);
            const auto join = [](__m256i a, __m256i b) {
                return _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa);
            };
            store(pairs + k * panel_width, join(even.low, odd.low));
            store(pairs + (k + 1) * panel_width, join(even.high, odd.high));
        }
    }
}

}  // namespace gw
