// A product in float32 with a weight as it lies, for processors with AVX2 alone.
//
// A thread packs a few panels of the weight and multiplies all rows with them. Each output is one
// chain of fused products, so a row's bits depend on nothing but the row.
#pragma once

#include <omp.h>

#include "blocks_avx2.h"

namespace gw {

struct FloatWeight {
    const float* values;
    index across, along;  // from one output to the next, from one input to the next: one is 1
    index outputs, inputs;
    const float* bias;  // or none

    Floats start(index output) const { return bias ? load(bias + output) : zeros(); }
};

constexpr index most_panel_bytes = 192 * 1024;  // of a thread, which stay in its second cache

// Sixteen outputs, an input after the other.
inline void pack(const FloatWeight& w, index first, float* target) {
    if (w.across == 1) {
        for (index k = 0; k < w.inputs; ++k)
            store(target + k * panel_width, load(w.values + k * w.along + first));
        return;
    }
    for (index k = 0; k < w.inputs; k += 8)
        for (index half = 0; half < panel_width; half += 8) {
            __m256i tile[8];
            for (index n = 0; n < 8; ++n)
                tile[n] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(
                    w.values + (first + half + n) * w.across + k));
            transpose(tile);
            for (index n = 0; n < 8; ++n)
                _mm256_storeu_si256(
                    reinterpret_cast<__m256i*>(target + (k + n) * panel_width + half), tile[n]);
        }
}

template <int P>
void multiply_panels(const FloatWeight& w, const RowsOf<float>& x, index first, float* y) {
    static thread_local Scratch room;
    const index size = panel_width * w.inputs;
    float* packed = room.room<float>(P * size);
    for (int p = 0; p < P; ++p) pack(w, first + p * panel_width, packed + p * size);
    const OperandOf<float, float> given{x.values, x.ld, packed, w.inputs, size};
    Avx2::multiply<P>(x.count, given, [&](index row, int p, Floats sum) {
        const index at = first + p * panel_width;
        store(y + row * w.outputs + at, w.bias ? sum + load(w.bias + at) : sum);
    });
}

// y (rows, outputs) = x WT + bias; outputs are a multiple of 16, inputs of 8. Calls
// end(rows, columns) for what the same thread has just computed.
template <class End = Nothing>
void multiply(const RowsOf<float>& x, const FloatWeight& w, float* y, End&& end = {}) {
    const index wide = std::clamp<index>(most_panel_bytes / (4 * panel_width * w.inputs), 1, 4);
#pragma omp parallel
    {
        const Range own = share(w.outputs / panel_width, omp_get_thread_num(),
                                omp_get_num_threads());
        for (index p = own.first; p < own.last;) {
            const index count = std::min(wide, own.last - p), first = p * panel_width;
            switch (count) {
                case 4: multiply_panels<4>(w, x, first, y); break;
                case 3: multiply_panels<3>(w, x, first, y); break;
                case 2: multiply_panels<2>(w, x, first, y); break;
                default: multiply_panels<1>(w, x, first, y); break;
            }
            end(Range{0, x.count}, Range{first, first + count * panel_width});
            p += count;
        }
    }
}

}  // namespace gw
