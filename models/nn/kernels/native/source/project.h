// A linear layer with low-rank updates in rectangles of rows and outputs, and its gradients.
//
// The base's weight is read as it lies and packed a few panels at a time, which a product over
// many rows hides. Updates enter a product as further inputs, so that their part is summed in
// float32 with the base's and rounded once.
#pragma once

#include <omp.h>

#include <vector>

#include "ahead.h"
#include "pack.h"
#include "products.h"
#include "rounded.h"
#include "scratch.h"
#include "turns.h"
#include "update.h"
#include "vector.h"

namespace gw {

using Update = UpdateOf<bf16>;

struct Layer {
    const bf16* weight;  // (outputs, inputs)
    index ld, outputs, inputs;
    const bf16* bias;  // or none
    const Update* updates;
    index count;  // of updates, those of the same rows one after another
};

// Where rectangles begin and end along one axis.
template <class Edges>
std::vector<index> cuts(const Layer& layer, index until, Edges&& edges) {
    std::vector<index> all{0, until};
    for (index u = 0; u < layer.count; ++u) {
        const auto [first, last] = edges(layer.updates[u]);
        all.push_back(first);
        all.push_back(last);
    }
    std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    return all;
}

inline std::vector<index> row_cuts(const Layer& layer, index rows) {
    return cuts(layer, rows, [](const Update& u) { return Range{u.top, u.bottom}; });
}

inline index panels_of(const Update& u) { return (u.rank + panel_width - 1) / panel_width; }

// inner = scale * rows @ matrixT for a thread's share of the rows, rounded to bfloat16; the matrix
// of an update is packed by `pack(update, target)` with `inputs(update)` inputs, and an update's
// rows are read from column `offset(update)` on.
template <class Isa, class Pack, class Inputs, class Offset>
void reduce(const Layer& layer, const Rows& x, Range own, bf16* inner, Pack&& pack,
            Inputs&& inputs, Offset&& offset) {
    static thread_local Scratch room;
    for (index i = 0; i < layer.count; ++i) {
        const Update& u = layer.updates[i];
        const index top = std::max(own.first, u.top), bottom = std::min(own.last, u.bottom);
        if (top >= bottom) continue;
        const index width = inputs(u), stride = panel_width * width;
        bf16* panels = room.room<bf16>(panels_of(u) * stride);
        pack(u, panels);
        bf16* target = inner + u.place + (top - u.top) * u.ld;
        const __m512 scale = _mm512_set1_ps(static_cast<float>(u.scale));
        const Operand given{x.values + top * x.ld + offset(u), x.ld, panels, width, stride};
        multiply_all<Isa>(bottom - top, given, panels_of(u), [&](index row, index j, auto... sums) {
            store_bf16(target + row * u.ld + j, _mm512_mul_ps(sums, scale)...);
        });
        for (index row = 0; row < bottom - top; ++row)
            std::fill(target + row * u.ld + panels_of(u) * panel_width,
                      target + row * u.ld + u.padded, bf16{0});
    }
}

// The outputs' panels; a group of them is within the same updates.
template <class Isa>
Turns output_turns(const Layer& layer) {
    auto edges = cuts(layer, layer.outputs, [](const Update& u) { return Range{u.left, u.right}; });
    for (index& edge : edges) edge /= panel_width;
    return {edges, Isa::group(layer.inputs), omp_get_max_threads()};
}

// y = x WT + bias + inner upT, a thread's part of it.
template <class Isa>
void expand(const Layer& layer, const Rows& x, const bf16* inner, Turns& turns, bf16* y) {
    static thread_local Scratch weight_room, up_room;
    const index inputs = layer.inputs, stride = panel_width * inputs;
    const index most = Isa::group(inputs);
    const auto rows = row_cuts(layer, x.count);
    bf16* packed = weight_room.room<bf16>(most * stride);
    const Rounded out(y, x.count * layer.outputs);
    turns.take([&](Range own, Range next) {
        const index left = own.first * panel_width, count = own.count();
        pack_along(layer.weight + left * layer.ld, layer.ld, count * panel_width, inputs, inputs,
                   stride, packed);
        Ahead ahead(layer.weight + next.first * panel_width * layer.ld, layer.ld,
                    next.count() * panel_width, inputs, Isa::stores(x.count, count));
        for (std::size_t r = 0; r + 1 < rows.size(); ++r) {
            Operand more;
            for (index i = 0; i < layer.count; ++i) {
                const Update& u = layer.updates[i];
                if (u.top > rows[r] || u.bottom <= rows[r] || u.left > left || u.right <= left)
                    continue;
                bf16* up = up_room.room<bf16>(most * panel_width * u.padded);
                pack_along(u.up + (left - u.left) * u.rank, u.rank, count * panel_width, u.rank,
                           u.padded, panel_width * u.padded, up);
                more = {inner + u.place + (rows[r] - u.top) * u.ld, u.ld, up, u.padded,
                        panel_width * u.padded};
            }
            const Operand base{x.values + rows[r] * x.ld, x.ld, packed, inputs, stride};
            Isa::multiply_group(count, rows[r + 1] - rows[r], base, more,
                                [&](index row, index q, auto... sums) {
                                    ahead();
                                    const index at = left + q * panel_width;
                                    if (layer.bias) add_bf16(layer.bias + at, sums...);
                                    out.put((rows[r] + row) * layer.outputs + at, sums...);
                                });
        }
    });
}

// y (rows, outputs), and the scaled inner values that the gradients need.
template <class Isa>
void project_forward(const Layer& layer, const Rows& x, bf16* inner, bf16* y) {
    Turns turns = output_turns<Isa>(layer);
#pragma omp parallel
    {
        const index which = omp_get_thread_num(), workers = omp_get_num_threads();
        reduce<Isa>(
            layer, x, share(x.count, which, workers), inner,
            [&](const Update& u, bf16* panels) {
                pack_along(u.down, layer.inputs, u.rank, layer.inputs, layer.inputs,
                           panel_width * layer.inputs, panels);
            },
            [&](const Update&) { return layer.inputs; }, [](const Update&) { return index{0}; });
#pragma omp barrier
        expand<Isa>(layer, x, inner, turns, y);
    }
}

}  // namespace gw
