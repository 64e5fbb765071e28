// Panels with fewer bits than bfloat16, which widen to it exactly: in 8 bits, and coded ones.
#pragma once

#include "coded.h"
#include "vector.h"

namespace gw {

// A panel whose tiles are widened one after the other, each with calls of meanwhile() in between.
template <class Packed>
class Narrow;

template <>
class Narrow<std::int8_t> {
   public:
    Narrow(const std::int8_t* panel, index) : panel_(panel) {}

    template <class Meanwhile>
    void widen(index which, bf16* target, Meanwhile&& meanwhile) {
        const std::int8_t* tile = tile_of(panel_, which);
        for (index i = 0; i < tile_numbers; i += 2 * panel_width) {
            store_exact_pairs(target + i, load_int8(tile + i), load_int8(tile + i + panel_width));
            meanwhile();
        }
    }

   private:
    const std::int8_t* panel_;
};

template <>
class Narrow<Coded> {
   public:
    Narrow(const Coded* panel, index inputs)
        : panel_(panel),
          next_(reinterpret_cast<const Exception*>(tile_of(panel, inputs / input_step))) {}

    template <class Meanwhile>
    void widen(index which, bf16* target, Meanwhile&& meanwhile) {
        widen_coded(reinterpret_cast<const std::uint8_t*>(tile_of(panel_, which)),
                    reinterpret_cast<const std::uint8_t*>(panel_), target, meanwhile);
        for (; next_->place < (which + 1) * tile_numbers; ++next_)
            target[next_->place % tile_numbers] = next_->value;
    }

   private:
    const Coded* panel_;
    const Exception* next_;
};

}  // namespace gw
