// Products with packed weights, split over the threads of the caller's team.
//
// A packed weight of N outputs and K inputs is N/16 panels of K/2 rows of 16 pairs: the operand of
// a fused dot product over pairs and, 32 inputs at a time, a tile of AMX.
#pragma once

#include <immintrin.h>
#include <omp.h>

#include "common.h"
#include "vector.h"

namespace gw {

constexpr index chunk_bytes = 384 * 1024;  // of rows, which should stay in the second cache

// Calls store(row, output, sum) with 16 float32 sums for every row and panel of [first, last).
template <class Isa, class Packed, class Store>
void multiply_panels(const bf16* x, index ldx, index rows, const Packed* packed, index inputs,
                     Range panels, Store&& store) {
    const index most = std::max<index>(48, chunk_bytes / (2 * inputs) / 48 * 48);
    const index chunks = (rows + most - 1) / most;
    for (index c = 0; c < chunks; ++c) {
        const auto [top, bottom] = share(rows, c, chunks);
        const bf16* block = x + top * ldx;
        index p = panels.first;
        for (; p + Isa::most_panels <= panels.last; p += Isa::most_panels)
            Isa::template multiply<Isa::most_panels>(
                block, ldx, bottom - top, packed + p * panel_width * inputs, inputs,
                [&, p](index r, int q, Floats sum) { store(top + r, (p + q) * panel_width, sum); });
        for (; p < panels.last; ++p)
            Isa::template multiply<1>(
                block, ldx, bottom - top, packed + p * panel_width * inputs, inputs,
                [&, p](index r, int, Floats sum) { store(top + r, p * panel_width, sum); });
    }
}

// y (rows, N) = x (rows, K) times the packed weight, as float32 or rounded once to bfloat16.
template <class Isa, class Out>
void gemm(const bf16* x, index ldx, index rows, const bf16* packed, index inputs, index outputs,
          Out* y, index ldy) {
#pragma omp parallel
    {
        const Range panels = share(outputs / panel_width, omp_get_thread_num(),
                                   omp_get_num_threads());
        multiply_panels<Isa>(x, ldx, rows, packed, inputs, panels,
                             [&](index row, index output, Floats sum) {
                                 Out* target = y + row * ldy + output;
                                 if constexpr (sizeof(Out) == 4)
                                     store(target, sum);
                                 else
                                     store_bf16(target, sum);
                             });
    }
}

}  // namespace gw
