// The pointwise ops of which the backward keeps bfloat16 instead of float32. Forwards compute from,
// or give, the same rounded numbers, so that what is computed again has the same bits.
#pragma once

#include "rotate.h"
#include "swiglu.h"

using namespace gw;

// Keeps gates and ups, whose rows lie close together there.
GW_API void GW_FORM(swiglu_short_forward)(const float* gate_up, index ld, index rows, index width,
                                          bf16* kept, float* inner) {
    gate(rows, width, inner, [&](index i, index j) {
        return store_rounded(kept + i * 2 * width + j, read(gate_up + i * ld + j));
    });
}

GW_API void GW_FORM(swiglu_short_again)(const bf16* kept, index rows, index width, float* inner) {
    gate(rows, width, inner, [&](index i, index j) { return read(kept + i * 2 * width + j); });
}

GW_API void GW_FORM(swiglu_short_backward)(const float* grad, index ldd, const bf16* kept,
                                           index rows, index width, float* grad_gate_up) {
    gate_gradient(grad, ldd, kept, 2 * width, rows, width, grad_gate_up);
}

// Gives what is kept in float32 as well.
GW_API void GW_FORM(rotate_short)(const float* source, index ld, const float* cosines,
                                  const float* sines, index rows, index heads, index rotated,
                                  index dimension, bf16* kept, float* target) {
    const auto put = [&](index at, Floats x) { write(target + at, store_rounded(kept + at, x)); };
    turn(source, ld, cosines, sines, rows, heads, rotated, dimension, 1.0f, put,
         [&](index at, const float* from) { put(at, read(from)); });
}
