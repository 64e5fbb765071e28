// The product of a few rows with a few packed panels by AVX512-BF16.
//
// Each output element is one chain of fused dot products over pairs of inputs, in order, whatever
// the number of rows or panels: a row's bits do not depend on its neighbours.
#pragma once

#include <immintrin.h>

#include "coded.h"
#include "common.h"
#include "operand.h"
#include "products.h"
#include "sum_block.h"

namespace gw {

inline __m512bh pair(const bf16* x) {
    std::int32_t two;
    __builtin_memcpy(&two, x, sizeof two);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
}

inline __m512bh pairs(const bf16* w) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(w)); }

struct Avx512 {
    static constexpr int most_rows = 6;
    static constexpr int most_panels = 4;
    static constexpr index step = 2;  // inputs of an operand must be a multiple of this
    template <class Packed>
    static constexpr Widening widening = std::is_same_v<Packed, bf16> ? Widening::none
                                                                      : Widening::before;
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
        const index blocks = (rows + most_rows - 1) / most_rows;
        for (index b = 0; b < blocks; ++b) {
            const auto [top, bottom] = share(rows, b, blocks);
            const Operand one = first.from(top), two = more.from(top);
            const auto put = [&](int r, int p, __m512 sum) { store(top + r, p, sum); };
            switch (bottom - top) {
                case 6: sum_block<Avx512, 6, P>(one, two, put, meanwhile); break;
                case 5: sum_block<Avx512, 5, P>(one, two, put, meanwhile); break;
                case 4: sum_block<Avx512, 4, P>(one, two, put, meanwhile); break;
                case 3: sum_block<Avx512, 3, P>(one, two, put, meanwhile); break;
                case 2: sum_block<Avx512, 2, P>(one, two, put, meanwhile); break;
                case 1: sum_block<Avx512, 1, P>(one, two, put, meanwhile); break;
            }
        }
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
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m512bh xs = pair(x + r * ldx + k);
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], xs, w[p]);
            }
        }
    }
};

}  // namespace gw
