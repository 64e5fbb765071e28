// Narrow panels as the registers that AVX512-BF16 multiplies with, and the rows beside them.
//
// Sums, weights and a row take 31 of 32 registers, so what else is needed is read from memory each
// time. The compiler would keep it, and put sums on the stack instead.
#pragma once

#include <immintrin.h>

#include "narrow.h"

namespace gw {

// A pointer of which the compiler does not know what it points to.
template <class T>
[[gnu::always_inline]] inline T* unknown(T* pointer) {
    asm("" : "+r"(pointer));
    return pointer;
}

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

// R rows, by an address of every third one and their distance, which fit into registers.
template <int R>
class RowsAbreast {
   public:
    template <class Number>
    [[gnu::always_inline]] RowsAbreast(const Number* first, index ld)
        : distance_(ld * static_cast<index>(sizeof *first)) {
        asm("" : "+r"(distance_));
#pragma GCC unroll 4
        for (int third = 0; third < thirds; ++third)
            bases_[third] = reinterpret_cast<const char*>(first + 3 * third * ld);
        hide();
    }

    [[gnu::always_inline]] void advance(index bytes) {
#pragma GCC unroll 4
        for (int third = 0; third < thirds; ++third) bases_[third] += bytes;
        hide();
    }

    // Four bytes of a row, over and over.
    [[gnu::always_inline]] __m512i four(int row, index byte) const {
        std::int32_t four;
        __builtin_memcpy(&four, bases_[row / 3] + byte + row % 3 * distance_, sizeof four);
        return _mm512_set1_epi32(four);
    }
    [[gnu::always_inline]] __m512bh pair(int row, index input) const {
        return reinterpret_cast<__m512bh>(four(row, input * sizeof(bf16)));
    }

   private:
    static constexpr int thirds = (R + 2) / 3;

    // The compiler would make addresses of all rows out of them.
    [[gnu::always_inline]] void hide() {
#pragma GCC unroll 4
        for (int third = 0; third < thirds; ++third) bases_[third] = unknown(bases_[third]);
    }

    index distance_;  // from one row to the next, in bytes
    const char* bases_[thirds];
};

}  // namespace gw
