// What every translation unit shares: bfloat16 as stored, and how work is split.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#define GW_API extern "C" __attribute__((visibility("default")))

namespace gw {

using bf16 = std::uint16_t;  // the upper half of a float32
using index = std::int64_t;

constexpr index panel_width = 16;  // outputs of one packed panel
constexpr index input_step = 32;   // inputs must be a multiple of this
constexpr index block_keys = 64;   // of an attention to many, which are packed together

inline float to_float(bf16 value) {
    const std::uint32_t whole = std::uint32_t{value} << 16;
    float result;
    __builtin_memcpy(&result, &whole, sizeof result);
    return result;
}

constexpr index padded_to(index count, index step) { return (count + step - 1) / step * step; }

struct Range {
    index first = 0, last = 0;

    index count() const { return last - first; }
};

inline Range common(Range a, Range b) {
    return {std::max(a.first, b.first), std::min(a.last, b.last)};
}

// The share of worker `which` of `workers` in `count` items, in order and without overlap.
inline Range share(index count, index which, index workers) {
    return {count * which / workers, count * (which + 1) / workers};
}

}  // namespace gw
