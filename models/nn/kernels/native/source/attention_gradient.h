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

    bf16* row(const Attention& a, index row, index head) const {
        return grad + (row * (a.query_heads + 2 * a.kv_heads) + head) * a.size;
    }
};

constexpr index query_block = 64;

// Up to `query_block` queries of a head and their outputs' gradients, packed both ways.
struct QueryBlock {
    index count, padded;
    bf16 *queries, *grads;            // panels whose outputs are the queries
    bf16 *query_inputs, *grad_inputs;  // panels whose inputs are the queries
    float logs[query_block], means[query_block];
};

template <class Isa>
void fill(QueryBlock& block, const Attention& a, const AttentionGradient& g, index row,
                 index head) {
    static thread_local Scratch room;
    const index width = a.size;
    const index padded = block.padded = padded_to(block.count, sequence_step<Isa>);
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
        // As a call, which some compilers make of it, it takes a twentieth of a gradient.
        const auto key = [&](index k) __attribute__((always_inline)) {
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

// The gradients that one sequence gives to the heads that belong to one key head: to its own
// queries, and to all keys and values that it sees as `key_sums` and `value_sums`, (keys, h).
template <class Isa>
class KeyHeadGradient {
   public:
    KeyHeadGradient(const Attention& a, const AttentionGradient& g, const Seen& seen, index kv,
                    float* key_sums, float* value_sums)
        : a_(a), g_(g), seen_(seen), kv_(kv), key_sums_(key_sums), value_sums_(value_sums),
          padded_(padded_to(seen.count(), sequence_step<Isa>)) {
        static thread_local Scratch key_room, score_room, weight_room, turned_room;
        const index width = a.size, area = query_block * padded_;
        keys_ = key_room.room<bf16>(width * padded_);
        scores_.scores = score_room.room<float>(2 * area);
        scores_.pulls = scores_.scores + area;
        scores_.weights = weight_room.room<bf16>(3 * area);
        scores_.slopes = scores_.weights + area;
        scores_.panels = scores_.slopes + area;
        turned_ = turned_room.room<float>(width * query_block);
    }

    void compute() {
        for (index k = 0; k < padded_; k += lanes)
            for (index j = 0; j < a_.size; j += lanes) {
                __m512 tile[16];
                for (index l = 0; l < lanes; ++l)
                    tile[l] = k + l < seen_.count()
                                  ? load_bf16(seen_.keys + (k + l) * seen_.ld + j)
                                  : _mm512_setzero_ps();
                transpose(tile);
                for (index l = 0; l < lanes; ++l)
                    store_bf16(keys_ + (j + l) * padded_ + k, tile[l]);
            }
        std::fill(key_sums_, key_sums_ + seen_.count() * a_.size, 0.0f);
        std::fill(value_sums_, value_sums_ + seen_.count() * a_.size, 0.0f);
        for (index head = kv_ * a_.group(); head < (kv_ + 1) * a_.group(); ++head)
            for (index first = 0; first < seen_.own; first += query_block) add(head, first);
    }

   private:
    // What the queries of a head from `first` on give to all gradients.
    void add(index head, index first) {
        QueryBlock block;
        block.count = std::min(query_block, seen_.own - first);
        fill<Isa>(block, a_, g_, seen_.top + first, head);
        const index width = a_.size, columns = block.padded, panels = columns / panel_width;
        const index since = seen_.before + first, until = since + block.count;
        const index inputs = padded_to(until, sequence_step<Isa>);
        const index along = panel_width * width, across = panel_width * columns;
        const Operand keys{seen_.keys, seen_.ld, block.queries, width, along};
        const Operand values{seen_.values, seen_.ld, block.grads, width, along};
        const Operand weights{scores_.weights, columns, block.grad_inputs, columns, across};
        const Operand slopes{scores_.slopes, columns, block.query_inputs, columns, across};
        const Operand turned{keys_, padded_, scores_.panels, inputs, panel_width * inputs};
        Isa::template multiply_to<false>(scores_.scores, columns, panels, until, keys);
        Isa::template multiply_to<false>(scores_.pulls, columns, panels, until, values);
        differentiate(block, scores_, since, until, inputs, a_.scale);
        Isa::template multiply_to<true>(value_sums_, width, width / panel_width, until, weights);
        Isa::template multiply_to<true>(key_sums_, width, width / panel_width, until, slopes);
        Isa::template multiply_to<false>(turned_, columns, panels, width, turned);
        for (index i = 0; i < block.count; i += lanes)
            for (index j = 0; j < width; j += lanes) {
                __m512 tile[16];
                for (index l = 0; l < lanes; ++l)
                    tile[l] = _mm512_loadu_ps(turned_ + (j + l) * columns + i);
                transpose(tile);
                for (index l = 0; l < std::min(lanes, block.count - i); ++l)
                    store_bf16(g_.row(a_, seen_.top + first + i + l, head) + j, tile[l]);
            }
    }

    const Attention& a_;
    const AttentionGradient& g_;
    const Seen& seen_;
    index kv_;
    float *key_sums_, *value_sums_;
    index padded_;
    bf16* keys_;  // (h, keys)
    Scores scores_;
    float* turned_;  // (h, queries)
};

}  // namespace gw
