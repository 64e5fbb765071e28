// What all parts of a step share: the network, the rows, and buffers between the products.
#pragma once

#include <omp.h>

#include <array>
#include <vector>

#include "scratch.h"
#include "step_attention.h"
#include "step_likeliest.h"
#include "step_product.h"
#include "step_screened.h"

namespace gw::stepping {

// The panels of q, k and v come in pairs: 16 outputs of a head's first half, and those that they
// are rotated with, half a head on.
inline Output output_of_qkv(const Model& m, index panel) {
    const index pair = panel / 2, pairs = m.head_size / 32;
    const index half = panel % 2 * (m.head_size / 2);
    const index head = pair / pairs, within = pair % pairs * panel_width + half;
    if (head < m.heads) return {place_q, head * m.head_size + within};
    if (head < m.heads + m.key_heads)
        return {place_k, (head - m.heads) * m.head_size + within};
    return {place_v, (head - m.heads - m.key_heads) * m.head_size + within};
}

// Buffers of one step, kept from step to step by the thread that calls.
struct Scratch {
    Aligned<float> residual;                          // (rows, hidden)
    Aligned<bf16> normed;                             // (rows, hidden)
    Aligned<bf16> scaled;                             // (places, rows, hidden)
    Aligned<bf16> queries;                            // (key heads, rows, group, head size)
    Aligned<bf16> attended;                           // (rows, heads * head size)
    Aligned<bf16> inner;                              // (rows, inner)
    Aligned<bf16> sublayer;                           // (rows, hidden), for bottlenecks
    Aligned<bf16> narrow;                             // (rows, most width)
    Aligned<bf16> low;                                // (rows, most ranks)
    std::vector<Leader> leaders;                      // (threads, wanted)
    std::vector<Screened> screened;                   // (wanted)
    Aligned<bf16> exact;                              // (wanted, inputs in bfloat16)
    Aligned<Coarse> coarse;                           // (wanted, the others)
    std::vector<char> known;                          // (wanted)
    std::vector<Candidates> candidates;               // (threads, wanted)
    std::vector<Task> tasks;
    std::vector<Output> heads;                        // of q, k and v by panel

    void fit(const Model& m, const Batch& b) {
        residual.resize(b.rows * m.hidden);
        normed.resize(std::max(b.rows, b.wanted) * m.hidden);
        scaled.resize(b.scales_inputs ? place_count * b.rows * m.hidden : 0);
        queries.resize(b.rows * m.heads * m.head_size);
        attended.resize(b.rows * m.heads * m.head_size);
        inner.resize(b.rows * m.inner);
        sublayer.resize(b.most_width ? b.rows * m.hidden : 0);
        narrow.resize(b.rows * b.most_width);
        low.resize(std::max(b.rows, b.wanted) * b.most_ranks);
        heads.resize((m.heads + 2 * m.key_heads) * m.head_size / panel_width);
        for (index n = 0; n < static_cast<index>(heads.size()); ++n) heads[n] = output_of_qkv(m, n);
        leaders.resize(b.likeliest ? omp_get_max_threads() * b.wanted : 0);
        if (!b.likeliest || !m.screen.panels) return;
        screened.resize(b.wanted);
        exact.resize(b.wanted * m.screen.exact);
        coarse.resize(b.wanted * m.screen.coarse);
        known.resize(b.wanted);
        candidates.resize(omp_get_max_threads() * b.wanted);
    }
};

struct State {
    const Model& m;
    const Batch& b;
    Scratch& s;
    Team& team;
    int thread;

    // Does work(row) for every row of the stream and waits for the end.
    template <class Work>
    void for_rows(Work&& work) {
        const Range own = share(b.rows, thread, team.size);
        for (index t = own.first; t < own.last; ++t) work(t);
        team.meet();
    }

    const AdapterLayer* terms(index row, index l) const {
        return b.owners[row] ? b.owners[row]->layers + l : nullptr;
    }

    template <class Test>
    bool any(Test&& test) const {
        return std::any_of(b.groups, b.groups + b.group_count,
                           [&](const Group& group) { return test(*group.adapter); });
    }

    // What a place of q, k, v, gate or up reads: the normed rows, or a copy scaled for it.
    const bf16* input(index l, int place) const {
        const bool own = b.scales_inputs && any([&](const Adapter& a) {
            return a.layers[l].places[place].input_scale != nullptr;
        });
        return own ? s.scaled.data() + place * b.rows * m.hidden : s.normed.data();
    }

    Inner low() const { return {s.low.data(), b.most_ranks}; }

    // The low-rank inputs of a site, where any adapter has some there.
    template <class Isa>
    void low_rank(index l, int site, const bf16* x, index inputs) {
        const auto down = [&](const Adapter& a) -> const Down& { return a.layers[l].downs[site]; };
        if (!any([&](const Adapter& a) { return down(a).ranks > 0; })) return;
        compute_inner<Isa>(thread, team.size, b.groups, b.group_count, x, inputs, low(), down);
        team.meet();
    }

    Weight qkv(index l) const {
        const Layer& w = m.layers[l];
        return {w.qkv, w.qkv_bias, (m.heads + 2 * m.key_heads) * m.head_size, m.hidden, 2};
    }
    Weight o(index l) const {
        return {m.layers[l].o, m.layers[l].o_bias, m.hidden, m.heads * m.head_size, 1};
    }
    Weight gate_up(index l) const {
        return {m.layers[l].gate_up, m.layers[l].gate_up_bias, 2 * m.inner, m.hidden, 2};
    }
    Weight down(index l) const {
        return {m.layers[l].down, m.layers[l].down_bias, m.hidden, m.inner, 1};
    }
    Weight head() const { return {m.head, m.head_bias, m.vocabulary, m.hidden, 1}; }

    // Has the product before a site fetch what adapters multiply with there first.
    auto downs(index l, int site) const {
        return [this, l, site](auto& ahead, index piece, index pieces) {
            if (l == m.depth) return;
            const index inputs = std::array{qkv(l), o(l), gate_up(l), down(l)}[site].inputs;
            const Range own = share(b.group_count, piece, pieces);
            for (index g = own.first; g < own.last; ++g) {
                const Down& down = b.groups[g].adapter->layers[l].downs[site];
                ahead.add(down.packed, down.ranks * inputs * sizeof *down.packed);
            }
        };
    }

    // What follows the last product of a layer.
    Weight after(index l) const { return l + 1 < m.depth ? qkv(l + 1) : head(); }

    // What this thread reads first of a weight.
    template <class Isa>
    Coming coming(const Weight& weight) const {
        const Cut cut = Cut::of<Isa>(weight, b.rows, team.size);
        return coming_piece(weight, cut, cut.first(thread, team.size));
    }

    template <class Isa, class OutputOf, class InputOf, class Finish, class Later = Nothing>
    void product(index l, const Weight& weight, Coming next, OutputOf&& output_of,
                 InputOf&& input_of, Finish&& finish, const Later& later = {}) {
        const auto place = [&](const Adapter& a, int which) -> const Place& {
            return a.layers[l].places[which];
        };
        const Terms terms{b.groups, b.group_count, b.replaces_weights != 0, low(), place};
        linear<Isa>(team, thread, weight, b.rows, next, output_of, input_of, terms, finish, later);
    }
};

}  // namespace gw::stepping
