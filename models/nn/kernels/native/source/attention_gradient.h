// The gradient of causal attention: weights are computed again from the logarithms of their sums.
//
// Scores are kept with keys as rows, so that all but one product read them as they are; that one,
// of the queries' gradient, reads the scores' gradient as panels.
#pragma once

#include "attention.h"

namespace gw {

struct AttentionGradient {
    const bf16 *out, *grad_out;  // (T, H, h)
    index ldd;                   // of grad_out
    const float* logs;           // (T, H)
    bf16* grad;                  // rows of query, key and value heads without gaps
};

constexpr index query_block = 64;

// Up to `query_block` queries of a head and their outputs' gradients, packed both ways.
struct QueryBlock {
    index count, padded;
    bf16 *queries, *grads;            // panels whose outputs are the queries
    bf16 *query_inputs, *grad_inputs;  // panels whose inputs are the queries
    float logs[query_block], means[query_block];
};

inline void fill(QueryBlock& block, const Attention& a, const AttentionGradient& g, index row,
                 index head) {
    static thread_local Scratch room;
    const index width = a.size, padded = block.padded = padded_to(block.count, 32);
    const bf16* grad = g.grad_out + row * g.ldd + head * width;
    block.queries = room.room<bf16>(4 * query_block * width);
    block.grads = block.queries + query_block * width;
    block.query_inputs = block.grads + query_block * width;
    block.grad_inputs = block.query_inputs + query_block * width;
    const index along = panel_width * width, across = panel_width * padded;
    pack_along(a.query(row, head), a.ld, block.count, width, width, along, block.queries);
    pack_along(grad, g.ldd, block.count, width, width, along, block.grads);
    pack_across(a.query(row, head), a.ld, width, block.count, padded, across, block.query_inputs);
    pack_across(grad, g.ldd, width, block.count, padded, across, block.grad_inputs);
    for (index i = 0; i < padded; ++i) {
        block.logs[i] = block.means[i] = 0;
        if (i >= block.count) continue;
        block.logs[i] = g.logs[(row + i) * a.query_heads + head];
        const bf16* out = g.out + ((row + i) * a.query_heads + head) * width;
        __m512 along_row = _mm512_setzero_ps();
        for (index j = 0; j < width; j += lanes)
            along_row = _mm512_fmadd_ps(load_bf16(out + j), load_bf16(grad + i * g.ldd + j),
                                        along_row);
        block.means[i] = sum(along_row);
    }
}

// Weights and the gradients of their scores, (keys, queries), and those also as panels.
struct Scores {
    float *scores, *pulls;     // query * key, and gradient of the output * value
    bf16 *weights, *slopes;    // rows of keys
    bf16* panels;              // of slopes, with the keys as inputs
};

// Key k of the sequence is seen by the queries from `first` + j >= k on.
inline void differentiate(const QueryBlock& block, const Scores& s, index first, index keys,
                          index padded_keys, float scale) {
    const __m512i places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (index j = 0; j < block.padded; j += lanes) {
        const __m512 logs = _mm512_loadu_ps(block.logs + j);
        const __m512 means = _mm512_loadu_ps(block.means + j);
        const __mmask16 there = first_lanes(block.count - j);
        bf16* panel = s.panels + j * padded_keys;
        const auto key = [&](index k) {
            if (k >= keys) return _mm256_setzero_si256();
            const auto seen = _mm512_mask_cmp_epi32_mask(
                there, places, _mm512_set1_epi32(static_cast<int>(k - first - j)), _MM_CMPINT_NLT);
            const index at = k * block.padded + j;
            const __m512 away = _mm512_fmsub_ps(_mm512_loadu_ps(s.scores + at),
                                                _mm512_set1_ps(scale), logs);
            const __m512 weight = _mm512_maskz_mov_ps(seen, exponential(away));
            const __m512 slope = _mm512_maskz_mul_ps(
                seen, _mm512_mul_ps(weight, _mm512_set1_ps(scale)),
                _mm512_sub_ps(_mm512_loadu_ps(s.pulls + at), means));
            store_bf16(s.weights + at, weight);
            const auto half = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(slope));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(s.slopes + at), half);
            return half;
        };
        for (index k = 0; k < padded_keys; k += 2) {
            const __m256i even = key(k), odd = key(k + 1);
            _mm512_storeu_si512(panel + k * panel_width, interleave(even, odd));
        }
    }
}

// The gradients of the heads of one sequence, rows [top, bottom), that belong to one key head.
template <class Isa>
void attend_backward(const Attention& a, const AttentionGradient& g, index top, index bottom,
                     index kv) {
    const index count = bottom - top, padded = padded_to(count, 32), width = a.size;
    const index heads = a.query_heads + 2 * a.kv_heads;
    static thread_local Scratch key_room, sum_room, score_room, weight_room, turned_room;
    bf16* keys = key_room.room<bf16>(width * padded);  // (h, keys)
    for (index j = 0; j < width; ++j)
        for (index k = 0; k < padded; ++k)
            keys[j * padded + k] = k < count ? a.key(top + k, kv)[j] : 0;
    float* key_sums = sum_room.room<float>(2 * count * width);
    float* value_sums = key_sums + count * width;
    std::fill(key_sums, key_sums + 2 * count * width, 0.0f);
    Scores s;
    s.scores = score_room.room<float>(2 * query_block * padded);
    s.pulls = s.scores + query_block * padded;
    s.weights = weight_room.room<bf16>(3 * query_block * padded);
    s.slopes = s.weights + query_block * padded;
    s.panels = s.slopes + query_block * padded;
    float* turned = turned_room.room<float>(width * query_block);
    const auto grad_row = [&](index row, index head) {
        return g.grad + (row * heads + head) * width;
    };
    for (index head = kv * a.group(); head < (kv + 1) * a.group(); ++head)
        for (index first = 0; first < count; first += query_block) {
            QueryBlock block;
            block.count = std::min(query_block, count - first);
            fill(block, a, g, top + first, head);
            const index until = first + block.count, inputs = padded_to(until, 32);
            const index columns = block.padded, panels = columns / panel_width;
            const index along = panel_width * width, across = panel_width * columns;
            const auto keep = [&](float* target) {
                return [=](index i, index j, __m512 sum) {
                    _mm512_storeu_ps(target + i * columns + j, sum);
                };
            };
            const auto add = [&](float* target) {
                return [=](index i, index j, __m512 sum) {
                    float* place = target + i * width + j;
                    _mm512_storeu_ps(place, _mm512_add_ps(_mm512_loadu_ps(place), sum));
                };
            };
            multiply_all<Isa>(until, {a.key(top, kv), a.ld, block.queries, width, along}, panels,
                              keep(s.scores));
            multiply_all<Isa>(until, {a.value(top, kv), a.ld, block.grads, width, along}, panels,
                              keep(s.pulls));
            differentiate(block, s, first, until, inputs, a.scale);
            multiply_all<Isa>(until, {s.weights, columns, block.grad_inputs, columns, across},
                              width / panel_width, add(value_sums));
            multiply_all<Isa>(until, {s.slopes, columns, block.query_inputs, columns, across},
                              width / panel_width, add(key_sums));
            multiply_all<Isa>(width, {keys, padded, s.panels, inputs, panel_width * inputs}, panels,
                              keep(turned));
            for (index i = 0; i < block.count; ++i)
                for (index j = 0; j < width; j += lanes) {
                    alignas(64) float values[lanes];
                    for (index l = 0; l < lanes; ++l) values[l] = turned[(j + l) * columns + i];
                    store_bf16(grad_row(top + first + i, head) + j, _mm512_load_ps(values));
                }
        }
    for (index k = 0; k < count; ++k)
        for (index j = 0; j < width; j += lanes) {
            store_bf16(grad_row(top + k, a.query_heads + kv) + j,
                       _mm512_loadu_ps(key_sums + k * width + j));
            store_bf16(grad_row(top + k, a.query_heads + a.kv_heads + kv) + j,
                       _mm512_loadu_ps(value_sums + k * width + j));
        }
}

}  // namespace gw
