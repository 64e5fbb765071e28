// Products of rows and panels in block floating point.
//
// The groups of an output are added in order, each by one fused product, so that a row's bits do
// not depend on its neighbours.
#pragma once

#include <array>
#include <type_traits>

#include "block_float.h"
#include "operand.h"
#include "unrolled.h"

namespace gw {

struct WholeRows {
    Whole* values;
    float* scales;
    index inputs;

    WholeRows from(index row) const {
        return {values + row * inputs, scales + row * groups_of(inputs), inputs};
    }
    template <class Number>
    void round(const Number* row) const {
        round_row(row, inputs, values, scales);
    }
    // How far a row may lie from the numbers that it was rounded from, but for float32's rounding.
    float lost() const {
        float squares = 0;
        for (index g = 0; g < groups_of(inputs); ++g)
            squares += group(g, inputs).count() * scales[g] * scales[g] / 4;
        return 1.0001f * __builtin_sqrtf(squares);
    }
};

struct WholePanels {  // one behind the other
    const char* first;
    index inputs;

    WholePanels from(index panel) const { return {first + panel * panel_bytes(inputs), inputs}; }
    const Whole* pairs() const { return reinterpret_cast<const Whole*>(first); }
    const float* scales() const {
        return reinterpret_cast<const float*>(first + panel_width * inputs * sizeof(Whole));
    }
};

constexpr int most_block_rows = 6;  // whose sums with one panel take 12 of 16 registers
constexpr index between_inputs = 32;  // from one call of meanwhile() to the next

// Adds to y (R, 16), whose rows are `ldy` apart.
template <int R, class Meanwhile>
[[gnu::noinline]] void add_block(const WholeRows& x, const WholePanels& panel, float* y, index ldy,
                                 Meanwhile& meanwhile) {
    const index inputs = x.inputs, groups = groups_of(inputs);
    for (index g = 0; g < groups; ++g) {
        const auto [first, last] = group(g, inputs);
        __m256i low[R], high[R];
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            low[r] = high[r] = _mm256_setzero_si256();
        });
        for (index part = first; part < last; part += between_inputs) {
            meanwhile();
            const Whole *row = x.values + part, *pairs = panel.pairs() + part * panel_width;
            const Whole* const end = x.values + std::min(part + between_inputs, last);
            for (; row < end; row += 2, pairs += 2 * panel_width) {
                const auto* both = reinterpret_cast<const __m256i*>(pairs);
                const __m256i left = _mm256_load_si256(both), right = _mm256_load_si256(both + 1);
                unrolled<R>([&](auto r) __attribute__((always_inline)) {
                    const auto* pair = reinterpret_cast<const float*>(row + r * inputs);
                    const __m256i given = _mm256_castps_si256(_mm256_broadcast_ss(pair));
                    low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(given, left));
                    high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(given, right));
                    asm("" : "+x"(low[r]), "+x"(high[r]));  // or GCC keeps some in memory
                });
            }
        }
        const Floats scale = load(panel.scales() + g * panel_width);
        unrolled<R>([&](auto r) __attribute__((always_inline)) {
            float* at = y + r * ldy;
            const Floats sum{_mm256_cvtepi32_ps(low[r]), _mm256_cvtepi32_ps(high[r])};
            store(at, fma(sum, scale * splat(x.scales[r * groups + g]), load(at)));
        });
    }
}

inline index blocks_of(index rows) { return (rows + most_block_rows - 1) / most_block_rows; }

// Adds the product of any number of rows with `count` panels to y; begin(rows) may fill some rows
// of y before they are added to, end(rows) is called once they are done.
template <class Begin, class End = Nothing, class Meanwhile = Nothing>
void add_product(const WholeRows& x, index rows, const WholePanels& panels, index count, float* y,
                 index ldy, Begin&& begin, End&& end = {}, Meanwhile&& meanwhile = {}) {
    using Called = std::remove_reference_t<Meanwhile>;
    constexpr auto adds = std::array{add_block<1, Called>, add_block<2, Called>,
                                     add_block<3, Called>, add_block<4, Called>,
                                     add_block<5, Called>, add_block<6, Called>};
    const index blocks = blocks_of(rows);
    for (index b = 0; b < blocks; ++b) {
        const Range own = share(rows, b, blocks);
        begin(own);
        for (index p = 0; p < count; ++p)
            adds[own.count() - 1](x.from(own.first), panels.from(p),
                                  y + own.first * ldy + p * panel_width, ldy, meanwhile);
        end(own);
    }
}

}  // namespace gw
