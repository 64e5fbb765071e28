// Vectors that scale and shift the outputs of a product, and their gradients.
#pragma once

#include <omp.h>

#include "vector.h"

using namespace gw;

// y * scale + shift for `rows` of `width` columns; a vector may be none.
GW_API void GW_FORM(scale_forward)(const Number* y, index ldy, const float* scale,
                                   const float* shift, index rows, index width, Number* target,
                                   index ldt) {
    const Floats one = splat(1.0f), none = zeros();
#pragma omp parallel for schedule(static)
    for (index i = 0; i < rows; ++i)
        for (index j = 0; j < width; j += lanes)
            write(target + i * ldt + j, fma(read(y + i * ldy + j), scale ? load(scale + j) : one,
                                            shift ? load(shift + j) : none));
}

// The gradients of y, and of the vectors summed over the rows in order; each may be none.
GW_API void GW_FORM(scale_backward)(const Number* grad, index ldd, const Number* y, index ldy,
                                    const float* scale, index rows, index width, Number* grad_y,
                                    index ldg, float* grad_scale, float* grad_shift) {
    const Floats one = splat(1.0f);
#pragma omp parallel
    {
        const Range own = share(width / lanes, omp_get_thread_num(), omp_get_num_threads());
        for (index j = own.first * lanes; j < own.last * lanes; j += lanes) {
            const Floats factor = scale ? load(scale + j) : one;
            Floats scales = zeros(), shifts = zeros();
            for (index i = 0; i < rows; ++i) {
                const Floats dy = read(grad + i * ldd + j);
                if (grad_y) write(grad_y + i * ldg + j, dy * factor);
                if (grad_scale) scales = fma(dy, read(y + i * ldy + j), scales);
                shifts = shifts + dy;
            }
            if (grad_scale) store(grad_scale + j, scales);
            if (grad_shift) store(grad_shift + j, shifts);
        }
    }
}
