// The product of a few rows with a few packed panels by AVX512-BF16.
//
// Each output element is one chain of fused dot products over pairs of inputs, in order, whatever
// the number of rows or panels: a row's bits do not depend on its neighbours.
#pragma once

#include <immintrin.h>

#include "common.h"
#include "narrow_avx512.h"
#include "operand.h"
#include "products.h"
#include "rows_avx512.h"
#include "sum_block.h"

namespace gw {

// Rows of which some panels have all sums in registers, beside their weights and a row.
constexpr int rows_beside(index panels) { return panels > 3 ? 6 : panels == 3 ? 8 : 12; }

struct Avx512 {
    using Number = bf16;  // of the operands of training
    static constexpr int most_rows = rows_beside(1);  // at once
    static constexpr int most_panels = 4;
    static constexpr int narrow_panels = 3;  // likewise, of narrow ones
    static constexpr int piece_panels = 6;  // of a step's product
    static constexpr index step = 2;  // inputs of an operand must be a multiple of this
    static constexpr index between = 2;  // inputs from one call of meanwhile() to the next
    template <class Packed>
    static constexpr Widening widening = std::is_same_v<Packed, bf16> ? Widening::none
                                                                      : Widening::along;
    static constexpr bool works_aside = false;  // leaving vectors to others
    struct Shaped {};

    template <int P, class Store, class Meanwhile = Nothing>
    static void multiply(const bf16* x, index ldx, index rows, const bf16* panels, index inputs,
                         Store&& store, Meanwhile&& meanwhile = {}) {
        const Operand given{x, ldx, panels, inputs, panel_width * inputs};
        multiply<P>(rows, given, store, meanwhile);
    }

    // Calls store(row, panel, sum). Narrow panels are widened anew by each block of rows, in
    // registers: stores would take time of the dot products, and reading twelve bits takes none.
    template <int P, class Packed, class Store, class Meanwhile = Nothing>
    static void multiply(index rows, const OperandOf<bf16, Packed>& given, Store&& store,
                         Meanwhile&& meanwhile = {}) {
        sum_all<P>(
            rows, given, Operand{},
            [&](index row, const __m512(&sums)[P]) {
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) store(row, p, sums[p]);
            },
            meanwhile);
    }

    // How often `multiply` calls meanwhile() for panels in groups of at most `most`.
    static index meanwhiles(index rows, index panels, index inputs, index most) {
        index blocks = 0;
        for_groups({0, panels}, most,
                   [&](index, index count) { blocks += blocks_of(rows, count); });
        return blocks * (inputs / between);
    }

    // Panels that are packed together: those that fit into registers, for rows are near.
    static index group(index) { return most_panels; }

    // How often `multiply_group` calls store().
    static index stores(index rows, index panels) {
        index pairs = 0;
        for_groups({0, panels}, most_panels,
                   [&](index, index count) { pairs += (count + 1) / 2; });
        return rows * pairs;
    }

    // Calls store(row, panel, sums...), with the sums of one panel or of two side by side over the
    // inputs of two operands, `more` after `first`.
    template <class Store>
    static void multiply_group(index panels, index rows, const Operand& first, const Operand& more,
                               Store&& store) {
        for_groups({0, panels}, most_panels, [&](index p, index count) {
            const Operand one = first.panel(p), two = more.panel(p);
            const auto put = [&]<int P>(index row, const __m512(&sums)[P]) {
#pragma GCC unroll 8
                for (int q = 0; q + 1 < P; q += 2) store(row, p + q, sums[q], sums[q + 1]);
                if constexpr (P % 2) store(row, p + P - 1, sums[P - 1]);
            };
            switch (count) {
                case 4: return sum_all<4>(rows, one, two, put);
                case 3: return sum_all<3>(rows, one, two, put);
                case 2: return sum_all<2>(rows, one, two, put);
                default: return sum_all<1>(rows, one, two, put);
            }
        });
    }

    // How often `multiply_to` calls meanwhile().
    static index calls(index rows, index panels, index) { return stores(rows, panels); }

    // The sums (rows, ld), added to what is there or put there.
    template <bool adds, class Meanwhile = Nothing>
    static void multiply_to(float* sums, index ld, index panels, index rows, const Operand& given,
                            Meanwhile&& meanwhile = {}) {
        const auto put = [=, &meanwhile](index row, index panel, auto... own) {
            meanwhile();
            float* place = sums + row * ld + panel * panel_width;
            ((gw::store(place, adds ? gw::load(place) + own : own), place += panel_width), ...);
        };
        multiply_group(panels, rows, given, {}, put);
    }

    // What `sum_block` calls.
    template <int R, int P, class Meanwhile>
    [[gnu::always_inline]] static inline void add(const Operand& given, __m512 (&sum)[R][P],
                                                  Meanwhile& meanwhile) {
        const bf16* panels = given.panels;
        RowsAbreast<R> rows(given.x, given.ldx);
        for (index k = 0; k < given.inputs; k += 2, rows.advance(2 * sizeof(bf16))) {
            __m512bh w[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) w[p] = pairs(panels + p * given.stride);
            panels += 2 * panel_width;
            meanwhile();
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const __m512bh xs = rows.pair(r, 0);
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], xs, w[p]);
            }
        }
    }

    // Narrow panels are widened four inputs at a time.
    template <int R, int P, class Packed, class Meanwhile>
    [[gnu::always_inline]] static inline void add(const OperandOf<bf16, Packed>& given,
                                                  __m512 (&sum)[R][P], Meanwhile& meanwhile) {
        InRegisters<Packed, P> panels(given);
        for (index k = 0; k < given.inputs; k += input_step, panels.advance()) {
            if (!panels.are_plain()) [[unlikely]] {
                alignas(64) bf16 wide[P * tile_numbers];
                panels.widen(wide);
                const Operand tile{given.x + k, given.ldx, wide, input_step, tile_numbers};
                add<R, P>(tile, sum, meanwhile);
                continue;
            }
            RowsAbreast<R> rows(given.x + k, given.ldx);
            for (index within = 0; within < tile_parts; ++within, rows.advance(part_bytes))
                add_part<R, P>(rows, panels, within, sum, meanwhile);
        }
    }

   private:
    static constexpr index part_bytes = input_step / tile_parts * sizeof(bf16);  // of a row

    template <int R, int P, class Panels, class Meanwhile>
    [[gnu::always_inline]] static inline void add_part(const RowsAbreast<R>& rows,
                                                       const Panels& panels, index part,
                                                       __m512 (&sum)[R][P], Meanwhile& meanwhile) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            __m512bh w[2][P];
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) panels.read(p, part, half, w[0][p], w[1][p]);
#pragma GCC unroll 2
            for (int next = 0; next < 2; ++next) {
                meanwhile();
#pragma GCC unroll 12
                for (int r = 0; r < R; ++r) {
                    const __m512bh xs = rows.pair(r, 4 * half + 2 * next);
#pragma GCC unroll 4
                    for (int p = 0; p < P; ++p)
                        sum[r][p] = _mm512_dpbf16_ps(sum[r][p], xs, w[next][p]);
                }
            }
        }
    }

    static index blocks_of(index rows, index panels) {
        return (rows + rows_beside(panels) - 1) / rows_beside(panels);
    }

    // Calls put(row, sums) for all rows. Those beyond a multiple of what is possible at once are
    // spread, so that no block is much smaller.
    template <int P, class First, class Put, class Meanwhile = Nothing>
    static void sum_all(index rows, const First& first, const Operand& more, const Put& put,
                        Meanwhile&& meanwhile = {}) {
        const index blocks = blocks_of(rows, P);
        for (index b = 0; b < blocks; ++b) {
            const auto [top, bottom] = share(rows, b, blocks);
            const auto put_own = [&, top = top](int r, const __m512(&sums)[P]) {
                put(top + r, sums);
            };
            sum_rows<P>(bottom - top, first.from(top), more.from(top), put_own, meanwhile);
        }
    }

    // For at most R rows.
    template <int P, int R = rows_beside(P), class First, class Put, class Meanwhile>
    static void sum_rows(index rows, const First& first, const Operand& more, const Put& put,
                         Meanwhile&& meanwhile) {
        if (rows == R)
            sum_block<Avx512, R, P>(first, more, put, meanwhile);
        else if constexpr (R > 1)
            sum_rows<P, R - 1>(rows, first, more, put, meanwhile);
    }
};

}  // namespace gw
