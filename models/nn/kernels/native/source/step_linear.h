// A product with a packed weight for all rows of a step, with what each row's adapter adds to it.
//
// A thread computes pieces of a few panels by a block of rows, so an output is written by one
// thread alone, which also applies the adapters' terms to it and hands it to whatever comes next.
#pragma once

#include <vector>

#include "step_piece.h"
#include "step_team.h"

namespace gw::stepping {

struct Weight {
    Matrix matrix;
    const float* bias;  // in the order of the panels, or null
    index outputs, inputs;
    index unit;  // panels that belong together

    template <class Packed>
    const Packed* panels(index first) const {
        return static_cast<const Packed*>(matrix.panels) + first * panel_width * inputs;
    }

    // Sixteen outputs of one panel from what was summed for them.
    Floats finish(Floats sum, index panel) const {
        if (matrix.scales) sum = sum * load(matrix.scales + panel * panel_width);
        return bias ? sum + load(bias + panel * panel_width) : sum;
    }
};

// Numbers in 8 bits as bfloat16, which holds them exactly.
inline const bf16* widened(const std::int8_t* packed, index count) {
    static thread_local std::vector<bf16> room;
    if (static_cast<index>(room.size()) < count) room.resize(count);
    for (index i = 0; i < count; i += 2 * panel_width)
        store_exact_pairs(room.data() + i, load_int8(packed + i),
                          load_int8(packed + i + panel_width));
    return room.data();
}

// Calls store(row, panel, sum) for up to `most_panels` panels of a weight, before its scales.
template <class Isa, class Store>
void multiply_weight(const bf16* x, index rows, const Weight& weight, index first, index panels,
                     Ahead& ahead, Store&& store) {
    const auto multiply = [&](const auto* packed) {
        multiply_piece<Isa>(x, weight.inputs, rows, packed, weight.inputs, panels, store, &ahead);
    };
    if (!weight.matrix.scales)
        multiply(weight.panels<bf16>(first));
    else if constexpr (Isa::reads_int8)
        multiply(weight.panels<std::int8_t>(first));
    else
        multiply(widened(weight.panels<std::int8_t>(first), panels * panel_width * weight.inputs));
}

// Panels of a weight that are computed together, and read at one go.
struct Cut {
    Cut(const Weight& weight, int threads)
        : units(weight.outputs / panel_width / weight.unit),
          pieces(std::min(units, padded((units + most_panels / weight.unit - 1) /
                                            (most_panels / weight.unit), threads))) {}

    const index units, pieces;

    Range panels(const Weight& weight, index piece) const {
        const Range own = share(units, piece, pieces);
        return {own.first * weight.unit, own.last * weight.unit};
    }
};

struct Coming {  // memory that is read soon
    const void* first = nullptr;
    index bytes = 0;
};

// A piece of a weight, as memory that is read soon.
inline Coming coming_piece(const Weight& weight, const Cut& cut, index which) {
    const Range panels = cut.panels(weight, which);
    const index width = weight.matrix.scales ? 1 : 2, row = panel_width * weight.inputs * width;
    return {static_cast<const char*>(weight.matrix.panels) + panels.first * row,
            (panels.last - panels.first) * row};
}

// Computes all pieces; `input_of(place)` gives the rows that a place reads, `finish(rows, first
// panel, panels)` what takes a piece, a row's number in it, and the row's own. The thread's next
// piece is fetched meanwhile, and with its last one what is `coming`.
template <class Isa, class OutputOf, class InputOf, class Adapt, class Finish>
void linear(Team& team, int thread, const Weight& weight, index rows, Coming coming,
            OutputOf&& output_of, InputOf&& input_of, Adapt&& adapt, Finish&& finish) {
    const Cut cut(weight, team.size);
    const index blocks = (rows + most_block - 1) / most_block;
    team.each(thread, cut.pieces, [&](index which, bool more) {
        static thread_local Piece piece;
        const auto [first, last] = cut.panels(weight, which);
        const Coming next = more ? coming_piece(weight, cut, which + 1) : coming;
        const index passes = ((last - first + Isa::most_panels - 1) / Isa::most_panels) *
                             ((rows + Isa::most_rows - 1) / Isa::most_rows);
        Ahead ahead(next.first, next.bytes, passes * (weight.inputs / Isa::step) + rows);
        for (index block = 0; block < blocks; ++block) {
            const Range here = share(rows, block, blocks);
            const auto take = finish(here, first, last - first);
            for (index p = first; p < last;) {
                const bf16* x = input_of(output_of(p).place);
                index q = p + 1;
                while (q < last && input_of(output_of(q).place) == x) ++q;
                multiply_weight<Isa>(x + here.first * weight.inputs, here.last - here.first, weight,
                                     p, q - p, ahead, [&](index r, index n, Floats sum) {
                                         store(piece.at(r, p - first + n), sum);
                                     });
                p = q;
            }
            for (index p = first; p < last; ++p) {
                if (weight.bias || weight.matrix.scales)
                    for (index r = 0; r < here.last - here.first; ++r)
                        store(piece.at(r, p - first), weight.finish(piece.load(r, p - first), p));
                const Output output = output_of(p);
                const Output later = more && block == 0 ? output_of(p + last - first) : no_output;
                adapt(piece, p - first, here, output, later,
                      Rows{input_of(output.place), weight.inputs});
            }
            for (index row = here.first; row < here.last; ++row) {
                take(piece, row - here.first, row);
                ahead();
            }
        }
    });
}

}  // namespace gw::stepping
