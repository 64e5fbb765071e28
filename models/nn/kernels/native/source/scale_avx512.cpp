// Vectors that scale and shift the outputs of a product, and their gradients.
#include <omp.h>

#include "vector.h"

using namespace gw;

// y * scale + shift for `rows` of `width` columns; a vector may be none.
GW_API void gw_scale_forward_avx512(const bf16* y, index ldy, const float* scale,
                                    const float* shift, index rows, index width, bf16* target,
                                    index ldt) {
    const __m512 one = _mm512_set1_ps(1.0f), none = _mm512_setzero_ps();
#pragma omp parallel for schedule(static)
    for (index i = 0; i < rows; ++i)
        for (index j = 0; j < width; j += lanes)
            store_bf16(target + i * ldt + j,
                       _mm512_fmadd_ps(load_bf16(y + i * ldy + j),
                                       scale ? _mm512_loadu_ps(scale + j) : one,
                                       shift ? _mm512_loadu_ps(shift + j) : none));
}

// The gradients of y, and of the vectors summed over the rows in order; each may be none.
GW_API void gw_scale_backward_avx512(const bf16* grad, index ldd, const bf16* y, index ldy,
                                     const float* scale, index rows, index width, bf16* grad_y,
                                     index ldg, float* grad_scale, float* grad_shift) {
    const __m512 one = _mm512_set1_ps(1.0f);
#pragma omp parallel
    {
        const Range own = share(width / lanes, omp_get_thread_num(), omp_get_num_threads());
        for (index j = own.first * lanes; j < own.last * lanes; j += lanes) {
            const __m512 factor = scale ? _mm512_loadu_ps(scale + j) : one;
            __m512 scales = _mm512_setzero_ps(), shifts = _mm512_setzero_ps();
            for (index i = 0; i < rows; ++i) {
                const __m512 dy = load_bf16(grad + i * ldd + j);
                if (grad_y) store_bf16(grad_y + i * ldg + j, _mm512_mul_ps(dy, factor));
                if (grad_scale) scales = _mm512_fmadd_ps(dy, load_bf16(y + i * ldy + j), scales);
                shifts = _mm512_add_ps(shifts, dy);
            }
            if (grad_scale) _mm512_storeu_ps(grad_scale + j, scales);
            if (grad_shift) _mm512_storeu_ps(grad_shift + j, shifts);
        }
    }
}
