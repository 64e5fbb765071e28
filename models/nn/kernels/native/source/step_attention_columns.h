// Attention of a few tokens of a prompt by tiles, block by block with a running softmax.
//
// Queries are the columns of a product and keys its rows, which are read as they lie. So scores lie
// key by key, those of sixteen queries side by side, and what a query gets is one lane's.
#pragma once

#include "blocks_amx.h"
#include "step_attention.h"

namespace gw::stepping {

// What one thread needs to attend so; too large for a stack.
struct ColumnScratch {
    alignas(64) bf16 queries[most_queries * most_head_size];
    alignas(64) bf16 values[block_keys * most_head_size];
    alignas(64) float scores[block_keys * most_queries];
    alignas(64) bf16 pairs[block_keys * panel_width];  // weights of two keys each by 16 queries
    alignas(64) bf16 weights[most_queries * block_keys];
    alignas(64) float sums[most_queries * most_head_size];
    alignas(64) float highest[most_queries], total[most_queries], shrink[most_queries];
};

template <class Isa>
class ColumnAttention {
   public:
    using Shaped = typename Isa::Shaped;

    // Of queries (rows, size).
    ColumnAttention(ColumnScratch& scratch, Shaped& shaped, const bf16* queries, index rows,
                    index size, float scale)
        : s(scratch), shaped(shaped), rows(rows), size(size), scale(scale) {
        pack_keys(queries, rows, size, 0, s.queries);
        std::fill_n(s.total, most_queries, 0.0f);
        std::fill_n(s.highest, most_queries, -__builtin_inff());
    }

    // Lets row r see the first visible(r) of a block of keys and values (count, size), no fewer
    // than the row before it sees; `ahead` rows of the next block are fetched meanwhile.
    template <class Visible>
    void add(const bf16* keys, const bf16* values, index count, index ahead, Visible&& visible) {
        pack_values(values, count, size, ahead, s.values);
        fetch(keys + block_keys * size, ahead, size);
        Isa::template multiply_to<false>(
            shaped, s.scores, most_queries, padded_to(rows, panel_width) / panel_width, count,
            Operand{keys, size, s.queries, size, panel_width * size});
        const index inputs = padded_to(count, input_step);
        for (index first = 0; first < rows; first += panel_width) {
            alignas(64) float seen[panel_width];
            for (index r = 0; r < panel_width; ++r)  // behind the last row, as that one
                seen[r] = std::clamp<index>(visible(std::min(first + r, rows - 1)), 0, count);
            weigh(first, seen, count, inputs);
            for (index k = 0; k < inputs; k += input_step)
                transpose_pairs(s.pairs + k * panel_width, input_step, panel_width,
                                s.weights + first * block_keys + k, block_keys);
        }
        mix(inputs);
    }

    // What the rows have attended, (rows, size).
    float* attended() {
        for (index r = 0; r < rows; ++r) scale_sums(r, 1.0f / s.total[r]);
        return s.sums;
    }

   private:
    // Turns the scores of sixteen queries into weights against the highest so far; key by key, for
    // a query sees all in front of the last one that it sees.
    void weigh(index first, const float* visible, index count, index inputs) {
        const Floats seen = load(visible), before = load(s.highest + first);
        const index seen_by_all = static_cast<index>(visible[0]) / 2 * 2;
        const auto sees = [&](index k) { return below(splat(static_cast<float>(k)), seen); };
        const auto score = [&](index k) {
            return load(s.scores + k * most_queries + first) * splat(scale);
        };
        Floats highest = before, other = before;
        for (index k = 0; k < seen_by_all; k += 2) {
            highest = larger(highest, score(k));
            other = larger(other, score(k + 1));
        }
        highest = larger(highest, other);
        for (index k = seen_by_all; k < count; ++k)
            highest = pick(sees(k), larger(highest, score(k)), highest);

        Floats sums = zeros(), other_sums = zeros();
        const auto put = [&](index k, Floats even, Floats odd) {
            sums = sums + even;
            other_sums = other_sums + odd;
            store_pairs(s.pairs + k * panel_width, even, odd);
        };
        const auto weight = [&](index k) { return exponential(score(k) - highest); };
        const auto if_seen = [&](index k) { return keep(sees(k), weight(k)); };
        index k = 0;
        for (; k < seen_by_all; k += 2) put(k, weight(k), weight(k + 1));
        for (; k < count; k += 2) put(k, if_seen(k), if_seen(k + 1));
        for (; k < inputs; k += 2) put(k, zeros(), zeros());

        const Floats shrink = exponential(before - highest);
        store(s.shrink + first, shrink);
        store(s.total + first, fma(load(s.total + first), shrink, sums + other_sums));
        store(s.highest + first, highest);
    }

    // Adds the values of a block by the weights of each row.
    void mix(index inputs) {
        const index panels = size / panel_width;
        const Operand given{s.weights, block_keys, s.values, inputs, panel_width * inputs};
        if (begun) {
            for (index r = 0; r < rows; ++r) scale_sums(r, s.shrink[r]);
            Isa::template multiply_to<true>(shaped, s.sums, size, panels, rows, given);
        } else {
            Isa::template multiply_to<false>(shaped, s.sums, size, panels, rows, given);
        }
        begun = true;
    }

    void scale_sums(index r, float factor) {
        for (index n = r * size; n < (r + 1) * size; n += 16)
            store(s.sums + n, load(s.sums + n) * splat(factor));
    }

    ColumnScratch& s;
    Shaped& shaped;
    const index rows, size;
    const float scale;
    bool begun = false;
};

}  // namespace gw::stepping
