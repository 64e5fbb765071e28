// A packed weight: how it is multiplied with, cut into pieces, and fetched.
#pragma once

#include "narrow.h"
#include "scratch.h"
#include "step_piece.h"
#ifndef __AVX512BF16__
#include "step_rounded.h"
#endif

namespace gw::stepping {

#ifdef __AVX512BF16__
struct WholeRows {  // nobody reads them
    float lost() const { return 0; }
};
#endif

struct Weight {
    Matrix matrix;
    const float* bias;  // in the order of the panels, or null
    index outputs, inputs;
    index unit;  // panels that belong together

    // Calls act with a number of the kind that its panels have.
    template <class Act>
    auto as_it_lies(Act&& act) const {
#ifndef __AVX512BF16__
        if (matrix.rounded) return act(Whole{});
#endif
        if (matrix.coded_stride) return act(Coded{});
        return matrix.scales ? act(std::int8_t{}) : act(bf16{});
    }

    template <class Isa>
    Widening widening() const {
        return as_it_lies([](auto kind) { return Isa::template widening<decltype(kind)>; });
    }

    // From one panel to the next, in bytes.
    index stride() const {
        const index numbers = panel_width * inputs;
#ifndef __AVX512BF16__
        if (matrix.rounded) return panel_bytes(inputs);
#endif
        return matrix.coded_stride ? matrix.coded_stride : matrix.scales ? numbers : 2 * numbers;
    }

    // Panels from the given one on, as they lie.
    template <class Packed>
    OperandOf<bf16, Packed> from(const bf16* x, index panel) const {
        const char* first = static_cast<const char*>(matrix.panels) + panel * stride();
        return {x, inputs, reinterpret_cast<const Packed*>(first), inputs,
                stride() / static_cast<index>(sizeof(Packed))};
    }

    // How often a block of rows and some panels let something else be done meanwhile.
    template <class Isa>
    index steps(index rows, index panels) const {
        const index blocks = (rows + Isa::most_rows - 1) / Isa::most_rows;
        const index groups = (panels + Isa::most_panels - 1) / Isa::most_panels;
#ifdef __AVX512BF16__
        if constexpr (!Isa::works_aside) {
            const bool narrow = widening<Isa>() == Widening::along;
            const index most = narrow ? Isa::narrow_panels : Isa::most_panels;
            return Isa::meanwhiles(rows, panels, inputs, most);
        }
#else
        if (matrix.rounded) return blocks * panels * (inputs / between_inputs);
#endif
        return blocks * groups * (inputs / Isa::between);
    }

    // A single row as the panels multiply it, if they are in block floating point.
    WholeRows rounded([[maybe_unused]] const bf16* x) const {
#ifndef __AVX512BF16__
        if (matrix.rounded) return round_one(x, inputs);
#endif
        return {};
    }

    // Sixteen outputs of one panel from what was summed for them.
    Floats finish(Floats sum, index panel) const {
        if (matrix.scales) sum = sum * load(matrix.scales + panel * panel_width);
        return bias ? sum + load(bias + panel * panel_width) : sum;
    }
};

// Room for the panels of a piece, which all products of a thread share.
inline bf16* wide_room(index panels, index inputs) {
    static thread_local Scratch room;
    return room.room<bf16>(panels * panel_width * inputs);
}

// Widens some panels of a narrow weight.
inline void widen(const Weight& weight, Range panels, bf16* wide) {
    weight.as_it_lies([&]<class Packed>(Packed) {
        if constexpr (is_narrow<Packed>)
            for (index p = panels.first; p < panels.last; ++p) {
                Narrow<Packed> panel(weight.from<Packed>(nullptr, p));
                for (index k = 0; k < weight.inputs; k += input_step, wide += tile_numbers)
                    for (index part = 0; part < tile_parts; ++part)
                        panel.widen(k / input_step, part, wide, Nothing{});
            }
    });
}

// Rows that are multiplied with some panels of a weight, and where the sums go, before its scales.
struct Factor {
    const bf16* x;
    index rows;  // at most `block_rows`
    Range panels;
    float* sums;  // in rows of a piece
    bf16* wide = nullptr;  // where narrow panels lie, or are to lie, as bfloat16, if anywhere
    bool widened = false;        // whether they lie there already
    WholeRows rounded{};         // these rows, where panels are in block floating point
};

// `Far` weights come from memory; `more` tells tiles what else to add.
template <class Isa, bool Far, class Meanwhile, class More>
void multiply_weight(typename Isa::Shaped& shaped, const Weight& weight, const Factor& factor,
                     Meanwhile&& meanwhile, const More& more) {
    constexpr index ld = Piece<Isa>::ld;
    const auto& [x, rows, panels, sums, wide, widened, rounded] = factor;
    const index count = panels.last - panels.first;
    const auto multiply = [&]<class Packed>(const OperandOf<bf16, Packed>& all) {
        if constexpr (Isa::works_aside) {
            Isa::template multiply_into<Far>(shaped, sums, ld, count, rows, all, wide,
                                             meanwhile, more);
#ifndef __AVX512BF16__
        } else if constexpr (std::is_same_v<Packed, Whole>) {
            const WholePanels first{reinterpret_cast<const char*>(all.panels), all.inputs};
            multiply_rounded(rounded, rows, first, count, sums, ld, meanwhile);
#endif
        } else {
            const auto put = [=](index r, index n, Floats sum) {
                store(sums + r * ld + n * panel_width, sum);
            };
            if constexpr (Isa::template widening<Packed> == Widening::along)
                for_piece<Isa::narrow_panels>(count, [&](index first, auto some) {
                    const auto here = [&](index r, int n, Floats sum) { put(r, first + n, sum); };
                    Isa::template multiply<some>(rows, all.panel(first), here, meanwhile);
                });
            else
                multiply_piece<Isa>(x, all.ldx, rows, all.panels, all.inputs, count, put,
                                    meanwhile);
        }
    };
    if (widened)
        multiply(Operand{x, weight.inputs, wide, weight.inputs, panel_width * weight.inputs});
    else
        weight.as_it_lies([&]<class Packed>(Packed) {
            if constexpr (Isa::template widening<Packed> != Widening::before)
                multiply(weight.from<Packed>(x, panels.first));
        });
}

// How a product is divided among threads: by panels, a few of which are read at one go, and of
// many rows by these too, for a thread to read again what it has written.
struct Cut {
    // Of a weight for some rows.
    template <class Isa>
    static Cut of(const Weight& weight, index rows, int threads) {
        const int parts = by_rows(rows, threads) ? threads : 1;
        return {weight, at_once<Isa>(rows), threads, parts, block_rows<Isa>};
    }

    // Whether each thread computes whole rows of its own.
    static bool by_rows(index rows, int threads) { return rows >= threads * worth_sharing; }

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
        return Isa::works_aside && rows > block_rows<Isa> ? Isa::most_panels : Isa::piece_panels;
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
    return {static_cast<const char*>(weight.matrix.panels) + panels.first * weight.stride(),
            (panels.last - panels.first) * weight.stride()};
}

}  // namespace gw::stepping
