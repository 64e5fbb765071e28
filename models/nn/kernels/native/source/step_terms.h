// What each row's adapter adds to a piece of a product.
#pragma once

#include <utility>

#include "step_linear.h"

#ifdef __AVX512BF16__
#include "step_term_tiles.h"
#else
namespace gw::stepping {
struct TermTiles {};  // nobody has tiles
}  // namespace gw::stepping
#endif

namespace gw::stepping {

// The low-rank inputs of one site: inner (rows, ld) = scale * (x down^T), for the rows of groups.
struct Inner {
    bf16* values;
    index ld;
};

// A thread has about as many panels as any other, whatever adapters there are.
// `site_of(adapter)` names the `Down`; the threads must meet afterwards.
template <class Isa, class SiteOf>
void compute_inner(int thread, int threads, const Group* groups, index count, const bf16* x,
                   index inputs, Inner inner, SiteOf&& site_of) {
    static thread_local Piece<Isa> sums;
    typename Isa::Shaped shaped;
    index all = 0;  // panels, each as often as it is read
    for (index g = 0; g < count; ++g) {
        const index rows = groups[g].last - groups[g].first;
        const index blocks = (rows + block_rows<Isa> - 1) / block_rows<Isa>;
        all += blocks * (site_of(*groups[g].adapter).ranks / panel_width);
    }
    const Range own = share(all, thread, threads);
    index next = 0;
    for (index g = 0; g < count; ++g) {
        const Down& down = site_of(*groups[g].adapter);
        const Weight weight{{down.packed, nullptr, 0, 0}, nullptr, down.ranks, inputs, 1};
        for (index top = groups[g].first; top < groups[g].last; top += block_rows<Isa>)
            for (index p = 0; p < down.ranks / panel_width; p += Isa::piece_panels) {
                const index last = std::min<index>(p + Isa::piece_panels, down.ranks / panel_width);
                const index here = std::exchange(next, next + last - p);
                if (here < own.first || here >= own.last) continue;
                const index rows = std::min(block_rows<Isa>, groups[g].last - top);
                const Factor factor{x + top * inputs, rows, {p, last}, sums.at(0, 0)};
                multiply_weight<Isa, false>(shaped, weight, factor, Nothing{}, Nothing{});
                for (index r = 0; r < rows; ++r)
                    for (index q = p; q < last; ++q) {
                        const index column = q * panel_width;
                        store_bf16(inner.values + (top + r) * inner.ld + column,
                                   sums.load(r, q - p) * load(down.scales + column));
                    }
            }
    }
}

// Panels of a piece, every one or every other, whose outputs at a place follow on one another.
struct Chain {
    index panel, stride, count;
    Output output;  // of its first panel

    index at(index which) const { return panel + which * stride; }
};

// All chains of some panels.
struct Chains {
    Chain all[most_panels];
    index count = 0;

    const Chain* begin() const { return all; }
    const Chain* end() const { return all + count; }

    Chains() = default;
    template <class OutputOf>
    Chains(Range panels, const OutputOf& output_of) {
        Output outputs[most_panels];
        const index width = panels.last - panels.first;
        for (index p = 0; p < width; ++p) outputs[p] = output_of(panels.first + p);
        const auto follows = [&](index p, index q) {
            return q < width && outputs[p].place == outputs[q].place &&
                   outputs[p].first + panel_width == outputs[q].first;
        };
        bool taken[most_panels] = {};
        for (index p = 0; p < width; ++p) {
            if (taken[p]) continue;
            Chain& chain = all[count++] = {p, follows(p, p + 1) ? 1 : 2, 1, outputs[p]};
            for (; follows(chain.at(chain.count - 1), chain.at(chain.count)); ++chain.count)
                taken[chain.at(chain.count)] = true;
        }
    }
};

// Applies an adapter's terms to a chain of panels of a piece, from row `skipped` on, for some of
// its rows, which read x; low-rank ones may have been `summed` with the base's product.
template <class Piece>
void apply_term(Piece& piece, const Chain& chain, index skipped, Range own,
                       const Place& term, Rows x, Inner inner, bool summed) {
    const index count = own.last - own.first, first = chain.output.first;
    const auto at = [&](index r, index q) { return piece.at(skipped + r, chain.at(q)); };
    if (term.weight)
        multiply_piece<Vectors>(x.at(own.first), x.size, count, term.weight + first * x.size,
                                x.size, chain.count,
                                [&](index r, index q, Floats sum) { store(at(r, q), sum); });
    if (term.rank && !summed) {
        const bool adjacent = term.stride == panel_width * term.rank;
        const index together = adjacent ? chain.count : 1;
        for (index q = 0; q < chain.count; q += together)
            multiply_piece<Vectors>(
                inner.values + own.first * inner.ld + term.first, inner.ld, count,
                term.panel(first + q * panel_width), term.rank, together,
                [&](index r, index p, Floats sum) {
                    store(at(r, q + p), load(at(r, q + p)) + sum);
                });
    }
    if (!term.output_scale && !term.bias) return;
    for (index q = 0; q < chain.count; ++q) {
        const index n = first + q * panel_width;
        const Floats scale = term.output_scale ? load(term.output_scale + n) : splat(1.0f);
        const Floats bias = term.bias ? load(term.bias + n) : zeros();
        for (index r = 0; r < count; ++r) store(at(r, q), fma(load(at(r, q)), scale, bias));
    }
}

// What the adapters of a product's rows add to it; `place_of(adapter, place)` names what one has.
template <class PlaceOf>
struct Terms {
    const Group* groups;
    index count;
    bool replace;  // whether any has a weight of its own in the base's place
    Inner inner;
    PlaceOf place_of;
    bool tiles = false;  // whether low-rank terms are summed by tiles
    bool apart = true;   // whether there are others than those

    // Looks what there is at the places of a product.
    void look(Range places) {
        bool any = apart = false;
        for (index g = 0; g < count; ++g)
            for (index place = places.first; place < places.last; ++place) {
                const Place& term = place_of(*groups[g].adapter, place);
                any |= term.rank > 0;
                apart |= term.weight || term.output_scale || term.bias ||
                         (term.rank && !is_for_tiles(term));
            }
        if (!any && !apart) count = 0;
    }

    bool is_for_tiles(const Place& term) const { return tiles && term.rank && !term.weight; }

    // Of the groups that have rows in a block alone.
    Terms within(Range block) const {
        const auto ends = [&](const Group& group) { return group.last <= block.first; };
        const auto begins = [&](const Group& group) { return group.first < block.last; };
        const Group* first = std::partition_point(groups, groups + count, ends);
        const index here = std::partition_point(first, groups + count, begins) - first;
        return {first, here, replace, inner, place_of, tiles, apart};
    }

#ifdef __AVX512BF16__
    // Lays out the low-rank inputs of all blocks of rows for tiles, at the places of a product.
    void lay_out(TermTiles& laid_out, index rows, index block_rows, Range places) const {
        laid_out.clear(places);
        for (index top = 0; top < rows; top += block_rows) {
            const Range block{top, std::min(rows, top + block_rows)};
            const Terms own = within(block);
            for (index g = 0; g < own.count; ++g) {
                const Group& group = own.groups[g];
                const Range its = common(block, {group.first, group.last});
                for (index place = places.first; place < places.last; ++place) {
                    const Place& term = place_of(*group.adapter, place);
                    if (is_for_tiles(term))
                        laid_out.add(term, inner.values + its.first * inner.ld + term.first,
                                     inner.ld, its.first - block.first, its.last - its.first);
                    else
                        laid_out.skip();
                }
            }
            laid_out.end_block();
        }
    }
#endif

    // Adds what all groups need for some panels to what is fetched.
    template <class Fetching>
    void fetch(Fetching& ahead, const Chains& chains) const {
        for (index g = 0; g < count; ++g)
            for (const Chain& chain : chains) {
                const Place& term = place_of(*groups[g].adapter, chain.output.place);
                ahead.add(term.panel(chain.output.first), 2 * chain.count * term.stride);
            }
    }

    // Applies them to some rows of a piece, which has a block of rows.
    template <class Piece, class RowsOf>
    void apply(Piece& piece, Range block, Range now, const Chains& chains, RowsOf&& rows_of) const {
        for (index g = 0; g < count; ++g) {
            const Range own = common(now, {groups[g].first, groups[g].last});
            if (own.first >= own.last) continue;
            for (const Chain& chain : chains) {
                const Place& term = place_of(*groups[g].adapter, chain.output.place);
                apply_term(piece, chain, own.first - block.first, own, term,
                           rows_of(chain.output.place), inner, is_for_tiles(term));
            }
        }
    }
};

}  // namespace gw::stepping
