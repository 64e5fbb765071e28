// From normed rows to attended ones: queries, keys and values, rotation, the cache, attention.
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

template <class Isa>
void project_heads(State& state, index l) {
    const Model& m = state.m;
    const auto output = [&](index panel) { return state.s.heads[panel]; };
    const auto input = [&](int place) { return state.input(l, place); };
    const auto place = [&](Range rows, index first, index panels) {
        std::array<HeadPlace, most_panels / 2> places;
        for (index p = 0; p < panels; p += 2) {
            places[p / 2] = {state, l, output(first + p)};
            for (index row = rows.first; row < rows.last; ++row)
                places[p / 2].expect(state, row);
        }
        return [&, places, panels](Piece& piece, index r, index row) {
            for (index p = 0; p < panels; p += 2)
                places[p / 2].take(state, row, piece.load(r, p), piece.load(r, p + 1));
        };
    };
    state.product<Isa>(l, state.qkv(l), {}, output, input, place);
}

// Adds an adapter's second attention, gated, to what the rows of a task have attended.
template <class Isa>
void attend_second(const Second& second, const Model& m, const Task& task, const bf16* queries,
                   float* attended) {
    static thread_local AttentionScratch scratch;
    const index group = m.heads / m.key_heads, size = m.head_size;
    const index blocks = padded_to(second.count, block_keys) / block_keys, rows = task.count * group;
    Attention attention(scratch, rows, size, m.scale);
    for (index block = 0; block < blocks; ++block) {
        const index packed = (task.head * blocks + block) * block_keys * size;
        const index count = std::min(block_keys, second.count - block * block_keys);
        attention.add<Isa>(queries, second.keys + packed, second.values + packed, count,
                           [&](index) { return count; });
    }
    for (index r = 0; r < rows; ++r) {
        const Floats gate = splat(second.gate[task.head * group + r % group]);
        for (index n = 0; n < size; n += 16) {
            float* target = attended + r * size + n;
            store(target, fma(attention.output(r, n), gate, load(target)));
        }
    }
}

// Where the keys or values of a task's head begin in a cache.
inline index cached(const Model& m, const Task& task) {
    return (task.span->slot * m.key_heads + task.head) * m.positions * m.head_size;
}

// Lets the queries of a row that decodes see its positions, and fetches those of the next task
// meanwhile; false if that is not done here.
#ifdef __AVX512BF16__
template <int Q = few_queries>
bool attend_few(Attention& attention, const State& state, index l, const bf16* queries,
                const Task& task, const Task* next) {
    const Model& m = state.m;
    const index size = m.head_size, end = task.span->start + 1, group = m.heads / m.key_heads;
    if (!task.span->decodes || group > Q) return false;
    if constexpr (Q > 1)
        if (group < Q) return attend_few<Q - 1>(attention, state, l, queries, task, next);
    const bf16* keys = m.layers[l].keys + cached(m, task);
    const bf16* values = m.layers[l].values + cached(m, task);
    for (index top = 0; top < end; top += block_keys) {
        const bool last = top + block_keys >= end;
        const bf16* after = last ? m.layers[l].keys + cached(m, next ? *next : task)
                                 : keys + (top + block_keys) * size;
        attention.add_few<Q>(queries, keys + top * size, values + top * size,
                             std::min(block_keys, end - top), after);
    }
    return true;
}
#else
inline bool attend_few(Attention&, const State&, index, const bf16*, const Task&, const Task*) {
    return false;
}
#endif

// Lets the query rows of a task see the positions up to their own, block by block.
template <class Isa>
void attend_blocks(Attention& attention, AttentionScratch& scratch, const State& state, index l,
                   const bf16* queries, const Task& task) {
    const Model& m = state.m;
    const index group = m.heads / m.key_heads, size = m.head_size, rows = task.count * group;
    const index start = task.span->start + task.first, end = start + task.count;
    if constexpr (Isa::reads_keys) pack_keys(queries, rows, size, 0, scratch.queries);
    for (index top = 0; top < end; top += block_keys) {
        const index count = std::min(block_keys, end - top);
        const index ahead = std::clamp<index>(end - top - block_keys, 0, block_keys);
        const index offset = cached(m, task) + top * size;
        const bf16* keys = m.layers[l].keys + offset;
        const auto visible = [&](index r) { return start + r / group - top + 1; };
        pack_values(m.layers[l].values + offset, count, size, ahead, scratch.values);
        if constexpr (Isa::reads_keys) {
            fetch(keys + block_keys * size, ahead, size);
            attention.add_rows<Isa>(scratch.queries, keys, scratch.values, count, visible);
        } else {
            pack_keys(keys, count, size, ahead, scratch.keys);
            attention.add<Isa>(queries, scratch.keys, scratch.values, count, visible);
        }
    }
}

// Attends with the query rows of one task, over the positions that the last of them sees.
template <class Isa>
void attend(State& state, index l, const Task& task, const Task* next) {
    static thread_local AttentionScratch scratch;
    static thread_local Aligned<float> attended;
    const auto& [m, b, s, team, thread] = state;
    const index group = m.heads / m.key_heads, size = m.head_size, rows = task.count * group;
    const index first = task.span->first + task.first;
    const bf16* queries = s.queries.data() + (task.head * b.rows + first) * group * size;
    Attention attention(scratch, rows, size, m.scale);
    if (!attend_few(attention, state, l, queries, task, next))
        attend_blocks<Isa>(attention, scratch, state, l, queries, task);
    attended.resize(rows * size);
    for (index r = 0; r < rows; ++r)
        for (index n = 0; n < size; n += 16)
            store(&attended[r * size + n], attention.output(r, n));
    const AdapterLayer* own = state.terms(first, l);
    if (own && own->second.count)
        attend_second<Isa>(own->second, m, task, queries, attended.data());
    const float* scale = own ? own->places[place_o].input_scale : nullptr;
    for (index r = 0; r < rows; ++r) {
        const index column = (task.head * group + r % group) * size;
        bf16* target = s.attended.data() + (first + r / group) * m.heads * size + column;
        for (index n = 0; n < size; n += 16) {
            Floats value = load(&attended[r * size + n]);
            if (scale) value = value * load(scale + column + n);
            store_bf16(target + n, value);
        }
    }
}

inline void plan_attention(const Model& m, const Batch& b, std::vector<Task>& tasks) {
    const index most = std::max<index>(1, most_queries / (m.heads / m.key_heads));
    tasks.clear();
    for (index i = 0; i < b.span_count; ++i)
        for (index first = 0; first < b.spans[i].count; first += most)
            for (index head = 0; head < m.key_heads; ++head)
                tasks.push_back(
                    {b.spans + i, first, std::min(most, b.spans[i].count - first), head});
}

}  // namespace gw::stepping
