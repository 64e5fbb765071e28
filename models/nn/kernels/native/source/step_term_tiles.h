// Low-rank terms as operands of tiles.
//
// The terms of two panels may read different columns of a row's inner values: an operand has those
// of both, and zeros where a panel's own term has none. Rows of others are zeros as well.
#pragma once

#include <immintrin.h>

#include "operand.h"
#include "scratch.h"
#include "step_piece.h"

namespace gw::stepping {

class TermTiles {
 public:
    // Of columns [first, last) of inner values, for a block of rows.
    TermTiles(Range columns, index rows)
        : columns_(columns),
          rows_(rows),
          inputs_(padded_to(columns.last - columns.first, input_step)) {
        static thread_local Scratch room;
        values_ = room.room<bf16>((rows + 2 * panel_width) * inputs_);
        panels_ = values_ + rows * inputs_;
    }

    // Copies the values (rows, ld) of those rows of the block that are an adapter's own.
    void set_rows(const bf16* inner, index ld, Range own) {
        for (index k = 0; k < inputs_; k += input_step) {
            const index there = std::min(input_step, columns_.last - columns_.first - k);
            const auto mask = static_cast<__mmask32>((std::uint64_t{1} << there) - 1);
            bf16* target = values_ + k;
            const auto clear = [&](index first, index last) {
                for (index r = first; r < last; ++r)
                    _mm512_store_si512(target + r * inputs_, _mm512_setzero_si512());
            };
            clear(0, own.first);
            const bf16* source = inner + columns_.first + k;
            for (index r = own.first; r < own.last; ++r, source += ld)
                _mm512_store_si512(target + r * inputs_, _mm512_maskz_loadu_epi16(mask, source));
            clear(own.last, rows_);
        }
    }

    // Copies a panel that is packed for its own columns.
    void set_panel(index panel, const bf16* packed, Range own) {
        bf16* target = panels_ + panel * inputs_ * panel_width;
        const auto clear = [&](index first, index last) {
            for (index k = first; k < last; k += 2)
                _mm512_store_si512(target + k * panel_width, _mm512_setzero_si512());
        };
        const index first = own.first - columns_.first, last = own.last - columns_.first;
        clear(0, first);
        for (index k = first; k < last; k += 2, packed += 2 * panel_width)
            _mm512_store_si512(target + k * panel_width, bounded(_mm512_loadu_si512(packed)));
        clear(last, inputs_);
    }

    Operand operand() const {
        return {values_, inputs_, panels_, inputs_, panel_width * inputs_};
    }

 private:
    // Finite numbers as they are: others would make NaN of the zeros of other rows.
    static __m512i bounded(__m512i numbers) {
        const __m512i sign = _mm512_set1_epi16(static_cast<std::int16_t>(0x8000));
        const __m512i size = _mm512_andnot_si512(sign, numbers);
        return _mm512_or_si512(_mm512_and_si512(sign, numbers),
                               _mm512_min_epu16(size, _mm512_set1_epi16(0x7f7f)));
    }

    Range columns_;
    index rows_, inputs_;
    bf16 *values_, *panels_;
};

}  // namespace gw::stepping
