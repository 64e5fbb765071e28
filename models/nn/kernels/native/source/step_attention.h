// Attention of a few query rows to one head's keys, block by block with a running softmax.
//
// Blocks begin at multiples of `block_keys` from the slot's first position, so what a row gets does
// not depend on the rows computed beside it. A block is packed as a weight is, keys as outputs of
// the first product and inputs of the second, and shared by all query rows.
#pragma once

#include "step_math.h"

namespace gw::stepping {

constexpr index block_keys = 64;
constexpr index most_queries = 48;
constexpr index most_head_size = 256;

inline index padded(index count, index step) { return (count + step - 1) / step * step; }

// Transposes 16 rows of 16 pairs: target[i][n] is pair i of row n.
inline void transpose_pairs(const bf16* source, index ld, index rows, bf16* target) {
    __m512i r[16], t[16];
#pragma GCC unroll 16
    for (int n = 0; n < 16; ++n)
        r[n] = n < rows ? _mm512_loadu_si512(source + n * ld) : _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int n = 0; n < 16; n += 2) {
        t[n] = _mm512_unpacklo_epi32(r[n], r[n + 1]);
        t[n + 1] = _mm512_unpackhi_epi32(r[n], r[n + 1]);
    }
#pragma GCC unroll 4
    for (int n = 0; n < 16; n += 4) {
        r[n] = _mm512_unpacklo_epi64(t[n], t[n + 2]);
        r[n + 1] = _mm512_unpackhi_epi64(t[n], t[n + 2]);
        r[n + 2] = _mm512_unpacklo_epi64(t[n + 1], t[n + 3]);
        r[n + 3] = _mm512_unpackhi_epi64(t[n + 1], t[n + 3]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i even = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
        const __m512i even_below = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        const __m512i odd = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        const __m512i odd_below = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        const __m512i columns[4] = {_mm512_shuffle_i32x4(even, even_below, 0x88),
                                    _mm512_shuffle_i32x4(odd, odd_below, 0x88),
                                    _mm512_shuffle_i32x4(even, even_below, 0xdd),
                                    _mm512_shuffle_i32x4(odd, odd_below, 0xdd)};
#pragma GCC unroll 4
        for (int c = 0; c < 4; ++c) _mm512_storeu_si512(target + (4 * c + j) * 32, columns[c]);
    }
}

// Packs keys (count, size) as the weight of `padded(count, 16)` outputs and `size` inputs; `ahead`
// rows of the next block are fetched meanwhile.
inline void pack_keys(const bf16* keys, index count, index size, index ahead, bf16* target) {
    for (index top = 0; top < count; top += panel_width)
        for (index k = 0; k < size; k += input_step) {
            for (index n = top; n < std::min(ahead, top + panel_width); ++n)
                _mm_prefetch(keys + (n + block_keys) * size + k, _MM_HINT_T1);
            transpose_pairs(keys + top * size + k, size, std::min(panel_width, count - top),
                            target + top * size + k * panel_width);
        }
}

// Packs values (count, size) as the weight of `size` outputs and `padded(count, 32)` inputs.
inline void pack_values(const bf16* values, index count, index size, index ahead, bf16* target) {
    const index inputs = padded(count, input_step);
    alignas(64) std::int16_t order[32];
    for (int n = 0; n < 16; ++n) order[2 * n] = n, order[2 * n + 1] = 32 + n;
    const __m512i interleaved = _mm512_load_si512(order);
    const auto row = [&](index s, index n) {
        const bf16* source = values + s * size + n;
        if (s >= count) return _mm512_setzero_si512();
        return _mm512_castsi256_si512(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
    };
    for (index s = 0; s < inputs; s += 2)
        for (index n = 0; n < size; n += panel_width) {
            if (n % 32 == 0 && s < ahead) {
                _mm_prefetch(values + (s + block_keys) * size + n, _MM_HINT_T1);
                _mm_prefetch(values + (s + 1 + block_keys) * size + n, _MM_HINT_T1);
            }
            _mm512_storeu_si512(
                target + n * inputs + s * panel_width,
                _mm512_permutex2var_epi16(row(s, n), interleaved, row(s + 1, n)));
        }
}

// What one thread needs to attend; too large for a stack.
struct AttentionScratch {
    alignas(64) bf16 keys[block_keys * most_head_size];
    alignas(64) bf16 values[block_keys * most_head_size];
    alignas(64) float scores[most_queries * block_keys];
    alignas(64) bf16 weights[most_queries * block_keys];
    alignas(64) float sums[most_queries * most_head_size];
    float highest[most_queries], total[most_queries], shrink[most_queries];
};

class Attention {
   public:
    Attention(AttentionScratch& scratch, index rows, index size, float scale)
        : s(scratch), rows(rows), size(size), scale(scale) {
        std::fill_n(s.sums, rows * size, 0.0f);
        std::fill_n(s.total, rows, 0.0f);
        std::fill_n(s.highest, rows, -__builtin_inff());
    }

    // Lets queries (rows, size) see a packed block; row r sees the first visible(r) of `count`.
    template <class Isa, class Visible>
    void add(const bf16* queries, const bf16* keys, const bf16* values, index count,
             Visible&& visible) {
        multiply_panels<Isa>(queries, size, rows, keys, size,
                             {0, padded(count, panel_width) / panel_width},
                             [&](index r, index n, __m512 sum) {
                                 _mm512_store_ps(s.scores + r * block_keys + n, sum);
                             });
        const index inputs = padded(count, input_step);
        for (index r = 0; r < rows; ++r) weigh(r, std::clamp<index>(visible(r), 0, count), inputs);
        multiply_panels<Isa>(s.weights, block_keys, rows, values, inputs, {0, size / panel_width},
                             [&](index r, index n, __m512 sum) {
                                 float* target = s.sums + r * size + n;
                                 _mm512_store_ps(target, _mm512_fmadd_ps(_mm512_load_ps(target),
                                                                         splat(s.shrink[r]), sum));
                             });
    }

    // Sixteen outputs of a row.
    __m512 output(index r, index n) const {
        return _mm512_div_ps(_mm512_load_ps(s.sums + r * size + n), splat(s.total[r]));
    }

   private:
    static __mmask16 lanes(index count, index first) {
        const index here = std::clamp<index>(count - first, 0, 16);
        return static_cast<__mmask16>((1u << here) - 1);
    }

    // Turns a row's scores into weights against the highest score so far.
    void weigh(index r, index visible, index inputs) {
        const float* scores = s.scores + r * block_keys;
        __m512 highest = splat(s.highest[r]);
        for (index n = 0; n < visible; n += 16) {
            const __m512 score = _mm512_mul_ps(_mm512_load_ps(scores + n), splat(scale));
            highest = _mm512_mask_max_ps(highest, lanes(visible, n), highest, score);
        }
        const float top = _mm512_reduce_max_ps(highest);
        __m512 sum = _mm512_setzero_ps();
        for (index n = 0; n < inputs; n += 16) {
            __m512 weight = _mm512_setzero_ps();
            if (n < visible) {
                const __m512 score = _mm512_mul_ps(_mm512_load_ps(scores + n), splat(scale));
                weight = _mm512_maskz_mov_ps(lanes(visible, n),
                                             exponential(_mm512_sub_ps(score, splat(top))));
                sum = _mm512_add_ps(sum, weight);
            }
            store_bf16(s.weights + r * block_keys + n, weight);
        }
        const float shrink = _mm512_cvtss_f32(exponential(splat(s.highest[r] - top)));
        s.shrink[r] = shrink;
        s.total[r] = s.total[r] * shrink + _mm512_reduce_add_ps(sum);
        s.highest[r] = top;
    }

    AttentionScratch& s;
    const index rows, size;
    const float scale;
};

}  // namespace gw::stepping
