// Causal attention within each sequence of a stream, and its gradient, by products of blocks.
//
// One thread computes a sequence for one key head and all the query heads that share it, so that
// results depend neither on the other sequences nor on the number of threads. Keys that a block
// does not have are zeros, which change no sum.
#pragma once

#include <algorithm>

#include "panels.h"
#include "products.h"
#include "scratch.h"
#include "vector.h"

namespace gw {

template <class Number>
struct Attention {
    const Number* heads;  // rows of query, key and value heads
    index ld;
    index query_heads, kv_heads, size;
    float scale;

    index group() const { return query_heads / kv_heads; }
    const Number* query(index row, index head) const { return heads + row * ld + head * size; }
    const Number* key(index row, index kv) const { return query(row, query_heads + kv); }
    const Number* value(index row, index kv) const { return query(row, query_heads + kv_heads + kv); }
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
template <class Number>
struct Seen {
    index top, own, before;  // the first row of its own, how many there are, and how many others
    const Number *keys, *values;
    index ld;

    index count() const { return before + own; }

    Seen(const Attention<Number>& a, const Sequences& s, index one, index kv)
        : top(s.top(one)), own(s.rows(one)), before(s.before(one)) {
        if (!before) {
            keys = a.key(top, kv), values = a.value(top, kv), ld = a.ld;
            return;
        }
        static thread_local Scratch key_room, value_room;
        Number* key_rows = key_room.room<Number>(count() * a.size);
        Number* value_rows = value_room.room<Number>(count() * a.size);
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

// The scores of one row become weights up to their sum, which goes out with the maximum.
template <class Number>
inline void weigh(const float* scores, index visible, index until, float scale, Number* weights,
                  float& highest, float& total) {
    const Floats low = splat(-3e38f);
    Floats most = low, sums = zeros();
    const auto there = [=](index j) { return first_lanes(visible - j); };
    for (index j = 0; j < visible; j += lanes)
        most = larger(most, load_some(there(j), scores + j, low));
    highest = largest(most) * scale;
    for (index j = 0; j < until; j += lanes) {
        const Floats score = load_some(there(j), scores + j, zeros());
        const Floats away = fms(score, splat(scale), splat(highest));
        const Floats weight = keep(there(j), exponential(away));
        sums = sums + weight;
        write(weights + j, weight);
    }
    total = sum(sums);
}

// `out` (T, H, h) and the logarithms of the softmax's sums (T, H) of a sequence's rows.
template <class Isa, class Number>
void attend_forward(const Attention<Number>& a, const Seen<Number>& seen, index kv, Number* out,
                    float* logs) {
    constexpr index height = padded_to(48, Isa::most_rows);  // whole blocks of rows
    const index count = seen.count(), width = a.size;
    const index padded = padded_to(count, sequence_step<Isa>);
    static thread_local Scratch key_room, value_room, score_room, weight_room;
    Number* keys = key_room.room<Number>(padded * width);
    Number* values = value_room.room<Number>(padded * width);
    pack_along(seen.keys, seen.ld, count, width, width, panel_width * width, keys);
    pack_across(seen.values, seen.ld, width, count, padded, panel_width * padded, values);
    float* scores = score_room.room<float>(height * padded);
    Number* weights = weight_room.room<Number>(height * padded);
    for (index head = kv * a.group(); head < (kv + 1) * a.group(); ++head)
        for (index first = 0; first < seen.own; first += height) {
            const index rows = std::min(height, seen.own - first), row = seen.top + first;
            const index until = seen.before + first + rows;
            const OperandOf<Number, Number> query{a.query(row, head), a.ld, keys, width, panel_width * width};
            Isa::template multiply_to<false>(scores, padded, (until + 15) / 16, rows, query);
            const index inputs = padded_to(until, sequence_step<Isa>);
            float totals[height];
            for (index i = 0; i < rows; ++i) {
                float highest;
                weigh(scores + i * padded, until - rows + i + 1, inputs, a.scale,
                      weights + i * padded, highest, totals[i]);
                logs[(row + i) * a.query_heads + head] = highest + __builtin_logf(totals[i]);
            }
            const OperandOf<Number, Number> mix{weights, padded, values, inputs, panel_width * padded};
            multiply_all<Isa>(rows, mix, width / 16, [&](index i, index j, auto... sums) {
                const Floats part = splat(1.0f / totals[i]);
                write(out + ((row + i) * a.query_heads + head) * width + j, (sums * part)...);
            });
        }
}

}  // namespace gw
