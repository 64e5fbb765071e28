// A linear layer in float32 with low-rank updates in rectangles of rows and outputs, and its
// gradients, for AVX2 alone.
//
// The base's product is rounded or not; updates are in float32, and added to a part of it while
// that is in a cache. Every sum is one chain in order, so that a row's bits depend on nothing but
// the row, and a gradient's on nothing but its update.
#include <omp.h>

#include <span>
#include <vector>

#include "attempt.h"
#include "blocks_float.h"
#include "multiply_rounded.h"
#include "pack_float.h"
#include "scratch.h"
#include "update.h"

using namespace gw;

namespace {

using Update = UpdateOf<float>;
using Updates = std::span<const Update>;
using Given = Avx2Floats::Given;

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
std::vector<Part> parts(Updates updates, index most, Extent&& extent) {
    std::vector<Part> all;
    for (std::size_t u = 0; u < updates.size(); ++u) {
        const Range whole = extent(updates[u]);
        for (index first = whole.first; first < whole.last; first += most)
            all.push_back({static_cast<index>(u), first, std::min(first + most, whole.last)});
    }
    return all;
}

// Among the threads of a team, which do not wait for each other at the end.
template <class Act>
void share_out(const std::vector<Part>& all, Act&& act) {
#pragma omp for schedule(dynamic) nowait
    for (std::size_t n = 0; n < all.size(); ++n) act(all[n]);
}

// What updates add to a product, once their inner values are there: these times a matrix each. The
// matrices lie in room of the thread that calls, for one product at a time.
class Terms {
   public:
    // columns(update) are those of the product, a multiple of 16.
    template <class Columns>
    Terms(Updates updates, float* inner, Columns&& columns) {
        index size = 0;
        for (const Update& u : updates) {
            all_.push_back({{u.top, u.bottom}, columns(u), inner + u.place, u.ld, u.padded, size});
            size += all_.back().columns.count() * u.padded;
        }
        static thread_local Scratch room;
        panels_ = room.room<float>(size);
    }

    // Where the panels of the matrix of an update are to lie.
    float* panels(index update) const { return panels_ + all_[update].place; }

    // Adds to some rows and columns of y.
    void add(Range rows, Range columns, float* y, index ld) const {
        for (const Term& term : all_) {
            const Range own = common(rows, term.rows), part = common(columns, term.columns);
            if (own.first >= own.last || part.first >= part.last) continue;
            const index before = (part.first - term.columns.first) * term.padded;
            const Given given{term.inner + (own.first - term.rows.first) * term.ld, term.ld,
                              panels_ + term.place + before, term.padded,
                              panel_width * term.padded};
            Avx2Floats::multiply_to<true>(y + own.first * ld + part.first, ld,
                                          part.count() / panel_width, own.count(), given);
        }
    }

   private:
    struct Term {
        Range rows, columns;
        const float* inner;
        index ld, padded;
        index place;  // of its panels
    };

    std::vector<Term> all_;
    float* panels_;
};

// y = x WT + bias + what updates add.
void multiply_and_add(bool rounds, const RowsOf<float>& x, const FloatWeight& w,
                      const Terms& terms, float* y) {
    const auto end = [&](Range rows, Range columns) { terms.add(rows, columns, y, w.outputs); };
    if (rounds)
        multiply_rounded(x, w, y, end);
    else
        multiply(x, w, y, end);
}

// inner = scale * x matrixT, of which the rows of x begin at the first that is multiplied; the
// matrix (rank, inputs) is what pack(target) lays out in panels.
template <class Pack>
void reduce(const Update& u, const float* x, index ldx, index inputs, index rows, float* inner,
            Pack&& pack) {
    static thread_local Scratch room;
    float* panels = room.room<float>(u.padded * inputs);
    pack(panels);
    const Floats scale = splat(static_cast<float>(u.scale));
    const Given given{x, ldx, panels, inputs, panel_width * inputs};
    Avx2Floats::multiply_group(u.padded / panel_width, rows, given, {},
                               [&](index row, index p, Floats sum) {
                                   store(inner + row * u.ld + p * panel_width, sum * scale);
                               });
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
void gather(const Update& u, const float* inner, const RowsOf<float>& given, Range columns,
            Put&& put) {
    for (index j = columns.first; j < columns.last; j += lanes)
        for (index rank = 0; rank < u.rank; rank += ranks_once) {
            const float* ranks = inner + u.place + rank;
            const float* own = given.values + u.top * given.ld + j;
            const index rows = u.rows(), left = u.padded - rank;
            const auto put_here = [&](int n, Floats sum) {
                if (rank + n < u.rank) put(rank + n, j, sum);
            };
            if (left >= ranks_once)
                gather_block<ranks_once>(ranks, u.ld, own, given.ld, rows, put_here);
            else if (left == 4)
                gather_block<4>(ranks, u.ld, own, given.ld, rows, put_here);
            else
                gather_block<2>(ranks, u.ld, own, given.ld, rows, put_here);
        }
}

// Packs a matrix of every update by pack(update, target) and reduces rows by reduce_rows(update,
// rows), all threads together.
template <class Pack, class ReduceRows>
void prepare(Updates updates, const Terms& terms, Pack&& pack, ReduceRows&& reduce_rows) {
    const auto rows = parts(updates, rows_once,
                            [](const Update& u) { return Range{u.top, u.bottom}; });
#pragma omp parallel
    {
#pragma omp for schedule(dynamic) nowait
        for (std::size_t u = 0; u < updates.size(); ++u) pack(updates[u], terms.panels(u));
        share_out(rows, [&](const Part& part) {
            reduce_rows(updates[part.update], Range{part.first, part.last});
        });
    }
}

// The gradients of the matrices that want one.
void give_gradients(Updates updates, const float* inner, const float* pulled,
                    const RowsOf<float>& x, const RowsOf<float>& dy, index inputs) {
    const auto downs = parts(updates, columns_once, [&](const Update& u) {
        return Range{0, u.grad_down ? inputs : 0};
    });
    const auto ups = parts(updates, columns_once, [&](const Update& u) {
        return Range{u.left, u.grad_up ? u.right : u.left};
    });
#pragma omp parallel
    {
        share_out(downs, [&](const Part& part) {
            const Update& u = updates[part.update];
            gather(u, pulled, x, {part.first, part.last},
                   [&](index rank, index column, Floats sum) {
                       store(u.grad_down + rank * inputs + column, sum);
                   });
        });
        share_out(ups, [&](const Part& part) {
            const Update& u = updates[part.update];
            gather(u, inner, dy, {part.first, part.last},
                   [&](index rank, index column, Floats sum) {
                       alignas(32) float values[lanes];
                       store(values, sum);
                       for (index n = 0; n < lanes; ++n)
                           u.grad_up[(column - u.left + n) * u.rank + rank] = values[n];
                   });
        });
    }
}

}  // namespace

// y (rows, outputs) = x WT + bias + updates, whose inner values are kept.
GW_API void gw_project_floats_forward_avx2(index rounds, const float* weight, index ld,
                                           index outputs, index inputs, const float* bias,
                                           const Update* given, index count, const float* x,
                                           index ldx, index rows, float* inner, float* y) {
    attempt([&] {
        const Updates updates(given, count);
        const Terms terms(updates, inner, [](const Update& u) { return Range{u.left, u.right}; });
        prepare(
            updates, terms,
            [&](const Update& u, float* panels) {
                pack_along(u.up, u.rank, u.outputs(), u.rank, u.padded, panel_width * u.padded,
                           panels);
            },
            [&](const Update& u, Range own) {
                reduce(u, x + own.first * ldx, ldx, inputs, own.count(),
                       inner_at(u, inner, own.first), [&](float* panels) {
                           pack_along(u.down, inputs, u.rank, inputs, inputs, panel_width * inputs,
                                      panels);
                       });
            });
        multiply_and_add(rounds, {x, ldx, rows}, {weight, ld, 1, outputs, inputs, bias}, terms, y);
    });
}

// Gives dx (rows, inputs), if it is wanted, and the gradients of matrices that want one; `pulled`
// is room for those of inner values.
GW_API void gw_project_floats_backward_avx2(index rounds, const float* weight, index ld,
                                            index outputs, index inputs, const Update* given,
                                            index count, const float* x, index ldx,
                                            const float* dy, index ldy, index rows,
                                            const float* inner, float* pulled, float* dx) {
    attempt([&] {
        const Updates updates(given, count);
        const Terms terms(updates, pulled, [&](const Update&) { return Range{0, inputs}; });
        prepare(
            updates, terms,
            [&](const Update& u, float* panels) {
                if (dx)
                    pack_across(u.down, inputs, inputs, u.rank, u.padded, panel_width * u.padded,
                                panels);
            },
            [&](const Update& u, Range own) {
                reduce(u, dy + own.first * ldy + u.left, ldy, u.outputs(), own.count(),
                       inner_at(u, pulled, own.first), [&](float* panels) {
                           pack_across(u.up, u.rank, u.rank, u.outputs(), u.outputs(),
                                       panel_width * u.outputs(), panels);
                       });
            });
        if (dx)
            multiply_and_add(rounds, {dy, ldy, rows}, {weight, 1, ld, inputs, outputs, nullptr},
                             terms, dx);
        give_gradients(updates, inner, pulled, {x, ldx, rows}, {dy, ldy, rows}, inputs);
    });
}
