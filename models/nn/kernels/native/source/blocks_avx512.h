// The product of a few rows with a few packed panels by AVX512-BF16.
//
// Each output element is one chain of fused dot products over pairs of inputs, in order, whatever
// the number of rows or panels: a row's bits do not depend on its neighbours.
#pragma once

#include <immintrin.h>

#include "common.h"

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

    // Rows beyond a multiple of `most_rows` are spread, so that no block is much smaller.
    template <int P, class Store>
    static void multiply(const bf16* x, index ldx, index rows, const bf16* panels, index inputs,
                         Store&& store) {
        const index blocks = (rows + most_rows - 1) / most_rows;
        for (index b = 0; b < blocks; ++b) {
            const auto [first, last] = share(rows, b, blocks);
            const bf16* top = x + first * ldx;
            const auto put = [&](int r, int p, __m512 sum) { store(first + r, p, sum); };
            switch (last - first) {
                case 6: block<6, P>(top, ldx, panels, inputs, put); break;
                case 5: block<5, P>(top, ldx, panels, inputs, put); break;
                case 4: block<4, P>(top, ldx, panels, inputs, put); break;
                case 3: block<3, P>(top, ldx, panels, inputs, put); break;
                case 2: block<2, P>(top, ldx, panels, inputs, put); break;
                case 1: block<1, P>(top, ldx, panels, inputs, put); break;
            }
        }
    }

   private:
    template <int R, int P, class Put>
    static inline void block(const bf16* x, index ldx, const bf16* panels, index inputs,
                             const Put& put) {
        __m512 sum[R][P];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) sum[r][p] = _mm512_setzero_ps();
        const index stride = panel_width * inputs;
        for (index k = 0; k < inputs; k += 2) {
            __m512bh w[P];
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) w[p] = pairs(panels + p * stride + k * panel_width);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const __m512bh xs = pair(x + r * ldx + k);
#pragma GCC unroll 8
                for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], xs, w[p]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int p = 0; p < P; ++p) put(r, p, sum[r][p]);
    }
};

}  // namespace gw
