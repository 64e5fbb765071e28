// One step of a Llama-shaped network over rows of many sequences, in one parallel region.
//
// Everything that a row gets is summed in an order of its own, so its bits depend neither on the
// rows beside it nor on the number of threads.
#pragma once

#include <optional>

#include "attempt.h"
#include "step_attend.h"
#include "step_heads.h"
#include "step_layer.h"
#include "step_read.h"
#include "step_screen.h"

namespace gw::stepping {

// A layer up to what its rows have attended.
template <class Isa>
void compute_attention(State& state, index l) {
    normalise_rows(state, l, 0, {place_q, place_v + 1});
    state.low_rank<Isa>(l, 0, state.s.normed.data(), state.m.hidden);
    project_heads<Isa>(state, l);
    attend_rows<Isa>(state, l);
    state.team.meet();
}

// The rest of it, which needs no rows but its own.
template <class Isa>
void finish_layer(State& state, index l) {
    const auto& [m, b, s, team, thread] = state;
    state.low_rank<Isa>(l, 1, s.attended.data(), m.heads * m.head_size);
    add_to_residual<Isa>(state, l, 0, state.o(l), state.gate_up(l), place_o, s.attended.data());
    normalise_rows(state, l, 1, {place_gate, place_up + 1});
    state.low_rank<Isa>(l, 2, s.normed.data(), m.hidden);
    project_feed<Isa>(state, l);
    state.low_rank<Isa>(l, 3, s.inner.data(), m.inner);
    add_to_residual<Isa>(state, l, 1, state.down(l), state.after(l), place_down, s.inner.data());
}

// The logits of the wanted rows, or of each the likeliest token.
template <class Isa>
void compute_logits(State& state) {
    const auto& [m, b, s, team, thread] = state;
    if (may_screen<Isa>(m, b)) return compute_likeliest<Isa>(state);
    Leader* leaders = s.leaders.data() + thread * b.wanted;
    if (b.likeliest) std::for_each_n(leaders, b.wanted, [](Leader& leader) { leader.clear(); });
    const Range own = share(b.wanted, thread, team.size);
    for (index n = own.first; n < own.last; ++n)
        std::copy_n(b.hidden + b.wanted_rows[n] * m.hidden, m.hidden,
                    s.normed.data() + n * m.hidden);
    team.meet();
    const Group* groups = b.wanted_groups;
    compute_inner<Isa>(thread, team.size, groups, b.wanted_group_count, s.normed.data(), m.hidden,
                       state.low(), [](const Adapter& a) -> const Down& { return a.head_down; });
    team.meet();
    const auto place = [](const Adapter& a, int) -> const Place& { return a.head; };
    linear<Isa>(
        team, thread, state.head(), b.wanted, Coming{},
        [](index panel) { return Output{0, panel * panel_width}; },
        [&](int) { return state.s.normed.data(); },
        Terms{groups, b.wanted_group_count, b.replaces_weights != 0, state.low(), place},
        [&](Range, index first, index panels) {
            return [&, first, panels](Piece<Isa>& piece, index r, index row) {
                float* target = state.b.logits + state.b.targets[row] * state.m.vocabulary;
                for (index p = 0; p < panels; ++p)
                    if (const index output = (first + p) * panel_width; state.b.likeliest)
                        leaders[row].take(piece.load(r, p), output);
                    else
                        store(target + output, piece.load(r, p));
            };
        });
    if (b.likeliest)
        for (index n = own.first; n < own.last; ++n)
            b.likeliest[b.targets[n]] = likeliest(s.leaders.data() + n, b.wanted, team.size);
}

template <class Isa>
void compute_hidden(State& state) {
    const auto& [m, b, s, team, thread] = state;
    state.for_rows([&](index t) {
        const bf16* source = state.m.embedding + state.b.ids[t] * state.m.hidden;
        for (index i = 0; i < state.m.hidden; i += 16)
            store(state.s.residual.data() + t * state.m.hidden + i, load_bf16(source + i));
    });
    const index last = m.depth - 1;
    for (index l = 0; l < last; ++l) {
        compute_attention<Isa>(state, l);
        finish_layer<Isa>(state, l);
    }
    compute_attention<Isa>(state, last);
    if (b.read < b.rows) keep_read(state);
    const Batch rest = only_read(b);
    if (!rest.rows) return;
    State read{m, rest, s, team, thread};
    finish_layer<Isa>(read, last);
    read.for_rows([&](index t) {
        const Adapter* owner = read.b.owners[t];
        const float* gain = owner && owner->final_gain ? owner->final_gain : read.m.final_gain;
        normalise(read.s.residual.data() + t * read.m.hidden, gain, read.m.hidden, read.m.epsilon,
                  read.b.hidden + read.b.read_rows[t] * read.m.hidden);
    });
}

// Calls work(state) by every thread of the current team size. Throws std::bad_alloc before.
template <class Work>
void in_parallel(const Model& model, const Batch& batch, Work&& work) {
    static thread_local Scratch scratch;
    scratch.fit(model, batch);
    plan_attention(model, batch, scratch.tasks);
    Scratch& shared = scratch;  // in the region, the name would be each thread's own
    std::optional<Team> team;
#pragma omp parallel
    {
#pragma omp single
        team.emplace(omp_get_num_threads());
        State state{model, batch, shared, *team, omp_get_thread_num()};
        work(state);
    }
}

template <class Isa>
void step(const Model& model, const Batch& batch) {
    attempt([&] {
        in_parallel(model, batch, [](State& state) {
            compute_hidden<Isa>(state);
            if (state.b.wanted) compute_logits<Isa>(state);
        });
    });
}

template <class Isa>
void logits(const Model& model, const Batch& batch) {
    attempt([&] {
        in_parallel(model, batch, [](State& state) { compute_logits<Isa>(state); });
    });
}

}  // namespace gw::stepping
