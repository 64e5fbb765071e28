// Attention of the few queries that share a key head, of one decoded row, to keys and values as
// they lie.
//
// Keys are turned in registers and values paired on the way, so nothing is packed that is read
// once. Scores and sums are chains over pairs in order, as those of `Vectors` are.
#pragma once

#include "blocks.h"
#include "step_math.h"

#ifdef __AVX512BF16__
#include "pack.h"
#endif

namespace gw::stepping {

constexpr index few_queries = 4;
constexpr index near_rows = 16;  // of keys or values: so far ahead are they fetched

#ifdef __AVX512BF16__

// Scores of Q queries (Q, size) and up to 16 keys (count, size); `next` is what is read after them.
template <int Q>
void score_few(const bf16* queries, const bf16* keys, index count, index size, const bf16* next,
               Floats (&sums)[Q]) {
    for (int q = 0; q < Q; ++q) sums[q] = zeros();
    for (index k = 0; k < size; k += input_step) {
        __m512i turned[16];
#pragma GCC unroll 16
        for (index n = 0; n < 16; ++n) {
            const bf16* here = keys + n * size + k;
            turned[n] = n < count ? _mm512_loadu_si512(here) : _mm512_setzero_si512();
            _mm_prefetch(next + (k / 2 + n) * input_step, _MM_HINT_T0);
        }
        transpose(turned);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i)
            for (int q = 0; q < Q; ++q)
                sums[q] = _mm512_dpbf16_ps(sums[q], pair(queries + q * size + k + 2 * i),
                                           reinterpret_cast<__m512bh>(turned[i]));
    }
}

// Numbers whose order is that of rows paired by halves of 128 bits: the first or last 16 of 32.
template <bool Last>
inline Floats in_order(Floats low, Floats high) {
    const __m512i order = Last ? _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28,
                                                   29, 30, 31)
                               : _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21,
                                                   22, 23);
    return _mm512_permutex2var_ps(low, order, high);
}

// Calls put(query, output, sum) for 32 W outputs of the values (count, size) from `values` on, by
// weights (Q, ld), which are zero from `count` on; `after` is what is read after all values.
template <int Q, int W, class Put>
void mix_few(const bf16* weights, index ld, const bf16* values, index count, index size,
             const bf16* after, Put&& put) {
    Floats low[Q][W], high[Q][W];
    for (int q = 0; q < Q; ++q)
        for (int w = 0; w < W; ++w) low[q][w] = high[q][w] = zeros();
    for (index s = 0; s < count; s += 2) {
        const bf16* row = values + s * size;
        const bf16* next = s + near_rows < count ? row + near_rows * size
                                                 : after + (s + near_rows - count) / 2 * 2 * size;
#pragma GCC unroll 2
        for (int w = 0; w < W; ++w) {
            const __m512i even = _mm512_loadu_si512(row + 32 * w);
            const __m512i odd = s + 1 < count ? _mm512_loadu_si512(row + size + 32 * w)
                                              : _mm512_setzero_si512();
            _mm_prefetch(next + 32 * w, _MM_HINT_T0);
            _mm_prefetch(next + size + 32 * w, _MM_HINT_T0);
            const auto lower = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(even, odd));
            const auto upper = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(even, odd));
#pragma GCC unroll 4
            for (int q = 0; q < Q; ++q) {
                const __m512bh weight = pair(weights + q * ld + s);
                low[q][w] = _mm512_dpbf16_ps(low[q][w], weight, lower);
                high[q][w] = _mm512_dpbf16_ps(high[q][w], weight, upper);
            }
        }
    }
    for (int q = 0; q < Q; ++q)
        for (int w = 0; w < W; ++w) {
            put(q, 32 * w, in_order<false>(low[q][w], high[q][w]));
            put(q, 32 * w + 16, in_order<true>(low[q][w], high[q][w]));
        }
}

#endif

}  // namespace gw::stepping
