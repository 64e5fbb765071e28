// Attention over all sequences of a stream, shared out by sequence and key head.
#pragma once

#include <atomic>
#include <new>
#include <vector>

#include "attention_gradient.h"

namespace gw {

// Throws std::bad_alloc if any act does.
template <class Act>
void for_sequences(const Sequences& s, index kv_heads, Act&& act) {
    std::atomic<bool> lacks = false;
#pragma omp parallel for schedule(dynamic)
    for (index item = 0; item < s.count * kv_heads; ++item) {
        try {
            act(item / kv_heads, item % kv_heads);
        } catch (const std::bad_alloc&) {  // which may not leave the region
            lacks = true;
        }
    }
    if (lacks) throw std::bad_alloc();
}

template <class Isa, class Number = typename Isa::Number>
void attend_forward(const Attention<Number>& a, const Sequences& s, Number* out, float* logs) {
    for_sequences(s, a.kv_heads, [&](index one, index kv) {
        attend_forward<Isa>(a, Seen<Number>(a, s, one, kv), kv, out, logs);
    });
}

// Gradients of keys and values, kept apart by the sequence that sees them until they are added up
// in order: so neither threads nor other sequences change a bit.
template <class Number>
class KeySums {
   public:
    KeySums(const Attention<Number>& a, const Sequences& s)
        : a_(a), s_(s), first_(s.count), descendants_(s.count) {
        index keys = 0;
        for (index one = 0; one < s.count; ++one) {
            first_[one] = keys * a.kv_heads * 2 * a.size;
            keys += s.before(one) + s.rows(one);
            for (index up = one; up >= 0; up = s.parents[up]) descendants_[up].push_back(one);
        }
        static thread_local Scratch room;
        sums_ = room.room<float>(keys * a.kv_heads * 2 * a.size);
    }

    // Of the keys (side 0) or the values (1) that a sequence sees: (keys, h).
    float* of(index one, index kv, index side) const {
        const index keys = s_.before(one) + s_.rows(one);
        return sums_ + first_[one] + (kv * 2 + side) * keys * a_.size;
    }

    // Round what a sequence's own keys and values got from it and from those that go on from it.
    void add_up(const AttentionGradient<Number>& g, index one, index kv) const {
        const index before = s_.before(one);
        for (index side = 0; side < 2; ++side)
            for (index k = 0; k < s_.rows(one); ++k)
                for (index j = 0; j < a_.size; j += lanes) {
                    Floats sum = zeros();
                    for (const index giver : descendants_[one])
                        sum = sum + load(of(giver, kv, side) + (before + k) * a_.size + j);
                    const index head = a_.query_heads + side * a_.kv_heads + kv;
                    write(g.row(a_, s_.top(one) + k, head) + j, sum);
                }
    }

   private:
    const Attention<Number>& a_;
    const Sequences& s_;
    std::vector<index> first_;
    std::vector<std::vector<index>> descendants_;
    float* sums_;
};

template <class Isa, class Number = typename Isa::Number>
void attend_backward(const Attention<Number>& a, const AttentionGradient<Number>& g,
                     const Sequences& s) {
    const KeySums<Number> sums(a, s);
    for_sequences(s, a.kv_heads, [&](index one, index kv) {
        const Seen<Number> seen(a, s, one, kv);
        KeyHeadGradient<Isa>(a, g, seen, kv, sums.of(one, kv, 0), sums.of(one, kv, 1))
            .compute();
    });
    for_sequences(s, a.kv_heads, [&](index one, index kv) { sums.add_up(g, one, kv); });
}

}  // namespace gw
