// The product by AMX by itself, which tests compare, and its form without these instructions.
#include "blocks_amx.h"
#include "gemm.h"
#include "tiles_amx.h"
#include "tiles_emulated.h"

using namespace gw;

GW_API void gw_gemm_bf16_amx(const bf16* x, index ldx, index rows, const bf16* packed,
                             index inputs, index outputs, bf16* y, index ldy) {
    gemm<Amx<TileUnit>>(x, ldx, rows, packed, inputs, outputs, y, ldy);
}

GW_API void gw_gemm_f32_amx(const bf16* x, index ldx, index rows, const bf16* packed,
                            index inputs, index outputs, float* y, index ldy) {
    gemm<Amx<TileUnit>>(x, ldx, rows, packed, inputs, outputs, y, ldy);
}

GW_API void gw_gemm_f32_emulated(const bf16* x, index ldx, index rows, const bf16* packed,
                                 index inputs, index outputs, float* y, index ldy) {
    gemm<Amx<EmulatedTiles>>(x, ldx, rows, packed, inputs, outputs, y, ldy);
}
