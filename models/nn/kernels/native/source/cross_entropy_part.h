// What a segment of the vocabulary adds to the losses of some rows and to their gradients.
//
// A block of tokens at a time: its logits, which are not more than a core's second cache holds,
// become slopes that are multiplied with the same block of the head. What was summed before a larger
// logit came is scaled down to it (Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018), as FlashAttention does. So the rows of a chunk read the head once.
#pragma once

#include <cmath>

#include "operand.h"
#include "scratch.h"
#include "vector.h"

namespace gw {

template <class Number>
struct Head {
    const Number* weight;  // (outputs, inputs)
    index ld, outputs, inputs;
    const Number* bias;  // or none
};

constexpr index vocabulary_block = 256;
constexpr float lowest = -3e38f;  // what logits are compared with first; infinite ones are below
constexpr index row_gap = 16;  // of logits: rows a power of two apart would share few cache lines

// Of rows so far: their largest logits, the sums of e^(logit - largest), and the sums of these
// times the head (rows, inputs), or none.
struct Partial {
    float *highest, *sums, *grad;
};

// The logits of one row become e^(logit - largest), stored from the same address on.
template <class Number>
inline void soften(float* logits, index count, const Partial& all, index row, index inputs) {
    Floats most = load(logits), sums = zeros();
    for (index j = lanes; j < count; j += lanes) most = larger(most, load(logits + j));
    float& highest = all.highest[row];
    if (const float here = largest(most); here > highest) {
        const float less = std::exp(highest - here);
        const bool any = all.grad && highest > lowest;
        highest = here;
        all.sums[row] *= less;
        for (index j = 0; any && j < inputs; j += lanes) {
            float* place = all.grad + row * inputs + j;
            store(place, load(place) * splat(less));
        }
    }
    for (index j = 0; j < count; j += lanes) {
        const Floats e = exponential(load(logits + j) - splat(highest));
        sums = sums + e;
        write(reinterpret_cast<Number*>(logits) + j, e);
    }
    all.sums[row] += sum(sums);
}

// Fills `all` for a segment of tokens, and `own` with the logits of those targets that are in it.
template <class Blocks, class Rows>
void sum_segment(const Blocks& blocks, const Rows& x, Range segment, const index* targets,
                 const Partial& all, float* own) {
    using Number = typename Blocks::Number;
    static thread_local Scratch room;
    constexpr index ld = vocabulary_block + row_gap;
    const index inputs = blocks.head.inputs;
    float* logits = room.room<float>(x.count * ld);
    std::fill_n(all.highest, x.count, lowest);
    std::fill_n(all.sums, x.count, 0.0f);
    if (all.grad) std::fill_n(all.grad, x.count * inputs, 0.0f);
    const auto block = [&](index first) {
        return Range{first, std::min(first + vocabulary_block, segment.last)};
    };
    for (Range tokens = block(segment.first); tokens.count() > 0; tokens = block(tokens.last)) {
        blocks.compute_logits(x, tokens, block(tokens.last), logits, ld);
        for (index row = 0; row < x.count; ++row) {
            const index target = targets[row];
            if (target >= tokens.first && target < tokens.last)
                own[row] = logits[row * ld + target - tokens.first];
            soften<Number>(logits + row * ld, tokens.count(), all, row, inputs);
        }
        const auto* slopes = reinterpret_cast<const Number*>(logits);
        constexpr index apart = ld * sizeof(float) / sizeof(Number);
        if (all.grad) blocks.pull_hidden({slopes, apart, x.count}, tokens, all.grad);
    }
}

}  // namespace gw
