// What a segment of the vocabulary adds to the losses of some rows and to their gradients.
//
// A block of tokens at a time: its logits, which are not more than a core's second cache holds,
// become slopes that are multiplied with the same block of the head. What was summed before a larger
// logit came is scaled down to it (Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018), as FlashAttention does. So the rows of a chunk read the head once.
#pragma once

#include <cmath>

#include "ahead.h"
#include "pack.h"
#include "operand.h"
#include "scratch.h"
#include "vector.h"

namespace gw {

struct Head {
    const bf16* weight;  // (outputs, inputs)
    index ld, outputs, inputs;
    const bf16* bias;  // or none
};

constexpr index vocabulary_block = 256;
constexpr float lowest = -3e38f;  // what logits are compared with first; infinite ones are below
constexpr index row_gap = 16;  // of logits: rows a power of two apart would share few cache lines

// Of rows so far: their largest logits, the sums of e^(logit - largest), and the sums of these
// times the head (rows, inputs), or none.
struct Partial {
    float *highest, *sums, *grad;
};

// The logits of one row become e^(logit - largest), bfloat16 from the same address on.
inline void soften(float* logits, index count, const Partial& all, index row, index inputs) {
    __m512 most = _mm512_loadu_ps(logits), sums = _mm512_setzero_ps();
    for (index j = lanes; j < count; j += lanes)
        most = _mm512_max_ps(most, _mm512_loadu_ps(logits + j));
    float& highest = all.highest[row];
    if (const float here = _mm512_reduce_max_ps(most); here > highest) {
        const float less = std::exp(highest - here);
        const bool any = all.grad && highest > lowest;
        highest = here;
        all.sums[row] *= less;
        for (index j = 0; any && j < inputs; j += lanes) {
            float* place = all.grad + row * inputs + j;
            _mm512_storeu_ps(place, _mm512_mul_ps(_mm512_loadu_ps(place), _mm512_set1_ps(less)));
        }
    }
    for (index j = 0; j < count; j += lanes) {
        const __m512 e = exponential(
            _mm512_sub_ps(_mm512_loadu_ps(logits + j), _mm512_set1_ps(highest)));
        sums = _mm512_add_ps(sums, e);
        store_bf16(reinterpret_cast<bf16*>(logits) + j, e);
    }
    all.sums[row] += sum(sums);
}

// The logits (rows, ld) of some tokens; fetches the weights of the `next` ones meanwhile.
template <class Isa>
void compute_logits(const Head& head, const Rows& x, Range tokens, Range next, float* logits,
                    index ld) {
    static thread_local Scratch room;
    const index panels = tokens.count() / panel_width, stride = panel_width * head.inputs;
    bf16* packed = room.room<bf16>(panels * stride);
    pack_along(head.weight + tokens.first * head.ld, head.ld, tokens.count(), head.inputs,
               head.inputs, stride, packed);
    Ahead ahead(head.weight + next.first * head.ld, head.ld, next.count(), head.inputs,
                Isa::calls(x.count, panels, head.inputs));
    Isa::template multiply_to<false>(logits, ld, panels, x.count,
                                     {x.values, x.ld, packed, head.inputs, stride}, ahead);
    for (index row = 0; head.bias && row < x.count; ++row)
        for (index j = 0; j < tokens.count(); j += lanes) {
            float* place = logits + row * ld + j;
            const __m512 bias = load_bf16(head.bias + tokens.first + j);
            _mm512_storeu_ps(place, _mm512_add_ps(_mm512_loadu_ps(place), bias));
        }
}

// grad (rows, inputs) += slopes (rows, tokens) @ the tokens' weights.
template <class Isa>
void pull_hidden(const Head& head, const Rows& slopes, Range tokens, float* grad) {
    static thread_local Scratch room;
    const index count = tokens.count(), panels = head.inputs / panel_width, stride = apart(count);
    bf16* packed = room.room<bf16>(panels * stride);
    pack_across(head.weight + tokens.first * head.ld, head.ld, head.inputs, count, count, stride,
                packed);
    Isa::template multiply_to<true>(grad, head.inputs, panels, slopes.count,
                                    {slopes.values, slopes.ld, packed, count, stride});
}

// Fills `all` for a segment of tokens, and `own` with the logits of those targets that are in it.
template <class Isa>
void sum_segment(const Head& head, const Rows& x, Range segment, const index* targets,
                 const Partial& all, float* own) {
    static thread_local Scratch room;
    constexpr index ld = vocabulary_block + row_gap;
    float* logits = room.room<float>(x.count * ld);
    std::fill_n(all.highest, x.count, lowest);
    std::fill_n(all.sums, x.count, 0.0f);
    if (all.grad) std::fill_n(all.grad, x.count * head.inputs, 0.0f);
    const auto block = [&](index first) {
        return Range{first, std::min(first + vocabulary_block, segment.last)};
    };
    for (Range tokens = block(segment.first); tokens.count() > 0; tokens = block(tokens.last)) {
        compute_logits<Isa>(head, x, tokens, block(tokens.last), logits, ld);
        for (index row = 0; row < x.count; ++row) {
            const index target = targets[row];
            if (target >= tokens.first && target < tokens.last)
                own[row] = logits[row * ld + target - tokens.first];
            soften(logits + row * ld, tokens.count(), all, row, head.inputs);
        }
        const Rows slopes{reinterpret_cast<const bf16*>(logits), 2 * ld, x.count};
        if (all.grad) pull_hidden<Isa>(head, slopes, tokens, all.grad);
    }
}

}  // namespace gw
