// Panels with fewer bits than bfloat16, which widen to it exactly: in 8 bits, and coded ones.
#pragma once

#include <array>
#include <type_traits>
#include <utility>

#include "coded.h"
#include "operand.h"
#include "vector.h"

namespace gw {

template <class Packed>
constexpr bool is_narrow = std::is_same_v<Packed, std::int8_t> || std::is_same_v<Packed, Coded>;

// A panel whose tiles are widened part by part, each with calls of meanwhile() in between.
template <class Packed>
class Narrow;

template <>
class Narrow<std::int8_t> {
   public:
    explicit Narrow(const OperandOf<bf16, std::int8_t>& panel) : tiles_(panel.panels) {}

    const std::int8_t* tile(index which) const { return tiles_ + which * tile_numbers; }
    bool is_plain(index) const { return true; }

    template <class Meanwhile>
    [[gnu::always_inline]] void widen(index which, index part, bf16* target,
                                      Meanwhile&& meanwhile) {
        const std::int8_t* from = tile(which);
        const index begin = part * part_numbers;
        for (index i = begin; i < begin + part_numbers; i += 2 * panel_width) {
            store_exact_pairs(target + i, load_int8(from + i), load_int8(from + i + panel_width));
            meanwhile();
        }
    }

   private:
    const std::int8_t* tiles_;
};

template <>
class Narrow<Coded> {
   public:
    explicit Narrow(const OperandOf<bf16, Coded>& panel)
        : uppers_(reinterpret_cast<const std::uint8_t*>(panel.panels)),
          tiles_(uppers_ + panel.stride - panel.inputs / input_step * tile_bytes<Coded>),
          next_(reinterpret_cast<const Exception*>(uppers_ + upper_codes)) {}

    const std::uint8_t* tile(index which) const { return tiles_ + which * tile_bytes<Coded>; }
    const std::uint8_t* uppers() const { return uppers_; }

    // Whether a tile has no exceptions; those before it must have been widened.
    bool is_plain(index which) const { return next_->place >= (which + 1) * tile_numbers; }

    template <class Meanwhile>
    [[gnu::always_inline]] void widen(index which, index part, bf16* target,
                                      Meanwhile&& meanwhile) {
        widen_coded(tile(which), part, uppers_, target, meanwhile);
        for (; next_->place < which * tile_numbers + (part + 1) * part_numbers; ++next_)
            target[next_->place % tile_numbers] = next_->value;
    }

   private:
    const std::uint8_t *uppers_, *tiles_;
    const Exception* next_;
};

// Panels side by side that are widened along with a product, `lead` tiles before these are
// multiplied with.
template <class Packed, int panels, bool kept, index lead>
class Widened {
   public:
    static constexpr index ring_tiles = 2 * lead;
    static constexpr index ring = panels * ring_tiles * tile_numbers;

    // Kept ones are left in `wide`, as bfloat16 panels one behind the other; others need a ring.
    Widened(const OperandOf<bf16, Packed>& given, bf16* wide)
        : given_(given),
          wide_(wide),
          tiles_(given.inputs / input_step),
          narrow_(all(std::make_index_sequence<panels>{})) {}

    bf16* at(index panel, index tile) const {
        const index place = kept ? panel * tiles_ + tile : panel * ring_tiles + tile % ring_tiles;
        return wide_ + place * tile_numbers;
    }

    // Three tiles earlier still they are asked for, one line between two stores; behind the last
    // tile, those of the panels that follow. A call would take a fiftieth of a step.
    [[gnu::always_inline]] void widen_and_fetch(index tile) {
        for (index p = 0; p < panels; ++p) {
            const char* ahead = line_ahead(p, tile + 3);
            const char* const last = ahead + tile_bytes<Packed>;
            for (index part = 0; part < tile_parts; ++part)
                narrow_[p].widen(tile, part, at(p, tile), [&] {
                    if (ahead < last) _mm_prefetch(ahead, _MM_HINT_T0);
                    ahead += 64;
                });
        }
    }

   private:
    template <std::size_t... which>
    std::array<Narrow<Packed>, panels> all(std::index_sequence<which...>) const {
        return {Narrow<Packed>(given_.panel(which))...};
    }

    const char* line_ahead(index panel, index tile) const {
        if (tile < tiles_) return reinterpret_cast<const char*>(narrow_[panel].tile(tile));
        const auto next = given_.panel(panel + panels);
        _mm_prefetch(reinterpret_cast<const char*>(next.panels), _MM_HINT_T0);  // what is in front
        return reinterpret_cast<const char*>(Narrow<Packed>(next).tile(tile - tiles_));
    }

    const OperandOf<bf16, Packed> given_;
    bf16* const wide_;
    const index tiles_;
    std::array<Narrow<Packed>, panels> narrow_;
};

}  // namespace gw
