// Attention over all sequences of a stream, shared out by sequence and key head.
#pragma once

#include "attention_gradient.h"

namespace gw {

// Sequences lie between `bounds`, which are one more.
template <class Act>
void for_sequences(const index* bounds, index sequences, index kv_heads, Act&& act) {
#pragma omp parallel for schedule(dynamic)
    for (index item = 0; item < sequences * kv_heads; ++item) {
        const index sequence = item / kv_heads;
        act(bounds[sequence], bounds[sequence + 1], item % kv_heads);
    }
}

template <class Isa>
void attend_forward(const Attention& a, const index* bounds, index sequences, bf16* out,
                    float* logs) {
    for_sequences(bounds, sequences, a.kv_heads, [&](index top, index bottom, index kv) {
        attend_forward<Isa>(a, top, bottom, kv, out, logs);
    });
}

template <class Isa>
void attend_backward(const Attention& a, const AttentionGradient& g, const index* bounds,
                     index sequences) {
    for_sequences(bounds, sequences, a.kv_heads, [&](index top, index bottom, index kv) {
        KeyHeadGradient<Isa>(a, g, top, bottom - top, kv).compute();
    });
}

}  // namespace gw
