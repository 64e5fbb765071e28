// From normed rows to queries, and to keys and values in the cache.
#pragma once

#include <array>

#include "step_state.h"

namespace gw::stepping {

// Where 16 numbers of a head's first half, and those that they are rotated with, go.
class HeadPlace {
   public:
    HeadPlace() = default;
    HeadPlace(const State& state, index l, Output output)
        : rotates(output.place != place_v), within(output.first % state.m.head_size) {
        const auto& [m, b, s, team, thread] = state;
        const index head = output.first / m.head_size, group = m.heads / m.key_heads;
        if (output.place == place_q) {
            const index first = head / group * b.rows * group + head % group;
            target = s.queries.data() + first * m.head_size + within;
            by_row = group * m.head_size;
        } else {
            bf16* cache = output.place == place_k ? m.layers[l].keys : m.layers[l].values;
            target = cache + head * m.positions * m.head_size + within;
            by_slot = m.key_heads * m.positions * m.head_size;
            by_position = m.head_size;
        }
    }

    void take(const State& state, index row, Floats first, Floats second) const {
        const auto& [m, b, s, team, thread] = state;
        const index half = m.head_size / 2, position = b.positions[row];
        if (rotates) {
            const Floats cosine = load(m.cosines + position * half + within);
            const Floats sine = load(m.sines + position * half + within);
            const Floats turned = fms(first, cosine, second * sine);
            second = fma(second, cosine, first * sine);
            first = turned;
        }
        bf16* here = place(state, row);
        store_bf16(here, first);
        store_bf16(here + half, second);
    }

    // Asks for where a row's numbers go, which no cache may hold.
    void expect(const State& state, index row) const {
        bf16* here = place(state, row);
        __builtin_prefetch(here, 1, 2);
        __builtin_prefetch(here + state.m.head_size / 2, 1, 2);
    }

   private:
    bf16* place(const State& state, index row) const {
        const Batch& b = state.b;
        return target + row * by_row + b.slots[row] * by_slot + b.positions[row] * by_position;
    }

    bool rotates = false;
    index within = 0, by_row = 0, by_slot = 0, by_position = 0;
    bf16* target = nullptr;
};

// Fetches keys and values that rows which decode attend to next; attention fetches the others.
template <class Isa>
void fetch_cached(const State& state, index l, Range tasks, Fetching<Isa>& ahead) {
    constexpr index most = 128;  // positions: as many as arrive before they are read
    const auto& [m, b, s, team, thread] = state;
    for (index i = tasks.first; i < tasks.last; ++i) {
        const Span& span = *s.tasks[i].span;
        if (!span.decodes) continue;
        const index offset = cached(m, s.tasks[i]);
        for (const bf16* side : {m.layers[l].keys, m.layers[l].values})
            ahead.add(side + offset, std::min(span.start, most) * m.head_size * sizeof *side);
    }
}

// Whether a row stands behind the one before it in a slot, where the processor looks by itself.
inline bool follows(const Batch& b, index row) { return row && b.slots[row] == b.slots[row - 1]; }

template <class Isa>
void project_heads(State& state, index l) {
    const auto output = [&](index panel) { return state.s.heads[panel]; };
    const auto input = [&](int place) { return state.input(l, place); };
    const auto place = [&](Range rows, index first, index panels) {
        std::array<HeadPlace, most_panels / 2> places;
        for (index p = 0; p < panels; p += 2) {
            places[p / 2] = {state, l, output(first + p)};
            for (index row = rows.first; row < rows.last; ++row)
                if (!follows(state.b, row)) places[p / 2].expect(state, row);
        }
        return [&, places, panels](Piece<Isa>& piece, index r, index row) {
            for (index p = 0; p < panels; p += 2)
                places[p / 2].take(state, row, piece.load(r, p), piece.load(r, p + 1));
        };
    };
    const auto later = [&](Fetching<Isa>& ahead, index piece, index pieces) {
        fetch_cached<Isa>(state, l, share(state.s.tasks.size(), piece, pieces), ahead);
        state.downs(l, 1)(ahead, piece, pieces);
    };
    state.product<Isa>(l, state.qkv(l), {}, output, input, place, later);
}

}  // namespace gw::stepping
