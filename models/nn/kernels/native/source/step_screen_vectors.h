// The products of a screen by vectors: see `step_screen.h`.
#pragma once

#include "blocks_avx512.h"
#include "step_piece.h"
#include "step_screen_panel.h"

namespace gw::stepping {

class VectorScreen {
   public:
    static constexpr index most_rows = Avx512::most_rows;
    static constexpr index most_wanted = std::numeric_limits<index>::max();

    // How often meanwhile() is called for a block of rows and some panels.
    static index calls(const Screen& screen, index) { return screen.coarse / 4; }

    // Calls take(row, panel, value, bound) for a block of rows and some panels: 16 logits lie
    // within 16 bounds.
    template <class Meanwhile, class Take>
    void screen(index rows, index panels, const Screen& screen, const char* first,
                const ScreenedRows& given, Meanwhile& meanwhile, const Take& take) {
        for_panels(panels, [&](auto count) {
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
        alignas(64) std::int32_t whole[R * P * panel_width];
        const char* exact = panels + screen_head;
        const char* coarse = exact + screen.exact * panel_width * sizeof(bf16);
        multiply_integers<R, P>(screen, coarse, given, meanwhile, whole);
        for (int p = 0; p < P; ++p, panels += screen.stride, exact += screen.stride) {
            const ScreenedPanel panel(panels);
            const auto* w = reinterpret_cast<const bf16*>(exact);
            Floats sum[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                sum[r] = panel.scaled(whole + (r * P + p) * panel_width, given.rows[r]);
            for (index k = 0; k < screen.exact; k += 2)
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
                    sum[r] = _mm512_dpbf16_ps(sum[r], pair(given.exact + r * screen.exact + k),
                                              pairs(w + k * panel_width));
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
                take(r, p, sum[r], panel.bound(given.rows[r]));
        }
    }

    // Products of the integers of R rows and P panels, into (R, P, 16).
    template <int R, int P, class Meanwhile>
    static void multiply_integers(const Screen& screen, const char* panels,
                                  const ScreenedRows& given, Meanwhile& meanwhile,
                                  std::int32_t* target) {
        __m512i sum[R][P];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sum[r][p] = _mm512_setzero_si512();
        for (index k = 0; k < screen.coarse; k += 4) {
            __m512i w[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p)
                w[p] = _mm512_loadu_si512(panels + p * screen.stride + k * panel_width);
            meanwhile();
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                std::int32_t four;
                __builtin_memcpy(&four, given.coarse + r * screen.coarse + k, sizeof four);
                const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbusd_epi32(sum[r][p], w[p], x);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p)
                _mm512_store_si512(target + (r * P + p) * panel_width, sum[r][p]);
    }
};

}  // namespace gw::stepping
