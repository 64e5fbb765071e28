// Low-rank updates in rectangles of rows and outputs, in float32, and their gradients, for AVX2 alone.
//
// Threads take some rows of an update, or some columns of a gradient. Every sum is one chain in
// order, so that a row's bits depend on nothing but the row, and a gradient's on nothing but its
// update.
#include <omp.h>

#include <vector>

#include "blocks_float.h"
#include "pack_float.h"
#include "scratch.h"
#include "update.h"

using namespace gw;

namespace {

using Update = UpdateOf<float>;
using Given = Avx2Floats::Given;

index panels_of(const Update& u) { return u.padded / panel_width; }

float* inner_at(const Update& u, float* inner, index row) {
    return inner + u.place + (row - u.top) * u.ld;
}

constexpr index rows_once = 96;     // that a thread takes
constexpr index columns_once = 64;  // likewise

struct Part {
    index update, first, last;
};

// Parts of at most `most` of what each update has; extent(update) is a range.
template <class Extent>
std::vector<Part> parts(index count, index most, Extent&& extent) {
    std::vector<Part> all;
    for (index u = 0; u < count; ++u) {
        const Range whole = extent(u);
        for (index first = whole.first; first < whole.last; first += most)
            all.push_back({u, first, std::min(first + most, whole.last)});
    }
    return all;
}

template <class Act>
void share_out(const std::vector<Part>& all, Act&& act) {
#pragma omp for schedule(dynamic)
    for (std::size_t n = 0; n < all.size(); ++n) act(all[n]);
}

float* panels_room(index size) {
    static thread_local Scratch room;
    return room.room<float>(size);
}

// inner = scale * x downT, of which the rows of x begin at the first that is multiplied.
void reduce(const Update& u, const float* x, index ldx, const float* panels, index inputs,
            index rows, float* inner) {
    const Floats scale = splat(static_cast<float>(u.scale));
    const Given given{x, ldx, panels, inputs, panel_width * inputs};
    Avx2Floats::multiply_group(panels_of(u), rows, given, {}, [&](index row, index p, Floats sum) {
        store(inner + row * u.ld + p * panel_width, sum * scale);
    });
}

void expand(const Update& u, const float* inner, const float* panels, index outputs, index rows,
            float* y, index ldy) {
    const Given given{inner, u.ld, panels, u.padded, panel_width * u.padded};
    Avx2Floats::multiply_to<true>(y, ldy, outputs / panel_width, rows, given);
}

// Whose sums take 12 of 16 registers; what is left of a multiple of sixteen is 4 or 2.
constexpr int ranks_once = 6;

// put(n, sum) for the sums over some rows of R numbers times sixteen columns.
template <int R, class Put>
[[gnu::noinline]] void gather_block(const float* inner, index ld, const float* columns, index ldc,
                                    index rows, Put&& put) {
    Floats sum[R];
    for (int n = 0; n < R; ++n) sum[n] = zeros();
    for (index row = 0; row < rows; ++row) {
        const Floats own = load(columns + row * ldc);
        for (int n = 0; n < R; ++n) sum[n] = fma(splat(inner[row * ld + n]), own, sum[n]);
    }
    for (int n = 0; n < R; ++n) put(n, sum[n]);
}

// put(rank, column, sum) for the sums over an update's rows of its inner values times columns.
template <class Put>
void gather(const Update& u, const float* inner, const float* given, index ld, Range columns,
            Put&& put) {
    for (index j = columns.first; j < columns.last; j += lanes)
        for (index rank = 0; rank < u.rank; rank += ranks_once) {
            const float *ranks = inner + u.place + rank, *own = given + u.top * ld + j;
            const index rows = u.rows(), left = u.padded - rank;
            const auto put_here = [&](int n, Floats sum) {
                if (rank + n < u.rank) put(rank + n, j, sum);
            };
            if (left >= ranks_once)
                gather_block<ranks_once>(ranks, u.ld, own, ld, rows, put_here);
            else if (left == 4)
                gather_block<4>(ranks, u.ld, own, ld, rows, put_here);
            else
                gather_block<2>(ranks, u.ld, own, ld, rows, put_here);
        }
}

}  // namespace

// Adds to y (rows, ldy) what updates make of x (rows, inputs), and keeps their inner values.
GW_API void gw_updates_forward_avx2(const Update* updates, index count, const float* x, index ldx,
                                    index inputs, float* inner, float* y, index ldy) {
    const auto all = parts(count, rows_once,
                           [&](index u) { return Range{updates[u].top, updates[u].bottom}; });
#pragma omp parallel
    share_out(all, [&](const Part& part) {
        const Update& u = updates[part.update];
        const index rows = part.last - part.first;
        float* own = inner_at(u, inner, part.first);
        float* panels = panels_room(std::max(u.padded * inputs, u.outputs() * u.padded));
        pack_along(u.down, inputs, u.rank, inputs, inputs, panel_width * inputs, panels);
        reduce(u, x + part.first * ldx, ldx, panels, inputs, rows, own);
        pack_along(u.up, u.rank, u.outputs(), u.rank, u.padded, panel_width * u.padded, panels);
        expand(u, own, panels, u.outputs(), rows, y + part.first * ldy + u.left, ldy);
    });
}

// Adds to dx (rows, inputs), or to none, and gives the gradients of matrices that want one;
// `pulled` is room for those of inner values.
GW_API void gw_updates_backward_avx2(const Update* updates, index count, const float* x, index ldx,
                                     index inputs, const float* dy, index ldy, const float* inner,
                                     float* pulled, float* dx) {
    // Updates of the same rows, which are one after another, are added by the same thread.
    const auto rows = parts(count, rows_once, [&](index u) {
        const bool follows = u && updates[u - 1].top == updates[u].top;
        return follows ? Range{} : Range{updates[u].top, updates[u].bottom};
    });
    const auto downs = parts(count, columns_once, [&](index u) {
        return Range{0, updates[u].grad_down ? inputs : 0};
    });
    const auto ups = parts(count, columns_once, [&](index u) {
        return Range{updates[u].left, updates[u].grad_up ? updates[u].right : updates[u].left};
    });
#pragma omp parallel
    {
        share_out(rows, [&](const Part& part) {
            const index top = updates[part.update].top, height = part.last - part.first;
            for (index n = part.update; n < count && updates[n].top == top; ++n) {
                const Update& u = updates[n];
                float* own = inner_at(u, pulled, part.first);
                float* panels = panels_room(std::max(u.padded * u.outputs(), inputs * u.padded));
                pack_across(u.up, u.rank, u.rank, u.outputs(), u.outputs(),
                            panel_width * u.outputs(), panels);
                reduce(u, dy + part.first * ldy + u.left, ldy, panels, u.outputs(), height, own);
                if (!dx) continue;
                pack_across(u.down, inputs, inputs, u.rank, u.padded, panel_width * u.padded,
                            panels);
                expand(u, own, panels, inputs, height, dx + part.first * inputs, inputs);
            }
        });
        share_out(downs, [&](const Part& part) {
            const Update& u = updates[part.update];
            gather(u, pulled, x, ldx, {part.first, part.last},
                   [&](index rank, index column, Floats sum) {
                       store(u.grad_down + rank * inputs + column, sum);
                   });
        });
        share_out(ups, [&](const Part& part) {
            const Update& u = updates[part.update];
            gather(u, inner, dy, ldy, {part.first, part.last},
                   [&](index rank, index column, Floats sum) {
                       alignas(32) float values[lanes];
                       store(values, sum);
                       for (index n = 0; n < lanes; ++n)
                           u.grad_up[(column - u.left + n) * u.rank + rank] = values[n];
                   });
        });
    }
}
