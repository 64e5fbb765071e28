// The parts of a layer beside its heads: norms, the way back to the residual, feed-forward.
#pragma once

#include "step_state.h"

namespace gw::stepping {

// Writes the input of a sublayer and, where adapters scale it, that of each of its `inputs`.
inline void normalise_rows(State& state, index l, int sublayer, Range inputs) {
    const Model& m = state.m;
    state.for_rows([&](index t) {
        const AdapterLayer* own = state.terms(t, l);
        const float* gain = own && own->gains[sublayer] ? own->gains[sublayer]
                                                        : m.layers[l].gains[sublayer];
        bf16* target = state.s.normed.data() + t * m.hidden;
        normalise(state.s.residual.data() + t * m.hidden, gain, m.hidden,
                  m.epsilon, target);
        if (!state.b.scales_inputs) return;
        for (index place = inputs.first; place < inputs.last; ++place) {
            const float* scale = own ? own->places[place].input_scale : nullptr;
            bf16* copy = state.s.scaled.data() + (place * state.b.rows + t) * m.hidden;
            for (index i = 0; i < m.hidden; i += 16) {
                const Floats value = load_bf16(target + i);
                store_bf16(copy + i,
                           scale ? value * load(scale + i) : value);
            }
        }
    });
}

// The bottlenecks of one sublayer, which read its input or its output and add to the residual.
inline void apply_bottlenecks(State& state, index l, int sublayer) {
    const auto& [m, b, s, team, thread] = state;
    index turn = 0;
    for (index g = 0; g < b.group_count; ++g) {
        const Group& group = b.groups[g];
        const Bottleneck& own = group.adapter->layers[l].bottlenecks[sublayer];
        const bf16* x = (own.reads_input ? s.normed : s.sublayer).data() + group.first * m.hidden;
        for (index p = 0; p < own.width / panel_width; ++p) {
            if (turn++ % team.size != thread) continue;
            multiply_panels<Vectors>(
                x, m.hidden, group.last - group.first, own.down, m.hidden, {p, p + 1},
                [&](index r, index n, Floats sum) {
                    const Floats whole = sum + load(own.down_bias + n);
                    store_bf16(s.narrow.data() + (group.first + r) * b.most_width + n,
                               activate(whole, own.activation));
                });
        }
    }
    team.meet();
    for (index g = 0; g < b.group_count; ++g) {
        const Group& group = b.groups[g];
        const Bottleneck& own = group.adapter->layers[l].bottlenecks[sublayer];
        if (!own.width) continue;
        multiply_panels<Vectors>(
            s.narrow.data() + group.first * b.most_width, b.most_width, group.last - group.first,
            own.up, own.width, share(m.hidden / panel_width, thread, team.size),
            [&](index r, index n, Floats sum) {
                float* target = s.residual.data() + (group.first + r) * m.hidden + n;
                const Floats whole = sum + load(own.up_bias + n);
                store(target, fma(whole, splat(own.scale), load(target)));
            });
    }
    team.meet();
}

// Adds a sublayer's last product to the residual, and what bottlenecks make of it.
template <class Isa>
void add_to_residual(State& state, index l, int sublayer, const Weight& weight,
                     const Weight& following, int place, const bf16* x) {
    const bool narrow = state.any(
        [&](const Adapter& a) { return a.layers[l].bottlenecks[sublayer].width > 0; });
    const auto add = [&](Range rows, index first, index panels) {
        if (!Cut::by_rows(state.b.rows, state.team.size))  // half of them are in another core
            for (index row = rows.first; row < rows.last; ++row)
                for (index p = 0; p < panels; ++p)
                    _m_prefetchw(state.s.residual.data() + row * state.m.hidden +
                                 (first + p) * panel_width);
        return [&, first, panels](Piece<Isa>& piece, index r, index row) {
            for (index p = 0; p < panels; ++p) {
                const index at = row * state.m.hidden + (first + p) * panel_width;
                const Floats value = piece.load(r, p);
                float* target = state.s.residual.data() + at;
                store(target, load(target) + value);
                if (narrow) store_bf16(state.s.sublayer.data() + at, value);
            }
        };
    };
    state.product<Isa>(
        l, weight, state.coming<Isa>(following),
        [&](index panel) { return Output{place, panel * panel_width}; }, [&](int) { return x; },
        add, sublayer ? state.downs(l + 1, 0) : state.downs(l, 2));
    if (narrow) apply_bottlenecks(state, l, sublayer);
}

// The gated product: panels of gate and up take turns.
template <class Isa>
void project_feed(State& state, index l) {
    const auto output = [](index panel) {
        return Output{panel % 2 ? place_up : place_gate, panel / 2 * panel_width};
    };
    const auto input = [&](int place) { return state.input(l, place); };
    const auto gate = [&](Range, index first, index panels) {
        return [&, first, panels](Piece<Isa>& piece, index r, index row) {
            const AdapterLayer* own = state.terms(row, l);
            const float* scale = own ? own->places[place_down].input_scale : nullptr;
            for (index p = 0; p < panels; p += 2) {
                const index column = (first + p) / 2 * panel_width;
                Floats value = silu(piece.load(r, p)) * piece.load(r, p + 1);
                if (scale) value = value * load(scale + column);
                store_bf16(state.s.inner.data() + row * state.m.inner + column, value);
            }
        };
    };
    state.product<Isa>(l, state.gate_up(l), state.coming<Isa>(state.down(l)), output, input, gate,
                       state.downs(l, 3));
}

}  // namespace gw::stepping
