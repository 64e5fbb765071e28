// A product in float32 with a weight as it lies, for processors with AVX2 alone.
//
// A thread packs a few panels of the weight and multiplies all rows with them. Each output is one
// chain of fused products, so a row's bits depend on nothing but the row.
#include <omp.h>

#include "blocks_avx2.h"

using namespace gw;

namespace {

struct Weight {
    const float* values;
    index across, along;  // from one output to the next, from one input to the next
    index outputs, inputs;
};

constexpr index most_bytes = 192 * 1024;  // of packed panels, which should stay in the second cache

// Sixteen outputs, an input after the other; one of the strides is 1.
void pack(const Weight& w, index first, float* target) {
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
void multiply_panels(const Weight& w, const float* x, index ldx, index rows, index first,
                     const float* bias, float* y) {
    static thread_local Scratch room;
    const index size = panel_width * w.inputs;
    float* packed = room.room<float>(P * size);
    for (int p = 0; p < P; ++p) pack(w, first + p * panel_width, packed + p * size);
    const OperandOf<float, float> given{x, ldx, packed, w.inputs, size};
    Avx2::multiply<P>(rows, given, [&](index row, int p, Floats sum) {
        const index at = first + p * panel_width;
        store(y + row * w.outputs + at, bias ? sum + load(bias + at) : sum);
    });
}

}  // namespace

// y (rows, outputs) = x WT + bias; outputs are a multiple of 16, inputs of 8.
GW_API void gw_multiply_avx2(const float* x, index ldx, index rows, const float* weight,
                             index across, index along, index outputs, index inputs,
                             const float* bias, float* y) {
    const Weight w{weight, across, along, outputs, inputs};
    const index wide = std::clamp<index>(most_bytes / (4 * panel_width * inputs), 1, 4);
#pragma omp parallel
    {
        const Range own = share(outputs / panel_width, omp_get_thread_num(),
                                omp_get_num_threads());
        for (index p = own.first; p < own.last;) {
            const index count = std::min(wide, own.last - p), first = p * panel_width;
            switch (count) {
                case 4: multiply_panels<4>(w, x, ldx, rows, first, bias, y); break;
                case 3: multiply_panels<3>(w, x, ldx, rows, first, bias, y); break;
                case 2: multiply_panels<2>(w, x, ldx, rows, first, bias, y); break;
                default: multiply_panels<1>(w, x, ldx, rows, first, bias, y); break;
            }
            p += count;
        }
    }
}
