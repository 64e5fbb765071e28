// Rotary embeddings on heads that lie side by side.
#pragma once

#include "vector.h"

namespace gw {

// Turns the first `rotated` of `heads` of each row by its angles, or back (`direction` -1). The two
// halves of a head are the coordinates that turn together. put(at, x) is given sixteen numbers of
// the result each time, whose rows lie close together, and leave(at, from) those of other heads.
template <class Number, class Put, class Leave>
void turn(const Number* source, index ld, const Number* cosines, const Number* sines, index rows,
          index heads, index rotated, index dimension, float direction, Put&& put, Leave&& leave) {
    const index half = dimension / 2;
    const Floats sign = splat(direction);
#pragma omp parallel for schedule(static)
    for (index i = 0; i < rows; ++i) {
        const Number *cosine = cosines + i * dimension, *sine = sines + i * dimension;
        const Number* from = source + i * ld;
        const index to = i * heads * dimension;
        for (index j = 0; j < half; j += lanes) {
            const Floats c = read(cosine + j), s = read(sine + j) * sign;
            for (index at = j; at < rotated * dimension; at += dimension) {
                const Floats first = read(from + at), second = read(from + at + half);
                put(to + at, fms(first, c, second * s));
                put(to + at + half, fma(second, c, first * s));
            }
        }
        for (index at = rotated * dimension; at < heads * dimension; at += lanes)
            leave(to + at, from + at);
    }
}

}  // namespace gw

using namespace gw;

GW_API void GW_FORM(rotate)(const Number* source, index ld, const Number* cosines,
                            const Number* sines, index rows, index heads, index rotated,
                            index dimension, float direction, Number* target) {
    turn(source, ld, cosines, sines, rows, heads, rotated, dimension, direction,
         [&](index at, Floats x) { write(target + at, x); },
         [&](index at, const Number* from) {
             __builtin_memcpy(target + at, from, lanes * sizeof *target);
         });
}
