// Root mean square norms, with or without a residual sum before them, and their gradients.
#pragma once

#include <cmath>
#include <omp.h>

#include "vector.h"

namespace gw {

// A gain for all rows (`ld` 0) or one for each, in bfloat16 or float32.
struct Gain {
    const void* values;
    index ld;
    index is_float;

    Floats at(index row, index column) const {
        const index place = row * ld + column;
        return is_float ? load(static_cast<const float*>(values) + place)
                        : load_bf16(static_cast<const bf16*>(values) + place);
    }
};

template <class Number>
float mean_square(const Number* x, index width) {
    Floats squares = zeros();
    for (index j = 0; j < width; j += lanes) {
        const Floats values = read(x + j);
        squares = fma(values, values, squares);
    }
    return sum(squares) / width;
}

// The part of the gradient that comes through the root mean square, as a factor of x.
template <class Number>
float pull(const Number* grad, const Number* x, const Gain& gain, index row, index width,
           float rstd) {
    Floats along = zeros();
    for (index j = 0; j < width; j += lanes)
        along = fma(read(grad + j) * gain.at(row, j), read(x + j), along);
    return sum(along) * rstd * rstd * rstd / width;
}

}  // namespace gw

using namespace gw;

// normed = x / rms(x) * gain; with `added`, x + added is rounded into `total` and normed instead.
GW_API void GW_FORM(norm_forward)(const Number* x, index ldx, const Number* added, index lda,
                                  Number* total, const void* gain, index ldg, index gain_is_float,
                                  float epsilon, index rows, index width, Number* normed,
                                  float* rstd) {
    const Gain gains{gain, ldg, gain_is_float};
#pragma omp parallel for schedule(static)
    for (index i = 0; i < rows; ++i) {
        const Number* row = x + i * ldx;
        if (added) {
            Number* here = total + i * width;
            for (index j = 0; j < width; j += lanes)
                write(here + j, read(row + j) + read(added + i * lda + j));
            row = here;
        }
        const float square = mean_square(row, width);
        // An overflow becomes NaN, or a run that has diverged would look like one that stands still.
        const float scale = 1.0f / std::sqrt(square + (square - square) + epsilon);
        rstd[i] = scale;
        for (index j = 0; j < width; j += lanes)
            write(normed + i * width + j, read(row + j) * splat(scale) * gains.at(i, j));
    }
}

// The gradient of x, plus `passed` (of the sum, or none); `grad_gain` is summed over the rows in
// order (ldgg 0), or one for each row, or none.
GW_API void GW_FORM(norm_backward)(const Number* grad, index ldd, const Number* passed, index ldp,
                                   const Number* x, index ldx, const float* rstd, const void* gain,
                                   index ldg, index gain_is_float, index rows, index width,
                                   Number* grad_x, float* grad_gain, index ldgg) {
    const Gain gains{gain, ldg, gain_is_float};
#pragma omp parallel
    {
        const index which = omp_get_thread_num(), workers = omp_get_num_threads();
        const Range own = share(rows, which, workers);
        for (index i = own.first; i < own.last; ++i) {
            const Number *dy = grad + i * ldd, *values = x + i * ldx;
            const Floats scale = splat(rstd[i]);
            const Floats factor = splat(pull(dy, values, gains, i, width, rstd[i]));
            for (index j = 0; j < width; j += lanes) {
                const Floats direct = read(dy + j) * scale;
                Floats dx = direct * gains.at(i, j);
                dx = fnma(read(values + j), factor, dx);
                if (passed) dx = dx + read(passed + i * ldp + j);
                write(grad_x + i * width + j, dx);
                if (grad_gain && ldgg)
                    store(grad_gain + i * ldgg + j, direct * read(values + j));
            }
        }
        if (grad_gain && !ldgg) {
            const Range columns = share(width / lanes, which, workers);
            for (index j = columns.first * lanes; j < columns.last * lanes; j += lanes) {
                Floats total = zeros();
                for (index i = 0; i < rows; ++i)
                    total = fma(read(grad + i * ldd + j) * splat(rstd[i]), read(x + i * ldx + j),
                                total);
                store(grad_gain + j, total);
            }
        }
    }
}
