// A piece of a product: a few panels by a block of rows, while it is computed.
#pragma once

#include "blocks.h"
#include "step_math.h"
#include "step_types.h"

namespace gw::stepping {

constexpr index most_block = 96;  // rows of a piece
constexpr index most_panels = 4;  // panels of a piece

// Rows that are computed together: as many as tiles have, for the rest to be done beside the next.
template <class Isa>
constexpr index block_rows = Isa::works_aside ? Isa::most_rows : most_block;

struct Piece {  // of a result: float32 rows of 16 numbers a panel
    static constexpr index ld = most_panels * panel_width;
    alignas(64) float sums[most_block * ld];

    float* at(index row, index panel) {
        return sums + row * ld + panel * panel_width;
    }
    Floats load(index row, index panel) { return gw::load(at(row, panel)); }
};

struct Output {  // what 16 outputs of a packed weight are
    int place;
    index first;  // among the outputs of that place
};

// Calls multiply(panels) with a number of panels side by side, up to `most_panels`, as a constant.
template <class Multiply>
void for_panels(index panels, Multiply&& multiply) {
    switch (panels) {
        case 4: return multiply(std::integral_constant<int, 4>{});
        case 3: return multiply(std::integral_constant<int, 3>{});
        case 2: return multiply(std::integral_constant<int, 2>{});
        default: return multiply(std::integral_constant<int, 1>{});
    }
}

// Calls store(row, panel, sum) for up to `most_panels` panels side by side.
template <class Isa, class Packed, class Store, class... Meanwhile>
void multiply_piece(const bf16* x, index ldx, index rows, const Packed* packed, index inputs,
                    index panels, Store&& store, Meanwhile&&... meanwhile) {
    for_panels(panels, [&](auto count) {
        Isa::template multiply<count>(x, ldx, rows, packed, inputs, store, meanwhile...);
    });
}

struct Rows {  // of bfloat16 numbers, one behind the other
    const bf16* values;
    index size;

    const bf16* at(index row) const { return values + row * size; }
};

}  // namespace gw::stepping
