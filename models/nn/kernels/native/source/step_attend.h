// From queries to attended rows, shared among threads by row and key head.
#pragma once

#ifdef __AVX512BF16__
#include "step_attention_columns.h"
#include "step_attention_drawn.h"
#endif
#include "step_state.h"

namespace gw::stepping {

// Adds an adapter's second attention, gated, to what the rows of a task have attended.
template <class Isa>
void attend_second(const Second& second, const Model& m, const Task& task, const bf16* queries,
                   float* attended) {
    static thread_local AttentionScratch scratch;
    const index group = m.heads / m.key_heads, size = m.head_size;
    const index blocks = padded_to(second.count, block_keys) / block_keys;
    const index rows = task.count * group;
    Attention attention(scratch, rows, size, m.scale);
    for (index block = 0; block < blocks; ++block) {
        const index packed = (task.head * blocks + block) * block_keys * size;
        const index count = std::min(block_keys, second.count - block * block_keys);
        attention.add<Isa>(queries, second.keys + packed, second.values + packed, count,
                           [&](index) { return count; });
    }
    attention.hand_out([&](index r, index n, Floats output) {
        const Floats gate = splat(second.gate[task.head * group + r % group]);
        float* target = attended + r * size + n;
        store(target, fma(output, gate, load(target)));
    });
}

// Lets the queries of a row that decodes see its positions, and fetches those of the next task
// meanwhile; false if it does not decode, or more than `few_queries` share a key head.
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

// Calls see(top, count, ahead, visible) for the blocks of positions that a task's rows see: where
// one begins, how many it has and the next one, and visible(r), how many of it row r sees, which is
// none or less where it lies behind.
template <class See>
void for_blocks(const Model& m, const Task& task, See&& see) {
    const index group = m.heads / m.key_heads;
    const index start = task.span->start + task.first, end = start + task.count;
    for (index top = 0; top < end; top += block_keys)
        see(top, std::min(block_keys, end - top),
            std::clamp<index>(end - top - block_keys, 0, block_keys),
            [=](index r) { return start + r / group - top + 1; });
}

// The queries of a task, (rows, group, head size).
inline const bf16* queries_of(const State& state, const Task& task) {
    const index group = state.m.heads / state.m.key_heads;
    const index row = task.head * state.b.rows + task.span->first + task.first;
    return state.s.queries.data() + row * group * state.m.head_size;
}

// Hands on what the queries of a task have attended, with what adapters have to do there.
template <class Isa>
void hand_on(State& state, index l, const Task& task, float* attended) {
    const auto& [m, b, s, team, thread] = state;
    const index group = m.heads / m.key_heads, size = m.head_size, rows = task.count * group;
    const index first = task.span->first + task.first;
    const AdapterLayer* own = state.terms(first, l);
    if (own && own->second.count)
        attend_second<Isa>(own->second, m, task, queries_of(state, task), attended);
    const float* scale = own ? own->places[place_o].input_scale : nullptr;
    for (index r = 0; r < rows; ++r) {
        const index column = (task.head * group + r % group) * size;
        bf16* target = s.attended.data() + (first + r / group) * m.heads * size + column;
        for (index n = 0; n < size; n += 16) {
            Floats value = load(attended + r * size + n);
            if (scale) value = value * load(scale + column + n);
            store_bf16(target + n, value);
        }
    }
}

// Attends with the query rows of one task, over the positions that the last of them sees.
template <class Isa>
void attend(State& state, index l, const Task& task, const Task* next) {
    static thread_local AttentionScratch scratch;
    static thread_local Aligned<float> attended;
    const Model& m = state.m;
    const index size = m.head_size, rows = task.count * (m.heads / m.key_heads);
    const bf16* queries = queries_of(state, task);
    Attention attention(scratch, rows, size, m.scale);
    if (!attend_few(attention, state, l, queries, task, next))
        for_blocks(m, task, [&](index top, index count, index ahead, const auto& visible) {
            const index offset = cached(m, task) + top * size;
            pack_keys(m.layers[l].keys + offset, count, size, ahead, scratch.keys);
            pack_values(m.layers[l].values + offset, count, size, ahead, scratch.values);
            attention.add<Isa>(queries, scratch.keys, scratch.values, count, visible);
        });
    attended.resize(rows * size);
    attention.hand_out(
        [&](index r, index n, Floats output) { store(&attended[r * size + n], output); });
    hand_on<Isa>(state, l, task, attended.data());
}

#ifdef __AVX512BF16__
// Whether an adapter has something to add to what a task's rows attend, by tiles of its own shape.
inline bool attends_twice(const State& state, index l, const Task& task) {
    const AdapterLayer* own = state.terms(task.span->first, l);
    return own && own->second.count;
}

// Attends with the query rows of one task by tiles, which may be shaped already.
template <class Isa>
void attend_columns(State& state, index l, const Task& task, typename Isa::Shaped& shaped) {
    static thread_local ColumnScratch scratch;
    const Model& m = state.m;
    const index size = m.head_size, rows = task.count * (m.heads / m.key_heads);
    ColumnAttention<Isa> attention(scratch, shaped, queries_of(state, task), rows, size, m.scale);
    for_blocks(m, task, [&](index top, index count, index ahead, const auto& visible) {
        const index offset = cached(m, task) + top * size;
        attention.add(m.layers[l].keys + offset, m.layers[l].values + offset, count, ahead,
                      visible);
    });
    hand_on<Isa>(state, l, task, attention.attended());
    if (attends_twice(state, l, task)) shaped.lose();
}

// Attends with this thread's share of all rows by tiles; rows that decode, of up to Q queries a key
// head, in a way of their own.
template <class Isa, int Q>
void attend_by_tiles(State& state, index l) {
    static thread_local DrawnScratch scratch;
    const Model& m = state.m;
    typename Isa::Shaped shaped;
    DrawnAttention<typename Isa::Unit, Q> drawn(scratch, m.head_size, m.scale);
    const auto head_of = [&](const Task& task) {
        const index offset = cached(m, task);
        return Drawn{&task, queries_of(state, task), m.layers[l].keys + offset,
                     m.layers[l].values + offset, task.span->start + 1};
    };
    const auto take = [&](const Task& task, float* attended) {
        if (attends_twice(state, l, task)) drawn.lose_shape();
        hand_on<Isa>(state, l, task, attended);
    };
    state.team.each(state.thread, state.s.tasks.size(), [&](index i, bool more) {
        const Task* task = &state.s.tasks[i];
        if (!task->span->decodes) {
            drawn.finish(take);
            drawn.lose_shape();
            return attend_columns<Isa>(state, l, *task, shaped);
        }
        shaped.lose();
        if (more && task[1].span->decodes) {
            const Drawn next = head_of(task[1]);
            drawn.attend(head_of(*task), &next, take);
        } else {
            drawn.attend(head_of(*task), nullptr, take);
        }
    });
    drawn.finish(take);
}

// The same of rows of which too many queries share a key head.
template <class Isa>
void attend_by_columns(State& state, index l) {
    typename Isa::Shaped shaped;
    state.team.each(state.thread, state.s.tasks.size(), [&](index i, bool) {
        attend_columns<Isa>(state, l, state.s.tasks[i], shaped);
    });
}
#endif

// Attends with this thread's share of all rows.
template <class Isa>
void attend_rows(State& state, index l) {
#ifdef __AVX512BF16__
    if constexpr (Isa::works_aside) {
        switch (state.m.heads / state.m.key_heads) {
            case 1: return attend_by_tiles<Isa, 1>(state, l);
            case 2: return attend_by_tiles<Isa, 2>(state, l);
            case 3: return attend_by_tiles<Isa, 3>(state, l);
            case 4: return attend_by_tiles<Isa, 4>(state, l);
            default: return attend_by_columns<Isa>(state, l);
        }
    }
#endif
    state.team.each(state.thread, state.s.tasks.size(), [&](index i, bool more) {
        const Task* task = &state.s.tasks[i];
        attend<Isa>(state, l, *task, more ? task + 1 : nullptr);
    });
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
