// A piece of a product: a few panels by a block of rows, while it is computed.
#pragma once

#include <type_traits>

#include "ahead.h"
#include "blocks.h"
#include "products.h"
#include "step_math.h"
#include "step_types.h"

namespace gw::stepping {

constexpr index most_block = 96;  // rows of a piece
constexpr index most_panels = 6;  // of a piece, by any instruction set

// Rows that are computed together: as many as tiles have, for the rest to be done beside the next.
template <class Isa>
constexpr index block_rows = Isa::works_aside ? Isa::most_rows : most_block;

// Of a result, for an instruction set: float32 rows of 16 numbers a panel.
template <class Isa>
struct Piece {
    static constexpr index ld = Isa::piece_panels * panel_width;
    alignas(64) float sums[most_block * ld];

    float* at(index row, index panel) {
        return sums + row * ld + panel * panel_width;
    }
    Floats load(index row, index panel) { return gw::load(at(row, panel)); }
};

// What fetches memory for a piece while another one is computed.
template <class Isa>
using Fetching = std::conditional_t<Isa::works_aside, Stream, Steady>;

struct Output {  // what 16 outputs of a packed weight are
    int place;
    index first;  // among the outputs of that place
};

// Calls multiply(panels) with a number of panels side by side, up to `most`, as a constant.
template <int most, class Multiply>
void for_panels(index panels, Multiply&& multiply) {
    if constexpr (most > 1)
        if (panels < most) return for_panels<most - 1>(panels, multiply);
    multiply(std::integral_constant<int, most>{});
}

// Calls multiply(first, panels) for a piece in groups of up to `most`, whose number is a constant.
template <int most, class Multiply>
void for_piece(index panels, Multiply&& multiply) {
    for_groups({0, panels}, most, [&](index first, index count) {
        for_panels<most>(count, [&](auto constant) { multiply(first, constant); });
    });
}

// Calls store(row, panel, sum) for the panels of a piece.
template <class Isa, class Packed, class Store, class... Meanwhile>
void multiply_piece(const bf16* x, index ldx, index rows, const Packed* packed, index inputs,
                    index panels, Store&& store, Meanwhile&&... meanwhile) {
    for_piece<Isa::most_panels>(panels, [&](index first, auto count) {
        const auto put = [&](index row, int panel, Floats sum) { store(row, first + panel, sum); };
        Isa::template multiply<count>(x, ldx, rows, packed + first * panel_width * inputs, inputs,
                                      put, meanwhile...);
    });
}

struct Rows {  // of bfloat16 numbers, one behind the other
    const bf16* values;
    index size;

    const bf16* at(index row) const { return values + row * size; }
};

}  // namespace gw::stepping
