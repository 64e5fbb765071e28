// How bfloat16 weights lie that take 12 bits each, without loss.
//
// Of a number the lower byte is kept as it is. The upper one, sign and most of the exponent, is one
// of the panel's sixteen most frequent ones, as which it takes half a byte; numbers with another
// are exceptions. A panel is one record: its sixteen upper bytes; the exceptions, and one behind
// all others; and, up to the record's end, for every 32 inputs a tile of 512 numbers, their lower
// bytes and then their codes.
#pragma once

#include "common.h"

namespace gw {

constexpr index tile_numbers = input_step * panel_width;
constexpr index tile_parts = 4;  // in which a tile may be widened, one after the other
constexpr index part_numbers = tile_numbers / tile_parts;
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

// Where the code of a lower byte lies: 64 share a register with the 64 that follow, as the lower
// and the upper half of a byte.
constexpr index code_byte(index lower) {
    return tile_numbers + lower / part_numbers * 64 + lower % 64;
}
constexpr bool holds_second(index lower) { return lower / 64 % 2; }

// Bytes of the numbers of 32 inputs of a panel of any kind.
template <class Packed>
constexpr index tile_bytes = tile_numbers * sizeof(Packed);
template <>
constexpr index tile_bytes<Coded> = tile_numbers * 3 / 2;

}  // namespace gw
