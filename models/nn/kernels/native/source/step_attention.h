// Attention of a few query rows to one head's keys, block by block with a running softmax.
//
// Blocks begin at multiples of `block_keys` from the slot's first position, so what a row gets does
// not depend on the rows computed beside it. Keys are packed as a weight of which they are the
// outputs, values as one of which they are the inputs.
#pragma once

#include "step_attention_few.h"
#include "step_types.h"

namespace gw::stepping {

constexpr index most_queries = 48;

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
    const index inputs = padded_to(count, input_step);
    const auto row = [&](index s, index n) {
        return s < count ? values + s * size + n : nullptr;
    };
    for (index s = 0; s < inputs; s += 2)
        for (index n = 0; n < size; n += panel_width) {
            if (n % 32 == 0 && s < ahead) {
                _mm_prefetch(values + (s + block_keys) * size + n, _MM_HINT_T1);
                _mm_prefetch(values + (s + 1 + block_keys) * size + n, _MM_HINT_T1);
            }
            store_pairs(target + n * inputs + s * panel_width, row(s, n), row(s + 1, n));
        }
}

// Asks for rows that are read next.
inline void fetch(const bf16* rows, index count, index size) {
    for (index n = 0; n < count * size; n += 32) _mm_prefetch(rows + n, _MM_HINT_T1);
}

struct Task {  // query rows of one span that attend to the keys of one head
    const Span* span;
    index first, count, head;
};

// Where the keys or values of a task's head begin in a cache.
inline index cached(const Model& m, const Task& task) {
    return (task.span->slot * m.key_heads + task.head) * m.positions * m.head_size;
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
        std::fill_n(s.total, most_queries, 0.0f);
        std::fill_n(s.highest, most_queries, -__builtin_inff());
    }

    // Lets queries (rows, size) see a packed block; row r sees the first visible(r) of `count`.
    template <class Isa, class Visible>
    void add(const bf16* queries, const bf16* keys, const bf16* values, index count,
             Visible&& visible) {
        multiply_panels<Isa>(queries, size, rows, keys, size,
                             {0, padded_to(count, panel_width) / panel_width},
                             [&](index r, index n, Floats sum) {
                                 store(s.scores + r * block_keys + n, sum);
                             });
        const index inputs = padded_to(count, input_step);
        for (index r = 0; r < rows; ++r) weigh(r, std::clamp<index>(visible(r), 0, count), inputs);
        mix<Isa>(values, inputs);
    }

    // The same with Q queries, which see all of the `count` keys and values (count, size) as they
    // lie; what is read `after` them is fetched meanwhile.
    template <int Q>
    void add_few(const bf16* queries, const bf16* keys, const bf16* values, index count,
                 const bf16* after) {
        for (index n = 0; n < count; n += panel_width) {
            const bf16* next = n + panel_width < count ? keys + (n + panel_width) * size : values;
            Floats sums[Q];
            score_few<Q>(queries, keys + n * size, std::min(panel_width, count - n), size, next,
                         sums);
            for (int q = 0; q < Q; ++q) store(s.scores + q * block_keys + n, sums[q]);
        }
        for (int q = 0; q < Q; ++q) weigh(q, count, padded_to(count, input_step));
        const auto put = [&](int q, index n, Floats sum) {
            float* target = s.sums + q * size + n;
            store(target, fma(load(target), splat(s.shrink[q]), sum));
        };
        for (index n = 0; n < size; n += 2 * input_step) {
            const auto here = [&](int q, index more, Floats sum) { put(q, n + more, sum); };
            if (n + input_step < size)
                mix_few<Q, 2>(s.weights, block_keys, values + n, count, size, after + n, here);
            else
                mix_few<Q, 1>(s.weights, block_keys, values + n, count, size, after + n, here);
        }
    }

    // Calls put(r, n, sixteen outputs of row r from n on) for all of them.
    template <class Put>
    void hand_out(Put&& put) const {
        for (index r = 0; r < rows; ++r) {
            const Floats part = splat(1.0f / s.total[r]);
            for (index n = 0; n < size; n += 16) put(r, n, load(s.sums + r * size + n) * part);
        }
    }

   private:
    // Turns a row's scores into weights against the highest score so far.
    void weigh(index r, index visible, index inputs) {
        const float* scores = s.scores + r * block_keys;
        Floats highest = splat(s.highest[r]);
        for (index n = 0; n < visible; n += 16) {
            const Floats score = load(scores + n) * splat(scale);
            highest = pick(first_lanes(visible - n), larger(highest, score), highest);
        }
        const float top = largest(highest);
        Floats sums = zeros();
        for (index n = 0; n < inputs; n += 16) {
            Floats weight = zeros();
            if (n < visible) {
                const Floats score = load(scores + n) * splat(scale);
                weight = keep(first_lanes(visible - n), exponential(score - splat(top)));
                sums = sums + weight;
            }
            store_bf16(s.weights + r * block_keys + n, weight);
        }
        const float shrink = front(exponential(splat(s.highest[r] - top)));
        s.shrink[r] = shrink;
        s.total[r] = s.total[r] * shrink + sum(sums);
        s.highest[r] = top;
    }

    // Adds the values of a block by the weights of each row.
    template <class Isa>
    void mix(const bf16* values, index inputs) {
        multiply_panels<Isa>(s.weights, block_keys, rows, values, inputs, {0, size / panel_width},
                             [&](index r, index n, Floats sum) {
                                 float* target = s.sums + r * size + n;
                                 store(target, fma(load(target), splat(s.shrink[r]), sum));
                             });
    }

    AttentionScratch& s;
    const index rows, size;
    const float scale;
};

}  // namespace gw::stepping
