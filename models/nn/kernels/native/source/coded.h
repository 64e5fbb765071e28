// How bfloat16 weights lie that take 12 bits each, without loss.
//
// Of a number the lower byte is kept as it is. The upper one, sign and most of the exponent, is one
// of the panel's sixteen most frequent ones, as which it takes half a byte; numbers with another are
// exceptions. A panel is one record: its sixteen upper bytes, four times; for every 32 inputs a tile
// of 512 numbers, their lower bytes and then their codes; the exceptions, and one behind all others.
#pragma once

#include "common.h"

namespace gw {

constexpr index tile_numbers = input_step * panel_width;
constexpr index upper_codes = 16;

enum class Coded : std::uint8_t {};  // a byte of such a panel

struct Exception {
    std::uint32_t place;  // among the numbers of a bfloat16 panel, in whose order they come
    bf16 value, reserved;
};

constexpr std::uint32_t no_place = ~std::uint32_t{0};

// Where in a tile the lower byte of a number lies: so that registers of lower and upper bytes, each
// made of four parts, are interleaved part by part.
constexpr index coded_byte(index number) {
    return number / 64 * 64 + number % 32 / 8 * 16 + number / 32 % 2 * 8 + number % 8;
}

// Where the code of a lower byte lies: 64 share a register with the 64 that follow, as the lower and
// the upper half of a byte.
constexpr index code_byte(index lower) { return tile_numbers + lower / 128 * 64 + lower % 64; }
constexpr bool holds_second(index lower) { return lower / 64 % 2; }

// Where the numbers of 32 inputs lie in a panel of any kind.
template <class Packed>
struct Lay {
    static constexpr index front = 0, tile = tile_numbers * sizeof(Packed);
};
template <>
struct Lay<Coded> {
    static constexpr index front = 4 * upper_codes, tile = tile_numbers * 3 / 2;
};

template <class Packed>
const Packed* tile_of(const Packed* panel, index which) {
    const char* bytes = reinterpret_cast<const char*>(panel);
    return reinterpret_cast<const Packed*>(bytes + Lay<Packed>::front + which * Lay<Packed>::tile);
}

}  // namespace gw
