// Low-rank inputs as tiles read them, for terms that are summed with the base's product.
//
// Rows that are not an adapter's own are zeros, and so are columns beyond its rank: what stands
// behind the inputs of a panel of its outputs is read too, and must be finite.
#pragma once

#include <immintrin.h>

#include <vector>

#include "blocks_amx.h"
#include "scratch.h"

namespace gw::stepping {

// Those of the groups of all blocks of rows, at the places of one product.
class TermTiles {
   public:
    void clear(Range places) {
        places_ = places;
        values_.clear();
        entries_.clear();
        blocks_.clear();
    }
    void begin_block() { blocks_.push_back(entries_.size()); }

    // Adds a group of the block that was begun, at its next place: the `rank` values of its own
    // rows, which it has `from` some row of the block on.
    void add(const bf16* values, index ld, index rank, index from, index count) {
        Entry& entry = entries_.emplace_back(Entry{padded_to(rank, input_step), {-1, -1}});
        for (index half = 0; half < 2 && rank > 0; ++half) {
            const index first = std::max(from, 16 * half);
            const index last = std::min(from + count, 16 * half + 16);
            if (first >= last) continue;
            const index at = entry.halves[half] = values_.size();
            values_.resize(at + 16 * entry.inputs);
            for (index r = first; r < last; ++r)
                put(values + (r - from) * ld, rank, values_.data() + at + r % 16 * input_step);
        }
    }

    Halves of(index block, index group, int place) const {
        const index places = places_.last - places_.first;
        const Entry& entry = entries_[blocks_[block] + group * places + place - places_.first];
        const auto half = [&](index at) { return at < 0 ? nullptr : values_.data() + at; };
        return {half(entry.halves[0]), half(entry.halves[1]), entry.inputs};
    }

   private:
    struct Entry {
        index inputs, halves[2];  // where among the values sixteen rows begin, or -1
    };

    static void put(const bf16* values, index rank, bf16* target) {
        for (index k = 0; k < rank; k += input_step, target += 16 * input_step) {
            const index there = std::min(input_step, rank - k);
            const auto mask = static_cast<__mmask32>((std::uint64_t{1} << there) - 1);
            _mm512_store_si512(target, _mm512_maskz_loadu_epi16(mask, values + k));
        }
    }

    Range places_{};
    Aligned<bf16> values_;
    std::vector<Entry> entries_;
    std::vector<index> blocks_;
};

}  // namespace gw::stepping
