// The gradients of a linear layer with low-rank updates.
#pragma once

#include "project.h"

namespace gw {

// dx = dy W + d_inner down, a thread's part of it; the updates of the same rows enter it together,
// as they lie abreast.
template <class Isa>
void pull_back(const Layer& layer, const Rows& dy, const bf16* inner, Turns& turns, bf16* dx) {
    static thread_local Scratch weight_room, down_room;
    const index outputs = layer.outputs, stride = apart(outputs);
    const index most = Isa::group(outputs);
    const auto rows = row_cuts(layer, dy.count);
    bf16* packed = weight_room.room<bf16>(most * stride);
    const Rounded out(dx, dy.count * layer.inputs);
    turns.take([&](Range own, Range next) {
        const index left = own.first * panel_width, count = own.count();
        pack_across(layer.weight + left, layer.ld, count * panel_width, outputs, outputs, stride,
                    packed);
        Ahead ahead(layer.weight + next.first * panel_width, layer.ld, outputs,
                    next.count() * panel_width, Isa::stores(dy.count, count));
        for (std::size_t r = 0; r + 1 < rows.size(); ++r) {
            Operand more;
            for (index i = 0, place = 0; i < layer.count; ++i) {
                const Update& u = layer.updates[i];
                if (u.top > rows[r] || u.bottom <= rows[r]) continue;
                const index along = panel_width * u.ld;
                bf16* down = down_room.room<bf16>(most * along);
                pack_across(u.down + left, layer.inputs, count * panel_width, u.rank, u.padded,
                            along, down + place * panel_width);
                more = {inner + u.place - place + (rows[r] - u.top) * u.ld, u.ld, down, u.ld,
                        along};
                place += u.padded;
            }
            const Operand base{dy.values + rows[r] * dy.ld, dy.ld, packed, outputs, stride};
            Isa::multiply_group(count, rows[r + 1] - rows[r], base, more,
                                [&](index row, index q, auto... sums) {
                                    ahead();
                                    const index at = left + q * panel_width;
                                    out.put((rows[r] + row) * layer.inputs + at, sums...);
                                });
        }
    });
}

// As many numbers as a column of so many rows has when it is turned.
inline index turned_rows(index rows) { return padded_to(rows, 32); }

// Columns of rows as rows of `padded` numbers: the rows', and zeros behind.
inline void turn(const Rows& given, index columns, index padded, bf16* target) {
    for (index column = 0; column < columns; column += panel_width)
        for (index top = 0; top < padded; top += 32) {
            const auto load = [&](index row) {
                const bf16* source = given.values + row * given.ld + column;
                return row < given.count
                           ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source))
                           : _mm256_setzero_si256();
            };
            __m512i pairs[16];
            for (index i = 0; i < 16; ++i)
                pairs[i] = interleave(load(top + 2 * i), load(top + 2 * i + 1));
            transpose(pairs);
            for (index n = 0; n < std::min(panel_width, columns - column); ++n)
                _mm512_storeu_si512(target + (column + n) * padded + top, pairs[n]);
        }
}

// Calls store(rank, column, sums...) with the sums over some rows of inner values, which are given
// turned, times the columns of what is `given` for them, for a thread's share of their panels.
template <class Isa, class Store>
void gather(const bf16* turned, index ranks, const Rows& given, Range panels, Store&& store) {
    static thread_local Scratch room;
    const index rows = turned_rows(given.count), stride = apart(rows), most = Isa::group(rows);
    bf16* columns = room.room<bf16>(most * stride);
    for_groups(panels, most, [&](index first, index count) {
        const index left = first * panel_width;
        pack_across(given.values + left, given.ld, count * panel_width, given.count, rows, stride,
                    columns);
        const auto put = [&](index rank, index j, auto... sums) { store(rank, left + j, sums...); };
        multiply_all<Isa>(ranks, Operand{turned, rows, columns, rows, stride}, count, put);
    });
}

// The gradients of downs that are wanted, d_innerT x, of updates of the same rows: what these are
// multiplied with is packed once.
template <class Isa>
void gather_downs(const Layer& layer, const Update* first, const Update* last, const Rows& x,
                  const bf16* pulled, Range panels) {
    static thread_local Scratch room;
    static thread_local std::vector<bf16*> targets;  // of each rank that is wanted
    if (panels.first >= panels.last) return;
    const index rows = turned_rows(first->rows());
    bf16* turned = room.room<bf16>(first->ld * rows);
    targets.clear();
    for (const Update* u = first; u != last; ++u) {
        if (!u->grad_down) continue;
        turn({pulled + u->place, u->ld, u->rows()}, u->rank, rows, turned + targets.size() * rows);
        for (index rank = 0; rank < u->rank; ++rank)
            targets.push_back(u->grad_down + rank * layer.inputs);
    }
    if (targets.empty()) return;
    gather<Isa>(turned, targets.size(), {x.values + first->top * x.ld, x.ld, first->rows()}, panels,
                [target = targets.data()](index rank, index column, auto... sums) {
                    store_bf16(target[rank] + column, sums...);
                });
}

// That of an update's up, dyT inner.
template <class Isa>
void gather_up(const Update& u, const Rows& dy, const bf16* inner, Range panels) {
    static thread_local Scratch room;
    if (panels.first >= panels.last) return;
    const index rows = turned_rows(u.rows());
    bf16* turned = room.room<bf16>(u.rank * rows);
    turn({inner + u.place, u.ld, u.rows()}, u.rank, rows, turned);
    gather<Isa>(turned, u.rank, {dy.values + u.top * dy.ld + u.left, dy.ld, u.rows()}, panels,
                [&](index rank, index column, auto... sums) {
                    constexpr index count = sizeof...(sums) * panel_width;
                    alignas(64) bf16 values[count];
                    store_bf16(values, sums...);
                    for (index n = 0; n < count; ++n)
                        u.grad_up[(column + n) * u.rank + rank] = values[n];
                });
}

// A thread's part of the gradients of the updates' matrices, where they are wanted.
template <class Isa>
void gather_matrices(const Layer& layer, const Rows& x, const Rows& dy, const bf16* inner,
                     const bf16* pulled, index which, index workers) {
    const Update* const end = layer.updates + layer.count;
    for (const Update *first = layer.updates, *last; first != end; first = last) {
        // Those of the same rows, which are apart from all others, follow each other.
        last = std::find_if(first, end, [=](const Update& u) { return u.top != first->top; });
        gather_downs<Isa>(layer, first, last, x, pulled,
                          share(layer.inputs / panel_width, which, workers));
        for (const Update* u = first; u != last; ++u)
            if (u->grad_up)
                gather_up<Isa>(*u, dy, inner, share(u->outputs() / panel_width, which, workers));
    }
}

// The gradients of x (or none) and of the updates; `pulled` is room for those of inner values.
template <class Isa>
void project_backward(const Layer& layer, const Rows& dy, const Rows& x, const bf16* inner,
                      bf16* pulled, bf16* dx) {
    Turns turns({0, layer.inputs / panel_width}, Isa::group(layer.outputs), omp_get_max_threads());
#pragma omp parallel
    {
        const index which = omp_get_thread_num(), workers = omp_get_num_threads();
        reduce<Isa>(
            layer, dy, share(dy.count, which, workers), pulled,
            [](const Update& u, bf16* panels) {
                const index stride = panel_width * u.outputs();
                pack_across(u.up, u.rank, u.rank, u.outputs(), u.outputs(), stride, panels);
            },
            [](const Update& u) { return u.outputs(); }, [](const Update& u) { return u.left; });
#pragma omp barrier
        if (dx) pull_back<Isa>(layer, dy, pulled, turns, dx);
        gather_matrices<Isa>(layer, x, dy, inner, pulled, which, workers);
    }
}

// The gradient of the weight, dyT x (outputs, inputs); both are a multiple of a panel's width.
template <class Isa>
void gather_weight(const Rows& dy, index outputs, const Rows& x, index inputs, bf16* gradient) {
    static thread_local Scratch turned_room;
    const index rows = turned_rows(dy.count), stride = apart(rows), most = Isa::group(rows);
    bf16* turned = turned_room.room<bf16>(outputs * rows);
    Turns turns({0, inputs / panel_width}, most, omp_get_max_threads());
#pragma omp parallel
    {
        static thread_local Scratch column_room;
        bf16* columns = column_room.room<bf16>(most * stride);
        const Range own =
            share(outputs / panel_width, omp_get_thread_num(), omp_get_num_threads());
        const index left = own.first * panel_width;
        turn({dy.values + left, dy.ld, dy.count}, own.count() * panel_width, rows,
             turned + left * rows);
        const Rounded out(gradient, outputs * inputs);
#pragma omp barrier
        turns.take([&](Range panels, Range) {
            const index first = panels.first * panel_width;
            pack_across(x.values + first, x.ld, panels.count() * panel_width, x.count, rows, stride,
                        columns);
            multiply_all<Isa>(outputs, Operand{turned, rows, columns, rows, stride}, panels.count(),
                              [&](index output, index input, auto... sums) {
                                  out.put(output * inputs + first + input, sums...);
                              });
        });
    }
}

}  // namespace gw
