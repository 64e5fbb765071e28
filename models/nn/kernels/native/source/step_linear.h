// A packed weight: how it is multiplied with, cut into pieces, and fetched.
#pragma once

#include "ahead.h"
#include "scratch.h"
#include "step_piece.h"

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
    static thread_local Aligned<bf16> room;
    if (static_cast<index>(room.size()) < count) room.resize(count);
    for (index i = 0; i < count; i += 2 * panel_width)
        store_exact_pairs(room.data() + i, load_int8(packed + i),
                          load_int8(packed + i + panel_width));
    return room.data();
}

// Rows that are multiplied with some panels of a weight, and where the sums go, before its scales.
struct Factor {
    const bf16* x;
    index rows;  // at most `block_rows`
    Range panels;
    float* sums;  // in rows of a piece
};

// `Far` weights come from memory; `more` tells tiles what else to add.
template <class Isa, bool Far, class Meanwhile, class More>
void multiply_weight(typename Isa::Shaped& shaped, const Weight& weight, const Factor& factor,
                     Meanwhile&& meanwhile, const More& more) {
    const auto [x, rows, panels, sums] = factor;
    const index count = panels.last - panels.first, inputs = weight.inputs;
    const auto multiply = [&]<class Packed>(const Packed* packed) {
        if constexpr (Isa::works_aside) {
            const OperandOf<bf16, Packed> all{x, inputs, packed, inputs, panel_width * inputs};
            Isa::template multiply_into<Far>(shaped, sums, Piece::ld, count, rows, all, meanwhile,
                                             more);
        } else {
            const auto put = [sums](index r, index n, Floats sum) {
                store(sums + r * Piece::ld + n * panel_width, sum);
            };
            multiply_piece<Isa>(x, inputs, rows, packed, inputs, count, put, meanwhile);
        }
    };
    if (!weight.matrix.scales)
        multiply(weight.panels<bf16>(panels.first));
    else if constexpr (Isa::reads_int8)
        multiply(weight.panels<std::int8_t>(panels.first));
    else
        multiply(widened(weight.panels<std::int8_t>(panels.first), count * panel_width * inputs));
}

// How a product is divided among threads: by panels, a few of which are read at one go, and of
// many rows by these too, for a thread to read again what it has written.
struct Cut {
    // Of a weight for some rows.
    template <class Isa>
    static Cut of(const Weight& weight, index rows, int threads) {
        const bool many = rows >= threads * worth_sharing;
        return {weight, at_once<Isa>(rows), threads, many ? threads : 1, block_rows<Isa>};
    }

    const index units, pieces, parts;

    Range panels(const Weight& weight, index piece) const {
        const Range own = share(units, piece, pieces);
        return {own.first * weight.unit, own.last * weight.unit};
    }

    // Whole blocks, as far as there are rows.
    Range rows(index all, index part) const {
        const Range own = share((all + block - 1) / block, part, parts);
        return {own.first * block, std::min(own.last * block, all)};
    }

    // The piece that a thread begins with.
    index first(int thread, int threads) const {
        return parts > 1 ? 0 : share(pieces, thread, threads).first;
    }

   private:
    // Rows a thread, from which on a weight is read by all threads sooner than it is used.
    static constexpr index worth_sharing = 128;

    // Panels of a piece; where many blocks of rows pass by, those that stay in the first cache.
    template <class Isa>
    static index at_once(index rows) {
        return Isa::works_aside && rows > block_rows<Isa> ? Isa::most_panels : most_panels;
    }

    Cut(const Weight& weight, index most, int threads, index parts, index block)
        : units(weight.outputs / panel_width / weight.unit),
          pieces(std::min(units, padded_to((units + most / weight.unit - 1) / (most / weight.unit),
                                           threads))),
          parts(parts),
          block(block) {}

    const index block;
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

}  // namespace gw::stepping
