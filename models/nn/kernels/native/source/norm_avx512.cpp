// Root mean square norms, with or without a residual sum before them, and their gradients.
#include <cmath>
#include <omp.h>

#include "vector.h"

using namespace gw;

namespace {

// A gain for all rows (`ld` 0) or one for each, in bfloat16 or float32.
struct Gain {
    const void* values;
    index ld;
    index is_float;

    __m512 at(index row, index column) const {
        const index place = row * ld + column;
        return is_float ? _mm512_loadu_ps(static_cast<const float*>(values) + place)
                        : load_bf16(static_cast<const bf16*>(values) + place);
    }
};

float mean_square(const bf16* x, index width) {
    __m512 squares = _mm512_setzero_ps();
    for (index j = 0; j < width; j += lanes) {
        const __m512 values = load_bf16(x + j);
        squares = _mm512_fmadd_ps(values, values, squares);
    }
    return sum(squares) / width;
}

// The part of the gradient that comes through the root mean square, as a factor of x.
float pull(const bf16* grad, const bf16* x, const Gain& gain, index row, index width, float rstd) {
    __m512 along = _mm512_setzero_ps();
    for (index j = 0; j < width; j += lanes)
        along = _mm512_fmadd_ps(_mm512_mul_ps(load_bf16(grad + j), gain.at(row, j)),
                                load_bf16(x + j), along);
    return sum(along) * rstd * rstd * rstd / width;
}

}  // namespace

// normed = x / rms(x) * gain; with `added`, x + added is rounded into `total` and normed instead.
GW_API void gw_norm_forward_avx512(const bf16* x, index ldx, const bf16* added, index lda,
                                   bf16* total, const void* gain, index ldg, index gain_is_float,
                                   float epsilon, index rows, index width, bf16* normed,
                                   float* rstd) {
    const Gain gains{gain, ldg, gain_is_float};
#pragma omp parallel for schedule(static)
    for (index i = 0; i < rows; ++i) {
        const bf16* row = x + i * ldx;
        if (added) {
            bf16* here = total + i * width;
            for (index j = 0; j < width; j += lanes)
                store_bf16(here + j, _mm512_add_ps(load_bf16(row + j),
                                                   load_bf16(added + i * lda + j)));
            row = here;
        }
        const float scale = 1.0f / std::sqrt(mean_square(row, width) + epsilon);
        rstd[i] = scale;
        for (index j = 0; j < width; j += lanes)
            store_bf16(normed + i * width + j,
                       _mm512_mul_ps(_mm512_mul_ps(load_bf16(row + j), _mm512_set1_ps(scale)),
                                     gains.at(i, j)));
    }
}

// The gradient of x, plus `passed` (of the sum, or none); `grad_gain` is summed over the rows in
// order (ldgg 0), or one for each row, or none.
GW_API void gw_norm_backward_avx512(const bf16* grad, index ldd, const bf16* passed, index ldp,
                                    const bf16* x, index ldx, const float* rstd, const void* gain,
                                    index ldg, index gain_is_float, index rows, index width,
                                    bf16* grad_x, float* grad_gain, index ldgg) {
    const Gain gains{gain, ldg, gain_is_float};
#pragma omp parallel
    {
        const index which = omp_get_thread_num(), workers = omp_get_num_threads();
        const Range own = share(rows, which, workers);
        for (index i = own.first; i < own.last; ++i) {
            const bf16 *dy = grad + i * ldd, *values = x + i * ldx;
            const __m512 scale = _mm512_set1_ps(rstd[i]);
            const __m512 factor = _mm512_set1_ps(pull(dy, values, gains, i, width, rstd[i]));
            for (index j = 0; j < width; j += lanes) {
                const __m512 direct = _mm512_mul_ps(load_bf16(dy + j), scale);
                __m512 dx = _mm512_mul_ps(direct, gains.at(i, j));
                dx = _mm512_fnmadd_ps(load_bf16(values + j), factor, dx);
                if (passed) dx = _mm512_add_ps(dx, load_bf16(passed + i * ldp + j));
                store_bf16(grad_x + i * width + j, dx);
                if (grad_gain && ldgg)
                    _mm512_storeu_ps(grad_gain + i * ldgg + j,
                                     _mm512_mul_ps(direct, load_bf16(values + j)));
            }
        }
        if (grad_gain && !ldgg) {
            const Range columns = share(width / lanes, which, workers);
            for (index j = columns.first * lanes; j < columns.last * lanes; j += lanes) {
                __m512 total = _mm512_setzero_ps();
                for (index i = 0; i < rows; ++i)
                    total = _mm512_fmadd_ps(
                        _mm512_mul_ps(load_bf16(grad + i * ldd + j), _mm512_set1_ps(rstd[i])),
                        load_bf16(x + i * ldx + j), total);
                _mm512_storeu_ps(grad_gain + j, total);
            }
        }
    }
}
