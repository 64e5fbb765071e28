// Causal attention within each sequence of a stream, and its gradient, by products of blocks.
//
// One thread computes a sequence for one key head and all the query heads that share it, so that
// results depend neither on the other sequences nor on the number of threads. Keys that a block
// does not have are zeros, which change no sum.
#pragma once

#include <algorithm>

#include "pack.h"
#include "products.h"
#include "scratch.h"
#include "vector.h"

namespace gw {

struct Attention {
    const bf16* heads;  // rows of query, key and value heads
    index ld;
    index query_heads, kv_heads, size;
    float scale;

    index group() const { return query_heads / kv_heads; }
    const bf16* query(index row, index head) const { return heads + row * ld + head * size; }
    const bf16* key(index row, index kv) const { return query(row, query_heads + kv); }
    const bf16* value(index row, index kv) const { return query(row, query_heads + kv_heads + kv); }
};

// Sequences of a stream: all rows of a parent, and what it sees, stand before a sequence's own.
struct Sequences {
    const index* bounds;   // one more than there are sequences
    const index* parents;  // an earlier sequence, or -1
    index count;

    index top(index one) const { return bounds[one]; }
    index rows(index one) const { return bounds[one + 1] - bounds[one]; }
    index before(index one) const {
        index sum = 0;
        while ((one = parents[one]) >= 0) sum += rows(one);
        return sum;
    }
};

// The keys and values that the last row of a sequence sees, for one key head.
struct Seen {
    index top, own, before;  // the first row of its own, how many there are, and how many others
    const bf16 *keys, *values;
    index ld;

    index count() const { return before + own; }

    Seen(const Attention& a, const Sequences& s, index one, index kv)
        : top(s.top(one)), own(s.rows(one)), before(s.before(one)) {
        if (!before) {
            keys = a.key(top, kv), values = a.value(top, kv), ld = a.ld;
            return;
        }
        static thread_local Scratch key_room, value_room;
        bf16* key_rows = key_room.room<bf16>(count() * a.size);
        bf16* value_rows = value_room.room<bf16>(count() * a.size);
        for (index last = count(); one >= 0; one = s.parents[one]) {
            last -= s.rows(one);
            for (index i = 0; i < s.rows(one); ++i) {
                const index row = s.top(one) + i, at = (last + i) * a.size;
                std::copy_n(a.key(row, kv), a.size, key_rows + at);
                std::copy_n(a.value(row, kv), a.size, value_rows + at);
            }
        }
        keys = key_rows, values = value_rows, ld = a.size;
    }
};

// Sequences are filled up with zeros to a multiple of this.
template <class Isa>
constexpr index sequence_step = std::max<index>(lanes, Isa::step);

// The scores of one row become bfloat16 weights up to their sum, which goes out with the maximum.
inline void weigh(const float* scores, index visible, index until, float scale, bf16* weights,
                  float& highest, float& total) {
    const __m512 low = _mm512_set1_ps(-3e38f);
    __m512 most = low, sums = _mm512_setzero_ps();
    const auto there = [=](index j) { return first_lanes(visible - j); };
    for (index j = 0; j < visible; j += lanes)
        most = _mm512_max_ps(most, _mm512_mask_loadu_ps(low, there(j), scores + j));
    highest = _mm512_reduce_max_ps(most) * scale;
    for (index j = 0; j < until; j += lanes) {
        const __m512 score = _mm512_maskz_loadu_ps(there(j), scores + j);
        const __m512 away = _mm512_fmsub_ps(score, _mm512_set1_ps(scale), _mm512_set1_ps(highest));
        const __m512 weight = _mm512_maskz_mov_ps(there(j), exponential(away));
        sums = _mm512_add_ps(sums, weight);
        store_bf16(weights + j, weight);
    }
    total = sum(sums);
}

// `out` (T, H, h) and the logarithms of the softmax's sums (T, H) of a sequence's rows.
template <class Isa>
void attend_forward(const Attention& a, const Seen& seen, index kv, bf16* out, float* logs) {
    constexpr index height = padded_to(48, Isa::most_rows);  // whole blocks of rows
    const index count = seen.count(), width = a.size;
    const index padded = padded_to(count, sequence_step<Isa>);
    static thread_local Scratch key_room, value_room, score_room, weight_room;
    bf16* keys = key_room.room<bf16>(padded * width);
    bf16* values = value_room.room<bf16>(padded * width);
    pack_along(seen.keys, seen.ld, count, width, width, panel_width * width, keys);
    pack_across(seen.values, seen.ld, width, count, padded, panel_width * padded, values);
    float* scores = score_room.room<float>(height * padded);
    bf16* weights = weight_room.room<bf16>(height * padded);
    for (index head = kv * a.group(); head < (kv + 1) * a.group(); ++head)
        for (index first = 0; first < seen.own; first += height) {
            const index rows = std::min(height, seen.own - first), row = seen.top + first;
            const index until = seen.before + first + rows;
            const Operand query{a.query(row, head), a.ld, keys, width, panel_width * width};
            Isa::template multiply_to<false>(scores, padded, (until + 15) / 16, rows, query);
            const index inputs = padded_to(until, sequence_step<Isa>);
            float totals[height];
            for (index i = 0; i < rows; ++i) {
                float highest;
                weigh(scores + i * padded, until - rows + i + 1, inputs, a.scale,
                      weights + i * padded, highest, totals[i]);
                logs[(row + i) * a.query_heads + head] = highest + __builtin_logf(totals[i]);
            }
            const Operand mix{weights, padded, values, inputs, panel_width * padded};
            multiply_all<Isa>(rows, mix, width / 16, [&](index i, index j, auto... sums) {
                const __m512 part = _mm512_set1_ps(1.0f / totals[i]);
                store_bf16(out + ((row + i) * a.query_heads + head) * width + j,
                           _mm512_mul_ps(sums, part)...);
            });
        }
}

}  // namespace gw
