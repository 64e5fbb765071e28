// The gradients of a linear layer with low-rank updates.
#pragma once

#include "project.h"

namespace gw {

// dx = dy W + d_inner down for a thread's share of the inputs; the updates of the same rows enter
// it together, as they lie abreast.
template <class Isa>
void pull_back(const Layer& layer, const Rows& dy, const bf16* inner, Range panels, bf16* dx) {
    static thread_local Scratch weight_room, down_room;
    const index outputs = layer.outputs, stride = panel_width * outputs;
    const auto rows = row_cuts(layer, dy.count);
    bf16* packed = weight_room.room<bf16>(Isa::most_panels * stride);
    for_groups<Isa>(panels, [&](index first, index count) {
        const index left = first * panel_width;
        pack_across(layer.weight + left, layer.ld, count * panel_width, outputs, outputs, stride,
                    packed);
        Ahead ahead(layer.weight + left + count * panel_width, layer.ld, outputs,
                    std::min(count, panels.last - first - count) * panel_width, dy.count * count);
        for (std::size_t r = 0; r + 1 < rows.size(); ++r) {
            Operand more;
            for (index i = 0, place = 0; i < layer.count; ++i) {
                const Update& u = layer.updates[i];
                if (u.top > rows[r] || u.bottom <= rows[r]) continue;
                const index along = panel_width * u.ld;
                bf16* down = down_room.room<bf16>(Isa::most_panels * along);
                pack_across(u.down + left, layer.inputs, count * panel_width, u.rank, u.padded,
                            along, down + place * panel_width);
                more = {inner + u.place - place + (rows[r] - u.top) * u.ld, u.ld, down, u.ld,
                        along};
                place += u.padded;
            }
            const Operand base{dy.values + rows[r] * dy.ld, dy.ld, packed, outputs, stride};
            multiply_group<Isa>(count, rows[r + 1] - rows[r], base, more,
                                [&](index row, int q, __m512 sum) {
                                    ahead();
                                    store_bf16(dx + (rows[r] + row) * layer.inputs + left +
                                                   q * panel_width,
                                               sum);
                                });
        }
    });
}

// Rows k and k + 1 of the inner values of an update become pairs, for 16 ranks from `rank` on.
inline const bf16* pair_up(const Update& u, const bf16* inner, index rank, bf16* pairs) {
    const auto load = [&](index row) {
        const bf16* source = inner + u.place + row * u.ld + rank;
        return row < u.rows() ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source))
                              : _mm256_setzero_si256();
    };
    for (index row = 0; row < u.rows(); row += 2)
        _mm512_storeu_si512(pairs + row * panel_width, interleave(load(row), load(row + 1)));
    return pairs;
}

// Sums over rows, in order, of 16 inner values times 16 columns.
inline void outer(const bf16* pairs, const bf16* columns, index ld, index rows,
                  __m512 (&sums)[16]) {
    for (auto& sum : sums) sum = _mm512_setzero_ps();
    for (index row = 0; row < rows; row += 2) {
        const auto load = [&](index at) {
            return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns + at * ld));
        };
        const auto both = reinterpret_cast<__m512bh>(
            interleave(load(row), row + 1 < rows ? load(row + 1) : _mm256_setzero_si256()));
        const auto* inner = reinterpret_cast<const std::int32_t*>(pairs + row * panel_width);
#pragma GCC unroll 16
        for (int r = 0; r < 16; ++r)
            sums[r] = _mm512_dpbf16_ps(
                sums[r], reinterpret_cast<__m512bh>(_mm512_set1_epi32(inner[r])), both);
    }
}

// Calls store(rank, column, sum) with the sums over an update's rows of its inner values times the
// columns of `given`, for a thread's share of the columns' panels.
template <class Store>
void gather(const Update& u, const bf16* inner, const Rows& given, Range panels, Store&& store) {
    static thread_local Scratch room;
    if (panels.first >= panels.last) return;
    bf16* pairs = room.room<bf16>((u.rows() + 1) * panel_width);
    for (index rank = 0; rank < u.rank; rank += panel_width) {
        pair_up(u, inner, rank, pairs);
        const index ranks = std::min(panel_width, u.rank - rank);
        for (index p = panels.first; p < panels.last; ++p) {
            const index column = p * panel_width;
            __m512 sums[16];
            outer(pairs, given.values + u.top * given.ld + column, given.ld, u.rows(), sums);
            for (index r = 0; r < ranks; ++r) store(rank + r, column, sums[r]);
        }
    }
}

// The gradients of an update's matrices, d_innerT x and dyT inner, where they are wanted.
inline void gather_matrices(const Update& u, const Layer& layer, const Rows& x, const Rows& dy,
                            const bf16* inner, const bf16* pulled, index which, index workers) {
    if (u.grad_down)
        gather(u, pulled, x, share(layer.inputs / panel_width, which, workers),
               [&](index rank, index column, __m512 sum) {
                   store_bf16(u.grad_down + rank * layer.inputs + column, sum);
               });
    if (u.grad_up)
        gather(u, inner, {dy.values + u.left, dy.ld, dy.count},
               share(u.outputs() / panel_width, which, workers),
               [&](index rank, index column, __m512 sum) {
                   alignas(32) bf16 values[panel_width];
                   store_bf16(values, sum);
                   for (index n = 0; n < panel_width; ++n)
                       u.grad_up[(column + n) * u.rank + rank] = values[n];
               });
}

// The gradients of x (or none) and of the updates; `pulled` is room for those of inner values.
template <class Isa>
void project_backward(const Layer& layer, const Rows& dy, const Rows& x, const bf16* inner,
                      bf16* pulled, bf16* dx) {
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
        if (dx)
            pull_back<Isa>(layer, dy, pulled, share(layer.inputs / panel_width, which, workers),
                           dx);
        for (index i = 0; i < layer.count; ++i)
            gather_matrices(layer.updates[i], layer, x, dy, inner, pulled, which, workers);
    }
}

}  // namespace gw
