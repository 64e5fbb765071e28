// Low-rank inputs as tiles read them, for terms that are summed with the base's product.
//
// Rows that are not an adapter's own are zeros, and so are columns beyond its rank: what stands
// behind the inputs of a panel of its outputs is read too, and must be finite.
#pragma once

#include <immintrin.h>

#include <vector>

#include "blocks_amx.h"
#include "scratch.h"
#include "step_piece.h"

namespace gw::stepping {

// Those of the groups of all blocks of rows, at the places of one product.
class TermTiles {
   public:
    void clear(Range places) {
        places_ = places;
        values_.clear();
        entries_.clear();
        blocks_.assign(1, 0);
    }
    void end_block() { blocks_.push_back(entries_.size()); }

    // Adds a group of the next block, at its next place: what its term there reads of its
    // own rows, which it has `from` some row of the block on.
    void add(const Place& term, const bf16* values, index ld, index from, index count) {
        Entry& entry = entries_.emplace_back(
            Entry{term.up - panel_width * term.behind, term.stride,
                  padded_to(term.behind + term.rank, input_step), {-1, -1}});
        for (index half = 0; half < 2; ++half) {
            const index first = std::max(from, 16 * half);
            const index last = std::min(from + count, 16 * half + 16);
            if (first >= last) continue;
            const index at = entry.halves[half] = values_.size();
            values_.resize(at + 16 * entry.inputs);
            for (index r = first; r < last; ++r)
                put(term, values + (r - from) * ld, values_.data() + at + r % 16 * input_step);
        }
    }

    // Adds nothing: a group has no such term at its next place.
    void skip() { entries_.push_back(Entry{}); }

    // Adds the terms of all groups of a block to the sums of one or two panels.
    template <class Adder>
    void add_to(const Adder& adder, index block, index panels, Output first, Output second) const {
        const index places = places_.last - places_.first;
        const Entry* entry = entries_.data() + blocks_[block];
        const Entry* last = entries_.data() + blocks_[block + 1];
        for (; entry < last; entry += places) {
            const Entry& one = entry[first.place - places_.first];
            const Entry& other = entry[second.place - places_.first];
            const bf16 *panel = one.panel(first.first), *next = other.panel(second.first);
            if (panels > 1 && panel && panel == next) {
                adder.to_each(halves(one), halves(other), panel);
            } else if (panels > 1 && first.place == second.place) {
                if (panel) adder.to_both(halves(one), panel, next - panel);
            } else {
                if (panel) adder.to_first(halves(one), panel);
                if (next && panels > 1) adder.to_second(halves(other), next);
            }
        }
    }

   private:
    struct Entry {
        const bf16* tiles = nullptr;  // of the first panel; null where there is no term
        index stride = 0, inputs = 0, halves[2] = {-1, -1};  // where sixteen rows begin, or -1

        // Where the first tile of a panel of outputs begins, or null.
        const bf16* panel(index output) const {
            return tiles ? tiles + output / panel_width * stride : nullptr;
        }
    };

    Halves halves(const Entry& entry) const {
        const auto half = [&](index at) { return at < 0 ? nullptr : values_.data() + at; };
        return {half(entry.halves[0]), half(entry.halves[1]), entry.inputs};
    }

    static void put(const Place& term, const bf16* values, bf16* target) {
        target += term.behind;
        for (index k = 0; k < term.rank; k += input_step, target += 16 * input_step) {
            const index there = std::min(input_step, term.rank - k);
            const auto mask = static_cast<__mmask32>((std::uint64_t{1} << there) - 1);
            _mm512_mask_storeu_epi16(target, mask, _mm512_maskz_loadu_epi16(mask, values + k));
        }
    }

    Range places_{};
    Aligned<bf16> values_;
    std::vector<Entry> entries_;
    std::vector<index> blocks_;  // where the entries of each begin, and those of the last end
};

}  // namespace gw::stepping
