// The products of a screen by AVX2: see `step_screen.h`.
//
// AVX2 multiplies no bytes exactly, but integers of 16 bits as fast as the head's own, so what is
// saved is memory: half of what the head has. That counts for few rows alone.
#pragma once

#include "blocks_avx2.h"
#include "scratch.h"
#include "step_screen_panel.h"
#include "unrolled.h"

namespace gw::stepping {

class VectorScreen {
   public:
    static constexpr index most_rows = 4;  // whose sums take 8 of 16 registers
    static constexpr int most_panels = 4;
    static constexpr index most_wanted = most_rows;

    // How often meanwhile() is called for a block of rows and some panels.
    static index calls(const Screen& screen, index panels) {
        return panels * (screen.coarse / between);
    }

    // Calls take(row, panel, value, bound) for a block of rows and some panels: 16 logits lie
    // within 16 bounds.
    template <class Meanwhile, class Take>
    void screen(index rows, index panels, const Screen& screen, const char* first,
                const ScreenedRows& given, Meanwhile& meanwhile, const Take& take) {
        static thread_local gw::Scratch room;
        float* exact = room.room<float>(rows * screen.exact);
        for (index k = 0; k < rows * screen.exact; k += lanes)
            store(exact + k, load_bf16(given.exact + k));
        for (index p = 0; p < panels; ++p, first += screen.stride)
            switch (rows) {
                case 4: panel<4>(screen, first, given, exact, p, meanwhile, take); break;
                case 3: panel<3>(screen, first, given, exact, p, meanwhile, take); break;
                case 2: panel<2>(screen, first, given, exact, p, meanwhile, take); break;
                case 1: panel<1>(screen, first, given, exact, p, meanwhile, take); break;
            }
    }

   private:
    static constexpr index between = 32;  // inputs from one call of meanwhile() to the next

    template <int R, class Meanwhile, class Take>
    static void panel(const Screen& screen, const char* first, const ScreenedRows& given,
                      const float* exact, index p, Meanwhile& meanwhile, const Take& take) {
        alignas(32) std::int32_t whole[R * panel_width];
        const auto* pairs = reinterpret_cast<const bf16*>(first + screen_head);
        multiply_integers<R>(screen, pairs + screen.exact * panel_width, given.coarse, meanwhile,
                             whole);
        const ScreenedPanel said(first);
        Floats sum[R];
        unrolled<R>([&](auto r) {
            sum[r] = said.scaled(whole + r * panel_width, given.rows[r]);
        });
        for (index k = 0; k < screen.exact; k += 2) {
            const Floats even = weights<0>(pairs + k * panel_width);
            const Floats odd = weights<1>(pairs + k * panel_width);
            unrolled<R>([&](auto r) __attribute__((always_inline)) {
                const float* row = exact + r * screen.exact + k;
                sum[r] = fma(splat(row[1]), odd, fma(splat(row[0]), even, sum[r]));
            });
        }
        unrolled<R>([&](auto r) { take(r, p, sum[r], said.bound(given.rows[r])); });
    }

    // Products of the integers of R rows and a panel, into (R, 16): those of four inputs at a time,
    // of which the first and the third enter one product of pairs, the others another.
    template <int R, class Meanwhile>
    static void multiply_integers(const Screen& screen, const void* panel, const Coarse* rows,
                                  Meanwhile& meanwhile, std::int32_t* target) {
        const auto* bytes = static_cast<const char*>(panel);
        __m256i low[R], high[R];
        unrolled<R>([&](auto r) { low[r] = high[r] = _mm256_setzero_si256(); });
        for (index top = 0; top < screen.coarse; top += between) {
            meanwhile();
            for (index k = top; k < top + between; k += 4) {
                const auto* both = reinterpret_cast<const __m256i*>(bytes + k * panel_width);
                const __m256i left = _mm256_loadu_si256(both), right = _mm256_loadu_si256(both + 1);
                const __m256i lower = _mm256_set1_epi16(0xff);
                const __m256i left_even = _mm256_and_si256(left, lower);
                const __m256i right_even = _mm256_and_si256(right, lower);
                const __m256i left_odd = _mm256_srli_epi16(left, 8);
                const __m256i right_odd = _mm256_srli_epi16(right, 8);
                unrolled<R>([&](auto r) __attribute__((always_inline)) {
                    const auto pair = [&](index at) __attribute__((always_inline)) {
                        const Coarse* two = rows + r * screen.coarse + k + at;
                        return _mm256_castps_si256(
                            _mm256_broadcast_ss(reinterpret_cast<const float*>(two)));
                    };
                    const __m256i even = pair(0), odd = pair(2);
                    low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(left_even, even));
                    high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(right_even, even));
                    low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(left_odd, odd));
                    high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(right_odd, odd));
                });
            }
        }
        unrolled<R>([&](auto r) {
            auto* at = reinterpret_cast<__m256i*>(target + r * panel_width);
            _mm256_store_si256(at, low[r]);
            _mm256_store_si256(at + 1, high[r]);
        });
    }
};

}  // namespace gw::stepping
