// silu(gate) * up, with gates and ups side by side in a row.
#pragma once

#include "vector.h"

namespace gw {

// 1 / (1 + e^-x), by a reciprocal that one step of Newton's makes exact to the last bits; 0 below
// -87.
inline Floats sigmoid(Floats x) {
    const Floats e = exponential(smaller(zeros() - x, splat(87.0f)));
    const Floats whole = splat(1.0f) + e;
    const Floats near = about_reciprocal(whole);
    return keep(not_below(x, splat(-87.0f)), near * fnma(whole, near, splat(2.0f)));
}

// look(row, column) reads sixteen gates or ups.
template <class Look, class Result>
void gate(index rows, index width, Result* inner, Look&& look) {
#pragma omp parallel for schedule(static)
    for (index i = 0; i < rows; ++i)
        for (index j = 0; j < width; j += lanes) {
            const Floats gate = look(i, j), up = look(i, width + j);
            write(inner + i * width + j, gate * sigmoid(gate) * up);
        }
}

template <class Given, class Result>
void gate_gradient(const Result* grad, index ldd, const Given* gate_up, index ld, index rows,
                   index width, Result* grad_gate_up) {
    const Floats one = splat(1.0f);
#pragma omp parallel for schedule(static)
    for (index i = 0; i < rows; ++i)
        for (index j = 0; j < width; j += lanes) {
            const Floats gate = read(gate_up + i * ld + j);
            const Floats up = read(gate_up + i * ld + width + j);
            const Floats dy = read(grad + i * ldd + j), open = sigmoid(gate);
            const Floats silu = gate * open;
            const Floats slope = fma(silu, one - open, open);
            Result* target = grad_gate_up + i * 2 * width + j;
            write(target, dy * up * slope);
            write(target + width, dy * silu);
        }
}

}  // namespace gw

using namespace gw;

GW_API void GW_FORM(swiglu_forward)(const Number* gate_up, index ld, index rows, index width,
                                    Number* inner) {
    gate(rows, width, inner, [&](index i, index j) { return read(gate_up + i * ld + j); });
}

GW_API void GW_FORM(swiglu_backward)(const Number* grad, index ldd, const Number* gate_up,
                                     index ld, index rows, index width, Number* grad_gate_up) {
    gate_gradient(grad, ldd, gate_up, ld, rows, width, grad_gate_up);
}
