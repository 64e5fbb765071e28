// Rotary embeddings on heads that lie side by side.
#pragma once

#include "vector.h"

using namespace gw;

// Turns the first `rotated` of `heads` of each row by its angles, or back (`direction` -1), and
// copies the others. The two halves of a head are the coordinates that turn together.
GW_API void GW_FORM(rotate)(const Number* source, index ld, const Number* cosines,
                            const Number* sines, index rows, index heads, index rotated,
                            index dimension, float direction, Number* target) {
    const index half = dimension / 2;
    const Floats sign = splat(direction);
#pragma omp parallel for schedule(static)
    for (index i = 0; i < rows; ++i) {
        const Number *cosine = cosines + i * dimension, *sine = sines + i * dimension;
        Number* to = target + i * heads * dimension;
        const Number* from = source + i * ld;
        for (index j = 0; j < half; j += lanes) {
            const Floats c = read(cosine + j), s = read(sine + j) * sign;
            for (index at = j; at < rotated * dimension; at += dimension) {
                const Floats first = read(from + at), second = read(from + at + half);
                write(to + at, fms(first, c, second * s));
                write(to + at + half, fma(second, c, first * s));
            }
        }
        for (index at = rotated * dimension; at < heads * dimension; at += lanes)
            __builtin_memcpy(to + at, from + at, lanes * sizeof *to);
    }
}
