// Blocks of tokens by packed panels of bfloat16.
#pragma once

#include "ahead.h"
#include "cross_entropy.h"
#include "pack.h"

namespace gw {

template <class Isa>
struct PackedBlocks {
    using Number = bf16;

    const Head<bf16>& head;

    PackedBlocks(const Head<bf16>& given, index) : head(given) {}

    // Rows are multiplied as they lie.
    Rows take(const Rows& x) const { return x; }

    // The logits (rows, ld) of some tokens; fetches the weights of the `next` ones meanwhile.
    void compute_logits(const Rows& x, Range tokens, Range next, float* logits, index ld) const {
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
                const Floats bias = read(head.bias + tokens.first + j);
                store(place, load(place) + bias);
            }
    }

    // grad (rows, inputs) += slopes (rows, tokens) @ the tokens' weights.
    void pull_hidden(const Rows& slopes, Range tokens, float* grad) const {
        static thread_local Scratch room;
        const index count = tokens.count(), panels = head.inputs / panel_width, stride = apart(count);
        bf16* packed = room.room<bf16>(panels * stride);
        pack_across(head.weight + tokens.first * head.ld, head.ld, head.inputs, count, count, stride,
                    packed);
        Isa::template multiply_to<true>(grad, head.inputs, panels, slopes.count,
                                        {slopes.values, slopes.ld, packed, count, stride});
    }
};

}  // namespace gw
