// A piece of a product: a few panels by a block of rows, while it is computed.
#pragma once

#include "blocks.h"
#include "step_math.h"
#include "step_types.h"

namespace gw::stepping {

constexpr index most_block = 96;  // rows of a piece
constexpr index most_panels = 4;  // panels of a piece

struct Piece {  // of a result: float32 rows of 16 numbers a panel
    alignas(64) float sums[most_block * most_panels * panel_width];

    float* at(index row, index panel) {
        return sums + (row * most_panels + panel) * panel_width;
    }
    Floats load(index row, index panel) { return gw::load(at(row, panel)); }
};

struct Output {  // what 16 outputs of a packed weight are
    int place;
    index first;  // among the outputs of that place
};

constexpr Output no_output{-1, 0};

inline Range common(Range a, Range b) {
    return {std::max(a.first, b.first), std::min(a.last, b.last)};
}

// Calls store(row, panel, sum) for up to `most_panels` panels side by side.
template <class Isa, class Packed, class Store>
void multiply_piece(const bf16* x, index ldx, index rows, const Packed* packed, index inputs,
                    index panels, Store&& store, Ahead* ahead = nullptr) {
    switch (panels) {
        case 4: return Isa::template multiply<4>(x, ldx, rows, packed, inputs, store, ahead);
        case 3: return Isa::template multiply<3>(x, ldx, rows, packed, inputs, store, ahead);
        case 2: return Isa::template multiply<2>(x, ldx, rows, packed, inputs, store, ahead);
        default: return Isa::template multiply<1>(x, ldx, rows, packed, inputs, store, ahead);
    }
}

struct Rows {  // of bfloat16 numbers, one behind the other
    const bf16* values;
    index size;

    const bf16* at(index row) const { return values + row * size; }
};

}  // namespace gw::stepping
