// Packing into panels as a product goes along: what is not there counts as zeros.
#pragma once

#include <immintrin.h>

#include "vector.h"

namespace gw {

// Element j of row i becomes element i of row j.
inline void transpose(__m512i (&rows)[16]) {
    __m512i next[16];
    for (int i = 0; i < 16; i += 2) {
        next[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        next[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(next[i], next[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(next[i], next[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(next[i + 1], next[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(next[i + 1], next[i + 3]);
    }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; ++j) {
            next[i + j] = _mm512_shuffle_i32x4(rows[i + j], rows[i + j + 4], 0x88);
            next[i + j + 4] = _mm512_shuffle_i32x4(rows[i + j], rows[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; ++j) {
        rows[j] = _mm512_shuffle_i32x4(next[j], next[j + 8], 0x88);
        rows[j + 8] = _mm512_shuffle_i32x4(next[j], next[j + 8], 0xdd);
    }
}

inline void transpose(__m512 (&rows)[16]) {
    __m512i whole[16];
    for (int i = 0; i < 16; ++i) whole[i] = _mm512_castps_si512(rows[i]);
    transpose(whole);
    for (int i = 0; i < 16; ++i) rows[i] = _mm512_castsi512_ps(whole[i]);
}

// A tile: sixteen outputs of 32 inputs, all of them there.
inline void pack_tile(const bf16* weight, index ld, bf16* target) {
    __m512i rows[16];
#pragma GCC unroll 16
    for (index i = 0; i < 16; ++i) rows[i] = _mm512_loadu_si512(weight + i * ld);
    transpose(rows);
#pragma GCC unroll 16
    for (index j = 0; j < 16; ++j) _mm512_storeu_si512(target + 2 * j * panel_width, rows[j]);
}

// The same of fewer outputs or inputs: zeros stand for those that are missing. `pairs` of inputs
// are written.
inline void pack_part(const bf16* weight, index ld, index outputs, index inputs, index pairs,
                      bf16* target) {
    const auto there = static_cast<__mmask32>((std::uint64_t{1} << inputs) - 1);
    __m512i rows[16];
    for (index i = 0; i < 16; ++i)
        rows[i] = i < outputs ? _mm512_maskz_loadu_epi16(there, weight + i * ld)
                              : _mm512_setzero_si512();
    transpose(rows);
    for (index j = 0; j < pairs; ++j)
        _mm512_storeu_si512(target + 2 * j * panel_width, rows[j]);
}

// Panels of W (outputs, inputs), `stride` apart, with inputs filled up to `padded`, not fewer.
inline void pack_along(const bf16* weight, index ld, index outputs, index inputs, index padded,
                       index stride, bf16* target) {
    for (index n = 0; n < outputs; n += panel_width, weight += panel_width * ld, target += stride)
        for (index k = 0; k < padded; k += 32) {
            const index there = std::clamp<index>(inputs - k, 0, 32);
            bf16* tile = target + k * panel_width;
            if (there == 32 && outputs - n >= panel_width)
                pack_tile(weight + k, ld, tile);
            else
                pack_part(weight + k, ld, outputs - n, there, std::min<index>(32, padded - k) / 2,
                          tile);
        }
}

// Two rows of 16 as pairs: the second shifted above the first.
inline __m512i interleave(__m256i first, __m256i second) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(first),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

// The inputs of a panel in pairs of rows, each of which may also be written elsewhere.
using InputRow = __m256i;

inline InputRow no_inputs() { return _mm256_setzero_si256(); }
inline InputRow write_inputs(bf16* target, Floats value) {
    const auto row = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), row);
    return row;
}
inline void write_pair(bf16* panel, InputRow even, InputRow odd) {
    _mm512_storeu_si512(panel, interleave(even, odd));
}

// From one panel to the next where several are written side by side: a line more than they have,
// for these not to share the few places of a cache for lines a power of two apart.
constexpr index apart(index inputs) { return panel_width * inputs + 32; }

// The same from the transpose of W, (inputs, outputs), two rows of 32 outputs at a time.
inline void pack_across(const bf16* weight, index ld, index outputs, index inputs, index padded,
                        index stride, bf16* target) {
    const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    // Which numbers become the pairs of a panel: those of the second row are counted from 32 on.
    const __m512i lower = _mm512_or_si512(
        places, _mm512_slli_epi32(_mm512_add_epi32(places, _mm512_set1_epi32(32)), 16));
    const __m512i upper = _mm512_add_epi16(lower, _mm512_set1_epi16(panel_width));
    const auto put = [=](index k, index n, __m512i even, __m512i odd) {
        bf16* panel = target + n / panel_width * stride + k * panel_width;
        _mm512_storeu_si512(panel, _mm512_permutex2var_epi16(even, lower, odd));
        if (n + panel_width < outputs)
            _mm512_storeu_si512(panel + stride, _mm512_permutex2var_epi16(even, upper, odd));
    };
    const index whole_outputs = outputs / 32 * 32, whole_inputs = inputs / 2 * 2;
    for (index k = 0; k < padded; k += 2) {
        const bf16* row = weight + k * ld;
        index n = 0;
        if (k < whole_inputs)
            for (; n < whole_outputs; n += 32)
                put(k, n, _mm512_loadu_si512(row + n), _mm512_loadu_si512(row + ld + n));
        for (; n < outputs; n += 32) {
            const auto there = static_cast<__mmask32>(
                (std::uint64_t{1} << std::min<index>(32, outputs - n)) - 1);
            const auto load = [=](index below) {
                return k + below < inputs ? _mm512_maskz_loadu_epi16(there, row + below * ld + n)
                                          : _mm512_setzero_si512();
            };
            put(k, n, load(0), load(1));
        }
    }
}

}  // namespace gw
