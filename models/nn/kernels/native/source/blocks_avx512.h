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

struct Avx512 {
    using Number = bf16;  // of the operands of training
    static constexpr int most_rows = 6;  // of all panels at once
    static constexpr int most_panels = 4;
    static constexpr int narrow_panels = 3;  // likewise, of narrow ones
    static constexpr int piece_panels = 6;  // of a step's product
    static constexpr index step = 2;  // inputs of an operand must be a multiple of this
    static constexpr index between = 2;  // inputs from one call of meanwhile() to the next
    template <class Packed>
    static constexpr Widening widening = std::is_same_v<Packed, bf16> ? Widening::none
                                                                      : Widening::along;
    static constexpr bool reads_keys = false;  // of a cache as they lie
    static constexpr bool works_aside = false;  // leaving vectors to others
    struct Shaped {};

    template <int P, class Store, class Meanwhile = Nothing>
    static void multiply(const bf16* x, index ldx, index rows, const bf16* panels, index inputs,
                         Store&& store, Meanwhile&& meanwhile = {}) {
        multiply<P>(rows, {x, ldx, panels, inputs, panel_width * inputs}, {}, store, meanwhile);
    }

    // Panels that are packed together: those that fit into registers, for rows are near.
    static index group(index) { return most_panels; }

    // How often `multiply_group` calls store().
    static index stores(index rows, index panels) { return rows * panels; }

    // Calls store(row, panel, sum) with the sums over the inputs of two operands.
    template <class Store>
    static void multiply_group(index panels, index rows, const Operand& first, const Operand& more,
                               Store&& store) {
        for_groups({0, panels}, most_panels, [&](index p, index count) {
            const Operand one = first.panel(p), two = more.panel(p);
            const auto put = [&](index row, int q, __m512 sum) { store(row, p + q, sum); };
            switch (count) {
                case 4: return multiply<4>(rows, one, two, put);
                case 3: return multiply<3>(rows, one, two, put);
                case 2: return multiply<2>(rows, one, two, put);
                default: return multiply<1>(rows, one, two, put);
            }
        });
    }

    // The sum over the inputs of two operands, `more` after `first`. Rows beyond a multiple of
    // `most_rows` are spread, so that no block is much smaller.
    template <int P, class Store, class Meanwhile = Nothing>
    static void multiply(index rows, const Operand& first, const Operand& more, Store&& store,
                         Meanwhile&& meanwhile = {}) {
        const index blocks = blocks_of(rows);
        for (index b = 0; b < blocks; ++b) {
            const auto [top, bottom] = share(rows, b, blocks);
            const auto put = [&](int r, int p, __m512 sum) { store(top + r, p, sum); };
            sum_rows<P>(bottom - top, first.from(top), more.from(top), put, meanwhile);
        }
    }

    // The same of narrow panels, at most `narrow_panels`, which each block of rows widens anew, in
    // registers: stores would take time of the dot products, and reading twelve bits takes none.
    template <int P, class Packed, class Store, class Meanwhile>
    static void multiply_narrow(index rows, const OperandOf<bf16, Packed>& given, Store&& store,
                                Meanwhile&& meanwhile) {
        const index blocks = narrow_blocks(rows, P);
        for (index b = 0; b < blocks; ++b) {
            const auto [top, bottom] = share(rows, b, blocks);
            const auto put = [&, top = top](int r, int p, __m512 sum) { store(top + r, p, sum); };
            sum_rows<P, narrow_rows(P)>(bottom - top, given.from(top), Operand{}, put, meanwhile);
        }
    }

    // How often it calls meanwhile() for any number of panels.
    static index narrow_calls(index rows, index panels, index inputs) {
        const index groups = (panels + narrow_panels - 1) / narrow_panels;
        const index some = (panels + groups - 1) / groups;
        return groups * narrow_blocks(rows, some) * (inputs / between);
    }

    // How often `multiply_to` calls meanwhile().
    static index calls(index rows, index panels, index) { return rows * panels; }

    // The sums (rows, ld), added to what is there or put there.
    template <bool adds, class Meanwhile = Nothing>
    static void multiply_to(float* sums, index ld, index panels, index rows, const Operand& given,
                            Meanwhile&& meanwhile = {}) {
        const auto put = [=, &meanwhile](index row, index panel, __m512 sum) {
            meanwhile();
            float* place = sums + row * ld + panel * panel_width;
            gw::store(place, adds ? gw::load(place) + sum : sum);
        };
        multiply_group(panels, rows, given, {}, put);
    }

    // What `sum_block` calls.
    template <int R, int P, class Meanwhile>
    [[gnu::always_inline]] static inline void add(const Operand& given, __m512 (&sum)[R][P],
                                                  Meanwhile& meanwhile) {
        const bf16 *x = given.x, *panels = given.panels;
        const index ldx = given.ldx, stride = given.stride, inputs = given.inputs;
        for (index k = 0; k < inputs; k += 2) {
            __m512bh w[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) w[p] = pairs(panels + p * stride + k * panel_width);
            meanwhile();
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const __m512bh xs = pair(x + r * ldx + k);
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

    // Rows of which some narrow panels have all sums in registers, beside what these widen to.
    static constexpr int narrow_rows(index panels) { return panels == narrow_panels ? 8 : 12; }
    static index narrow_blocks(index rows, index panels) {
        return (rows + narrow_rows(panels) - 1) / narrow_rows(panels);
    }
    static index blocks_of(index rows) { return (rows + most_rows - 1) / most_rows; }

    // For at most R rows.
    template <int P, int R = most_rows, class First, class Put, class Meanwhile>
    static void sum_rows(index rows, const First& first, const Operand& more, const Put& put,
                         Meanwhile&& meanwhile) {
        if (rows == R)
            sum_block<Avx512, R, P>(first, more, put, meanwhile);
        else if constexpr (R > 1)
            sum_rows<P, R - 1>(rows, first, more, put, meanwhile);
    }
};

}  // namespace gw
