// Packing weights into coded panels, once; for any x86-64.
#include <array>
#include <numeric>

#include "coded.h"

using namespace gw;

namespace {

std::uint8_t upper_of(bf16 number) { return number >> 8; }

// The upper bytes of 16 outputs (16, K) by frequency, and for each its code, if it has one.
struct Codes {
    std::array<int, 256> uppers, codes;
    index exceptions;

    Codes(const bf16* rows, index inputs) {
        std::array<index, 256> count{};
        for (index i = 0; i < panel_width * inputs; ++i) ++count[upper_of(rows[i])];
        std::iota(uppers.begin(), uppers.end(), 0);
        std::stable_sort(uppers.begin(), uppers.end(),
                         [&](int a, int b) { return count[a] > count[b]; });
        codes.fill(upper_codes);
        for (index i = 0; i < upper_codes; ++i) codes[uppers[i]] = i;
        exceptions = std::accumulate(uppers.begin() + upper_codes, uppers.end(), index{0},
                                     [&](index sum, int upper) { return sum + count[upper]; });
    }
};

void pack_panel(const bf16* rows, index inputs, index bytes, std::uint8_t* panel) {
    const Codes coding(rows, inputs);
    for (index i = 0; i < upper_codes; ++i) panel[i] = coding.uppers[i];
    auto* exception = reinterpret_cast<Exception*>(panel + upper_codes);
    std::uint8_t* tile = panel + bytes - inputs / input_step * tile_bytes<Coded>;
    for (index first = 0; first < inputs; first += input_step, tile += tile_bytes<Coded>)
        for (index i = 0; i < tile_numbers; ++i) {
            const index pair = i / (2 * panel_width), output = i / 2 % panel_width;
            const bf16 number = rows[output * inputs + first + 2 * pair + i % 2];
            const int code = coding.codes[upper_of(number)], kept = code % upper_codes;
            const index byte = coded_byte(i);
            tile[byte] = static_cast<std::uint8_t>(number);
            std::uint8_t& two = tile[code_byte(byte)];
            two = holds_second(byte) ? two | kept << 4 : kept;
            const auto place = static_cast<std::uint32_t>(first * panel_width + i);
            if (code == upper_codes) *exception++ = {place, number, 0};
        }
    *exception = {no_place, 0, 0};
}

}  // namespace

// Bytes of a coded panel of W (N, K): as many as that with most exceptions needs, in whole lines.
GW_API index gw_coded_bytes(const bf16* weight, index outputs, index inputs) {
    index most = 0;
#pragma omp parallel for schedule(static) reduction(max : most)
    for (index n = 0; n < outputs; n += panel_width)
        most = std::max(most, Codes(weight + n * inputs, inputs).exceptions);
    const index exceptions = (most + 1) * static_cast<index>(sizeof(Exception));
    return padded_to(upper_codes + exceptions, 64) + inputs / input_step * tile_bytes<Coded>;
}

// Packs W (N, K), N a multiple of 16 and K of 32, into panels of so many bytes.
GW_API void gw_pack_coded(const bf16* weight, index outputs, index inputs, index bytes,
                          std::uint8_t* packed) {
#pragma omp parallel for schedule(static)
    for (index n = 0; n < outputs; n += panel_width)
        pack_panel(weight + n * inputs, inputs, bytes, packed + n / panel_width * bytes);
}
