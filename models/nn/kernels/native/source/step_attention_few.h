// Attention of the few queries that share a key head, of one decoded row, to keys and values as
// they lie.
//
// Keys are turned in registers, so nothing is packed that is read once. Scores and sums are chains
// in order, as those of `Vectors` are.
#pragma once

#include "blocks.h"
#include "step_math.h"

#ifdef __AVX512BF16__
#include "pack.h"
#else
#include "unrolled.h"
#endif

namespace gw::stepping {

constexpr index few_queries = 4;
constexpr index most_head_size = 256;
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

#else

// Widens rows (Q, ld) up to a multiple of sixteen numbers.
template <int Q>
void widen_few(const bf16* rows, index ld, index count, float* wide) {
    for (int q = 0; q < Q; ++q)
        for (index k = 0; k < count; k += lanes)
            store(wide + q * ld + k, load_bf16(rows + q * ld + k));
}

// `score_few` in float32.
template <int Q>
void score_few(const bf16* queries, const bf16* keys, index count, index size, const bf16* next,
               Floats (&sums)[Q]) {
    constexpr index together = 16;
    alignas(32) float wide[Q * most_head_size];
    alignas(32) bf16 filled_up[together * most_head_size];
    widen_few<Q>(queries, size, size, wide);
    if (count < together) {
        std::copy_n(keys, count * size, filled_up);
        std::fill_n(filled_up + count * size, (together - count) * size, bf16{});
        keys = filled_up;
    }
    unrolled<Q>([&](auto q) { sums[q] = zeros(); });
    for (index k = 0; k < size; k += 16) {
        __m256i low[8], high[8];  // of eight keys each
        unrolled<8>([&](auto n) __attribute__((always_inline)) {
            const bf16* key = keys + n * size + k;
            low[n] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key));
            high[n] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key + 8 * size));
        });
        transpose(low);
        transpose(high);
        for (index line = k / 2; line < k / 2 + 8; ++line)
            _mm_prefetch(next + line * input_step, _MM_HINT_T0);
        unrolled<8>([&](auto i) __attribute__((always_inline)) {
            const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
            const auto add = [&](index at, __m256i left, __m256i right)
                                 __attribute__((always_inline)) {
                const Floats numbers{_mm256_castsi256_ps(left), _mm256_castsi256_ps(right)};
                unrolled<Q>([&](auto q) __attribute__((always_inline)) {
                    const __m256 query = _mm256_broadcast_ss(wide + q * size + k + at);
                    sums[q] = fma({query, query}, numbers, sums[q]);
                });
            };
            add(2 * i, _mm256_slli_epi32(low[i], 16), _mm256_slli_epi32(high[i], 16));
            add(2 * i + 1, _mm256_and_si256(low[i], upper), _mm256_and_si256(high[i], upper));
        });
    }
}

// `mix_few` in float32, a few outputs at a time, whose sums stay in registers.
template <int Q, int W, class Put>
void mix_few(const bf16* weights, index ld, const bf16* values, index count, index size,
             const bf16* after, Put&& put) {
    constexpr int P = Q > 3 ? 1 : 2;  // sixteens of outputs
    alignas(32) float wide[Q * block_keys];
    widen_few<Q>(weights, ld, padded_to(count, lanes), wide);
    for (index n = 0; n < 32 * W; n += P * lanes) {
        Floats sums[Q * P];
        unrolled<Q * P>([&](auto i) { sums[i] = zeros(); });
        for (index s = 0; s < count; ++s) {
            const bf16* row = values + s * size + n;
            _mm_prefetch(s + near_rows < count ? row + near_rows * size
                                               : after + (s + near_rows - count) * size + n,
                         _MM_HINT_T0);
            __m256 weight[Q];
            unrolled<Q>([&](auto q) __attribute__((always_inline)) {
                weight[q] = _mm256_broadcast_ss(wide + q * ld + s);
            });
            unrolled<P>([&](auto p) __attribute__((always_inline)) {
                const Floats value = load_bf16(row + p * lanes);
                unrolled<Q>([&](auto q) __attribute__((always_inline)) {
                    Floats& sum = sums[q * P + p];
                    sum = fma({weight[q], weight[q]}, value, sum);
                });
            });
        }
        unrolled<Q * P>([&](auto i) { put(i / P, n + i % P * lanes, sums[i]); });
    }
}

#endif

}  // namespace gw::stepping
