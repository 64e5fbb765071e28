// Narrow panels as the registers that AVX512-BF16 multiplies with.
//
// Sums, weights and a row take 31 of 32 registers, so what else is needed is read from memory each
// time. The compiler would keep it, and put sums on the stack instead.
#pragma once

#include <immintrin.h>

#include "narrow.h"
#include "rows_avx512.h"

namespace gw {

// Four inputs of a panel, `part` and `half` of a tile, as two registers of pairs.
[[gnu::always_inline]] inline void read_four(const Narrow<std::int8_t>& panel, index tile,
                                             index part, int half, __m512i& first,
                                             __m512i& second) {
    const std::int8_t* from = panel.tile(tile) + part * part_numbers + half * 64;
    const auto pairs = [](const std::int8_t* even) {
        return exact_pairs(load_int8(even), load_int8(even + panel_width));
    };
    first = pairs(from);
    second = pairs(from + 2 * panel_width);
}

[[gnu::always_inline]] inline void read_four(const Narrow<Coded>& panel, index tile, index part,
                                             int half, __m512i& first, __m512i& second) {
    static constexpr std::int32_t lower_halves = 0x0f0f0f0f;
    const std::uint8_t* from = panel.tile(tile);
    const __m512i both = _mm512_loadu_si512(from + tile_numbers + part * 64);
    const __m512i own = half ? _mm512_srli_epi16(both, 4) : both;
    const __m512i codes = _mm512_and_si512(own, _mm512_set1_epi32(*unknown(&lower_halves)));
    const auto* known = reinterpret_cast<const __m128i*>(unknown(panel.uppers()));
    const __m512i upper =
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(known)), codes);
    const __m512i lower = _mm512_loadu_si512(from + part * part_numbers + half * 64);
    first = _mm512_unpacklo_epi8(lower, upper);
    second = _mm512_unpackhi_epi8(lower, upper);
}

// P narrow panels side by side, tile by tile.
template <class Packed, int P>
class InRegisters {
   public:
    explicit InRegisters(const OperandOf<bf16, Packed>& given)
        : panels_(all(given, std::make_index_sequence<P>{})) {}

    void advance() { ++tile_; }

    // Whether no number of the tile is an exception.
    bool are_plain() const {
        bool plain = true;
        for (const auto& panel : panels_) plain &= panel.is_plain(tile_);
        return plain;
    }

    // The tile as that of a bfloat16 panel, and the others behind it.
    void widen(bf16* target) {
        for (auto& panel : panels_) {
            for (index part = 0; part < tile_parts; ++part)
                panel.widen(tile_, part, target, Nothing{});
            target += tile_numbers;
        }
    }

    [[gnu::always_inline]] void read(int panel, index part, int half, __m512bh& first,
                                     __m512bh& second) const {
        __m512i both[2];
        read_four(panels_[panel], tile_, part, half, both[0], both[1]);
        first = reinterpret_cast<__m512bh>(both[0]);
        second = reinterpret_cast<__m512bh>(both[1]);
    }

   private:
    template <std::size_t... which>
    static std::array<Narrow<Packed>, P> all(const OperandOf<bf16, Packed>& given,
                                             std::index_sequence<which...>) {
        return {Narrow<Packed>(given.panel(which))...};
    }

    std::array<Narrow<Packed>, P> panels_;
    index tile_ = 0;
};

}  // namespace gw
