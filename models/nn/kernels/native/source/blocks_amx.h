// The product of a few rows with a few packed panels by AMX tiles.
//
// A tile of 16 rows and 32 inputs times a tile of 32 inputs and 16 outputs adds to a tile of sums.
// The number of rows in a tile does not change how a row is summed, so a row's bits do not depend
// on its neighbours. `Tiles` holds the instructions; a test replaces them by plain loops.
#pragma once

#include <immintrin.h>

#include "common.h"
#include "operand.h"

namespace gw {

struct TileShape {  // palette 1 of LDTILECFG
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
};

template <class Tiles>
struct Amx {
    static constexpr int most_rows = 32;
    static constexpr int most_panels = 2;
    static constexpr index step = 32;  // inputs of an operand must be a multiple of this
    static constexpr bool reads_int8 = false;
    static constexpr index group_bytes = 512 * 1024;  // a quarter of a core's second cache

    // Panels that are packed together, for rows to be read as seldom as can be.
    static index group(index inputs) {
        return std::max<index>(most_panels, group_bytes / (2 * panel_width * inputs) / 2 * 2);
    }

    template <int P, class Store>
    static void multiply(const bf16* x, index ldx, index rows, const bf16* panels, index inputs,
                         Store&& store) {
        multiply<P>(rows, {x, ldx, panels, inputs, panel_width * inputs}, {}, store);
    }

    template <int P, class Store>
    static void multiply(index rows, const Operand& first, const Operand& more, Store&& store) {
        multiply_group(P, rows, first, more, store);
    }

    // Calls store(row, panel, sum) with the sums over the inputs of two operands, `more` after
    // `first`: all panels for some rows, then for the next ones.
    template <class Store>
    static void multiply_group(index panels, index rows, const Operand& first, const Operand& more,
                               Store&& store) {
        index shaped = 0;
        for (index top = 0; top < rows; top += most_rows) {
            const index here = std::min<index>(most_rows, rows - top);
            if (here != shaped) configure(here);
            shaped = here;
            for (index p = 0; p < panels; p += most_panels) {
                const Operand one = first.from(top).panel(p), two = more.from(top).panel(p);
                const auto put = [&](index row, int q, __m512 sum) { store(top + row, p + q, sum); };
                if (p + 1 < panels)
                    add_up<2>(here, one, two, put);
                else
                    add_up<1>(here, one, two, put);
            }
        }
    }

   private:
    template <int P, class Put>
    static void add_up(index rows, const Operand& first, const Operand& more, Put&& put) {
        alignas(64) float sums[2][2][16][16];
        if (rows > 16)
            block<P, true>(first, more, sums);
        else
            block<P, false>(first, more, sums);
        for (index r = 0; r < rows; ++r)
            for (int p = 0; p < P; ++p) put(r, p, _mm512_load_ps(sums[r / 16][p][r % 16]));
    }

    // Others use tiles on the same threads, so no shape is taken to be still there.
    static void configure(index rows) {
        const index upper = std::min<index>(16, rows), lower = rows - upper;
        const std::uint8_t above = upper, below = std::max<index>(lower, 1);
        const std::uint8_t counts[8] = {above, above, below, below, above, below, 16, 16};
        TileShape shape;
        for (int t = 0; t < 8; ++t) {
            shape.row_bytes[t] = 64;
            shape.rows[t] = counts[t];
        }
        Tiles::configure(shape);
    }

    // Tiles 0 to 3 hold sums (two of rows by two of panels), 4 and 5 rows, 6 and 7 panels.
    template <int P, bool Lower>
    static void block(const Operand& first, const Operand& more, float (&sums)[2][2][16][16]) {
        Tiles::template zero<0>();
        if constexpr (P > 1) Tiles::template zero<1>();
        if constexpr (Lower) Tiles::template zero<2>();
        if constexpr (Lower && P > 1) Tiles::template zero<3>();
        add<P, Lower>(first);
        add<P, Lower>(more);
        Tiles::template store<0>(sums[0][0], 64);
        if constexpr (P > 1) Tiles::template store<1>(sums[0][1], 64);
        if constexpr (Lower) Tiles::template store<2>(sums[1][0], 64);
        if constexpr (Lower && P > 1) Tiles::template store<3>(sums[1][1], 64);
    }

    template <int P, bool Lower>
    static void add(const Operand& given) {
        const auto [x, ldx, panels, inputs, stride] = given;
        for (index k = 0; k < inputs; k += step) {
            Tiles::template load<6>(panels + k * panel_width, 64);
            if constexpr (P > 1) Tiles::template load<7>(panels + stride + k * panel_width, 64);
            Tiles::template load<4>(x + k, ldx * 2);
            Tiles::template add<0, 4, 6>();
            if constexpr (P > 1) Tiles::template add<1, 4, 7>();
            if constexpr (Lower) {
                Tiles::template load<5>(x + 16 * ldx + k, ldx * 2);
                Tiles::template add<2, 5, 6>();
                if constexpr (P > 1) Tiles::template add<3, 5, 7>();
            }
        }
    }
};

// What the tile instructions mean, for a test on processors without them.
struct EmulatedTiles {
    static inline thread_local TileShape shape;
    static inline thread_local std::uint8_t bytes[8][16][64];

    static void configure(const TileShape& wanted) { shape = wanted; }
    template <int T>
    static void zero() {
        __builtin_memset(bytes[T], 0, sizeof bytes[T]);
    }
    template <int T>
    static void load(const void* source, index stride) {
        for (int r = 0; r < shape.rows[T]; ++r)
            __builtin_memcpy(bytes[T][r], static_cast<const char*>(source) + r * stride, 64);
    }
    template <int T>
    static void store(void* target, index stride) {
        for (int r = 0; r < shape.rows[T]; ++r)
            __builtin_memcpy(static_cast<char*>(target) + r * stride, bytes[T][r], 64);
    }
    template <int C, int A, int B>
    static void add() {
        for (int m = 0; m < shape.rows[A]; ++m)
            for (int n = 0; n < 16; ++n) {
                float sum;
                __builtin_memcpy(&sum, &bytes[C][m][4 * n], 4);
                for (int k = 0; k < 32; ++k)
                    sum += number(&bytes[A][m][2 * k]) * number(&bytes[B][k / 2][4 * n + 2 * (k % 2)]);
                __builtin_memcpy(&bytes[C][m][4 * n], &sum, 4);
            }
    }

   private:
    static float number(const std::uint8_t* source) {
        std::uint16_t half;
        __builtin_memcpy(&half, source, 2);
        const std::uint32_t whole = std::uint32_t{half} << 16;
        float value;
        __builtin_memcpy(&value, &whole, 4);
        return value;
    }
};

}  // namespace gw
