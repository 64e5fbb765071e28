// From normed rows to attended ones: queries, keys and values, rotation, the cache, attention.
#pragma once

#include "step_state.h"

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

// Where a row's half of 16 numbers of a head goes.
inline bf16* target_of(State& state, index l, index row, Output output) {
    const auto& [m, b, s, team, thread] = state;
    const index head = output.first / m.head_size, within = output.first % m.head_size;
    if (output.place == place_q) {
        const index group = m.heads / m.key_heads, key_head = head / group;
        return s.queries.data() +
               ((key_head * b.rows + row) * group + head % group) * m.head_size + within;
    }
    bf16* cache = output.place == place_k ? m.layers[l].keys : m.layers[l].values;
    const index slot = b.slots[row] * m.key_heads + head;
    return cache + (slot * m.positions + b.positions[row]) * m.head_size + within;
}

inline void place_heads(State& state, index l, Piece& piece, Range rows, index panel,
                        Output output) {
    const Model& m = state.m;
    const index half = m.head_size / 2, within = output.first % m.head_size;
    for (index r = 0; r < rows.last - rows.first; ++r) {
        const index row = rows.first + r;
        Floats first = piece.load(r, panel), second = piece.load(r, panel + 1);
        if (output.place != place_v) {
            const index angle = state.b.positions[row] * half + within;
            const Floats cosine = load(m.cosines + angle);
            const Floats sine = load(m.sines + angle);
            const Floats turned = fms(first, cosine, second * sine);
            second = fma(second, cosine, first * sine);
            first = turned;
        }
        bf16* target = target_of(state, l, row, output);
        store_bf16(target, first);
        store_bf16(target + half, second);
    }
}

template <class Isa>
void project_heads(State& state, index l) {
    const Model& m = state.m;
    const Layer& w = m.layers[l];
    const auto output = [&](index panel) { return output_of_qkv(m, panel); };
    const auto input = [&](int place) -> const bf16* {
        const bool own = state.b.scales_inputs && state.any([&](const Adapter& a) {
            return a.layers[l].places[place].input_scale != nullptr;
        });
        return own ? state.s.scaled.data() + place * state.b.rows * m.hidden
                   : state.s.normed.data();
    };
    const Weight weight{w.qkv, w.qkv_bias, (m.heads + 2 * m.key_heads) * m.head_size, m.hidden, 2};
    state.product<Isa>(l, weight, output, input,
                       [&](Piece& piece, Range rows, index first, index panels) {
                           for (index p = 0; p < panels; p += 2)
                               place_heads(state, l, piece, rows, p, output(first + p));
                       });
}

// Adds an adapter's second attention, gated, to what the rows of a task have attended.
template <class Isa>
void attend_second(const Second& second, const Model& m, const Task& task, const bf16* queries,
                   float* attended) {
    static thread_local AttentionScratch scratch;
    const index group = m.heads / m.key_heads, size = m.head_size;
    const index blocks = padded(second.count, block_keys) / block_keys, rows = task.count * group;
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

// Attends with the query rows of one task, over the positions that the last of them sees.
template <class Isa>
void attend(State& state, index l, const Task& task) {
    static thread_local AttentionScratch scratch;
    static thread_local std::vector<float> attended;
    const auto& [m, b, s, team, thread] = state;
    const index group = m.heads / m.key_heads, size = m.head_size, rows = task.count * group;
    const index first = task.span->first + task.first, start = task.span->start + task.first;
    const index end = start + task.count;
    const index cached = (task.span->slot * m.key_heads + task.head) * m.positions * size;
    const bf16* queries = s.queries.data() + (task.head * b.rows + first) * group * size;
    Attention attention(scratch, rows, size, m.scale);
    if constexpr (Isa::reads_keys) pack_keys(queries, rows, size, 0, scratch.queries);
    for (index top = 0; top < end; top += block_keys) {
        const index count = std::min(block_keys, end - top);
        const index ahead = std::clamp<index>(end - top - block_keys, 0, block_keys);
        const index offset = cached + top * size;
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
    attended.resize(rows * size);
    for (index r = 0; r < rows; ++r)
        for (index n = 0; n < size; n += 16)
            store(&attended[r * size + n], attention.output(r, n));
    const AdapterLayer* own = state.terms(first, l);
    if (own && own->second.count) attend_second<Isa>(own->second, m, task, queries, attended.data());
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
