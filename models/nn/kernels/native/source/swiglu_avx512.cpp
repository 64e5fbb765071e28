// silu(gate) * up, with gates and ups side by side in a row.
#include "vector.h"

using namespace gw;

namespace {

// 1 / (1 + e^-x), by a reciprocal that one step of Newton's makes exact to the last bits; 0 below
// -87.
__m512 sigmoid(__m512 x) {
    const __m512 most = _mm512_set1_ps(87.0f);
    const __m512 e = exponential(_mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), x), most));
    const __m512 whole = _mm512_add_ps(_mm512_set1_ps(1.0f), e);
    const __m512 near = _mm512_rcp14_ps(whole);
    const __mmask16 there = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    return _mm512_maskz_mul_ps(there, near, _mm512_fnmadd_ps(whole, near, _mm512_set1_ps(2.0f)));
}

}  // namespace

GW_API void gw_swiglu_forward_avx512(const bf16* gate_up, index ld, index rows, index width,
                                     bf16* inner) {
#pragma omp parallel for schedule(static)
    for (index i = 0; i < rows; ++i)
        for (index j = 0; j < width; j += lanes) {
            const __m512 gate = load_bf16(gate_up + i * ld + j);
            const __m512 up = load_bf16(gate_up + i * ld + width + j);
            const __m512 silu = _mm512_mul_ps(gate, sigmoid(gate));
            store_bf16(inner + i * width + j, _mm512_mul_ps(silu, up));
        }
}

GW_API void gw_swiglu_backward_avx512(const bf16* grad, index ldd, const bf16* gate_up, index ld,
                                      index rows, index width, bf16* grad_gate_up) {
    const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel for schedule(static)
    for (index i = 0; i < rows; ++i)
        for (index j = 0; j < width; j += lanes) {
            const __m512 gate = load_bf16(gate_up + i * ld + j);
            const __m512 up = load_bf16(gate_up + i * ld + width + j);
            const __m512 dy = load_bf16(grad + i * ldd + j), open = sigmoid(gate);
            const __m512 silu = _mm512_mul_ps(gate, open);
            const __m512 slope = _mm512_fmadd_ps(silu, _mm512_sub_ps(one, open), open);
            bf16* target = grad_gate_up + i * 2 * width + j;
            store_bf16(target, _mm512_mul_ps(_mm512_mul_ps(dy, up), slope));
            store_bf16(target + width, _mm512_mul_ps(dy, silu));
        }
}
