// Products of operands with any number of panels, which the blocks of an instruction set compute.
#pragma once

#include "operand.h"

namespace gw {

// Calls store(row, panel, sum) for every row and each of `panels`, at most `Isa::most_panels`.
template <class Isa, class Store>
void multiply_group(index panels, index rows, const Operand& first, const Operand& more,
                    Store&& store) {
    if constexpr (Isa::most_panels >= 4) {
        if (panels == 4) return Isa::template multiply<4>(rows, first, more, store);
        if (panels == 3) return Isa::template multiply<3>(rows, first, more, store);
    }
    if (panels == 2) return Isa::template multiply<2>(rows, first, more, store);
    if (panels == 1) return Isa::template multiply<1>(rows, first, more, store);
}

// Calls act(first, count) for panels cut into groups of about equal size.
template <class Isa, class Act>
void for_groups(Range panels, Act&& act) {
    const index groups = (panels.last - panels.first + Isa::most_panels - 1) / Isa::most_panels;
    for (index g = 0; g < groups; ++g) {
        const Range own = share(panels.last - panels.first, g, groups);
        act(panels.first + own.first, own.last - own.first);
    }
}

// Calls store(row, output, sum) for every row and panel.
template <class Isa, class Store>
void multiply_all(index rows, const Operand& given, index panels, Store&& store) {
    for_groups<Isa>({0, panels}, [&](index p, index count) {
        multiply_group<Isa>(count, rows, given.panel(p), {}, [&](index row, int q, __m512 sum) {
            store(row, (p + q) * panel_width, sum);
        });
    });
}

}  // namespace gw
