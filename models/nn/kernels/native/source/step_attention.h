// Attention of a few query rows to one head's keys, block by block with a running softmax.
//
// Blocks begin at multiples of `block_keys` from the slot's first position, so what a row gets does
// not depend on the rows computed beside it. A block is packed as a weight is, keys as outputs of
// the first product and inputs of the second, and shared by all query rows.
#pragma once

#include "step_math.h"

namespace gw::stepping {

constexpr index most_queries = 48;
constexpr index most_head_size = 256;

inline index padded(index count, index step) { return (count + step - 1) / step * step; }

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
                             [&](index r, index n, Floats sum) {
                                 store(s.scores + r * block_keys + n, sum);
                             });
        const index inputs = padded(count, input_step);
        for (index r = 0; r < rows; ++r) weigh(r, std::clamp<index>(visible(r), 0, count), inputs);
        multiply_panels<Isa>(s.weights, block_keys, rows, values, inputs, {0, size / panel_width},
                             [&](index r, index n, Floats sum) {
                                 float* target = s.sums + r * size + n;
                                 store(target, fma(load(target), splat(s.shrink[r]), sum));
                             });
    }

    // Sixteen outputs of a row.
    Floats output(index r, index n) const {
        return load(s.sums + r * size + n) / splat(s.total[r]);
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

    AttentionScratch& s;
    const index rows, size;
    const float scale;
};

}  // namespace gw::stepping
