// Products of operands with any number of panels, which the blocks of an instruction set compute.
#pragma once

#include "operand.h"

namespace gw {

// Calls act(first, count) for panels cut into groups of about equal size, at most `most`.
template <class Act>
void for_groups(Range panels, index most, Act&& act) {
    const index groups = (panels.last - panels.first + most - 1) / most;
    for (index g = 0; g < groups; ++g) {
        const Range own = share(panels.last - panels.first, g, groups);
        act(panels.first + own.first, own.last - own.first);
    }
}

// Calls store(row, output, sums...) for every row with 16 or 32 sums from an output on.
template <class Isa, class Number, class Store>
void multiply_all(index rows, const OperandOf<Number, Number>& given, index panels, Store&& store) {
    Isa::multiply_group(panels, rows, given, {}, [&](index row, index panel, auto... sums) {
        store(row, panel * panel_width, sums...);
    });
}

}  // namespace gw
