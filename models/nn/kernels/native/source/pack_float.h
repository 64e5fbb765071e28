// Packing of float32 into panels; the same words as `pack.h`.
#pragma once

#include "vector.h"

namespace gw {

// Element j of row i becomes element i of row j.
inline void transpose(Floats (&rows)[16]) {
    const auto swap_halves = [](__m256 (&eight)[8]) {
        __m256i whole[8];
        for (int n = 0; n < 8; ++n) whole[n] = _mm256_castps_si256(eight[n]);
        transpose(whole);
        for (int n = 0; n < 8; ++n) eight[n] = _mm256_castsi256_ps(whole[n]);
    };
    __m256 first[8], second[8], third[8], fourth[8];
    for (int n = 0; n < 8; ++n) {
        first[n] = rows[n].low, second[n] = rows[n].high;
        third[n] = rows[n + 8].low, fourth[n] = rows[n + 8].high;
    }
    for (auto* block : {&first, &second, &third, &fourth}) swap_halves(*block);
    for (int n = 0; n < 8; ++n) {
        rows[n] = {first[n], third[n]};
        rows[n + 8] = {second[n], fourth[n]};
    }
}

// Panels of W (outputs, inputs), `stride` apart, with inputs filled up to `padded`.
inline void pack_along(const float* weight, index ld, index outputs, index inputs, index padded,
                       index stride, float* target) {
    for (index n = 0; n < outputs; n += panel_width, target += stride)
        for (index k = 0; k < padded; k += lanes) {
            const Mask there = first_lanes(inputs - k);
            Floats tile[16];
            for (index i = 0; i < lanes; ++i)
                tile[i] = n + i < outputs
                              ? load_some(there, weight + (n + i) * ld + k, zeros())
                              : zeros();
            transpose(tile);
            for (index j = 0; j < std::min(lanes, padded - k); ++j)
                store(target + (k + j) * panel_width, tile[j]);
        }
}

// The same from the transpose of W, (inputs, outputs).
inline void pack_across(const float* weight, index ld, index outputs, index inputs, index padded,
                        index stride, float* target) {
    for (index n = 0; n < outputs; n += panel_width, target += stride) {
        const Mask there = first_lanes(outputs - n);
        for (index k = 0; k < padded; ++k)
            store(target + k * panel_width,
                  k < inputs ? load_some(there, weight + k * ld + n, zeros()) : zeros());
    }
}

// The inputs of a panel in pairs of rows, each of which may also be written elsewhere.
using InputRow = Floats;

inline InputRow no_inputs() { return zeros(); }
inline InputRow write_inputs(float* target, Floats value) {
    store(target, value);
    return value;
}
inline void write_pair(float* panel, InputRow even, InputRow odd) {
    store(panel, even);
    store(panel + panel_width, odd);
}

}  // namespace gw
