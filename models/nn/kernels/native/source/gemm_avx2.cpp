// The product by AVX2 by itself, which tests compare.
#include "blocks_avx2.h"
#include "gemm.h"

using namespace gw;

GW_API void gw_gemm_bf16_avx2(const bf16* x, index ldx, index rows, const bf16* packed,
                              index inputs, index outputs, bf16* y, index ldy) {
    gemm<Avx2>(x, ldx, rows, packed, inputs, outputs, y, ldy);
}

GW_API void gw_gemm_f32_avx2(const bf16* x, index ldx, index rows, const bf16* packed,
                             index inputs, index outputs, float* y, index ldy) {
    gemm<Avx2>(x, ldx, rows, packed, inputs, outputs, y, ldy);
}
