// A row as a screen multiplies it, and what may be its likeliest token: see `step_screen.h`.
#pragma once

#include <cmath>

#include "step_types.h"

namespace gw::stepping {

// One row as the screen multiplies it.
struct Screened {
    float step, length, left;  // t, |t g|, and |e_h| with what else products may be off by
    std::int32_t start;        // what sums begin with, for a token's integers are 128 too large
};

// What one thread knows of one row: panels that may hold the likeliest token.
struct Candidates {
    static constexpr index most = 256;
    float bar;  // what some token has at the least
    index count;
    index panels[most];
    float most_of[most];  // what each of them has at the most

    void clear() { bar = -__builtin_inff(), count = 0; }
    // Takes one in; without room even for the best of them, `count` exceeds `most` from then on.
    void add(index panel, float at_most, float at_least) {
        bar = std::max(bar, at_least);
        if (count == most) drop();
        if (count < most) panels[count] = panel, most_of[count] = at_most;
        count = std::min(count, most) + 1;
    }

    // Forgets those that the bar has passed since.
    void drop() {
        index kept = 0;
        for (index c = 0; c < most; ++c)
            if (most_of[c] >= bar) panels[kept] = panels[c], most_of[kept++] = most_of[c];
        count = kept;
    }
};

// Integers of a row as instructions take them: by AVX2 of four inputs in the order 0, 2, 1, 3.
#ifdef __AVX512VNNI__
using Coarse = std::int8_t;
inline index place_of_integer(index k) { return k; }
#else
using Coarse = std::int16_t;
inline index place_of_integer(index k) { return (k & ~3) | (k & 1) << 1 | (k & 2) >> 1; }
#endif

// The rows that are screened, in the order of its inputs: bfloat16 ones and then integers.
struct ScreenedRows {
    Screened* rows;
    bf16* exact;
    Coarse* coarse;

    ScreenedRows from(const Screen& screen, index row) const {
        return {rows + row, exact + row * screen.exact, coarse + row * screen.coarse};
    }
};

// Squares of lengths for which bounds hold.
constexpr float largest_state = 1e15f, smallest_state = 1e-15f;

// Lays out one row, which logits are computed of to within a length that is `lost`; false if its
// size is none that bounds are good for.
inline bool lay_out(const Screen& screen, const bf16* hidden, float lost,
                    const ScreenedRows& target) {
    const auto at = [&](index k) { return to_float(hidden[screen.order[k]]); };
    float whole = 0, most = 0, integers = 0, left = 0;
    for (index k = 0; k < screen.exact + screen.coarse; ++k) whole += at(k) * at(k);
    if (!(whole > smallest_state && whole < largest_state)) return false;  // or no number
    for (index k = 0; k < screen.exact; ++k) target.exact[k] = hidden[screen.order[k]];
    for (index k = 0; k < screen.coarse; ++k) most = std::max(most, std::abs(at(screen.exact + k)));
    const float step = std::max(most, smallest_state) / 127;
    std::int32_t total = 0;
    for (index k = 0; k < screen.coarse; ++k) {
        const float value = at(screen.exact + k), rounded = std::nearbyint(value / step);
        target.coarse[place_of_integer(k)] = static_cast<Coarse>(rounded);
        total += static_cast<std::int32_t>(rounded);
        integers += rounded * rounded;
        left += (value - rounded * step) * (value - rounded * step);
    }
    const float rounding = 1.2e-7f * (screen.exact + screen.coarse + 64);
    const float some = 1 + rounding, length = std::sqrt(whole);
    *target.rows = {step, some * step * std::sqrt(integers),
                    some * (std::sqrt(left) + lost + screen.slack * (length + lost)) +
                        rounding * length,
                    -128 * total};
    return true;
}

}  // namespace gw::stepping
