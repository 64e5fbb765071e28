// The product of a few rows with a few packed panels by AVX512-BF16.
//
// Each output element is one chain of fused dot products over pairs of inputs, in order, whatever
// the number of rows or panels: a row's bits do not depend on its neighbours.
#pragma once

#include <immintrin.h>

#include "coded.h"
#include "common.h"
#include "narrow.h"
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

// Narrow panels that are widened along with a product: into `wide`, where they are `kept` for more
// rows to read, or into a ring for no longer than they are needed.
template <class Packed, bool kept>
struct Along {
    OperandOf<bf16, Packed> given;
    bf16* wide = nullptr;
};

struct Avx512 {
    using Number = bf16;  // of the operands of training
    static constexpr int most_rows = 6;  // of all panels at once
    static constexpr int most_panels = 4;
    static constexpr int most_once = 12;  // rows for which narrow panels are widened into a ring
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

    // The same of narrow panels, which the first rows widen into `wide`, for the others to read. It
    // is null for up to `most_once` rows: these take two panels at once rather than pass by twice.
    template <int P, class Packed, class Store, class Meanwhile>
    static void multiply_along(index rows, const OperandOf<bf16, Packed>& narrow, bf16* wide,
                               Store&& store, Meanwhile&& meanwhile) {
        if constexpr (P > 2)
            if (!wide && rows > most_rows) {
                const auto put = [&](index row, int p, __m512 sum) { store(row, p + 2, sum); };
                multiply_along<2>(rows, narrow, wide, store, meanwhile);
                return multiply_along<P - 2>(rows, narrow.panel(2), wide, put, meanwhile);
            }
        if (!wide)
            return sum_rows<P>(rows, Along<Packed, false>{narrow}, Operand{}, store, meanwhile);
        const index first = share(rows, 0, blocks_of(rows)).last;
        sum_rows<P>(first, Along<Packed, true>{narrow, wide}, Operand{}, store, meanwhile);
        const Operand others{narrow.x + first * narrow.ldx, narrow.ldx, wide, narrow.inputs,
                             panel_width * narrow.inputs};
        const auto put = [&](index row, int p, __m512 sum) { store(first + row, p, sum); };
        multiply<P>(rows - first, others, {}, put, meanwhile);
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

    // A tile of each panel is widened part by part beside the dot products of the tile before: all
    // at once, it would wait for them and they for it.
    template <int R, int P, class Packed, bool kept, class Meanwhile>
    [[gnu::always_inline]] static inline void add(const Along<Packed, kept>& along,
                                                  __m512 (&sum)[R][P], Meanwhile& meanwhile) {
        using Panels = Widened<Packed, P, kept, 1>;
        static_assert(P * tile_parts <= input_step / step);
        const auto& given = along.given;
        alignas(64) bf16 ring[kept ? 1 : Panels::ring];
        Panels panels(given, kept ? along.wide : ring);
        for (index part = 0; part < P * tile_parts; ++part) panels.widen(0, part);
        for (index tile = 0; tile * input_step < given.inputs; ++tile) {
            index part = 0;
            const auto both = [&] {
                panels.widen(tile + 1, part++);
                meanwhile();
            };
            add<R, P>(Operand{given.x + tile * input_step, given.ldx, panels.at(0, tile),
                              input_step, panels.stride()},
                      sum, both);
        }
    }

   private:
    static index blocks_of(index rows) { return (rows + most_rows - 1) / most_rows; }

    // For as many rows as their sums have registers for, beside P panels.
    template <int P, int R = P <= 2 ? most_once : most_rows, class First, class Put, class Meanwhile>
    static void sum_rows(index rows, const First& first, const Operand& more, const Put& put,
                         Meanwhile&& meanwhile) {
        if (rows == R)
            sum_block<Avx512, R, P>(first, more, put, meanwhile);
        else if constexpr (R > 1)
            sum_rows<P, R - 1>(rows, first, more, put, meanwhile);
    }
};

}  // namespace gw
