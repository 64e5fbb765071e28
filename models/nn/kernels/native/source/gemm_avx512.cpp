// The products for processors with AVX512-BF16, and the packing that both forms read.
#include "blocks_avx512.h"
#include "gemm.h"

using namespace gw;

// Packs W (N, K), or with `transposed` the W of which this is the transpose (K, N); N is a multiple
// of 16, K of 32.
GW_API void gw_pack(const bf16* weight, index ld, index outputs, index inputs, int transposed,
                    bf16* packed) {
    const index across = transposed ? 1 : ld, along = transposed ? ld : 1;
#pragma omp parallel for schedule(static)
    for (index p = 0; p < outputs / panel_width; ++p) {
        bf16* target = packed + p * panel_width * inputs;
        for (index k = 0; k < inputs; k += 2)
            for (index n = 0; n < panel_width; ++n) {
                const bf16* source = weight + (p * panel_width + n) * across + k * along;
                *target++ = source[0];
                *target++ = source[along];
            }
    }
}

GW_API void gw_gemm_bf16_avx512(const bf16* x, index ldx, index rows, const bf16* packed,
                                index inputs, index outputs, bf16* y, index ldy) {
    gemm<Avx512>(x, ldx, rows, packed, inputs, outputs, y, ldy);
}

GW_API void gw_gemm_f32_avx512(const bf16* x, index ldx, index rows, const bf16* packed,
                               index inputs, index outputs, float* y, index ldy) {
    gemm<Avx512>(x, ldx, rows, packed, inputs, outputs, y, ldy);
}
