// The products of a screen by vectors: see `step_screen.h`.
#pragma once

#include "rows_avx512.h"
#include "step_piece.h"
#include "step_screen_panel.h"

namespace gw::stepping {

class VectorScreen {
   public:
    static constexpr index most_rows = 8;  // whose sums take 24 of 32 registers
    static constexpr int most_panels = 3;
    static constexpr index most_wanted = std::numeric_limits<index>::max();

    // How often meanwhile() is called for a block of rows and some panels.
    static index calls(const Screen& screen, index) { return screen.coarse / 4; }

    // Calls take(row, panel, value, bound) for a block of rows and some panels: 16 logits lie
    // within 16 bounds.
    template <class Meanwhile, class Take>
    void screen(index rows, index panels, const Screen& screen, const char* first,
                const ScreenedRows& given, Meanwhile& meanwhile, const Take& take) {
        for_panels<most_panels>(panels, [&](auto count) {
            block_up_to<most_rows, count>(rows, screen, first, given, meanwhile, take);
        });
    }

   private:
    // The same for up to R rows and P panels.
    template <int R, int P, class Meanwhile, class Take>
    static void block_up_to(index rows, const Screen& screen, const char* panels,
                            const ScreenedRows& given, Meanwhile& meanwhile, const Take& take) {
        if (rows == R)
            block<R, P>(screen, panels, given, meanwhile, take);
        else if constexpr (R > 1)
            block_up_to<R - 1, P>(rows, screen, panels, given, meanwhile, take);
    }

    // The same for R rows and P panels.
    template <int R, int P, class Meanwhile, class Take>
    static void block(const Screen& screen, const char* panels, const ScreenedRows& given,
                      Meanwhile& meanwhile, const Take& take) {
        const char* exact = panels + screen_head;
        __m512i whole[R][P];
        multiply_integers<R, P>(screen, exact + screen.exact * panel_width * sizeof(bf16), given,
                                meanwhile, whole);
        Floats sum[R][P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            const ScreenedPanel panel(panels + p * screen.stride);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m512i start = _mm512_set1_epi32(given.rows[r].start);
                const Floats all = _mm512_cvtepi32_ps(_mm512_add_epi32(whole[r][p], start));
                sum[r][p] = panel.scaled(all, given.rows[r]);
            }
        }
        RowsAbreast<R> rows(given.exact, screen.exact);
        for (index k = 0; k < screen.exact; k += 2, rows.advance(2 * sizeof(bf16))) {
            __m512bh w[P];
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p)
                w[p] = pairs(reinterpret_cast<const bf16*>(exact + p * screen.stride) +
                             k * panel_width);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m512bh x = rows.pair(r, 0);
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], x, w[p]);
            }
        }
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            const ScreenedPanel panel(panels + p * screen.stride);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) take(r, p, sum[r][p], panel.bound(given.rows[r]));
        }
    }

    // Products of the integers of R rows and P panels.
    template <int R, int P, class Meanwhile>
    [[gnu::always_inline]] static void multiply_integers(const Screen& screen, const char* panels,
                                                         const ScreenedRows& given,
                                                         Meanwhile& meanwhile,
                                                         __m512i (&sum)[R][P]) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p) sum[r][p] = _mm512_setzero_si512();
        RowsAbreast<R> rows(given.coarse, screen.coarse);
        for (index k = 0; k < screen.coarse; k += 4, rows.advance(4)) {
            __m512i w[P];
#pragma GCC unroll 4
            for (int p = 0; p < P; ++p)
                w[p] = _mm512_loadu_si512(panels + p * screen.stride + k * panel_width);
            meanwhile();
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m512i x = rows.four(r, 0);
#pragma GCC unroll 4
                for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbusd_epi32(sum[r][p], w[p], x);
            }
        }
    }
};

}  // namespace gw::stepping
