// The gradient of causal attention: weights are computed again from the logarithms of their sums.
//
// Scores are kept with keys as rows, so that all but one product read them as they are; that one,
// of the queries' gradient, reads the scores' gradient as panels.
#pragma once

#include "attention.h"

namespace gw {

template <class Number>
struct AttentionGradient {
    const Number *out, *grad_out;  // (T, H, h)
    index ldd;                   // of grad_out
    const float* logs;           // (T, H)
    Number* grad;                // rows of query, key and value heads without gaps

    Number* row(const Attention<Number>& a, index row, index head) const {
        return grad + (row * (a.query_heads + 2 * a.kv_heads) + head) * a.size;
    }
};

constexpr index query_block = 64;

// Up to `query_block` queries of a head and their outputs' gradients, packed both ways.
template <class Number>
struct QueryBlock {
    index count, padded;
    Number *queries, *grads;            // panels whose outputs are the queries
    Number *query_inputs, *grad_inputs;  // panels whose inputs are the queries
    float logs[query_block], means[query_block];
};

template <class Isa, class Number>
void fill(QueryBlock<Number>& block, const Attention<Number>& a,
          const AttentionGradient<Number>& g, index row, index head) {
    static thread_local Scratch room;
    const index width = a.size;
    const index padded = block.padded = padded_to(block.count, sequence_step<Isa>);
    const Number* grad = g.grad_out + row * g.ldd + head * width;
    block.queries = room.room<Number>(4 * query_block * width);
    block.grads = block.queries + query_block * width;
    block.query_inputs = block.grads + query_block * width;
    block.grad_inputs = block.query_inputs + query_block * width;
    const index along = panel_width * width, across = panel_width * padded;
    pack_along(a.query(row, head), a.ld, block.count, width, width, along, block.queries);
    pack_along(grad, g.ldd, block.count, width, width, along, block.grads);
    pack_across(a.query(row, head), a.ld, width, block.count, padded, across, block.query_inputs);
    pack_across(grad, g.ldd, width, block.count, padded, across, block.grad_inputs);
    for (index i = 0; i < padded; ++i) {
        block.logs[i] = block.means[i] = 0;
        if (i >= block.count) continue;
        block.logs[i] = g.logs[(row + i) * a.query_heads + head];
        const Number* out = g.out + ((row + i) * a.query_heads + head) * width;
        Floats along_row = zeros();
        for (index j = 0; j < width; j += lanes)
            along_row = fma(read(out + j), read(grad + i * g.ldd + j),
                                        along_row);
        block.means[i] = sum(along_row);
    }
}

// Weights and the gradients of their scores, (keys, queries), and those also as panels.
template <class Number>
struct Scores {
    float *scores, *pulls;     // query * key, and gradient of the output * value
    Number *weights, *slopes;  // rows of keys
    Number* panels;            // of slopes, with the keys as inputs
};

// Key k of the sequence is seen by the queries from `first` + j >= k on.
template <class Number>
inline void differentiate(const QueryBlock<Number>& block, const Scores<Number>& s, index first,
                          index keys, index padded_keys, float scale) {
    for (index j = 0; j < block.padded; j += lanes) {
        const Floats logs = load(block.logs + j);
        const Floats means = load(block.means + j);
        const Mask there = first_lanes(block.count - j);
        Number* panel = s.panels + j * padded_keys;
        // As a call, which some compilers make of it, it takes a twentieth of a gradient.
        const auto key = [&](index k) __attribute__((always_inline)) {
            if (k >= keys) return no_inputs();
            const Mask seen = lanes_from(there, k - first - j);
            const index at = k * block.padded + j;
            const Floats away = fms(load(s.scores + at), splat(scale), logs);
            const Floats weight = keep(seen, exponential(away));
            const Floats slope =
                keep(seen, weight * splat(scale) * (load(s.pulls + at) - means));
            write(s.weights + at, weight);
            return write_inputs(s.slopes + at, slope);
        };
        for (index k = 0; k < padded_keys; k += 2) {
            const InputRow even = key(k), odd = key(k + 1);
            write_pair(panel + k * panel_width, even, odd);
        }
    }
}

// The gradients that one sequence gives to the heads that belong to one key head: to its own
// queries, and to all keys and values that it sees as `key_sums` and `value_sums`, (keys, h).
template <class Isa, class Number = typename Isa::Number>
class KeyHeadGradient {
   public:
    KeyHeadGradient(const Attention<Number>& a, const AttentionGradient<Number>& g,
                    const Seen<Number>& seen, index kv, float* key_sums, float* value_sums)
        : a_(a), g_(g), seen_(seen), kv_(kv), key_sums_(key_sums), value_sums_(value_sums),
          padded_(padded_to(seen.count(), sequence_step<Isa>)) {
        static thread_local Scratch key_room, score_room, weight_room, turned_room;
        const index width = a.size, area = query_block * padded_;
        keys_ = key_room.room<Number>(width * padded_);
        scores_.scores = score_room.room<float>(2 * area);
        scores_.pulls = scores_.scores + area;
        scores_.weights = weight_room.room<Number>(3 * area);
        scores_.slopes = scores_.weights + area;
        scores_.panels = scores_.slopes + area;
        turned_ = turned_room.room<float>(width * query_block);
    }

    void compute() {
        for (index k = 0; k < padded_; k += lanes)
            for (index j = 0; j < a_.size; j += lanes) {
                Floats tile[16];
                for (index l = 0; l < lanes; ++l)
                    tile[l] = k + l < seen_.count()
                                  ? read(seen_.keys + (k + l) * seen_.ld + j)
                                  : zeros();
                transpose(tile);
                for (index l = 0; l < lanes; ++l)
                    write(keys_ + (j + l) * padded_ + k, tile[l]);
            }
        std::fill(key_sums_, key_sums_ + seen_.count() * a_.size, 0.0f);
        std::fill(value_sums_, value_sums_ + seen_.count() * a_.size, 0.0f);
        for (index head = kv_ * a_.group(); head < (kv_ + 1) * a_.group(); ++head)
            for (index first = 0; first < seen_.own; first += query_block) add(head, first);
    }

   private:
    using Given = OperandOf<Number, Number>;

    // What the queries of a head from `first` on give to all gradients.
    void add(index head, index first) {
        QueryBlock<Number> block;
        block.count = std::min(query_block, seen_.own - first);
        fill<Isa>(block, a_, g_, seen_.top + first, head);
        const index width = a_.size, columns = block.padded, panels = columns / panel_width;
        const index since = seen_.before + first, until = since + block.count;
        const index inputs = padded_to(until, sequence_step<Isa>);
        const index along = panel_width * width, across = panel_width * columns;
        const Given keys{seen_.keys, seen_.ld, block.queries, width, along};
        const Given values{seen_.values, seen_.ld, block.grads, width, along};
        const Given weights{scores_.weights, columns, block.grad_inputs, columns, across};
        const Given slopes{scores_.slopes, columns, block.query_inputs, columns, across};
        const Given turned{keys_, padded_, scores_.panels, inputs, panel_width * inputs};
        Isa::template multiply_to<false>(scores_.scores, columns, panels, until, keys);
        Isa::template multiply_to<false>(scores_.pulls, columns, panels, until, values);
        differentiate(block, scores_, since, until, inputs, a_.scale);
        Isa::template multiply_to<true>(value_sums_, width, width / panel_width, until, weights);
        Isa::template multiply_to<true>(key_sums_, width, width / panel_width, until, slopes);
        Isa::template multiply_to<false>(turned_, columns, panels, width, turned);
        for (index i = 0; i < block.count; i += lanes)
            for (index j = 0; j < width; j += lanes) {
                Floats tile[16];
                for (index l = 0; l < lanes; ++l)
                    tile[l] = load(turned_ + (j + l) * columns + i);
                transpose(tile);
                for (index l = 0; l < std::min(lanes, block.count - i); ++l)
                    write(g_.row(a_, seen_.top + first + i + l, head) + j, tile[l]);
            }
    }

    const Attention<Number>& a_;
    const AttentionGradient<Number>& g_;
    const Seen<Number>& seen_;
    index kv_;
    float *key_sums_, *value_sums_;
    index padded_;
    Number* keys_;  // (h, keys)
    Scores<Number> scores_;
    float* turned_;  // (h, queries)
};

}  // namespace gw
