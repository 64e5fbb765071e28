// Sums of rows that tiles have left in memory.
#pragma once

#include <immintrin.h>

#include "common.h"

namespace gw {

// The sums of a block, waiting to be handed on.
struct Done {
    const float* sums = nullptr;  // rows of 32, of which a panel has 16
    index top = 0, panel = 0, rows = 0, panels = 0, next = 0;

    index left() const { return rows - next; }

    // Calls store(row, panel, sums...) for the next rows, with the sums of one or two panels.
    template <class Store>
    void hand_on(index count, Store& store) {
        for (const index last = std::min(rows, next + count); next < last; ++next) {
            const float* row = sums + next * 32;
            if (panels > 1)
                store(top + next, panel, _mm512_load_ps(row), _mm512_load_ps(row + panel_width));
            else
                store(top + next, panel, _mm512_load_ps(row));
        }
    }
};

}  // namespace gw
