// The product by AVX512-BF16 by itself, which tests compare.
#include "blocks_avx512.h"
#include "gemm.h"

using namespace gw;

GW_API void gw_gemm_bf16_avx512(const bf16* x, index ldx, index rows, const bf16* packed,
                                index inputs, index outputs, bf16* y, index ldy) {
    gemm<Avx512>(x, ldx, rows, packed, inputs, outputs, y, ldy);
}

GW_API void gw_gemm_f32_avx512(const bf16* x, index ldx, index rows, const bf16* packed,
                               index inputs, index outputs, float* y, index ldy) {
    gemm<Avx512>(x, ldx, rows, packed, inputs, outputs, y, ldy);
}
