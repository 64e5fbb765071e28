// The sums of a few rows and panels, which stay in registers while an instruction set adds to them.
#pragma once

#include "operand.h"
#include "vector.h"

namespace gw {

// Calls put(row, sums) with each row's sums over the inputs of two operands, `more` after `first`,
// and meanwhile() for every `Isa::between` inputs.
template <class Isa, int R, int P, class First, class More, class Put, class Meanwhile = Nothing>
inline void sum_block(const First& first, const More& more, const Put& put,
                      Meanwhile&& meanwhile = {}) {
    Floats sum[R][P];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
        for (int p = 0; p < P; ++p) sum[r][p] = zeros();
    Isa::template add<R, P>(first, sum, meanwhile);
    if (more.inputs) Isa::template add<R, P>(more, sum, meanwhile);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) put(r, sum[r]);
}

}  // namespace gw
